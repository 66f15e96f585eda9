"""Datagrams of one socket that the kernel neither joins nor cuts, many in one call: recvmmsg(2) and sendmmsg(2).  Linux only.

A run lies in one buffer, datagram behind datagram, as UDP_GRO and UDP_SEGMENT have it.  The kernel puts there what comes: each
datagram into a slot of the size that those before it had; what is longer goes on in a spill of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array
from typing import Final

from tunnel.doors.udp.base import WOULD_BLOCK
from tunnel.doors.udp.mmsg import IS_THERE, NAME4, NAME6, Header, Message, Part, address_of, recvmmsg, sendmmsg

__all__ = ["IS_THERE", "RunInbox", "RunPost", "recvmmsg", "sendmmsg"]

SPILL: Final = 65_536  # bytes: the rest of any datagram, and of any super-packet
MAX_PLACES: Final = 16  # of what is sent, each with its headers: a buffer of few bursts, and some sizes of datagrams
_WORD: Final = ctypes.sizeof(ctypes.c_size_t)


def _column(table: memoryview, offset: int, stride: int) -> memoryview:
    """A field of all headers, as words of size_t."""
    return table.cast("B").cast("L")[offset // _WORD :: stride // _WORD]


def _words(first: int, count: int, step: int) -> memoryview:
    """`count` words from `first` on."""
    return memoryview(array("L", range(first, first + count * step, step) if step else [first] * count))


class RunInbox:
    """Receives up to `count` datagrams in one call, from `buffer` on.  The columns say of each what came."""

    def __init__(self, buffer: memoryview, count: int, name: int, control: int) -> None:
        """Bytes of a name of this family, and of the control messages that the socket was asked for."""
        self._count = count
        self._control = control
        self._start = address_of(buffer)
        self._room = len(buffer)
        self.names = memoryview(bytearray(count * name))  # cut every `name` bytes
        self.controls = memoryview(bytearray(count * control))  # cut every `control` bytes
        # Pages of their own: what nothing has come into takes no memory.
        self._pages = mmap.mmap(-1, count * SPILL, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.spills = memoryview(self._pages)  # cut every SPILL bytes
        size = ctypes.sizeof(Message)
        self._messages = messages = (Message * count)()
        self._parts = parts = (Part * (2 * count))()
        places = [address_of(each) for each in (self.names, self.controls, self.spills)]
        for index in range(count):
            header = messages[index].header
            header.name, header.name_length = places[0] + index * name, name
            header.control, header.control_length = places[1] + index * control, control
            header.parts, header.part_count = ctypes.addressof(parts[2 * index]), 2
            parts[2 * index + 1].base, parts[2 * index + 1].length = places[2] + index * SPILL, SPILL
        self._address = ctypes.addressof(messages)
        words = memoryview(messages).cast("B").cast("I")
        self.lengths = words[Message.length.offset // 4 :: size // 4]
        self.flags = words[Header.flags.offset // 4 :: size // 4]
        self.control_lengths = _column(memoryview(messages), Header.control_length.offset, size)
        self._fresh = _words(control, count, 0)
        self._bases = _column(memoryview(parts), Part.base.offset, 2 * ctypes.sizeof(Part))
        self._sizes = _column(memoryview(parts), Part.length.offset, 2 * ctypes.sizeof(Part))
        self._blank = bytes(len(self.controls))
        self._used = 0
        self.stride = 0  # of the slots
        self.most = 0  # of one call

    def clear_controls(self) -> None:
        """The kernel leaves what stood between two control messages, so equal ones would not look equal."""
        self.controls[:] = self._blank

    def rest(self) -> None:
        """Give back to the system what was spilled."""
        self._pages.madvise(mmap.MADV_DONTNEED)

    def set_stride(self, stride: int) -> None:
        """From now on a datagram of so many bytes follows another without a gap."""
        if stride != self.stride:
            self.stride = stride
            self.most = count = min(self._count, self._room // stride)
            self._bases[:count] = _words(self._start, count, stride)
            self._sizes[:count] = _words(stride, count, 0)

    def receive(self, descriptor: int) -> int:
        """How many came; 0 where none has.  Raises OSError."""
        used = self._used
        if used:  # the kernel has written there how much it used
            self.control_lengths[:used] = self._fresh[:used]
        assert recvmmsg is not None
        count = recvmmsg(descriptor, self._address, self.most, 0, None)
        if count >= 0:
            self._used = count
            return count
        self._used = 0
        reason = ctypes.get_errno()
        if reason in WOULD_BLOCK:
            return 0
        raise OSError(reason, os.strerror(reason))


class _Place:
    """The headers for datagrams of one size at one address."""

    def __init__(self, start: int, segment: int, count: int, name: memoryview) -> None:
        self._messages = messages = (Message * count)()
        self.parts = parts = (Part * count)()
        for index in range(count):
            parts[index].base, parts[index].length = start + index * segment, segment
            header = messages[index].header
            header.name, header.name_length = address_of(name), len(name)
            header.parts, header.part_count = ctypes.addressof(parts[index]), 1
        self.address = ctypes.addressof(messages)


class RunPost:
    """Sends runs, each to one address, where they lie."""

    def __init__(self, count: int) -> None:
        """`count` datagrams in one call."""
        self._count = count
        self._places: dict[tuple[int, int, int], _Place] = {}
        self._names = {size: memoryview(bytearray(size)) for size in (NAME4.size, NAME6.size)}
        self._size = ctypes.sizeof(Message)

    def send(self, descriptor: int, name: bytes, buffer: memoryview, segment: int, at: int) -> int:
        """How many bytes left, of those from `at` on.  Raises OSError (BlockingIOError among them) where no datagram did."""
        start, length = address_of(buffer), len(buffer)
        key = start, segment, len(name)
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            place = self._places[key] = _Place(start, segment, self._count, self._names[len(name)])
        self._names[len(name)][:] = name
        first, count = at // segment, -(-length // segment)
        short = length % segment
        if short:
            place.parts[count - 1].length = short
        assert sendmmsg is not None
        sent = sendmmsg(descriptor, place.address + first * self._size, count - first, 0)
        if short:
            place.parts[count - 1].length = segment
        if sent < 0:
            reason = ctypes.get_errno()
            raise OSError(reason, os.strerror(reason))
        return min(length, (first + sent) * segment) - at
