"""Limits of the process that we may raise ourselves."""

from __future__ import annotations

import sys
from typing import Final

#: Descriptors that are enough for anyone; some hard limits are a thousand times higher, and macOS's is "infinite".
ENOUGH_DESCRIPTORS: Final = 1 << 20
#: What macOS accepts at most as a soft limit (OPEN_MAX).
_DARWIN_DESCRIPTORS: Final = 10_240


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns the limit that holds now, 0 where there is none."""
    if sys.platform == "win32":
        return 0
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DARWIN_DESCRIPTORS if sys.platform == "darwin" else ENOUGH_DESCRIPTORS
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft != resource.RLIM_INFINITY else ENOUGH_DESCRIPTORS
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):
        return soft
    return wanted


def most_descriptors() -> int | None:
    """How many files this process could open once it has raised its limit; None where there is no limit."""
    if sys.platform == "win32":
        return None
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard
