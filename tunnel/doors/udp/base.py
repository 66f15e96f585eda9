"""The common part of the sockets of every system: binding, buffers, waiting, closing and counting."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import TypeAlias

import trio

from tunnel.doors.udp.addresses import AddressCache, AddressError, SockAddr, to_address
from tunnel.doors.udp.socket import MAX_BATCH, MAX_SEGMENTS, UdpCounters
from tunnel.errors import ConfigurationError, InternalError
from tunnel.units import Address

#: Bytes of receive buffer we ask for.  An ordinary user gets at most net.core.rmem_max (212,992 by default).
RECEIVE_BUFFER = 4 << 20
#: Bytes of send buffer we want at least.  This is Linux's own default, three batches: what does not fit waits with us, where
#: interactive streams can still overtake it, and not in the queue of a slow interface.
SEND_BUFFER = 212_992
#: Bytes that one receive can hold: more than any datagram and any super-packet of UDP_GRO.
BATCH_BUFFER = 65_536
#: Useless receives in a row (errors, empty datagrams) before the caller gets to do something else.
MAX_USELESS = 64

WOULD_BLOCK = frozenset((errno.EAGAIN, errno.EWOULDBLOCK))

Counts: TypeAlias = dict[str, int]


def error_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")


def bind(host: str, port: int, *, reuse: bool, dual_stack: bool) -> socket.socket:
    """A non-blocking UDP socket bound there.  Raises ConfigurationError."""
    is_ipv6 = ":" in host
    where = Address(host, port)
    if not 0 <= port < 65_536:
        raise ConfigurationError(f"{port} is not a port: choose one between 1 and 65535.")
    try:
        info = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE)
    except (OSError, ValueError):
        raise ConfigurationError(f"{host!r} is not an IP address that a socket can be bound to.") from None
    raw: socket.socket | None = None
    try:
        raw = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        raw.setblocking(False)
        if is_ipv6:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        if reuse and hasattr(socket, "SO_REUSEPORT"):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        elif sys.platform == "win32":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        raw.bind(info[0][4])
    except OSError as error:
        if raw is not None:
            raw.close()
        raise ConfigurationError(_bind_sentence(where, error)) from error
    return raw


def _bind_sentence(where: Address, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"UDP port {where.port} of {where.host} is in use by another program: stop that one or choose another port."
        case errno.EACCES | errno.EPERM:
            return f"You may not listen on UDP {where}: choose a port above 1023 or run as root."
        case errno.EADDRNOTAVAIL:
            return f"{where.host} is not an address of this machine."
        case errno.EAFNOSUPPORT:
            return f"This machine has no {'IPv6' if where.is_ipv6 else 'IPv4'}."
        case errno.EMFILE | errno.ENFILE:
            return "This process has too many open files to open another socket: raise the limit (ulimit -n)."
    return f"Cannot listen on UDP {where}: {os.strerror(error.errno or 0)}."


def segment_count(length: int, segment_size: int) -> int:
    """How many datagrams a batch is.  Raises InternalError for one that no caller may build."""
    if length <= segment_size:
        if 0 < length <= MAX_BATCH:
            return 1
    elif segment_size > 0 and length <= MAX_BATCH:
        count = -(-length // segment_size)
        if count <= MAX_SEGMENTS:
            return count
    raise InternalError(f"a batch of {length} bytes in segments of {segment_size} cannot be sent")


class BoundSocket:
    """The common half of LinuxSocket and PlainSocket."""

    def __init__(self, host: str, port: int, *, reuse: bool = False, dual_stack: bool = False) -> None:
        self.is_ipv6 = ":" in host
        self._dual_stack = self.is_ipv6 and dual_stack
        self._socket = bind(host, port, reuse=reuse, dual_stack=dual_stack)
        self.local_address = to_address(self._socket.getsockname())
        self.counters = UdpCounters()
        self._cache = AddressCache(is_ipv6=self.is_ipv6, dual_stack=self._dual_stack)
        # Segments of an unfinished batch that went out one by one before the socket would block.
        self._unfinished: tuple[Address, int, int, bytes] | None = None
        self._unfinished_at = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def receive_buffer(self) -> int:
        """Bytes; elsewhere than on Linux the kernel reports just what it granted."""
        return self._option(socket.SO_RCVBUF)

    def _option(self, name: int) -> int:
        return self._socket.getsockopt(socket.SOL_SOCKET, name)

    def overruns(self) -> int:
        return 0

    def _try_option(self, level: int, name: int, value: int) -> bool:
        """Set an option that we can live without."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(level, name, value)
            return True
        return False

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(RuntimeError):  # not inside trio: then nobody waits
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    # -- the cold half of sending

    def _resolve(self, remote: Address) -> SockAddr | None:
        """The tuple for an address that is not in the cache; None when it was counted as unusable."""
        try:
            return self._cache.sockaddr(remote)
        except AddressError as error:
            self.counters.errors[str(error)] += 1
            return None

    def _send_one(self, datagram: memoryview, sockaddr: SockAddr, ttl: int | None, ecn: int, source: str) -> None:
        """One datagram by itself.  Raises OSError."""
        raise NotImplementedError

    def _sending(
        self, sockaddr: SockAddr, buffer: memoryview, segment_size: int, ttl: int | None, ecn: int, source: str
    ) -> Callable[[int], int]:
        """Return what sends from a place in the batch on, and says how many bytes left.  That raises OSError where none did."""

        def send(at: int) -> int:
            datagram = buffer[at : at + segment_size]
            self._send_one(datagram, sockaddr, ttl, ecn, source)
            return len(datagram)

        return send

    def _send_each(
        self,
        remote: Address,
        sockaddr: SockAddr,
        buffer: memoryview,
        segment_size: int,
        ttl: int | None,
        ecn: int,
        source: str = "",
    ) -> tuple[bool, Counts]:
        """Send a batch a few datagrams at a time, from where an earlier call had to stop."""
        length = len(buffer)
        counters = self.counters
        errors: Counts = {}
        mark = (remote, length, segment_size, bytes(buffer[:32])) if length > segment_size else None
        at = self._unfinished_at if mark is not None and mark == self._unfinished else 0
        self._unfinished = None
        send = self._sending(sockaddr, buffer, segment_size, ttl, ecn, source)
        while at < length:
            try:
                sent = send(at)
            except OSError as error:
                if error.errno in WOULD_BLOCK:
                    self._unfinished, self._unfinished_at = mark, at
                    return False, errors
                name = self._count_error(error)
                errors[name] = errors.get(name, 0) + 1
                at += segment_size
            else:
                counters.sent_datagrams += -(-sent // segment_size)
                counters.sent_bytes += sent
                at += sent
        return True, errors

    def _count_error(self, error: OSError) -> str:
        """A send or receive that failed for good: UDP may lose datagrams, so it is counted and life goes on."""
        name = "closed" if self._socket.fileno() < 0 else error_name(error)
        self.counters.errors[name] += 1
        return name
