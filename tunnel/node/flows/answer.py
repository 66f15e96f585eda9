"""Answering IK inits of remembered peers.  Nothing is made of an answer until one packet under its keys has authenticated.

A replayed init is refused by its timestamp, and gets a challenge that nobody can use; one replayed to a responder that has
restarted gets an answer that nobody can use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag

from tunnel.errors import MalformedPacket
from tunnel.node.clocks import Clocks
from tunnel.node.context import Context
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.node.freshness import Freshness, Refused
from tunnel.node.handshakes import Gatekeeper
from tunnel.node.hybrid import newer_psks
from tunnel.transport.crypto.challenge import Challenge
from tunnel.transport.crypto.handshake import Completed, ik_prologue, open_ik_init
from tunnel.transport.crypto.kem import common_psk
from tunnel.transport.crypto.params import Params
from tunnel.units import Buffer, Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.node.peering import Peering

PENDING_LIFETIME: Final = Seconds(30.0)  # from an answer to the first packet under its keys
MAX_PENDING: Final = 64
HEADER_SIZE: Final = 13  # of a transport datagram: type, receiver index, sequence number


class Pending(NamedTuple):
    """An answered init."""

    completed: Completed
    instance: int  # ours, as we told it
    path: PathKey
    expires_at: Instant


class IkResponder:
    """Holds the answers that are not confirmed yet, by our receiver index."""

    def __init__(
        self,
        context: Context,
        clocks: Clocks,
        find: Callable[[bytes, int], Peering | None],
        is_listening: Callable[[], bool],
        refused: Callable[[Instant, bytes, bytes, int], None],
    ) -> None:
        """`find(static, instance)` is the peering with that peer's instance, if there is one.

        `refused(now, channel, static, timestamp)` hears of inits that are not new.

        Who is not listening takes new keys for the connections that stand, and no new connection from anybody.
        """
        self._is_listening = is_listening
        self._refused = refused
        self._context = context
        self._clocks = clocks
        self._find = find
        self._gate = Gatekeeper(context.static_public, context.entropy)
        self._freshness = Freshness(context.entropy)  # of remembered peers only, so it is bounded
        self.pending: dict[int, Pending] = {}

    def handle_init(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        context = self._context
        reason, reply = self._gate.check(now, datagram, path.remote)
        if reason:
            context.drops[reason] += 1
            if reply is not None:
                context.send(path, reply)
            return
        try:
            opened = open_ik_init(bytes(datagram), context.static, ik_prologue(), context.entropy)
        except MalformedPacket:
            context.drops["init not authentic"] += 1
            return
        peer = context.peers.get(opened.remote_static)
        if peer is None:
            context.drops["init of a stranger"] += 1
            return
        params = opened.params
        judged = self._freshness.judge(now, peer.static, opened.timestamp, params.instance, params.challenge)
        if not self._is_listening() and self._find(peer.static, params.instance) is None:
            context.drops["init while not listening"] += 1
            return
        if not judged.is_new:
            context.drops["init replayed"] += 1
            self._refused(now, path.prefix, peer.static, opened.timestamp)
            context.send(path, opened.challenge(Challenge(judged.challenge, judged.behind), context.entropy))
            return
        if judged.behind:
            self._clocks.went_back(peer, judged.behind)
        instance = self._instance_for(peer.static, params.instance, params.resume)
        index = context.demux.new_index()
        try:
            psk = self._psk(peer, params)
            response, completed = opened.respond(psk, index, context.params(instance, params.instance))
        except MalformedPacket as error:
            context.emit(Troubled(problem=Problem.PEER_LOST, text=f"{peer.name} cannot talk to us: {error}."))
            return
        self._make_room()
        self._context.demux.pending.add(index)
        self.pending[index] = Pending(completed, instance, path, Instant(now + PENDING_LIFETIME))
        context.send(path, response)

    def _psk(self, peer: KnownPeer, params: Params) -> bytes:
        """The likeliest that both have: one that a hybrid step made, or else that of the pairing."""
        if not params.psks:
            return peer.psk
        context, peering = self._context, self._find(peer.static, params.instance)
        chain = () if peering is None else peering.hybrid.chain
        found = common_psk(params.psks, newer_psks(context, peer, chain))
        if found is None:
            context.refresh(peer)
            found = common_psk(params.psks, newer_psks(context, peer, chain))
        return peer.psk if found is None else found

    def _make_room(self) -> None:
        """The oldest of whoever holds the most goes, so that nobody crowds out the others."""
        if len(self.pending) >= MAX_PENDING:
            greediest = Counter(item.completed.remote_static for item in self.pending.values()).most_common(1)[0][0]
            self._forget(next(i for i, item in self.pending.items() if item.completed.remote_static == greediest))

    def confirm(self, datagram: Buffer) -> Pending | None:
        """A transport datagram for a pending answer: the answer, if it authenticates."""
        index = int.from_bytes(datagram[1:5], "big")
        pending = self.pending.get(index)
        if pending is None or len(datagram) < HEADER_SIZE + 16:
            return None
        nonce = bytes(4) + bytes(datagram[5:HEADER_SIZE])
        try:
            pending.completed.keypair.receive.decrypt(nonce, bytes(datagram[HEADER_SIZE:]), bytes(datagram[:HEADER_SIZE]))
        except InvalidTag:
            self._context.drops["first packet not authentic"] += 1
            return None
        self._forget(index)
        return pending

    def _forget(self, *indices: int) -> None:
        for index in indices:
            del self.pending[index]
        self._context.demux.pending.difference_update(indices)

    def forget_all(self) -> bool:
        """True when there were any."""
        had_any = bool(self.pending)
        self._forget(*list(self.pending))
        return had_any

    def alive(self, now: Instant, peer: KnownPeer, refused: Refused) -> None:
        """The peer, of a version that knows no challenges, has shown by a question of identity that it is there."""
        behind = self._freshness.alive(now, peer.static, refused)
        if behind is not None:
            self._clocks.went_back(peer, behind)

    def forget(self, static: bytes) -> None:
        self._freshness.forget(static)
        self._forget(*[index for index, item in self.pending.items() if item.completed.remote_static == static])

    def expire(self, now: Instant) -> None:
        self._forget(*[index for index, item in self.pending.items() if item.expires_at <= now])

    def poll_timeout(self) -> Instant | None:
        return min((item.expires_at for item in self.pending.values()), default=None)

    def _instance_for(self, static: bytes, remote_instance: int, resume: int) -> int:
        """Our instance towards that one of the peer: the same as before, so that a connection goes on."""
        peering = self._find(static, remote_instance)
        if peering is not None and resume in (0, peering.instance):
            return peering.instance
        for item in self.pending.values():
            if item.completed.remote_static == static and item.completed.params.instance == remote_instance:
                return item.instance
        return self._context.new_instance()
