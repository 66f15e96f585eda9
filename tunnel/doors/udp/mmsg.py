"""Many datagrams, each with its own address, in one call: recvmmsg(2) and sendmmsg(2), through ctypes.  Linux only.

All memory that the kernel reads and writes is laid out once.  What changes from call to call is reached by columns over the
array of headers, so that a call makes no Python object for a datagram; its reader makes those that it needs.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from tunnel.doors.udp.pktinfo import Control
from tunnel.units import Buffer

NAME_SIZE: Final = 28  # bytes of a sockaddr_in6; a sockaddr_in has 16
SLOT: Final = 65_536  # bytes of a received message: more than any datagram, and any super-packet of UDP_GRO
LETTER: Final = 2_048  # bytes of a posted one; a larger one is worth a call of its own
CONTROL: Final = 128  # bytes of control messages that one can be posted with
_CMSG: Final = struct.Struct("@Nii")  # length with this header, level, type: cmsg(3)


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint32))


def _find(name: str, *more: Any) -> Callable[..., int] | None:
    try:
        found = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, *more)
    found.restype = ctypes.c_int
    call: Callable[..., int] = found
    return call


_recvmmsg = _find("recvmmsg", ctypes.c_void_p)
_sendmmsg = _find("sendmmsg")
IS_THERE: Final = _recvmmsg is not None and _sendmmsg is not None  # both calls, on this system
_WOULD_BLOCK: Final = frozenset((errno.EAGAIN, errno.EWOULDBLOCK))


class _Table:
    """`count` messages: headers, names, control messages and data, and the columns of the headers."""

    def __init__(self, count: int, name: int, data: int, control: int) -> None:
        """Bytes of each one's name, data and control messages."""
        self.names = memoryview(bytearray(count * name))
        # Pages of its own: what nothing has come into takes no memory.
        self.data = memoryview(mmap.mmap(-1, count * data, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.controls = memoryview(bytearray(count * control))
        pieces = bytearray(count * ctypes.sizeof(_Part))
        parts = (_Part * count).from_buffer(pieces)
        size = ctypes.sizeof(_Message)
        table = bytearray(count * size)
        headers = (_Message * count).from_buffer(table)
        places = [_address_of(each) for each in (self.names, self.data, self.controls)]
        for index in range(count):
            header = headers[index].header
            header.name, header.name_length = places[0] + index * name, name
            parts[index].base, parts[index].length = places[1] + index * data, data
            header.parts, header.part_count = ctypes.addressof(parts[index]), 1
            header.control, header.control_length = places[2] + index * control, control
        self.address = ctypes.addressof(headers)
        self.stride = size
        words = memoryview(table).cast("I")
        self.flags = words[_Header.flags.offset // 4 :: size // 4]
        self.lengths = words[_Message.length.offset // 4 :: size // 4]
        sizes = memoryview(table).cast("L")
        width = sizes.itemsize
        self.control_lengths = sizes[_Header.control_length.offset // width :: size // width]
        self.part_lengths = memoryview(pieces).cast("L")[_Part.length.offset // width :: ctypes.sizeof(_Part) // width]


def _address_of(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Inbox:
    """Receives up to `count` messages in one call.  The columns say of each what came; `data` is cut every SLOT bytes."""

    def __init__(self, count: int, name: int, control: int) -> None:
        """Bytes of a name of this family, and of the control messages that the socket was asked for."""
        self._table = _Table(count, name, SLOT, control)
        self._fresh = memoryview(self._table.control_lengths.tobytes()).cast("L")
        self.data = self._table.data
        self.names = self._table.names  # cut every `name` bytes
        self.controls = self._table.controls  # cut every `control` bytes
        self.lengths = self._table.lengths
        self.flags = self._table.flags
        self.control_lengths = self._table.control_lengths
        self._used = 0

    def receive(self, descriptor: int, most: int) -> int:
        """How many came, of `most` that were wanted; 0 where none has.  Raises OSError."""
        assert _recvmmsg is not None
        if self._used:  # the kernel has written there how much it used
            self.control_lengths[: self._used] = self._fresh[: self._used]
        count = _recvmmsg(descriptor, self._table.address, most, 0, None)
        self._used = max(0, count)
        if count >= 0:
            return count
        reason = ctypes.get_errno()
        if reason in _WOULD_BLOCK:
            return 0
        raise OSError(reason, os.strerror(reason))


class Post:
    """Up to `count` datagrams of at most LETTER bytes that leave in one call, each to its own address."""

    def __init__(self, count: int, name: int) -> None:
        self._table = _Table(count, name, LETTER, CONTROL)
        self._data, self._names = self._table.data, self._table.names
        self._name_places = [slice(at, at + name) for at in range(0, count * name, name)]
        self._controls = [b""] * count  # that stand in the table
        self._table.control_lengths[:] = memoryview(bytes(self._table.control_lengths.nbytes)).cast("L")
        self._part_lengths = self._table.part_lengths
        self.count = 0

    def put(self, name: bytes, data: Buffer, control: bytes = b"") -> None:
        """One more; the caller has looked at `count` and at the length.  `data` is copied."""
        index = self.count
        start, size = index * LETTER, len(data)
        self._data[start : start + size] = data
        self._part_lengths[index] = size
        self._names[self._name_places[index]] = name
        if control is not self._controls[index]:
            self._controls[index] = control
            start, table = index * CONTROL, self._table
            table.controls[start : start + len(control)] = control
            table.control_lengths[index] = len(control)
        self.count = index + 1

    def datagram(self, index: int) -> memoryview:
        start = index * LETTER
        return self._table.data[start : start + self._part_lengths[index]]

    def size(self, first: int, count: int) -> int:
        """Bytes of so many of them."""
        return sum(self._part_lengths[first : first + count].tolist())

    def send(self, descriptor: int, first: int) -> int:
        """How many left, of those from `first` on.  Raises OSError (BlockingIOError among them) when that one cannot."""
        assert _sendmmsg is not None
        count = _sendmmsg(descriptor, self._table.address + first * self._table.stride, self.count - first, 0)
        if count < 0:
            reason = ctypes.get_errno()
            raise OSError(reason, os.strerror(reason))
        return count


def read_control(told: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The control messages of one received datagram: level, type, content."""
    at = 0
    while at + _CMSG.size <= len(told):
        length, level, kind = _CMSG.unpack_from(told, at)
        if length < _CMSG.size:
            return
        yield level, kind, told[at + _CMSG.size : at + length]
        at += _aligned(length)


def write_control(control: Control) -> bytes:
    """A tuple as sendmsg takes it, as the kernel reads it."""
    parts = (_CMSG.pack(_CMSG.size + len(data), level, kind) + data for level, kind, data in control)
    return b"".join(part.ljust(_aligned(len(part)), b"\0") for part in parts)


def _aligned(length: int) -> int:
    """CMSG_ALIGN."""
    word = ctypes.sizeof(ctypes.c_size_t)
    return -(-length // word) * word
