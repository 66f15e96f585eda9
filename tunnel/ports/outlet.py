"""Datagrams to a local program: a run of equal ones costs one system call (UDP_SEGMENT), as it does on the tunnel's own sockets;
and how many from a local program the kernel threw away.

Receiving has no such way: the kernel joins only what its sender sent as one, and asking for it (UDP_GRO) makes every lone
datagram dearer.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import Any, Final

from tunnel.doors.udp.pktinfo import Control
from tunnel.ports.counters import ForwardCounters

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103  # linux/udp.h; the socket module does not name it
SO_MEMINFO: Final = 55  # asm-generic/socket.h
_MEMINFO: Final = struct.Struct("=9I")  # linux/sock_diag.h; the last is SK_MEMINFO_DROPS
MAX_SEGMENTS: Final = 64  # datagrams in one call (UDP_MAX_SEGMENTS of older kernels)
MAX_BYTES: Final = 65_507  # of one call: the largest IPv4 UDP payload
_TOO_LARGE: Final = frozenset({errno.EINVAL, errno.EMSGSIZE})  # a segment over the interface's MTU, by the kernel's age


#: After a run: a default socket buffer holds 92 datagrams of 1,200 bytes, less than two runs, and its reader may share our core.
_let_read: Final = getattr(os, "sched_yield", lambda: None)


class Outlet:
    """A UDP socket towards one program, connected or with its address.  What it does not take is counted: `udp_local_dropped`."""

    __slots__ = ("_address", "_arguments", "_counters", "_largest", "_sock", "_source")

    def __init__(self, sock: socket.socket, address: Any, counters: ForwardCounters, source: Control = ()) -> None:
        """`address` is None for a connected socket; `source` makes them leave from one address of ours (pktinfo.leave_from)."""
        self._sock = sock
        self._address = address
        self._arguments = () if address is None else (0, address)
        self._counters = counters
        self._source = source
        self._largest = 0  # bytes of a datagram that may be a segment
        if sys.platform == "linux":
            try:
                sock.setsockopt(SOL_UDP, UDP_SEGMENT, 0)  # changes nothing, but asks whether it is known
            except OSError:
                pass
            else:
                self._largest = MAX_BYTES // 2

    def send(self, batch: list[bytes]) -> None:
        """Hand over all of `batch`, in order, without waiting."""
        start, count = 0, len(batch)
        while start < count:
            size = len(batch[start])
            stop = start + 1
            if 0 < size <= self._largest:
                last = min(count, start + MAX_SEGMENTS, start + MAX_BYTES // size)
                while stop < last and len(batch[stop]) == size:
                    stop += 1
            if stop - start == 1:
                self._send_one(batch[start])
            else:
                self._send_run(batch[start:stop], size)
                _let_read()
            start = stop

    def _send_one(self, data: bytes) -> None:
        try:
            if self._address is None:
                self._sock.send(data)
            elif self._source:
                self._sock.sendmsg((data,), self._source, 0, self._address)
            else:
                self._sock.sendto(data, self._address)
        except OSError:  # full, or an ICMP refusal of an earlier one: as lost as on any network
            self._counters.udp_local_dropped += 1
        else:
            self._counters.udp_datagrams_out += 1

    def _send_run(self, run: list[bytes], size: int) -> None:
        try:
            self._sock.sendmsg(run, (*self._source, (SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))), *self._arguments)
        except BlockingIOError:
            self._counters.udp_local_dropped += len(run)
        except OSError as error:
            if error.errno in _TOO_LARGE:
                self._largest = size - 1
            elif error.errno == errno.EIO:  # the interface lacks checksum offload
                self._largest = 0
            for data in run:  # an ICMP refusal of an earlier one, too, must not take the others with it
                self._send_one(data)
        else:
            self._counters.udp_datagrams_out += len(run)


class Overruns:
    """The datagrams lost while a UDP socket's receive buffer was full; only Linux tells."""

    __slots__ = ("_seen", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._seen = 0

    def fresh(self) -> int:
        """How many since the last call."""
        if sys.platform != "linux":
            return 0
        try:
            info = self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
        except OSError:  # a kernel before 4.12
            return 0
        if len(info) < _MEMINFO.size:
            return 0
        drops: int = _MEMINFO.unpack(info)[8]
        count, self._seen = (drops - self._seen) & 0xFFFF_FFFF, drops
        return count
