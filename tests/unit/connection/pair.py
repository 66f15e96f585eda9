"""Two connections joined by simulated links, with virtual time: what most tests of the connection stand on."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import ConnectionEvent, PathKind, RekeyDue, StreamOpened
from tunnel.transport.connection.records import MOST_PARTS
from tunnel.transport.crypto.keys import AES_256_GCM, Keypair
from tunnel.transport.crypto.params import Params
from tunnel.units import Address, Instant, PathKey, SocketId, StreamId, Transmit

RELAY = b"\xc0relayed"
A = Address("192.88.99.1", 1000)
B = Address("192.88.99.2", 2000)
SERVER = Address("192.88.99.99", 24531)
STANDING_STILL = 50  # steps at one instant


def keypairs(rng: random.Random, base: int = 100) -> tuple[Keypair, Keypair]:
    one, two = rng.randbytes(32), rng.randbytes(32)
    a = Keypair(aead=AES_256_GCM, send_key=one, receive_key=two, local_index=base, remote_index=base + 1, is_initiator=True)
    b = Keypair(aead=AES_256_GCM, send_key=two, receive_key=one, local_index=base + 1, remote_index=base, is_initiator=False)
    return a, b


class Pair:
    """`a` is the initiator.  `fate(rng, sender, via_relay, size)` gives the delays of the copies that arrive: [] is a loss."""

    def __init__(
        self,
        seed: int = 1,
        *,
        delay: float = 0.010,
        loss: float = 0.0,
        relayed: bool = True,
        receive_buffer: int = 4 << 20,
        rate: float | None = None,
        queue: float = 0.05,
        mtu: int = 1472,
        renews_keys: bool = True,
    ) -> None:
        """`renews_keys`: new keypairs follow when a side asks for them, as by a handshake that takes no time."""
        self.rng = random.Random(seed)
        self.now = Instant(1000.0)
        self.delay, self.loss = delay, loss
        self.rate, self.queue = rate, queue
        self.mtu = mtu
        self._busy_until = {"a": 0.0, "b": 0.0}
        self.cut: set[tuple[str, bool]] = set()  # (sender, via relay)
        key_a, key_b = keypairs(self.rng)
        prefix = RELAY if relayed else b""
        kind = PathKind.RELAY if relayed else PathKind.DIRECT
        params = [
            Params(instance=n, name=f"peer{n}", aeads=(1, 2), receive_buffer=receive_buffer, record_parts=MOST_PARTS)
            for n in (1, 2)
        ]
        self.a = self._make(True, key_a, params[0], params[1], PathKey(SocketId(0), SERVER if relayed else B, prefix), kind)
        self.b = self._make(False, key_b, params[1], params[0], PathKey(SocketId(0), SERVER if relayed else A, prefix), kind)
        self.sides = {"a": self.a, "b": self.b}
        self.events: dict[str, list[ConnectionEvent]] = {"a": [], "b": []}
        self.read: dict[str, dict[StreamId, bytearray]] = {"a": {}, "b": {}}
        self.reading = {"a": True, "b": True}
        self.not_read: set[StreamId] = set()
        self._queue: list[tuple[float, int, str, PathKey, bytes, int]] = []
        self._count = 0
        self._out = bytearray(65_536)
        self._standing = 0
        self.bursts = 0
        self.datagrams = 0
        self.hook: Callable[[str, bool, bytes], list[float] | None] | None = None
        self.renews_keys = renews_keys
        self._indices = 1_000_000

    def _make(self, first: bool, key: Keypair, local: Params, remote: Params, path: PathKey, kind: PathKind) -> Connection:
        return Connection(
            is_initiator=first,
            keypair=key,
            local=local,
            remote=remote,
            path=path,
            path_kind=kind,
            now=self.now,
            rng=random.Random(self.rng.random()),
        )

    def direct(self, side: str) -> PathKey:
        return PathKey(SocketId(0), B if side == "a" else A, b"")

    def flush(self) -> None:
        for name, side in self.sides.items():
            while (transmit := side.poll_transmit(self.now, self._out)) is not None:
                self.carry(name, transmit)
            self._events(name, side)

    def carry(self, name: str, transmit: Transmit) -> None:
        """Put a burst of `name` on the line: a packet burst too, which leaves past poll_transmit."""
        self.bursts += 1
        data = bytes(transmit.buffer)
        for at in range(0, len(data), transmit.segment_size):
            self._send(name, transmit.remote == SERVER, data[at : at + transmit.segment_size])

    def _send(self, name: str, relayed: bool, data: bytes) -> None:
        self.datagrams += 1
        if (name, relayed) in self.cut or len(data) > self.mtu:
            return
        delays = self.hook(name, relayed, data) if self.hook is not None else None
        if delays is None:
            delays = [] if self.rng.random() < self.loss else [self.delay * (1.5 if relayed else 1.0)]
        if self.rate is not None and delays:
            start = max(self.now, self._busy_until[name])
            if start - self.now > self.queue:
                return
            self._busy_until[name] = start + len(data) / self.rate
            delays = [d + self._busy_until[name] - self.now for d in delays]
        source = SERVER if relayed else (A if name == "a" else B)
        key = PathKey(SocketId(0), source, data[:8] if relayed else b"")
        for delay in delays:
            self._count += 1
            heapq.heappush(self._queue, (self.now + delay, self._count, "b" if name == "a" else "a", key, data, len(data)))

    def _events(self, name: str, side: Connection) -> None:
        while (event := side.poll_event()) is not None:
            self.events[name].append(event)
            if isinstance(event, RekeyDue) and self.renews_keys:
                self.renew_keys(name)
            stream_id = getattr(event, "stream_id", None)
            if isinstance(event, StreamOpened):
                self.read[name].setdefault(event.stream_id, bytearray())
            if stream_id is not None and self.reading[name] and stream_id not in self.not_read:
                self.take(name, stream_id)

    def renew_keys(self, name: str) -> None:
        """A handshake that `name` began has ended: its side seals under the new keypair at once."""
        self._indices += 2
        keys = keypairs(self.rng, base=self._indices)
        other = "b" if name == "a" else "a"
        self.sides[other].install_keypair(self.now, keys[1], confirmed=False)
        self.sides[name].install_keypair(self.now, keys[0], confirmed=True)

    def take(self, name: str, stream_id: StreamId) -> None:
        into = self.read[name].setdefault(stream_id, bytearray())
        for chunk in self.sides[name].stream_read(stream_id, now=self.now):
            into += chunk

    def step(self, until: float = float("inf")) -> bool:
        """Go to the next thing that happens, or to `until` if that is sooner; False when nothing ever will."""
        before = self.now
        self.flush()
        times = [side.poll_timeout() for side in self.sides.values()]
        deadline = min([t for t in times if t is not None], default=None)
        following = min([t for t in (deadline, self._queue[0][0] if self._queue else None) if t is not None], default=None)
        if until < float("inf") and (following is None or following > until):
            self.now = Instant(max(self.now, until))
            return True
        if self._queue and (deadline is None or self._queue[0][0] <= deadline):
            self.now = Instant(max(self.now, self._queue[0][0]))
            while self._queue and self._queue[0][0] <= self.now:
                _, _, name, key, data, stride = heapq.heappop(self._queue)
                self.sides[name].handle_datagrams(self.now, key, memoryview(data), 0, stride)
        elif deadline is not None:
            self.now = Instant(max(self.now, deadline))
            for side in self.sides.values():
                side.handle_timeout(self.now)
        else:
            return False
        self.flush()
        self._assert_time_moves(before)
        return True

    def _assert_time_moves(self, before: Instant) -> None:
        """A deadline that stays in the past makes a driver spin: many steps at one instant with nothing on the way are a bug."""
        self._standing = self._standing + 1 if self.now == before and not (self._queue and self._queue[0][0] <= self.now) else 0
        assert self._standing < STANDING_STILL, f"time stands still: {[side.poll_timeout() for side in self.sides.values()]}"

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        self.flush()
        while self.now < until:
            self.step(until)

    def run_until(self, done: Callable[..., bool], limit: float = 60.0) -> None:
        """Steps until `done`; fails after `limit` virtual seconds."""
        until = self.now + limit
        self.flush()
        steps = 0
        while not done():
            steps += 1
            assert self.now < until, f"not done after {limit} virtual seconds ({steps} steps)"
            assert steps < 2_000_000
            assert self.step(until), "nothing left to happen"

    def write_all(self, name: str, stream_id: StreamId, data: bytes, *, fin: bool = True, limit: float = 120.0) -> None:
        """Write everything, stepping when the buffer is full."""
        side, at = self.sides[name], 0
        until = self.now + limit
        while at < len(data):
            at += side.stream_write(stream_id, data[at : at + 100_000])
            if at < len(data):
                assert self.now < until
                self.step()
        if fin:
            side.stream_finish(stream_id)
        self.flush()
