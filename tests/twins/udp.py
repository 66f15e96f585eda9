"""The twin of the real sockets: a network in memory under trio's clock, with delay, loss and walls of the test's choosing."""

from __future__ import annotations

import math
import random
from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

import trio

from tunnel.doors.udp.addresses import AddressError, to_sockaddr
from tunnel.doors.udp.base import segment_count
from tunnel.doors.udp.socket import MAX_BATCH, MAX_SEGMENTS, ReceivedBatch, UdpCounters
from tunnel.errors import ConfigurationError
from tunnel.units import Address, Seconds

#: Where port 0 starts to look for a free one: the dynamic range of RFC 6335 §6.
FIRST_FREE_PORT = 49_152
#: What a receive buffer holds unless told otherwise: an ordinary user's net.core.rmem_max.
RECEIVE_BUFFER = 212_992
#: What one buffered datagram costs beside its payload, so that a flood of small ones is bounded too.
DATAGRAM_OVERHEAD = 256

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class _Datagram(NamedTuple):
    due: float
    order: int
    remote: Address
    data: bytes
    ecn: int


class MemoryNetwork:
    """Sockets that reach one another.  Loss and delay are drawn from `seed`; change the attributes while it runs.

    `mtu` is the largest IP packet: a larger datagram is counted as EMSGSIZE by its sender.
    `hops` is how far apart any two sockets are: a datagram with a smaller `ttl` is lost on the way.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        delay: float = 0.0,
        jitter: float = 0.0,
        loss: float = 0.0,
        mtu: int = 65_536,
        hops: int = 1,
    ) -> None:
        self.delay = Seconds(delay)
        self.jitter = Seconds(jitter)
        self.loss = loss
        self.mtu = mtu
        self.hops = hops
        self.lost = 0
        self._rng = random.Random(seed)
        self._sockets: dict[Address, MemorySocket] = {}
        self._walls: set[tuple[Address | str, Address | str]] = set()
        self._order = count()

    def open_socket(
        self, host: str, port: int, *, reuse: bool = False, dual_stack: bool = False, receive_buffer: int = RECEIVE_BUFFER
    ) -> MemorySocket:
        """As tunnel.doors.udp.socket.open_socket; hosts need no set-up, a wildcard is reached as 127.0.0.1 or ::1."""
        try:
            to_sockaddr(Address(host, port or 1), is_ipv6=":" in host, dual_stack=False)
        except AddressError:
            raise ConfigurationError(f"{host!r} port {port} is not an address that a socket can be bound to.") from None
        local = Address(host, port or self._free_port())
        if local in self._sockets:
            raise ConfigurationError(f"UDP port {port} of {host} is in use by another program.")
        opened = MemorySocket(self, local, dual_stack=dual_stack, receive_buffer=receive_buffer)
        self._sockets[local] = opened
        return opened

    def block(self, source: Address | str, destination: Address | str) -> None:
        """A black hole one way, between two addresses or whole hosts."""
        self._walls.add((source, destination))

    def unblock(self, source: Address | str, destination: Address | str) -> None:
        self._walls.discard((source, destination))

    def _free_port(self) -> int:
        """Free on every host, so that a wildcard never stands in front of another's port."""
        taken = {local.port for local in self._sockets}
        return next(port for port in range(FIRST_FREE_PORT, 65_536) if port not in taken)

    def _forget(self, local: Address) -> None:
        self._sockets.pop(local, None)

    def _find(self, destination: Address) -> MemorySocket | None:
        exact = self._sockets.get(destination)
        if exact is not None:
            return exact
        for wildcard, loopback in _WILDCARDS.items():
            found = self._sockets.get(Address(wildcard, destination.port))
            if found is not None and destination.host == loopback:
                return found
        if destination == Address("127.0.0.1", destination.port):
            dual = self._sockets.get(Address("::", destination.port))
            return dual if dual is not None and dual.is_dual_stack else None
        return None

    def _carry(self, source: Address, destination: Address, data: bytes, ttl: int | None, ecn: int) -> None:
        target = self._find(destination)
        ends = ((s, d) for s in (source, source.host) for d in (destination, destination.host))
        if (
            target is None
            or (self.loss and self._rng.random() < self.loss)
            or (ttl is not None and ttl < self.hops)
            or (self._walls and not self._walls.isdisjoint(ends))
        ):
            self.lost += 1
            return
        due = trio.current_time() + self.delay + (self.jitter * self._rng.random() if self.jitter else 0.0)
        target._deliver(_Datagram(due, next(self._order), source, data, ecn))


class MemorySocket:
    """See UdpSocket.  Receives coalesce as UDP_GRO does: one sender, equal sizes, the last may be shorter."""

    def __init__(self, network: MemoryNetwork, local: Address, *, dual_stack: bool, receive_buffer: int) -> None:
        self.local_address = local
        self.is_ipv6 = local.is_ipv6
        self.is_dual_stack = self.is_ipv6 and dual_stack
        self.receive_buffer = receive_buffer
        self.counters = UdpCounters()
        #: While False, every send would block.
        self.is_writable = True
        self._network = network
        self._travelling: list[_Datagram] = []
        self._arrived: deque[_Datagram] = deque()
        self._held = 0
        self._closed = False
        self._change = trio.Event()

    def fileno(self) -> int:
        """There is no descriptor here, which is what -1 says."""
        return -1

    def overruns(self) -> int:
        return self.counters.errors["overrun"]

    def close(self) -> None:
        self._closed = True
        self._network._forget(self.local_address)
        self._changed()

    def set_writable(self, writable: bool) -> None:
        """Play a full send buffer."""
        self.is_writable = writable
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    # -- sending

    def send(self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0) -> bool:
        datagrams = segment_count(len(buffer), segment_size)
        counters = self.counters
        try:
            if self._closed:
                raise AddressError("closed")
            to_sockaddr(remote, is_ipv6=self.is_ipv6, dual_stack=self.is_dual_stack)
        except AddressError as error:
            counters.errors[str(error)] += 1
            return True
        if not self.is_writable:
            return False
        if min(len(buffer), segment_size) + (48 if remote.is_ipv6 else 28) > self._network.mtu:
            counters.errors["EMSGSIZE"] += 1
            return True
        source = self._source(remote)
        for start in range(0, len(buffer), segment_size):
            self._network._carry(source, remote, bytes(buffer[start : start + segment_size]), ttl, ecn)
        counters.sent_datagrams += datagrams
        counters.sent_bytes += len(buffer)
        return True

    def _source(self, remote: Address) -> Address:
        host = self.local_address.host
        if host not in _WILDCARDS:
            return self.local_address
        return Address("::1" if remote.is_ipv6 else "127.0.0.1", self.local_address.port)

    # -- receiving

    def _deliver(self, datagram: _Datagram) -> None:
        heappush(self._travelling, datagram)
        self._changed()

    def _collect(self) -> None:
        """What has come since nobody looked; the receive buffer is judged in the order of arrival."""
        now = trio.current_time()
        while self._travelling and self._travelling[0].due <= now:
            datagram = heappop(self._travelling)
            size = len(datagram.data) + DATAGRAM_OVERHEAD
            if self._held + size > self.receive_buffer:
                self.counters.errors["overrun"] += 1
                continue
            self._held += size
            self._arrived.append(datagram)

    def receive(self) -> ReceivedBatch | None:
        self._collect()
        if self._closed or not self._arrived:
            return None
        first = self._take()
        batch = [first.data]
        size = stride = len(first.data)
        while self._arrived and len(batch) < MAX_SEGMENTS and len(batch[-1]) == stride:
            coming = self._arrived[0]
            if (
                coming.remote != first.remote
                or coming.ecn != first.ecn
                or len(coming.data) > stride
                or size + len(coming.data) > MAX_BATCH
            ):
                break
            batch.append(self._take().data)
            size += len(coming.data)
        self.counters.received_datagrams += len(batch)
        self.counters.received_bytes += size
        return ReceivedBatch(first.remote, memoryview(bytearray().join(batch)), stride, first.ecn)

    def _take(self) -> _Datagram:
        datagram = self._arrived.popleft()
        self._held -= len(datagram.data) + DATAGRAM_OVERHEAD
        return datagram

    # -- waiting

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._closed:
            self._collect()
            if self._arrived:
                return
            change = self._change
            due = self._travelling[0].due if self._travelling else math.inf
            with trio.move_on_at(due):
                await change.wait()
        raise trio.ClosedResourceError("the socket was closed")

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self.is_writable:
                return
            await self._change.wait()
        raise trio.ClosedResourceError("the socket was closed")
