"""Unreliable datagrams of one link, told apart by flow: what UDP forwards ride on (RFC 9221 in spirit)."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel.proto.trace import Drops
from tunnel.units import Buffer


class Datagrams:
    """Sends and hands out datagrams by flow number.  A datagram may be lost, late or doubled, never damaged."""

    __slots__ = ("_callbacks", "_send", "drops")

    def __init__(self, send: Callable[[int, Buffer], bool]) -> None:
        self._send = send
        self._callbacks: dict[int, Callable[[bytes], None]] = {}
        self.drops = Drops()

    def send_nowait(self, flow: int, data: Buffer) -> bool:
        """Queue one datagram for `flow`; False when it was dropped (too long, or no connection just now)."""
        sent = self._send(flow, data)
        if not sent:
            self.drops["datagram not queued"] += 1
        return sent

    async def send(self, flow: int, data: Buffer) -> bool:
        """send_nowait, and a checkpoint."""
        await trio.lowlevel.checkpoint()
        return self.send_nowait(flow, data)

    def register(self, flow: int, callback: Callable[[bytes], None]) -> None:
        """`callback` is called, without awaiting, for each datagram of `flow` from now on."""
        self._callbacks[flow] = callback

    def unregister(self, flow: int) -> None:
        self._callbacks.pop(flow, None)

    def deliver(self, datagrams: list[tuple[int, bytes]]) -> None:
        """Told by the link: these have arrived."""
        callbacks = self._callbacks
        for flow, data in datagrams:
            callback = callbacks.get(flow)
            if callback is None:
                self.drops["datagram of an unknown flow"] += 1
            else:
                callback(data)
