"""The peerings of an endpoint: how a finished handshake becomes a connection, which indices are whose, and how they end."""

from __future__ import annotations

from typing import Any, Final

from tunnel.node.context import PATH_POLICIES, Context, combine_policies
from tunnel.node.events import KnownPeer, PeerPaired, Problem, Troubled
from tunnel.node.hybrid import CAME_WITH_OLDER_KEYS, OLDER_KEYS
from tunnel.node.machines import Machines
from tunnel.node.peering import Peering
from tunnel.node.punching import Puncher, is_loopback
from tunnel.pairing.identity import sanitise_name
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import CloseCode, PathKind
from tunnel.transport.crypto.handshake import Completed
from tunnel.units import Instant, PathKey

MAX_PEERINGS_A_PEER: Final = 64  # connections of one peer at once; the one silent for longest makes room


class Peerings:
    """All of them, the closed ones too until they have said goodbye."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._machines = Machines(context)
        self.all: dict[Peering, None] = {}
        self._of: dict[bytes, dict[Peering, None]] = {}  # by static key of the peer
        self._indices: dict[Peering, tuple[int, ...]] = {}  # those of each in the demux

    @property
    def live(self) -> list[Peering]:
        return [peering for peering in self.all if not peering.is_closed]

    def add(self, peering: Peering) -> None:
        self.all[peering] = None
        self._of.setdefault(peering.peer.static, {})[peering] = None

    def _of_peer(self, static: bytes) -> list[Peering]:
        """The live ones of one peer that have a connection."""
        return [each for each in self._of.get(static, ()) if not each.is_closed and each.connection is not None]

    def adopt(
        self,
        now: Instant,
        completed: Completed,
        path: PathKey,
        instance: int,
        is_initiator: bool,
        *,
        server: str,
        grants: tuple[dict[str, Any], ...],
    ) -> Peering | None:
        """Paired by a code: remember the peer, and connect."""
        context = self._context
        if completed.remote_static == context.static_public:
            text = "Both sides are the same identity: use another PTUNNEL_HOME for one of them."
            context.emit(Troubled(problem=Problem.KEY_CHANGED, text=text, is_final=is_initiator))
            return None
        before = context.peers.get(completed.remote_static)
        if before is not None and before.is_hybrid and not context.does_step(completed.params):
            peer = before  # what is remembered stays: a pairing that goes back is refused, see connect
        else:
            peer = context.remember(
                KnownPeer(
                    name=sanitise_name(completed.params.name),
                    static=completed.remote_static,
                    psk=completed.pair_psk,
                    server=server,
                    grants=(*(before.grants if before is not None else ()), *grants),
                    machines=(completed.params.machine,) if completed.params.machine else (),
                )
            )
            context.emit(PeerPaired(peer=peer))
        self.make_room(now, peer)
        peering = Peering(context, peer, is_initiator=is_initiator, server=server, instance=instance)
        self.connect(now, peering, completed, path)
        return peering

    def connect(self, now: Instant, peering: Peering, completed: Completed, path: PathKey) -> None:
        """A new connection over the relay path where the handshake went."""
        context = self._context
        local = context.params(peering.instance, completed.params.instance)
        connection = Connection(
            is_initiator=peering.is_initiator,
            keypair=completed.keypair,
            local=local,
            remote=completed.params,
            path=path,
            path_kind=PathKind.RELAY if path.prefix else PathKind.DIRECT,
            now=now,
            rng=context.rng,
            trace=context.trace(now, peering.peer.name, local.instance, is_initiator=peering.is_initiator),
            touched=peering.touch,
            plains=context.plains,
        )
        policy = combine_policies(PATH_POLICIES[context.config.path_policy], completed.params.path_policy)
        self.add(peering)
        self._remember_machine(now, peering, completed.params.machine)
        remembered = context.memory.get(peering.peer.static)
        if remembered is not None:
            connection.remember_keepalive(now, remembered.keepalive)
        puncher = None if policy in (None, "relay") else self._puncher(now, peering, connection)
        with peering.wall(now):
            peering.attach(now, connection, puncher, policy or "auto", completed)
            self.index(peering)
        if policy is None:
            text = f"{peering.peer.name} and this side ask for opposite paths (direct and relay): change --path on one of them."
            context.emit(Troubled(problem=Problem.PATH_POLICY, text=text, is_final=peering.is_initiator))
            peering.close(now, CloseCode.PATH_POLICY, text)
        elif peering.hybrid.is_refused:
            text = OLDER_KEYS.format(peering.peer.name, peering.peer.name)
            context.emit(Troubled(problem=Problem.POST_QUANTUM, text=text, is_final=peering.is_initiator))
            peering.close(now, CloseCode.KEYS, CAME_WITH_OLDER_KEYS)
        else:
            peering.start()

    def _remember_machine(self, now: Instant, peering: Peering, machine: bytes) -> None:
        context = self._context
        peering.peer = self._machines.met(now, context.known(peering.peer), machine)
        if peering.peer.static in context.peers:
            context.peers[peering.peer.static] = peering.peer

    def _puncher(self, now: Instant, peering: Peering, connection: Connection) -> Puncher:
        context = self._context
        client = context.clients.get(peering.server or "")
        return Puncher(
            connection,
            controlling=peering.is_initiator,
            sockets=context.sockets.values(),
            local=context.candidates,
            client=client,
            same_machine=client is not None and client.server is not None and is_loopback(client.server.host),
            now=now,
            rng=context.rng,
            pool=context.pool,
            remembered=context.memory.get(peering.peer.static),
            send=context.send,
            touched=peering.touch,
            begins_at=context.turns.take(now),
        )

    def index(self, peering: Peering) -> None:
        """Route the receiver indices of its connection, and no others, to the peering."""
        self._unroute(peering)
        if peering.connection is not None:
            self._indices[peering] = peering.connection.indices()
            self._context.demux.peerings.update(dict.fromkeys(self._indices[peering], peering))

    def _unroute(self, peering: Peering) -> None:
        for index in self._indices.pop(peering, ()):
            if self._context.demux.peerings.get(index) is peering:
                del self._context.demux.peerings[index]

    def retire(self, now: Instant, peering: Peering) -> None:
        """A closed peering goes when its connection has nothing more to say."""
        connection = peering.connection
        if connection is None or connection.is_drained:
            context = self._context
            peering.letting_go.close(now)
            client = context.clients.get(peering.server or "")
            if connection is not None and client is not None:
                for channel in connection.channels:
                    client.leave_channel(now, channel)
            self.all.pop(peering, None)
            of_peer = self._of.get(peering.peer.static, {})
            of_peer.pop(peering, None)
            if not of_peer:
                self._of.pop(peering.peer.static, None)
            self._unroute(peering)
            context.agenda.leave(peering.entry)
            context.restless.pop(peering, None)

    def make_room(self, now: Instant, peer: KnownPeer) -> None:
        """Processes that died without a goodbye leave connections behind, for hours: a peer may have so many."""
        of_peer = self._of_peer(peer.static)
        if len(of_peer) >= MAX_PEERINGS_A_PEER:
            oldest = min(of_peer, key=lambda each: each.connection.last_heard if each.connection is not None else now)
            oldest.close(now, CloseCode.REPLACED, "too many connections of one peer")

    def find(self, static: bytes, instance: int) -> Peering | None:
        for peering in self._of_peer(static):
            if peering.connection is not None and peering.connection.remote_instance == instance:
                return peering
        return None
