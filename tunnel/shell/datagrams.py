"""Unreliable datagrams of one link, told apart by flow: what UDP forwards ride on (RFC 9221 in spirit)."""

from __future__ import annotations

from collections.abc import Callable

from tunnel.core.trace import Drops

MAX_FLOW = 0xFFFF_FFFF  # 32 bits in the DATAGRAM frame


class Datagrams:
    """Sends and hands out datagrams by flow number.  A datagram may be lost, late or doubled, never damaged."""

    __slots__ = ("_backlog", "_callbacks", "_fell", "_flush", "_next_flow", "_send", "drops")

    def __init__(
        self,
        send: Callable[[int, list[bytes]], int],
        flush: Callable[[], None],
        *,
        first_flow: int,
        backlog: Callable[[], int] = lambda: 0,
        fell: Callable[[Exception], None] | None = None,
    ) -> None:
        """`first_flow` is 2 on the connecting side and 1 on the other one, so that both may number flows.

        `fell` is told of what a flow's callback raised, which gets nothing more; None: that is raised on.
        """
        self._fell = fell
        self._send = send
        self._flush = flush
        self._backlog = backlog
        self._next_flow = first_flow
        self._callbacks: dict[int, Callable[[list[bytes]], None]] = {}
        self.drops = Drops()

    def allocate(self) -> int:
        """A flow number that was not used lately; even ones are the connecting side's."""
        while True:
            flow = self._next_flow
            self._next_flow = flow + 2 if flow + 2 <= MAX_FLOW else 2 - flow % 2
            if flow not in self._callbacks:
                return flow

    def send(self, flow: int, batch: list[bytes]) -> int:
        """Queue datagrams for `flow` (then `flush`); how many: the others were too long, or there is no connection just now."""
        sent = self._send(flow, batch)
        if sent < len(batch):
            self.drops["datagram not queued"] += len(batch) - sent
        return sent

    def flush(self) -> None:
        """Send what was queued.  Whoever drains a socket calls it once for the batch, so that it leaves as a burst."""
        self._flush()

    @property
    def backlog(self) -> int:
        """Datagrams queued and not yet sent."""
        return self._backlog()

    def register(self, flow: int, callback: Callable[[list[bytes]], None]) -> None:
        """`callback` is called, without awaiting, with what arrives of `flow` from now on: all at once that came at once."""
        self._callbacks[flow] = callback

    def unregister(self, flow: int) -> None:
        self._callbacks.pop(flow, None)

    def deliver(self, datagrams: list[tuple[int, bytes]]) -> None:
        """Told by the link: these have arrived."""
        batches: dict[int, list[bytes]] = {}
        for flow, data in datagrams:
            batch = batches.get(flow)
            if batch is None:
                batches[flow] = [data]
            else:
                batch.append(data)
        for flow, batch in batches.items():
            callback = self._callbacks.get(flow)
            if callback is None:
                self.drops["datagram of an unknown flow"] += len(batch)
            else:
                try:
                    callback(batch)
                except Exception as error:
                    self.drops["datagram of a flow that met a fault"] += len(batch)
                    self.unregister(flow)
                    if self._fell is None:
                        raise
                    self._fell(error)
