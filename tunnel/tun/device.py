"""The kernel's TAP device: one frame a read, one a write, super-packets where the kernel has them.

Source: Documentation/networking/tuntap.rst, linux/if_tun.h, linux/virtio_net.h.  Why a TAP without ARP: docs/decisions/lan.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import Final

import trio

from tunnel.errors import ConfigurationError
from tunnel.tun.tap import (
    OFFLOAD_CSUM,
    OFFLOAD_TSO4,
    OFFLOAD_TSO6,
    OFFLOAD_USO4,
    OFFLOAD_USO6,
    VIRTIO_SIZE,
    Pieces,
    TapCounters,
)

DEVICE_FILE: Final = "/dev/net/tun"
MAX_NAME: Final = 15  # bytes of an interface's name (IFNAMSIZ less the final zero)

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFREQ: Final = struct.Struct("=16sH22x")

#: Asked in falling order.  TSO needs CSUM, and USO4 and USO6 go together only (Linux 6.2).  TSO_ECN is not asked for: a
#: super-packet with CWR set is then cut by the kernel, so that whoever cuts here need not know on which segment CWR belongs.
OFFLOADS: Final = (
    OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_USO4 | OFFLOAD_USO6,
    OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6,
    OFFLOAD_CSUM,
    0,
)

#: Not the frame's fault but the descriptor's: the interface was deleted, or we closed it.
_GONE: Final = frozenset((errno.EBADFD, errno.EBADF, errno.ENODEV))

NO_PRIVILEGE: Final = (
    "A LAN interface on this machine needs privilege: run it with sudo, or give the interpreter that runs ptunnel the capability "
    "(sudo setcap cap_net_admin,cap_net_raw+ep FILE), or use `ptunnel exec`, which needs none."
)


class TapDevice:
    """See Tap.  Made by open_tap or from_descriptor."""

    def __init__(self, fd: int, name: str, offloads: int) -> None:
        self.name = name
        self.offloads = offloads
        self.counters = TapCounters()
        self._fd = fd
        # Bound once: the hot path looks up nothing that does not change.
        self._readv = os.readv
        self._writev = os.writev

    def fileno(self) -> int:
        """-1 once closed."""
        return self._fd

    def read_into(self, view: memoryview) -> int:
        try:
            length = self._readv(self._fd, (view,))
        except BlockingIOError:
            return 0
        except OSError as error:
            self._raise_if_gone(error)
            self._count(error)
            return 0
        counters = self.counters
        counters.read_frames += 1
        counters.read_bytes += length
        return length

    def writev(self, pieces: Pieces) -> bool:
        try:
            length = self._writev(self._fd, pieces)
        except BlockingIOError:
            return False
        except OSError as error:
            self._raise_if_gone(error)
            self._count(error)
            return True
        counters = self.counters
        counters.written_frames += 1
        counters.written_bytes += length
        return True

    def _count(self, error: OSError) -> None:
        self.counters.errors[errno.errorcode.get(error.errno or 0, "unknown")] += 1

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
    fd = _open_device_file()
    try:
        name = _make_interface(fd, name_hint)
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", VIRTIO_SIZE))
        return TapDevice(fd, name, _agree_on_offloads(fd))
    except BaseException:
        os.close(fd)
        raise


def from_descriptor(fd: int, name: str | None = None) -> TapDevice:
    """Take over the descriptor of a TAP that another process made as open_tap does; it is ours to close from here on.

    Raises ConfigurationError when it is not one.
    """
    try:
        answer = fcntl.ioctl(fd, _TUNGETIFF, _IFREQ.pack(b"", 0))
        raw_name, flags = _IFREQ.unpack(answer)
        wanted = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        if flags & wanted != wanted:
            raise ConfigurationError(f"Descriptor {fd} is a tunnel of another kind: a TAP with virtio-net headers is needed.")
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        return TapDevice(fd, name or raw_name.rstrip(b"\0").decode(), _agree_on_offloads(fd))
    except OSError as error:
        raise ConfigurationError(f"Descriptor {fd} is no TAP interface: {os.strerror(error.errno or 0)}.") from error


def _open_device_file() -> int:
    try:
        return os.open(DEVICE_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                sentence = (
                    f"This machine has no {DEVICE_FILE}: load the module (sudo modprobe tun), or give the container the device."
                )
            case errno.EACCES | errno.EPERM:
                sentence = f"You may not open {DEVICE_FILE}: run it with sudo, or ask for read and write access to that file."
            case _:
                sentence = f"Cannot open {DEVICE_FILE}: {os.strerror(error.errno or 0)}."
        raise ConfigurationError(sentence) from error


def _make_interface(fd: int, hint: str) -> str:
    """Give the descriptor an interface and return its name."""
    candidates = [hint] if "%d" in hint else [hint, f"{hint[: MAX_NAME - 3]}%d"]
    for wanted in candidates:
        encoded = wanted.encode()
        if not 0 < len(encoded) <= MAX_NAME:
            raise ConfigurationError(f"{wanted!r} cannot name an interface: use at most {MAX_NAME} letters.")
        try:
            answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        except OSError as error:
            match error.errno:
                case errno.EBUSY | errno.EEXIST if wanted is not candidates[-1]:
                    continue  # some interface has that name
                case errno.EPERM | errno.EACCES:
                    raise ConfigurationError(NO_PRIVILEGE) from error
                case _:
                    raise ConfigurationError(
                        f"The kernel makes no interface {wanted!r}: {os.strerror(error.errno or 0)}."
                    ) from error
        return bytes(_IFREQ.unpack(answer)[0]).rstrip(b"\0").decode()
    raise AssertionError("unreachable: the last candidate returns or raises")


def _agree_on_offloads(fd: int) -> int:
    for offloads in OFFLOADS:
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
        except OSError:
            continue
        return offloads
    return 0
