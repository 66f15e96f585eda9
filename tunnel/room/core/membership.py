"""A room on an endpoint of its own: the members are its peers, and what the Room has to say goes over their connections.

Sans IO: the owner passes on every event of the endpoint, then calls pump(), and obeys poll_timeout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from tunnel.core.timers import earliest
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import (
    EndpointEvent,
    KnownPeer,
    PeeringClosed,
    PeeringEvent,
    PeeringRestarted,
    PeeringStarted,
    PeerPaired,
)
from tunnel.node.flows.expose_code import FOR_MANY, ExposerPairing
from tunnel.node.peering import CONTROL_ROOM, Peering
from tunnel.pairing.code import Purpose
from tunnel.room.core.events import EntryUnanswered, MemberRemoved, RoomEvent, RosterChanged
from tunnel.room.core.room import Room
from tunnel.room.core.roster import Member, RoomState
from tunnel.transport.connection.events import CloseCode, ControlReceived
from tunnel.units import Instant, Seconds

FIRST_REDIAL: Final = Seconds(1.0)  # after a connection that ended; doubled each time
LONGEST_REDIAL: Final = Seconds(60.0)
ENTER_PATIENCE: Final = Seconds(32.0)  # from the first connection until we are let in; the creator's own word comes after 30
SOUND_AFTER: Final = Seconds(30.0)  # a connection that stood so long: the next wait is the first again


class NewcomerStore:
    """The PeerStore of a room's endpoint.  Nothing is written to the user's peers, and nobody here may reach a port."""

    def __init__(self) -> None:
        self.newcomers: dict[bytes, KnownPeer] = {}  # paired, and not yet told to the room

    def save(self, peer: KnownPeer) -> KnownPeer:
        self.newcomers[peer.static] = peer
        return peer

    def unsave(self, peer: KnownPeer) -> KnownPeer | None:
        self.newcomers.pop(peer.static, None)
        return None

    def keep(self, static: bytes, psk: bytes, *, is_shown: bool) -> KnownPeer | None:
        return None  # members make new ones in each connection, before they say anything

    def reread(self, peer: KnownPeer) -> KnownPeer:
        return peer


class Membership:
    """Keeps an endpoint connected to whom the room says, and the room informed."""

    def __init__(
        self,
        endpoint: Endpoint,
        room: Room,
        store: NewcomerStore,
        *,
        server: str,
        now: Instant,
        save: Callable[[RoomState], None] | None = None,
    ) -> None:
        """`store` is the one that the endpoint was made with.  `save` is called before anybody is told of what it saves."""
        self.endpoint = endpoint
        self.room = room
        self.flow: ExposerPairing | None = None
        self._store = store
        self._server = server
        self._save = save
        self._live: dict[bytes, Peering] = {}  # the connection of each member, reachable or not
        self._since: dict[bytes, Instant] = {}  # when it began
        self._dialing: dict[bytes, Peering] = {}
        self._redial_at: dict[bytes, Instant] = {}
        self._waits: dict[bytes, Seconds] = {}
        self._online: set[bytes] = set()
        self._known: list[KnownPeer] = []
        self._events: deque[RoomEvent] = deque()
        self._has_left = False
        self._enter_by: Instant | None = None  # a joiner's: when it is over
        endpoint.listen(now)

    # --- verbs

    def offer_code(self, now: Instant) -> None:
        """A creator's: CodeIssued follows, for all who may join."""
        self.flow = self.endpoint.offer_code(now, self._server, grants=(), keep=True, terms=FOR_MANY)

    def claim_code(self, now: Instant, code: str) -> None:
        """A joiner's.  Raises ConfigurationError for what is no code."""
        self.endpoint.claim_code(now, self._server, code, purpose=Purpose.ROOM)

    def remove(self, now: Instant, name: str) -> Member:
        """A creator's: cut a member off, everywhere.  A fresh code follows, as the old one is known to it.

        Raises ConfigurationError.
        """
        member = self.room.remove(now, name)
        if self.flow is not None:
            self.endpoint.renew_code(now, self.flow)
        self.pump(now)
        return member

    def leave(self, now: Instant) -> bool:
        """We end: whoever has to know is told.  Send what poll_transmit gives before the endpoint is closed.

        True when the creator was told that we will not come back; it then cuts us off, when it has heard.
        """
        says_so = self.room.leave()
        self._send()
        self._has_left = True
        return says_so

    # --- inputs

    def handle_event(self, now: Instant, event: EndpointEvent) -> None:
        if self._has_left:
            return
        match event:
            case PeerPaired(peer=peer):
                self._store.newcomers.pop(peer.static, None)
                if self.room.is_creator:
                    self.room.expect(now, peer.static, peer.psk)
                else:
                    self.room.paired(peer.static, peer.psk)
            case PeeringStarted(peering=peering):
                self._started(now, peering)
            case PeeringRestarted(peering=peering):
                if self._live.get(peering.peer.static) is peering:
                    self._set_online(now, peering.peer.static, False)
                    self._look(now, peering)
            case PeeringClosed(peering=peering, reason=reason):
                static = peering.peer.static
                self._closed(now, peering, reason.code)
                if reason.code == CloseCode.FORGOTTEN and reason.by_peer:
                    self.room.forgotten_by(static)
            case PeeringEvent(peering=peering, event=inner):
                static = peering.peer.static
                if self._live.get(static) is not peering:
                    return
                if isinstance(inner, ControlReceived):
                    if inner.data[:1] == bytes((CONTROL_ROOM,)):
                        with peering.wall(now):
                            self.room.handle_message(now, static, inner.data[1:])
                else:
                    self._look(now, peering)
            case _:
                pass

    def _started(self, now: Instant, peering: Peering) -> None:
        static = peering.peer.static
        former = self._live.get(static)
        self._live[static] = peering
        self._since[static] = now
        self._redial_at.pop(static, None)
        if self._dialing.get(static) is peering:
            del self._dialing[static]
        if former is not None and former is not peering:
            self._set_online(now, static, False)
            former.close(now, CloseCode.REPLACED, "met anew")
        self._look(now, peering)

    def _closed(self, now: Instant, peering: Peering, code: int) -> None:
        static = peering.peer.static
        if self._dialing.get(static) is peering:
            del self._dialing[static]
        elif self._live.get(static) is peering:
            del self._live[static]
            if now - self._since.pop(static, now) >= SOUND_AFTER:
                self._waits.pop(static, None)
            self._set_online(now, static, False)
        elif peering.is_started:
            return
        wait = self._waits.get(static, FIRST_REDIAL) if code != CloseCode.PATH_POLICY else LONGEST_REDIAL
        self._waits[static] = Seconds(min(2 * wait, LONGEST_REDIAL))
        self._redial_at[static] = Instant(now + wait)

    def _look(self, now: Instant, peering: Peering) -> None:
        self._set_online(now, peering.peer.static, peering.is_reachable)

    def _set_online(self, now: Instant, static: bytes, is_online: bool) -> None:
        if is_online and static not in self._online:
            self._online.add(static)
            if self.room.roster is None and self._enter_by is None:
                self._enter_by = Instant(now + ENTER_PATIENCE)
            self.room.connected(now, static)
        elif not is_online and static in self._online:
            self._online.discard(static)
            self.room.disconnected(now, static)

    def handle_timeout(self, now: Instant) -> None:
        self.room.handle_timeout(now)
        if self._enter_by is not None and now >= self._enter_by:
            self._enter_by = None
            if self.room.roster is None and not self.room.is_over:
                self.room.is_over = True
                self._events.append(EntryUnanswered())
        self.pump(now)

    # --- outputs

    def pump(self, now: Instant) -> None:
        """After every input: save, let the endpoint know whom to talk to, send, and dial."""
        if self._has_left:
            return
        while (event := self.room.poll_event()) is not None:
            if isinstance(event, RosterChanged) and self._save is not None:
                self._save(self.room.state())
            if isinstance(event, MemberRemoved):
                self._forget(event.member.static)
            self._events.append(event)
        known = [
            KnownPeer(
                name=peer.name, static=peer.static, psk=peer.psk, server=self._server, is_awaited=not self.room.dials(peer.static)
            )
            for peer in self.room.peers()
        ]
        statics = {peer.static for peer in known}
        known += [peer for peer in self._store.newcomers.values() if peer.static not in statics and not self.room.is_over]
        if known != self._known:
            self._known = known
            self.endpoint.set_peers(now, known)
        self._send()
        for static in [static for static in self._redial_at if static not in statics or not self.room.dials(static)]:
            del self._redial_at[static]
        for peer in known:
            static = peer.static
            if not peer.is_awaited and not self._is_met(static) and self._may_dial(now, static):
                self._dialing[static] = self.endpoint.dial(now, peer, self._server)

    def _is_met(self, static: bytes) -> bool:
        """There is a connection, or one is on its way: dialed, or paired by a code and not yet to be used."""
        if static in self._live or static in self._dialing:
            return True
        return any(peering.peer.static == static and not peering.is_started for peering in self.endpoint.peerings)

    def _may_dial(self, now: Instant, static: bytes) -> bool:
        if (
            static in self._store.newcomers
            or now < self._redial_at.get(static, now)
            or not self.endpoint.has_server(self._server)
        ):
            return False
        self._redial_at.pop(static, None)
        return True

    def _forget(self, static: bytes) -> None:
        self._redial_at.pop(static, None)
        self._waits.pop(static, None)

    def _send(self) -> None:
        while (said := self.room.poll_message()) is not None:
            peering = self._live.get(said[0])
            if peering is not None:
                peering.send_message(CONTROL_ROOM, said[1])

    def poll_event(self) -> RoomEvent | None:
        return self._events.popleft() if self._events else None

    def poll_timeout(self) -> Instant | None:
        return None if self._has_left else earliest(self.room.poll_timeout(), self._enter_by, *self._redial_at.values())

    def peering(self, static: bytes) -> Peering | None:
        """The connection of a member, if there is one that reaches it."""
        return self._live.get(static) if static in self._online else None
