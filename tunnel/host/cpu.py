"""Whether AES is fast here, which decides the order in which we offer ciphers."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

#: Machines that have AES instructions as good as always, where there is no /proc/cpuinfo to ask.
_USUALLY = frozenset(("x86_64", "amd64", "arm64", "aarch64"))


def has_aes() -> bool:
    """Whether the processor has instructions for AES."""
    with contextlib.suppress(OSError):
        told = aes_in(Path("/proc/cpuinfo").read_text(errors="replace"))
        if told is not None:
            return told
    return platform.machine().lower() in _USUALLY


def aes_in(cpuinfo: str) -> bool | None:
    """Return whether the first processor with a line of flags has AES; None without such a line."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() in ("flags", "features"):
            return "aes" in value.split()
    return None
