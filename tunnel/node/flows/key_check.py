"""A key check: two sides that share a psk but complete no IK handshake exchange their static keys by XXpsk0.

IK says nothing when a static key is not the remembered one: the init is simply not for that machine.  So a dialer whose inits
stay unanswered on a live channel asks by XX, under the pair's psk, and people hear a clear sentence instead of silence.
Each side judges the key it sees.  A listener that does not know the dialer's says so under the new keys: that the key seen by
the dialer is the right one proves nothing, for a line may lose every init.  No connection comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from tunnel.errors import MalformedPacket, command_word
from tunnel.node.context import Context
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.node.flow import Flow
from tunnel.node.freshness import Refused
from tunnel.node.handshakes import InitiatorHandshake, open_close, receiver_index, seal_close
from tunnel.transport.connection.events import CloseCode
from tunnel.transport.crypto.handshake import FINISH, INIT, Initiator, Pattern, XxResponder
from tunnel.transport.crypto.params import Params
from tunnel.units import Buffer, Instant, PathKey, Seconds

PROLOGUE: Final = b"ptunnel 1 XX check"
GIVE_UP_AFTER: Final = Seconds(6.0)
MAX_CHANNELS: Final = 256  # introduced channels that are remembered; the oldest is forgotten


def _params(context: Context, peer: KnownPeer) -> Params:
    """Return our handshake parameters; for others with our own key they name our copy of the home."""
    params = context.params(context.new_instance())
    return replace(params, machine=context.place) if peer.static == context.static_public else params


class KeyQuestion(Flow):
    """The dialer's side."""

    def __init__(
        self, context: Context, peer: KnownPeer, path: PathKey, now: Instant, right: Callable[[Params], None] | None = None
    ) -> None:
        """`right` hears what a listener with the right key says of itself."""
        super().__init__(context)
        self._peer = peer
        self._right = right
        self._is_answered = False
        initiator = Initiator(
            Pattern.XX,
            static=context.static,
            remote_static=None,
            psk=peer.psk,
            prologue=PROLOGUE,
            index=context.demux.new_index(),
            params=_params(context, peer),
            entropy=context.entropy,
        )
        self._handshake = InitiatorHandshake(context, initiator, path, now, give_up_after=GIVE_UP_AFTER)
        context.demux.handshakes[initiator.index] = self
        context.demux.verdicts[initiator.index] = self._on_verdict

    @property
    def is_over(self) -> bool:
        return self._is_answered or self._handshake.is_over

    def close(self, now: Instant) -> None:
        self._context.demux.handshakes.pop(self._handshake.index, None)
        self._context.demux.verdicts.pop(self._handshake.index, None)

    def on_time(self, now: Instant) -> None:
        """Asks again; after the answer it repeats the finish until there is a verdict, or for three seconds."""
        self._handshake.handle_timeout(now)
        datagram = self._handshake.poll_transmit(now)
        if datagram is not None:
            self._context.send(self._handshake.path, datagram)

    def poll_timeout(self) -> Instant | None:
        return None if self._is_answered else self._handshake.poll_timeout()

    def on_handshake(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        completed = self._handshake.handle_datagram(now, datagram)
        if completed is None:
            return
        if completed.remote_static == self._peer.static:
            if self._right is not None:
                self._right(completed.params)
            return
        if completed.finish is not None:
            self._context.send(path, completed.finish)
        name = self._peer.name
        self._conclude(
            f"The key of {name} has changed since you paired: it was set up anew, or its secrets were copied. "
            f"If that is expected, run 'ptunnel peers forget {command_word(name)}' and pair again."
        )

    def _on_verdict(self, datagram: Buffer) -> None:
        completed = self._handshake.completed
        if completed is not None and open_close(completed.keypair, datagram) == CloseCode.FORGOTTEN:
            self._conclude(f"{self._peer.name} does not know the key of this machine any more: pair again with a fresh code.")

    def _conclude(self, text: str) -> None:
        self._is_answered = True
        self._context.demux.handshakes.pop(self._handshake.index, None)
        self._context.demux.verdicts.pop(self._handshake.index, None)
        self._context.emit(Troubled(problem=Problem.KEY_CHANGED, text=text, is_final=True))


class KeyAnswerer(Flow):
    """The listener's side: answers on channels that a room of a remembered peer led to."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._peers: dict[bytes, KnownPeer] = {}  # by channel
        self._asked: dict[bytes, XxResponder] = {}
        self._judged: set[bytes] = set()  # channels whose key was looked at: a wrong one was told here
        self._refused: dict[bytes, Refused] = {}
        #: Hears once of each channel on which the key was right, what its owner says of itself, and what was refused there.
        self.alive: Callable[[Instant, KnownPeer, Params, Refused | None], None] = lambda now, peer, params, refused: None

    def introduced(self, channel: bytes, peer: KnownPeer) -> None:
        while len(self._peers) >= MAX_CHANNELS:
            self.forget(next(iter(self._peers)))
        self._peers[channel] = peer
        self._context.demux.channels[channel] = self

    def channels_of(self, statics: Collection[bytes]) -> set[bytes]:
        """Those that lead to these peers."""
        return {channel for channel, peer in self._peers.items() if peer.static in statics}

    def refused(self, now: Instant, channel: bytes, static: bytes, timestamp: int) -> None:
        """An init with that static key was not newer than another one."""
        peer = self._peers.get(channel)
        if peer is not None and peer.static == static:
            before = self._refused.get(channel)
            self._refused[channel] = Refused(max(timestamp, before.timestamp if before is not None else 0), now)

    def forget(self, channel: bytes) -> None:
        self._refused.pop(channel, None)
        self._peers.pop(channel, None)
        self._context.demux.channels.pop(channel, None)
        asked = self._asked.pop(channel, None)
        if asked is not None:
            self._context.demux.handshakes.pop(asked.index, None)
        self._judged.discard(channel)

    def on_handshake(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        if datagram[0] == INIT:
            self._on_init(path, datagram)
        elif datagram[0] == FINISH:
            self._on_finish(now, path, datagram)

    def _on_init(self, path: PathKey, datagram: Buffer) -> None:
        peer = self._peers.get(path.prefix)
        if peer is None:
            return
        context = self._context
        responder = self._asked.get(path.prefix)
        if responder is None:
            responder = XxResponder(
                static=context.static,
                psk=peer.psk,
                prologue=PROLOGUE,
                index=context.demux.new_index(),
                params=_params(context, peer),
                entropy=context.entropy,
            )
        try:
            response = responder.handle_init(bytes(datagram))
        except MalformedPacket:
            context.drops["key question not authentic"] += 1
            return
        self._asked[path.prefix] = responder
        context.demux.handshakes[responder.index] = self
        context.send(path, response)

    def _on_finish(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        peer, responder = self._peers.get(path.prefix), self._asked.get(path.prefix)
        if peer is None or responder is None or responder.index != receiver_index(datagram):
            self._context.drops["finish for nobody"] += 1
            return
        try:
            completed = responder.handle_finish(bytes(datagram))
        except MalformedPacket:
            self._context.drops["key question not authentic"] += 1
            return
        is_first = path.prefix not in self._judged
        self._judged.add(path.prefix)
        if completed.remote_static == peer.static:
            if is_first:
                self.alive(now, peer, completed.params, self._refused.get(path.prefix))
            return  # IK will do, as soon as an init gets through
        context = self._context
        context.send(path, seal_close(completed.keypair, CloseCode.FORGOTTEN, "this is not the key that I remember"))
        if is_first:
            text = f"{peer.name} came with another key than you paired with: forget it and pair again if that is expected."
            context.emit(Troubled(problem=Problem.KEY_CHANGED, text=text))
