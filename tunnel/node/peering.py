"""One peer of this endpoint: its connection, the handshakes that renew it, its punching, and small talk on the control stream.

A peering outlives its connection only where the peer restarted; keys, paths and channels change inside the connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket, StateError, UnreachableError
from tunnel.node import reasons
from tunnel.node.context import Context
from tunnel.node.described import Described
from tunnel.node.events import KnownPeer, PeerBack, PeeringClosed, PeeringEvent, PeeringStarted, Problem, Troubled
from tunnel.node.handshakes import InitiatorHandshake
from tunnel.node.hybrid import CONTROL_KEM_KEPT, CONTROL_KEM_KEY, CONTROL_KEM_TEXT, Hybrid
from tunnel.node.learning import Learning
from tunnel.node.letting_go import LETS_GO, LettingGo
from tunnel.node.pings import TOKEN_SIZE, Pings
from tunnel.node.punching import Puncher
from tunnel.node.relays import CONTROL_RELAYS, Relays
from tunnel.node.walls import Wall
from tunnel.pairing.grants import GrantSet
from tunnel.rendezvous.events import ChannelMoved, Told
from tunnel.transport.connection.connection import TAKES, Connection
from tunnel.transport.connection.events import (
    OF_PROGRAMS,
    AllPathsLost,
    CloseCode,
    CloseReason,
    ConnectionClosed,
    ConnectionEvent,
    ControlReceived,
    PathChanged,
    PathInDoubt,
    PathKind,
    PathLost,
    PathProbed,
    RekeyDue,
)
from tunnel.transport.crypto.handshake import Completed, Initiator, Pattern, ik_prologue
from tunnel.units import Address, Buffer, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.client import Client

# First byte of a message on the control stream; unknown ones are left for later versions.
CONTROL_HELLO: Final = 0  # a first packet under the new keys, and what we take: a byte, which older peers leave out
CONTROL_OFFER: Final = 1  # candidates: nat/candidate.py
CONTROL_PING: Final = 2  # 8 bytes that come back as
CONTROL_PONG: Final = 3
CONTROL_ROOM: Final = 4  # what members of a room tell each other: room/core/messages.py
CONTROL_SHARES: Final = 5  # what the receiver may reach at the sender: shares.py
CONTROL_SERVER: Final = 9  # where the sender's own server is now, and back: that this is remembered

_HELLO: Final = bytes((CONTROL_HELLO, TAKES | LETS_GO))
REKEY_GIVES_UP: Final = Seconds(9.0)  # before RekeyDue is said again


class Peering(Described):
    """One peer.  `is_initiator` on the connecting side, which also is the one that meets the peer anew."""

    def __init__(self, context: Context, peer: KnownPeer, *, is_initiator: bool, server: str | None, instance: int) -> None:
        self.peer = peer
        self.is_initiator = is_initiator
        self.server = server
        self.instance = instance
        self.connection: Connection | None = None
        self.puncher: Puncher | None = None
        self.handshake: InitiatorHandshake | None = None
        self.entry = context.agenda.enter(self, self.poll_timeout)
        self.touch = self.entry.touch
        self.pings = Pings(context.entropy)
        self.needs_meeting = False  # the connecting side has no way to the peer: somebody has to dial
        self.is_closed = False
        self.lacks_keys = False  # data of the peer got through when its keys ended, and new ones do not
        self.policy = context.config.path_policy
        self._context = context
        self._is_explained = self._has_lost_puncher = self._has_failed = False
        self._is_silent = False  # no path stands, and that was told
        self._grants: tuple[KnownPeer, GrantSet] | None = None
        self._streams_seen = 0
        self._fault: Exception | None = None  # met where nothing could be done about it
        self.hybrid = Hybrid(context, self)
        self._learning = Learning(context, peer.static)
        self.relays = Relays(context, self)
        self.letting_go = LettingGo(context, self)
        self.is_started = False  # PeeringStarted was told

    @property
    def grants(self) -> GrantSet:
        """The grants of this peer on our side."""
        if self._grants is None or self._grants[0] is not self.peer:
            try:
                remembered = GrantSet.from_dicts(self.peer.grants)
            except StateError:
                remembered = GrantSet()  # what cannot be read grants nothing
            self._grants = (self.peer, remembered.union(GrantSet.from_dicts(self.peer.lent)))
        return self._grants[1]

    @property
    def is_confirmed(self) -> bool:
        """The peer has spoken under the connection's keys."""
        return self.connection is not None and self.connection.is_confirmed

    @property
    def is_reachable(self) -> bool:
        """Some path to the peer works, as far as we know."""
        return self.connection is not None and not self.is_closed and self.connection.has_path and not self.hybrid.is_held

    @property
    def is_sound(self) -> bool:
        """The peer is reached on the path in use, and that is not in doubt."""
        return self.is_reachable and self.connection is not None and not self.connection.is_closed and self.connection.is_sound

    # --- connection and keys

    def attach(self, now: Instant, connection: Connection, puncher: Puncher | None, policy: str, completed: Completed) -> None:
        """A connection stands: the first one, or one with the peer's new instance."""
        self.connection = connection
        self._context.clients.follow(connection.current_path.key.prefix, self)
        self.lacks_keys = False
        self.puncher, self.policy = puncher, policy
        self._is_explained = False
        connection.set_policy(now, policy)
        connection.set_repeat(self._context.config.repeat)
        connection.set_repair(is_wanted=self._context.config.repairs)
        connection.send_control(_HELLO)
        self.hybrid.attach(now, connection, completed)
        self.relays.attach(now)
        self.letting_go.attach(now)
        self.pump(now)

    def start(self) -> None:
        """Tell that there is a connection, once it may be used."""
        if not self.is_started and not self.hybrid.is_held and not self.is_closed:
            self.is_started = True
            self._context.emit(PeeringStarted(peering=self))

    def begin_handshake(
        self,
        now: Instant,
        path: PathKey,
        *,
        give_up_after: Seconds | None = None,
        others: Iterable[PathKey] = (),
        is_awaited: bool = False,
    ) -> None:
        """IK towards the peer over `path`, and `others` in turn; one that is under way moves there instead."""
        self.touch()
        if self.handshake is not None and self.handshake.completed is None and not self.handshake.has_failed:
            self.handshake.move(now, path)
            return
        self.end_handshake()
        context = self._context
        resume = self.connection.remote_instance if self.connection is not None and not self.connection.is_closed else 0
        if self.connection is None:
            context.refresh(self.peer)
        initiator = Initiator(
            Pattern.IK,
            static=context.static,
            remote_static=self.peer.static,
            psk=self.peer.psk,
            prologue=ik_prologue(),
            index=context.demux.new_index(),
            params=context.params(self.instance, resume),
            entropy=context.entropy,
            newer=self.hybrid.newer_psks,
        )
        self.handshake = InitiatorHandshake(
            context,
            initiator,
            path,
            now,
            give_up_after=give_up_after,
            others=others,
            at_once=self.connection is not None and self.connection.is_mute,
            is_awaited=is_awaited,
        )
        context.demux.handshakes[self.handshake.index] = self

    def give_up_keys(self, now: Instant) -> None:
        """A copy of this process may hold them too: begin with new ones."""
        handshake = self.handshake
        with self.wall(now):
            if handshake is not None and handshake.completed is None:
                self.end_handshake()
                if self.connection is None:
                    self.begin_handshake(now, handshake.path)
            if self.connection is not None:
                self.connection.give_up_keys(now)

    def end_handshake(self) -> None:
        if self.handshake is not None:
            self._context.demux.handshakes.pop(self.handshake.index, None)
            self.handshake = None
        self.touch()

    def install(self, now: Instant, completed: Completed, path: PathKey) -> None:
        """New keys for the connection that stands, over a path that may be new too."""
        connection = self.connection
        assert connection is not None
        self.lacks_keys = False
        connection.install_keypair(now, completed.keypair, True)
        connection.migrate(now, path, PathKind.RELAY if path.prefix else PathKind.DIRECT)
        self._context.clients.follow(path.prefix, self)
        connection.send_control(_HELLO)
        if connection.current_path.kind is PathKind.RELAY:
            self.refresh_candidates(now)
        self.hybrid.installed(now, connection, completed)
        self.pump(now)

    # --- faults of ours

    def wall(self, now: Instant) -> Wall:
        """Around what is done with this peer: see fail."""
        return Wall(lambda error: self.fail(now, error))

    def fail(self, now: Instant, error: Exception) -> None:
        """Nobody foresaw `error`, which something of this peer has met: it ends here, and nothing else does.  Never raises."""
        self._context.fault("link", f"ended the link to {self.peer.name}", error)
        self.touch()
        has_failed, self._has_failed = self._has_failed, True
        try:
            if self.connection is not None and not has_failed:
                self.connection.close(now, CloseCode.INTERNAL, "a fault in ptunnel on the other side")
        except Exception:
            has_failed = True
        if has_failed:  # it does not even say goodbye
            self.connection = None
        self.finish(CloseReason(CloseCode.INTERNAL, "a fault in ptunnel", False))

    def lose_puncher(self, error: Exception) -> None:
        """Nobody foresaw `error`, which the search for a direct path has met: it ends; the paths that stand go on."""
        self._context.fault("punching", f"ended the search for a direct path to {self.peer.name}", error)
        self.puncher, self._has_lost_puncher = None, True
        self.touch()

    # --- inputs

    def drain(self, now: Instant) -> None:
        """Take the connection's events: answer what is ours, pass on the rest."""
        try:
            connection = self.connection
            while connection is not None and (event := connection.poll_event()) is not None:
                self._on_event(now, event)
        except Exception as error:
            self.fail(now, error)
        if self._is_silent and self.is_reachable:
            self._is_silent = False
            self._context.emit(PeerBack(peering=self))

    def fresh_streams(self) -> int:
        """How many the peer has opened since the last call."""
        if self.connection is None:
            return 0
        before, self._streams_seen = self._streams_seen, self.connection.streams_accepted
        return max(0, self._streams_seen - before)

    def _on_event(self, now: Instant, event: ConnectionEvent) -> None:
        if type(event) in OF_PROGRAMS:
            self._context.events.append(PeeringEvent(self, event))
            return
        match event:
            case ControlReceived(data=data):
                self._on_control(now, data)
                return
            case RekeyDue():
                assert self.connection is not None
                self.letting_go.rekeying(now)
                if self.handshake is None or self.handshake.completed is not None or self.handshake.has_failed:
                    path, *others = self.connection.handshake_paths
                    self.begin_handshake(now, path, give_up_after=REKEY_GIVES_UP, others=others)
            case PathLost(key=key, kind=PathKind.RELAY):
                self.relays.lost(now, key)
            case PathChanged(kind=PathKind.DIRECT):
                self.letting_go.direct(now)
                self._learning.learn(self.connection, self.puncher)
            case PathProbed(key=key) if key.prefix:
                self.relays.probed(now, key)
            case PathInDoubt():
                self.letting_go.doubted(now)
                return
            case PathChanged(kind=PathKind.RELAY):
                self.letting_go.relayed(now)
                self.relays.relayed(now)
            case AllPathsLost(no_keys=no_keys):
                self.ask_to_meet()
                is_told_later = self.letting_go.lost(now)
                if no_keys:
                    self.lacks_keys = self._is_silent = True
                    self._context.emit(reasons.no_keys(self.peer.name))
                elif not is_told_later:
                    self.tell_silence()
                with Wall(self.lose_puncher):
                    if self.puncher is not None:
                        self.puncher.agent.path_lost(now)
                        self.puncher.next_at = now
            case ConnectionClosed(reason=reason):
                self._context.events.append(PeeringEvent(self, event))
                if self.is_initiator and reason.code == CloseCode.IDLE:
                    self._start_over()
                else:
                    self.finish(reason)
                return
            case _:
                with Wall(self.lose_puncher):
                    if self.puncher is not None:
                        self.puncher.handle_event(now, event)
                if isinstance(event, PathLost):
                    self._learning.learn_keepalive(self.connection)
        self._context.events.append(PeeringEvent(self, event))

    def hear(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        """A relay channel that the connection uses has moved, or is gone."""
        with self.wall(now):
            if isinstance(event, Told):
                self.letting_go.hear(now, client, event)
            self.relays.hear(now, client, event)

    def network_changed(self, now: Instant) -> None:
        """The host roamed or woke up.  The paths that stand are used until they fail; a fresh round of checks runs beside."""
        connection = self.connection
        if connection is None or self.is_closed:
            return
        with self.wall(now):
            connection.verify_paths(now)
        with Wall(self.lose_puncher):
            if self.puncher is not None:
                self.puncher.agent.path_lost(now)
                self.puncher.next_at = now

    def refresh_candidates(self, now: Instant) -> None:
        """Ours may have changed."""
        with Wall(self.lose_puncher):
            if self.puncher is not None:
                self.puncher.refresh(now)

    def handle_stun(self, now: Instant, socket_id: SocketId, remote: Address, datagram: Buffer) -> bool:
        """An answer to a question of the search for a direct path; False when it is to none of this one's."""
        with Wall(self.lose_puncher):
            return self.puncher is not None and self.puncher.handle_stun(now, socket_id, remote, datagram)
        return False

    def _start_over(self) -> None:
        """An hour of silence is most often a night of sleep: the streams are gone, and the peer is met anew as somebody new."""
        self.end_handshake()
        self.puncher, self.instance = None, self._context.new_instance()
        self.ask_to_meet()

    def ask_to_meet(self) -> None:
        """The initiator dials the peer anew; the other side waits for that."""
        self.needs_meeting = self.is_initiator
        self._context.restless[self] = None

    def tell_silence(self) -> None:
        """No path works: a person is told once, until one does."""
        if not self._is_silent:
            self._is_silent = True
            self._context.emit(reasons.fell_silent(self.peer.name, is_initiator=self.is_initiator))

    def finish(self, reason: CloseReason) -> None:
        """The peering is over; the connection may still linger to say so."""
        if not self.is_closed:
            self.is_closed = True
            self._context.restless[self] = None
            self.end_handshake()
            self._context.events.append(PeeringClosed(peering=self, reason=reason))

    def _on_control(self, now: Instant, data: Buffer) -> None:
        kind = data[0] if len(data) else -1
        connection = self.connection
        assert connection is not None
        if kind == CONTROL_OFFER and self.puncher is not None:
            try:
                self.puncher.handle_offer(now, data[1:])
                if connection.current_path.kind is PathKind.DIRECT:
                    self._learning.learn(connection, self.puncher)  # by now it may have a name
            except MalformedPacket:
                self._context.drops["offer malformed"] += 1
            except Exception as error:
                self.lose_puncher(error)
        elif kind == CONTROL_PING and len(data) == 1 + TOKEN_SIZE:
            connection.send_control(bytes((CONTROL_PONG,)) + bytes(data[1:]))
        elif kind == CONTROL_PONG:
            if self.pings.answered(now, bytes(data[1:])):
                self._context.events.append(PeeringEvent(self, ControlReceived(bytes(data))))
            else:
                self._context.drops["pong that nobody asked for"] += 1
        elif kind == CONTROL_HELLO and len(data) > 1:
            connection.peer_takes(data[1])
            self.letting_go.peer_takes(data[1])
        elif kind in (CONTROL_KEM_KEY, CONTROL_KEM_TEXT, CONTROL_KEM_KEPT):
            self.hybrid.handle(now, connection, bytes(data))
        elif kind == CONTROL_RELAYS:
            self.relays.handle(now, bytes(data[1:]))
        elif kind in (CONTROL_ROOM, CONTROL_SHARES, CONTROL_SERVER):
            self._context.events.append(PeeringEvent(self, ControlReceived(bytes(data))))

    # --- verbs

    def send_ping(self) -> bytes:
        """Ask the peer for a PONG; its token appears in pings.answers with the instant it came.  Raises UnreachableError."""
        if self.connection is None or self.is_closed:
            raise UnreachableError(f"There is no connection to {self.peer.name} just now.")
        token = self.pings.ask()
        self.connection.send_control(bytes((CONTROL_PING,)) + token)
        return token

    def send_message(self, kind: int, body: bytes) -> None:
        """CONTROL_ROOM, CONTROL_SHARES or CONTROL_SERVER; lost where there is no connection."""
        if self.connection is not None and not self.is_closed:
            self.connection.send_control(bytes((kind,)) + body)

    def close(self, now: Instant, code: int, text: str) -> None:
        """`text` is for the peer."""
        if self.is_closed:
            return
        self.drain(now)
        with self.wall(now):
            if self.connection is not None:
                self.connection.close(now, code, text)
        self.finish(CloseReason(code, "this side has ended" if code == CloseCode.NO_ERROR else text, False))
        self.drain(now)

    def _explain(self, now: Instant) -> None:
        """Once punching has come to nothing, say why: the path is what it was, but a person now knows more."""
        connection, puncher = self.connection, self.puncher
        if connection is None or puncher is None or connection.current_path.kind is PathKind.DIRECT:
            self._is_explained = False
        elif puncher.agent.is_hopeless and not self._is_explained:
            self._is_explained = True
            self._learning.unlearn()
            view, why = connection.current_path, self.why_relayed(now)
            if self.policy == "direct":
                text = f"No direct path to {self.peer.name} was found: {why}. Trying on."
                self._context.emit(Troubled(problem=Problem.NO_DIRECT, text=text))
                return
            event = PathChanged(view.key, view.kind, view.key.remote, view.smoothed_rtt, view.mtu, why)
            self._context.emit(PeeringEvent(self, event))

    # --- time

    def handle_timeout(self, now: Instant) -> None:
        try:
            if self._fault is not None:
                raise self._fault
            if self.connection is not None:
                self.connection.handle_timeout(now)
                self.drain(now)
            self.hybrid.handle_timeout(now)
            self.relays.handle_timeout(now)
            self.letting_go.handle_timeout(now)
        except Exception as error:
            self._fault = None
            self.fail(now, error)
        self.pump(now)

    def pump(self, now: Instant) -> None:
        """Send what is due of handshake, checks and offers."""
        self.touch()
        try:
            self._pump(now)
        except Exception as error:
            self.fail(now, error)

    def _pump(self, now: Instant) -> None:
        self.hybrid.pump(now)
        handshake = self.handshake
        if handshake is not None:
            handshake.handle_timeout(now)
            if handshake.has_failed:
                self.end_handshake()
            while (datagram := handshake.poll_transmit(now)) is not None:
                self._context.send(handshake.path, datagram)
        if self.puncher is not None and self.connection is not None and not self.is_closed and not self.connection.is_mute:
            try:
                while (offer := self.puncher.pump(now)) is not None:
                    self.connection.send_control(bytes((CONTROL_OFFER,)) + offer)
                self._explain(now)
            except Exception as error:
                self.lose_puncher(error)

    def poll_timeout(self) -> Instant | None:
        try:
            puncher, connection = self.puncher, self.connection
            at = connection.poll_timeout() if connection is not None else None
            if self.handshake is not None:
                at = earliest(at, self.handshake.poll_timeout())
            if self.is_closed:
                return at
            search_at = None if puncher is None or (connection is not None and connection.is_mute) else puncher.next_at
            return earliest(at, self.hybrid.due_at, self.relays.due_at, self.letting_go.due_at, search_at)
        except Exception as error:
            self._fault = error
            return Instant(0.0)
