"""The kernel's TAP device: one frame a read, one a write, super-packets where the kernel has them.

Source: Documentation/networking/tuntap.rst, linux/if_tun.h, linux/virtio_net.h.  Why a TAP without ARP: docs/decisions/lan.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from typing import Final

import trio

from tunnel.doors.tun.create import agree_on_offloads, check_tap, create_tap
from tunnel.doors.tun.tap import Pieces

#: Not the frame's fault but the descriptor's: the interface was deleted, or we closed it.
_GONE: Final = frozenset((errno.EBADFD, errno.EBADF, errno.ENODEV))


class TapDevice:
    """One TAP interface by its descriptor.  Made by open_tap or from_descriptor.

    It goes away, with its addresses and routes, when the descriptor is closed.  `offloads`: those that the kernel agreed to;
    with 0 every frame read is whole, checksummed and no longer than the MTU.  `errors`: what failed how often, by name.
    """

    def __init__(self, fd: int, name: str, offloads: int) -> None:
        self.name = name
        self.offloads = offloads
        self.errors: Counter[str] = Counter()
        self._fd = fd
        # Bound once: the hot path looks up nothing that does not change.
        self._readv = os.readv
        self._writev = os.writev

    def fileno(self) -> int:
        """-1 once closed."""
        return self._fd

    def read_into(self, view: memoryview) -> int:
        """Read one frame that the host sends; its length in bytes, or 0 when there is none now: then wait_readable.

        Raises trio.ClosedResourceError after close, trio.BrokenResourceError when the interface is gone.
        """
        try:
            return self._readv(self._fd, (view,))
        except BlockingIOError:
            return 0
        except OSError as error:
            self._raise_if_gone(error)
            self._count(error)
            return 0

    def writev(self, pieces: Pieces) -> bool:
        """Hand the host one frame, given in pieces.  False: would block; wait_writable, then call again.

        True: taken, or refused by the kernel for what it is (EINVAL, EIO ...) and counted.  Raises as read_into does.
        """
        try:
            self._writev(self._fd, pieces)
        except BlockingIOError:
            return False
        except OSError as error:
            self._raise_if_gone(error)
            self._count(error)
        return True

    def _count(self, error: OSError) -> None:
        self.errors[errno.errorcode.get(error.errno or 0, "unknown")] += 1

    def _raise_if_gone(self, error: OSError) -> None:
        if self._fd < 0:
            raise trio.ClosedResourceError("the interface was closed") from None
        if error.errno in _GONE:
            raise trio.BrokenResourceError(f"the interface {self.name} was removed") from error

    async def wait_readable(self) -> None:
        self._raise_if_closed()
        await trio.lowlevel.wait_readable(self._fd)

    async def wait_writable(self) -> None:
        self._raise_if_closed()
        await trio.lowlevel.wait_writable(self._fd)

    def _raise_if_closed(self) -> None:
        if self._fd < 0:
            raise trio.ClosedResourceError("the interface was closed")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(RuntimeError):  # not inside trio: then nobody waits
            trio.lowlevel.notify_closing(fd)
        os.close(fd)


def open_tap(name_hint: str = "ptunnel%d") -> TapDevice:
    """Make a TAP interface, still down and without an address; its descriptor is non-blocking and not inherited.

    `name_hint` is taken as it is if it holds a %d (the kernel counts up) or is free, else a number is put behind it.
    Raises ConfigurationError with a sentence: no /dev/net/tun, no privilege, no such name.
    """
    fd, name = create_tap(name_hint)
    return TapDevice(fd, name, agree_on_offloads(fd))


def from_descriptor(fd: int, name: str | None = None) -> TapDevice:
    """Take over the descriptor of a TAP that another process made with create_tap; it is ours to close from here on.

    Raises ConfigurationError when it is not one; then it is still the caller's.
    """
    found = check_tap(fd)
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    return TapDevice(fd, name or found, agree_on_offloads(fd))
