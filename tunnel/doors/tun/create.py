"""Making a TAP interface and asking what a descriptor is: system calls alone, for the children that must stay small as well.

Source: Documentation/networking/tuntap.rst, linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from tunnel.doors.tun.tap import OFFLOAD_CSUM, OFFLOAD_TSO4, OFFLOAD_TSO6, OFFLOAD_USO4, OFFLOAD_USO6, VIRTIO_SIZE
from tunnel.errors import ConfigurationError

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
_WANTED: Final = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
_IFREQ: Final = struct.Struct("=16sH22x")

#: Asked in falling order.  TSO needs CSUM, and USO4 and USO6 go together only (Linux 6.2).  TSO_ECN is not asked for: a
#: super-packet with CWR set is then cut by the kernel, so that whoever cuts here need not know on which segment CWR belongs.
OFFLOADS: Final = (
    OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_USO4 | OFFLOAD_USO6,
    OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6,
    OFFLOAD_CSUM,
    0,
)

NO_PRIVILEGE: Final = (
    "A LAN interface on this machine needs privilege: run it with sudo, or use 'ptunnel exec', which needs none."
)


def create_tap(name_hint: str) -> tuple[int, str]:
    """(descriptor, name) of a new TAP interface, still down and without an address; the descriptor does not block.

    `name_hint` is taken as it is if it holds a %d (the kernel counts up) or is free, else a number is put behind it.
    Raises ConfigurationError with a sentence: no /dev/net/tun, no privilege, no such name.
    """
    fd = _open_device_file()
    try:
        name = _make_interface(fd, name_hint)
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", VIRTIO_SIZE))
        return fd, name
    except BaseException:
        os.close(fd)
        raise


def check_tap(fd: int) -> str:
    """The name of the interface behind a descriptor.  Raises ConfigurationError when it is no TAP as create_tap makes it."""
    try:
        raw_name, flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, _IFREQ.pack(b"", 0)))
    except OSError as error:
        raise ConfigurationError(f"Descriptor {fd} is no TAP interface: {os.strerror(error.errno or 0)}.") from error
    if flags & _WANTED != _WANTED:
        raise ConfigurationError(f"Descriptor {fd} is a tunnel of another kind: a TAP with virtio-net headers is needed.")
    return bytes(raw_name).rstrip(b"\0").decode()


def agree_on_offloads(fd: int) -> int:
    """Ask the kernel for as many of OFFLOADS as it has; what it agreed to."""
    for offloads in OFFLOADS:
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
        except OSError:
            continue
        return offloads
    return 0


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
                sentence = f"You may not open {DEVICE_FILE}: run it with sudo, or allow it (sudo chmod 666 {DEVICE_FILE})."
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
            answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, _WANTED))
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
