"""Relay channels end with what they were for: those that lead to no connection are given back to the server.

A listener does not choose who dials it, and each dial brings a channel.  What nobody has proven a key on, what a connection has
left behind and what belonged to a forgotten peer would otherwise stay for as long as this process says that it is alive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final

from tunnel.node.context import Context
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from tunnel.node.flows.key_check import KeyAnswerer
    from tunnel.node.peering import Peering

UNUSED_LIFETIME: Final = Seconds(30.0)  # of a channel without a connection; pairings and dialers give up their own before
SOON: Final = Seconds(5.0)  # between looks while some channel is unused ...
LATE: Final = Seconds(30.0)  # ... and while all are in use


class Channels:
    """All relay channels of an endpoint, over all its servers."""

    def __init__(self, context: Context, peerings: Callable[[], Iterable[Peering]], answerer: KeyAnswerer) -> None:
        """`peerings`: also those that are closed and still have something to say.

        `answerer` knows to whom a channel leads that others opened to us.
        """
        self._context = context
        self._peerings = peerings
        self._answerer = answerer
        self._unused_since: dict[bytes, Instant] = {}
        self._look_at: Instant | None = None

    def arrived(self, now: Instant, channel: bytes) -> None:
        """A server has given us a side of it."""
        self._unused_since.setdefault(channel, now)
        if self._look_at is None or self._look_at > now + SOON:
            self._look_at = Instant(now + SOON)

    def forget(self, now: Instant, statics: Collection[bytes]) -> None:
        """These peers are known no more: nothing is left to them but to hear why."""
        used = self._used()
        for channel in self._answerer.channels_of(statics) - used:
            self._give_back(now, channel)

    def handle_timeout(self, now: Instant) -> None:
        if self._look_at is None or now < self._look_at:
            return
        used = self._used()
        held = {info.channel for client in self._context.clients.values() for info in client.channels}
        unused = {channel: self._unused_since.get(channel, now) for channel in held if channel not in used}
        for channel, since in list(unused.items()):
            if now - since >= UNUSED_LIFETIME:
                del unused[channel]
                held.discard(channel)
                self._context.drops["relay channels without a connection"] += 1
                self._give_back(now, channel)
        self._unused_since = unused
        self._look_at = Instant(now + (SOON if unused else LATE)) if held else None

    def poll_timeout(self) -> Instant | None:
        return self._look_at

    def _used(self) -> set[bytes]:
        return {
            channel for each in self._peerings() if each.connection is not None for channel in each.connection.channels
        }  # fmt: skip

    def _give_back(self, now: Instant, channel: bytes) -> None:
        self._unused_since.pop(channel, None)
        for client in self._context.clients.values():
            client.leave_channel(now, channel)
        self._answerer.forget(channel)
