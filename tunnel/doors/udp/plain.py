"""The socket for every system: one datagram a call, nothing but recvfrom_into and sendto."""

from __future__ import annotations

import contextlib
import socket

from tunnel.doors.udp.addresses import SockAddr
from tunnel.doors.udp.base import BATCH_BUFFER, MAX_USELESS, RECEIVE_BUFFER, SEND_BUFFER, BoundSocket, segment_count
from tunnel.doors.udp.socket import ReceivedBatch
from tunnel.units import Address


class PlainSocket(BoundSocket):
    """See UdpSocket.  `ecn` is neither sent nor seen here; a batch is received one datagram at a time."""

    def __init__(self, host: str, port: int, *, reuse: bool = False, dual_stack: bool = False) -> None:
        super().__init__(host, port, reuse=reuse, dual_stack=dual_stack)
        self._buffer = memoryview(bytearray(BATCH_BUFFER))
        self._level, self._hops = (
            (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if self.is_ipv6 else (socket.IPPROTO_IP, socket.IP_TTL)
        )
        for name, size in ((socket.SO_RCVBUF, RECEIVE_BUFFER), (socket.SO_SNDBUF, SEND_BUFFER)):
            while self._option(name) < size and not self._try_option(socket.SOL_SOCKET, name, size):
                size //= 2  # BSD refuses what is over its limit instead of giving less

    def send(self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0) -> bool:
        segment_count(len(buffer), segment_size)
        sockaddr = self._cache.sockaddrs.get(remote) or self._resolve(remote)
        if sockaddr is None:
            return True
        if ttl is None:
            return self._send_each(remote, sockaddr, buffer, segment_size, None, ecn)[0]
        usual = 64
        with contextlib.suppress(OSError):
            usual = self._socket.getsockopt(self._level, self._hops)
        self._try_option(self._level, self._hops, ttl)
        try:
            return self._send_each(remote, sockaddr, buffer, segment_size, ttl, ecn)[0]
        finally:
            self._try_option(self._level, self._hops, usual)

    def _send_one(self, datagram: memoryview, sockaddr: SockAddr, ttl: int | None, ecn: int, source: str) -> None:
        self._socket.sendto(datagram, sockaddr)

    def receive(self) -> ReceivedBatch | None:
        counters = self.counters
        for _ in range(MAX_USELESS):
            try:
                length, sockaddr = self._socket.recvfrom_into(self._buffer)
            except BlockingIOError:
                return None
            except OSError as error:  # Windows tells of ICMP errors here (WSAECONNRESET)
                if self._count_error(error) == "closed":
                    return None
                continue
            if not length:
                counters.errors["empty"] += 1
                continue
            counters.received_datagrams += 1
            counters.received_bytes += length
            remote = self._cache.addresses.get(sockaddr) or self._cache.address(sockaddr)
            return ReceivedBatch(remote, self._buffer[:length], length, 0)
        return None
