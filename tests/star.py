"""One endpoint with any number of links whose far ends are connections in the same process: no loss, no delay, virtual time."""

from __future__ import annotations

import heapq
import random
import time
from typing import Final

from tests.sim.peers import EPOCH_NS, FIRST, SERVER, entropy_of
from tests.sim.store import PeersInMemory
from tests.unit.connection.pair import keypairs
from tunnel.node.context import EndpointConfig
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import KnownPeer
from tunnel.node.peering import Peering
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import PathKind
from tunnel.transport.crypto.handshake import Completed
from tunnel.transport.crypto.params import Params
from tunnel.units import Address, Instant, PathKey, Transmit

HOME: Final = Address("45.2.0.1", 4000)
BUFFER: Final = 212_992


class Star:
    """`endpoint` in the middle; `far[n]` is the other end of `near[n]`."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.now = Instant(1000.0)
        self.seconds = 0.0  # of real time, spent in the endpoint
        self.endpoint = Endpoint(
            config=EndpointConfig(name="home", aeads=(1, 2), receive_buffer=BUFFER),
            static_key=bytes(range(32)),
            peers=[],
            store=PeersInMemory(),
            entropy=entropy_of(seed),
            rng=self.rng,
            wall_ns=lambda: EPOCH_NS,
        )
        self.endpoint.add_socket(FIRST, is_ipv6=False, port=HOME.port)
        self.endpoint.set_hosts(self.now, ["45.2.0.1"])
        self.near: list[Peering] = []
        self.far: list[Connection] = []
        self._of: dict[Address, int] = {}
        self._out = bytearray(2 * 65_536)
        self._far_out = bytearray(2 * 65_536)
        self._deadlines: list[tuple[float, int]] = []  # of the far ends, old ones too
        for number in range(count):
            self._add(number)

    def _add(self, number: int) -> None:
        theirs, ours = keypairs(self.rng, 1_000 + 2 * number)
        peer = KnownPeer(name=f"peer{number}", static=self.rng.randbytes(32), psk=self.rng.randbytes(32), server=SERVER)
        self.endpoint.peers[peer.static] = peer
        address = Address(f"45.1.{number // 200}.{number % 200 + 1}", 1000)
        params = [
            Params(instance=2 * number + side + 1, name="home" if side else peer.name, aeads=(1, 2), receive_buffer=BUFFER)
            for side in (0, 1)
        ]
        peering = Peering(self.endpoint._context, peer, is_initiator=False, server=SERVER, instance=params[1].instance)
        completed = Completed(
            keypair=ours, remote_static=peer.static, params=params[0], pair_psk=peer.psk, handshake_hash=bytes(32)
        )
        self.endpoint._meetings.peerings.connect(self.now, peering, completed, PathKey(FIRST, address, b""))
        far = Connection(
            is_initiator=True,
            keypair=theirs,
            local=params[0],
            remote=params[1],
            path=PathKey(FIRST, HOME, b""),
            path_kind=PathKind.DIRECT,
            now=self.now,
            rng=self.rng,
        )
        self.near.append(peering)
        self.far.append(far)
        self._of[address] = number
        self.flush_far(number)
        self.flush()

    # --- what a driver does

    def arrive(self, number: int, burst: Transmit | bytes) -> None:
        """At the endpoint, from that far end; and a flush behind it."""
        data = burst if isinstance(burst, bytes) else bytes(burst.buffer)
        stride = len(data) if isinstance(burst, bytes) else burst.segment_size
        address = self.near[number].connection
        assert address is not None
        remote = address.current_path.key.remote
        began = time.perf_counter()
        self.endpoint.handle_batch(self.now, FIRST, remote, memoryview(data), stride)
        self.seconds += time.perf_counter() - began
        self.flush()

    def flush(self) -> None:
        """Send and tell all there is; what is sent has arrived."""
        endpoint, now = self.endpoint, self.now
        while True:
            began = time.perf_counter()
            burst = endpoint.poll_transmit(now, self._out)
            is_dry = burst is None and endpoint.poll_event(now) is None
            self.seconds += time.perf_counter() - began
            if is_dry:
                break
            if burst is not None:
                self._deliver(burst)
        began = time.perf_counter()
        endpoint.poll_timeout()
        self.seconds += time.perf_counter() - began

    def _deliver(self, burst: Transmit) -> None:
        number = self._of.get(burst.remote)
        if number is not None:
            data = memoryview(bytes(burst.buffer))
            self.far[number].handle_datagrams(self.now, PathKey(FIRST, HOME, b""), data, 0, burst.segment_size)
            self.flush_far(number)

    def flush_far(self, number: int) -> None:
        far = self.far[number]
        while (burst := far.poll_transmit(self.now, self._far_out)) is not None:
            self.arrive(number, burst._replace(buffer=memoryview(bytes(burst.buffer))))
        while far.poll_event() is not None:
            pass
        at = far.poll_timeout()
        if at is not None:
            heapq.heappush(self._deadlines, (at, number))

    # --- time

    def run(self, duration: float) -> None:
        """All that is due until then."""
        end = self.now + duration
        while True:
            ours = self.endpoint.poll_timeout()
            at = min(self._deadlines[0][0] if self._deadlines else end, end if ours is None else ours)
            if at >= end:
                break
            self.now = Instant(max(self.now, at))
            while self._deadlines and self._deadlines[0][0] <= self.now:
                _, number = heapq.heappop(self._deadlines)
                known = self.far[number].poll_timeout()
                if known is not None and known <= self.now:
                    self.far[number].handle_timeout(self.now)
                    self.flush_far(number)
            if ours is not None and ours <= self.now:
                began = time.perf_counter()
                self.endpoint.handle_timeout(self.now)
                self.seconds += time.perf_counter() - began
                self.flush()
        self.now = Instant(end)

    def datagram(self, number: int, size: int = 150) -> bytes:
        """One from that far end, sealed, that carries `size` bytes of a UDP flow and nothing else."""
        far = self.far[number]
        far.send_datagrams(self.now, 1, [bytes(size)])
        burst = far.poll_transmit(self.now, self._far_out)
        assert burst is not None
        assert burst.segment_size == len(burst.buffer)
        return bytes(burst.buffer)

    def take(self, number: int) -> int:
        """How many datagrams the application of that link has got since the last call."""
        connection = self.near[number].connection
        assert connection is not None
        return len(connection.receive_datagrams())
