"""Two of the driver's Links over real connections of the core, joined in memory: no socket, no loss, real flow control."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import trio

from tests.unit.connection.pair import Pair
from tunnel.node.peering import Peering
from tunnel.shell.link import Link
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import CloseReason, ConnectionClosed
from tunnel.units import Instant, Transmit


class CoreLinks:
    """`near` connects, `far` exposes; `run` carries datagrams between them."""

    def __init__(self, seed: int = 1) -> None:
        pair = Pair(seed=seed, relayed=False)
        self._keys = {"a": pair.direct("b"), "b": pair.direct("a")}  # by whom the datagrams come
        self._clock_base = pair.now - trio.current_time()
        self._wakeup = trio.Event()
        self._first: list[Callable[[], None]] = []  # each called once, before anything is sent
        self._out = bytearray(65_536)
        self.mark = False
        self._connections: dict[str, Connection] = {"a": pair.a, "b": pair.b}
        self.near = self._link("home", pair.a, is_initiator=True)
        self.far = self._link("friend", pair.b, is_initiator=False)
        self._links = {"a": self.near, "b": self.far}

    def now(self) -> Instant:
        return Instant(self._clock_base + trio.current_time())

    def _link(self, name: str, connection: Connection, *, is_initiator: bool) -> Link:
        def close(now: Instant, code: int, reason: str) -> None:
            connection.close(now, code, reason)

        peering: Any = SimpleNamespace(
            peer=SimpleNamespace(name=name, static=bytes(32)), connection=connection, is_initiator=is_initiator, close=close
        )
        return Link(cast(Peering, peering), flush=self.flush, before_flush=self._first.append, clock=self.now)

    def flush(self) -> None:
        self._wakeup.set()

    def deliver(self, side: str, burst: Transmit) -> None:
        """What `side` sends past poll_transmit: IP packets.  With `mark`, a router on the way marks congestion (RFC 3168)."""
        other = "b" if side == "a" else "a"
        data = memoryview(bytes(burst.buffer))
        ecn = 3 if self.mark else burst.ecn
        self._connections[other].handle_datagrams(self.now(), self._keys[side], data, 0, burst.segment_size, ecn)

    async def run(self) -> None:
        while True:
            self._wakeup = trio.Event()
            while self._carry():
                await trio.lowlevel.checkpoint()
            now = self.now()
            deadlines = [t for c in self._connections.values() if (t := c.poll_timeout()) is not None]
            with trio.move_on_after(max(0.0, min(deadlines, default=now + 1) - now)):
                await self._wakeup.wait()
            for connection in self._connections.values():
                connection.handle_timeout(self.now())

    def _carry(self) -> bool:
        """True when anything moved."""
        moved = False
        while self._first:
            self._first.pop()()
        for side, connection in self._connections.items():
            other = "b" if side == "a" else "a"
            for _ in range(32):
                transmit = connection.poll_transmit(self.now(), self._out)
                if transmit is None:
                    break
                moved = True
                data = memoryview(bytes(transmit.buffer))
                self._connections[other].handle_datagrams(self.now(), self._keys[side], data, 0, transmit.segment_size)
            for name in ("a", "b"):
                self._tell(name)
        return moved

    def _tell(self, side: str) -> None:
        link = self._links[side]
        while (event := self._connections[side].poll_event()) is not None:
            link.handle_event(event)
            if isinstance(event, ConnectionClosed):
                link.handle_closed(CloseReason(event.reason.code, event.reason.text, event.reason.by_peer))
