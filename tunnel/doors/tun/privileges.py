"""Capabilities of this process: what it has, what a child shall inherit, and how all of it is given up.

Source: capabilities(7), capset(2), prctl(2).  Capabilities belong to a thread, not to the process: see drop_privileges.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# linux/capability.h
CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
LAST_CAPABILITY: Final = 63  # of what two 32-bit words can say; the kernel refuses those it does not know
_VERSION_3: Final = 0x2008_0522
_HEADER: Final = struct.Struct("=Ii")
_SETS: Final = struct.Struct("=6I")  # effective, permitted, inheritable: low words, then high words
# linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> bool:
    padded = [ctypes.c_ulong(number) for number in (*arguments, 0, 0, 0, 0)][:4]
    return int(_libc.prctl(option, *padded)) == 0


def _get() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of this thread, as bit masks."""
    sets = ctypes.create_string_buffer(_SETS.size)
    if _libc.capget(ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0)), sets) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    low_e, low_p, low_i, high_e, high_p, high_i = _SETS.unpack(sets.raw)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32


def _set(effective: int, permitted: int, inheritable: int) -> None:
    masks = (effective, permitted, inheritable)
    sets = _SETS.pack(*(mask & 0xFFFF_FFFF for mask in masks), *(mask >> 32 for mask in masks))
    if _libc.capset(ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0)), sets) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def has_capability(capability: int) -> bool:
    """Whether this thread may use it now."""
    return bool(_get()[0] >> capability & 1)


@contextlib.contextmanager
def inherited(capability: int) -> Iterator[None]:
    """Within the block a program that is started keeps `capability`, whoever runs it (the ambient set).

    So it does not matter whether ours came from root, from `setcap` on another file or from a service manager.
    """
    effective, permitted, inheritable = _get()
    with contextlib.suppress(OSError):
        _set(effective, permitted, inheritable | 1 << capability)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
    try:
        yield
    finally:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        with contextlib.suppress(OSError):
            _set(effective, permitted, inheritable)


def keep_only(*capabilities: int, bounding: bool = True) -> None:
    """Give up every other capability, for this thread and what it starts, so that none comes back through a program's file.

    Those of `capabilities` that this thread lacks are not gained.  Other threads keep theirs.
    Without `bounding` no_new_privs alone sees to that: a program whose file asks for a capability (`ping`) then runs without it,
    while one outside the bounding set would not run at all.
    """
    mask = sum(1 << capability for capability in capabilities)
    _, permitted, _ = _get()
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(LAST_CAPABILITY + 1):
        if bounding and not mask >> capability & 1:
            _prctl(_PR_CAPBSET_DROP, capability)  # needs CAP_SETPCAP; without it no_new_privs does the same
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _set(permitted & mask, permitted & mask, 0)


def drop_privileges(*, bounding: bool = True) -> None:
    """Give up all capabilities of this thread for good: effective, permitted, inheritable, ambient and bounding; no_new_privs.

    What remains: the user.  A root process is still uid 0, so it opens, writes and owns root's files (its PTUNNEL_HOME among
    them) and whoever takes it over may so plant something that another root process runs later; it can no longer configure
    networks, open raw sockets, load modules, trace or signal other users' processes, mount, or read files that root has no
    permission for (CAP_DAC_OVERRIDE is gone).  Descriptors opened before go on working: TAP, packet sockets.
    Other threads keep what they have: call this before any is started, or process.drop_privileges_everywhere.
    """
    keep_only(bounding=bounding)


def privileged_threads() -> list[int]:
    """Threads of this process that have a capability."""
    found = []
    for folder in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, ValueError):
            for line in (folder / "status").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("CapPrm:") and int(line.split()[1], 16):
                    found.append(int(folder.name))
    return sorted(found)


def hide_memory() -> None:
    """Have no other process of the same user read or trace this one (PR_SET_DUMPABLE)."""
    _prctl(_PR_SET_DUMPABLE, 0)
