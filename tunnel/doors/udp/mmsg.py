"""Many datagrams, each with its own address, in one call: recvmmsg(2) and sendmmsg(2), through ctypes.  Linux only.

All memory that the kernel reads and writes is laid out once.  What changes from call to call is reached by columns over the
array of headers, so that a call makes no Python object for a datagram; its reader makes those that it needs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from tunnel.doors.udp import pktinfo
from tunnel.doors.udp.addresses import SockAddr
from tunnel.doors.udp.base import WOULD_BLOCK
from tunnel.doors.udp.pktinfo import Control
from tunnel.units import Buffer

NAME4: Final = struct.Struct("=H2s4s8x")  # sockaddr_in: family, port, address
NAME6: Final = struct.Struct("=H2sI16sI")  # sockaddr_in6: family, port, flow, address, scope
SOL_UDP: Final = 17  # linux/udp.h
#: Where the traffic class stands, be it one byte (IPv4) or an int (IPv6).
LOW_BYTE: Final = 0 if sys.byteorder == "little" else -1
TRUNCATED: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # a plain int: the "&" of the enum takes a microsecond
SLOT: Final = 65_536  # bytes of a received message: more than any datagram, and any super-packet of UDP_GRO
LETTER: Final = 2_048  # bytes of a posted one; a larger one is worth a call of its own
CONTROL: Final = 128  # bytes of control messages that one can be posted with
_CMSG: Final = struct.Struct("@Nii")  # length with this header, level, type: cmsg(3)


class Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Header(ctypes.Structure):
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


class Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", Header), ("length", ctypes.c_uint32))


def _find(name: str, *more: Any) -> Callable[..., int] | None:
    try:
        found = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, *more)
    found.restype = ctypes.c_int
    call: Callable[..., int] = found
    return call


recvmmsg = _find("recvmmsg", ctypes.c_void_p)
sendmmsg = _find("sendmmsg")
IS_THERE: Final = recvmmsg is not None and sendmmsg is not None  # both calls, on this system


class _Table:
    """`count` messages: headers, names, control messages and data, and the columns of the headers."""

    def __init__(self, count: int, name: int, data: int, control: int) -> None:
        """Bytes of each one's name, data and control messages."""
        self.names = memoryview(bytearray(count * name))
        # Pages of its own: what nothing has come into takes no memory.
        self.data = memoryview(mmap.mmap(-1, count * data, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.controls = memoryview(bytearray(count * control))
        pieces = bytearray(count * ctypes.sizeof(Part))
        parts = (Part * count).from_buffer(pieces)
        size = ctypes.sizeof(Message)
        table = bytearray(count * size)
        headers = (Message * count).from_buffer(table)
        places = [address_of(each) for each in (self.names, self.data, self.controls)]
        for index in range(count):
            header = headers[index].header
            header.name, header.name_length = places[0] + index * name, name
            parts[index].base, parts[index].length = places[1] + index * data, data
            header.parts, header.part_count = ctypes.addressof(parts[index]), 1
            header.control, header.control_length = places[2] + index * control, control
        self.address = ctypes.addressof(headers)
        self.stride = size
        words = memoryview(table).cast("I")
        self.flags = words[Header.flags.offset // 4 :: size // 4]
        self.lengths = words[Message.length.offset // 4 :: size // 4]
        sizes = memoryview(table).cast("L")
        width = sizes.itemsize
        self.control_lengths = sizes[Header.control_length.offset // width :: size // width]
        self.part_lengths = memoryview(pieces).cast("L")[Part.length.offset // width :: ctypes.sizeof(Part) // width]


def address_of(memory: memoryview) -> int:
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
        assert recvmmsg is not None
        if self._used:  # the kernel has written there how much it used
            self.control_lengths[: self._used] = self._fresh[: self._used]
        count = recvmmsg(descriptor, self._table.address, most, 0, None)
        self._used = max(0, count)
        if count >= 0:
            return count
        reason = ctypes.get_errno()
        if reason in WOULD_BLOCK:
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

    def name(self, index: int) -> bytes:
        return self._names[self._name_places[index]].tobytes()

    def control(self, index: int) -> bytes:
        return self._controls[index]

    def datagram(self, index: int) -> memoryview:
        start = index * LETTER
        return self._table.data[start : start + self._part_lengths[index]]

    def size(self, first: int, count: int) -> int:
        """Bytes of so many of them."""
        return sum(self._part_lengths[first : first + count].tolist())

    def send(self, descriptor: int, first: int) -> int:
        """How many left, of those from `first` on.  Raises OSError (BlockingIOError among them) when that one cannot."""
        assert sendmmsg is not None
        count = sendmmsg(descriptor, self._table.address + first * self._table.stride, self.count - first, 0)
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


def read_told(told: bytes, local_of: Callable[[bytes], str]) -> tuple[int, int, str]:
    """Of one received message: the stride (0: one datagram), the ECN mark, and the address of ours, which `local_of` reads."""
    stride, ecn, local = 0, 0, ""
    for level, _kind, data in read_control(told):
        if level == SOL_UDP:
            stride = int.from_bytes(data, sys.byteorder)
        elif len(data) >= pktinfo.SMALLEST:
            local = local_of(data)
        else:
            ecn = data[LOW_BYTE] & 3
    return stride, ecn, local


def read_name(name: bytes) -> SockAddr:
    """The sender of one received message, as recvmsg tells it."""
    if len(name) == NAME4.size:
        _, port, packed = NAME4.unpack(name)
        return socket.inet_ntoa(packed), int.from_bytes(port, "big")
    _, port, flow, packed, scope = NAME6.unpack(name)
    return socket.inet_ntop(socket.AF_INET6, packed), int.from_bytes(port, "big"), socket.ntohl(flow), scope


def write_name(sockaddr: SockAddr, *, is_ipv6: bool) -> bytes:
    """An address that sendmsg takes, as the kernel reads it.  The host is numeric."""
    port = sockaddr[1].to_bytes(2, "big")
    if not is_ipv6:
        return NAME4.pack(socket.AF_INET, port, socket.inet_aton(sockaddr[0]))
    flow, scope = sockaddr[2:] if len(sockaddr) == 4 else (0, 0)
    return NAME6.pack(socket.AF_INET6, port, socket.htonl(flow), socket.inet_pton(socket.AF_INET6, sockaddr[0]), scope)


def write_control(control: Control) -> bytes:
    """A tuple as sendmsg takes it, as the kernel reads it."""
    parts = (_CMSG.pack(_CMSG.size + len(data), level, kind) + data for level, kind, data in control)
    return b"".join(part.ljust(_aligned(len(part)), b"\0") for part in parts)


def _aligned(length: int) -> int:
    """CMSG_ALIGN."""
    word = ctypes.sizeof(ctypes.c_size_t)
    return -(-length // word) * word
