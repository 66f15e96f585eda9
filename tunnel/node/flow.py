"""A flow: one thing under way, such as a code that waits for its peer, with the one interface that the endpoint knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tunnel.node.context import Context
from tunnel.node.walls import Wall
from tunnel.units import Buffer, Instant, PathKey

if TYPE_CHECKING:
    from tunnel.rendezvous.client import Client
    from tunnel.rendezvous.events import ChannelMoved, Told


class Flow:
    """Hears what comes of what it asked a server for, and of its handshakes.

    A flow that has handshakes stands in the demux with their receiver indices, or with the channels on which they begin.
    """

    place: ClassVar = "meeting"  # of faults that are met here
    fate: ClassVar = "kept remembered peers from being listened for"  # what they do

    def __init__(self, context: Context) -> None:
        self._context = context
        self.is_done = False

    def hear(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        """The server, or the client about one of our channels, has said something that is for this flow."""
        with self.wall(now):
            self.on_server(now, client, event)

    def on_server(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        """The same; may raise."""
        raise NotImplementedError

    def on_handshake(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        """An XX init on a channel of this flow, or what is for a receiver index of its handshakes."""
        raise NotImplementedError

    def on_time(self, now: Instant) -> None:
        """Do what is due."""

    def poll_timeout(self) -> Instant | None:
        return None

    def close(self, now: Instant) -> None:
        """It is over: nothing of it is left with a server."""

    def fail(self, now: Instant) -> None:
        """A fault of ours has been met here: end what nobody can vouch for."""

    def wall(self, now: Instant) -> Wall:
        """Around what is done here: a fault goes no further than `fail`."""

        def fell(error: Exception) -> None:
            self._context.fault(self.place, self.fate, error)
            try:
                self.fail(now)
            except Exception as again:
                self._context.fault(self.place, "ended the pairing by a code", again)
                self.is_done = True

        return Wall(fell)
