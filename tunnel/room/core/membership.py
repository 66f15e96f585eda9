"""A room on an endpoint of its own: the members are its peers, and what the Room has to say goes over their connections.

Sans IO: the owner passes on every event of the endpoint, then acts on what pump() returns, and obeys poll_timeout.  Which
connection is a member's is known here alone; who is a member, to the Room alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
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
from tunnel.room.core.detours import Detours
from tunnel.room.core.events import MemberRemoved, RoomEvent, RosterChanged
from tunnel.room.core.records import MemberPeer
from tunnel.room.core.room import Room
from tunnel.room.core.roster import Member, RoomState
from tunnel.transport.connection.events import CloseCode, ControlReceived
from tunnel.units import Instant, Seconds

FIRST_REDIAL: Final = Seconds(1.0)  # after a connection that ended; doubled each time
LONGEST_REDIAL: Final = Seconds(60.0)
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


@dataclass(slots=True)
class Contact:
    """The connection to one member, and the way to the next."""

    peering: Peering | None = None  # the connection, reachable or not, ...
    since: Instant | None = None  # ... and when it began
    is_online: bool = False  # the Room was told that it is reachable
    dialing: Peering | None = None
    redial_at: Instant | None = None
    wait: Seconds = FIRST_REDIAL  # after the next connection that ends


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
        carries: bool = False,
    ) -> None:
        """`store` is the one that the endpoint was made with.  `save` is called before anybody is told of what it saves.

        `carries`: pass on what two others have for each other that meet in no other way.
        """
        self.endpoint = endpoint
        self.room = room
        self.flow: ExposerPairing | None = None
        self._store = store
        self._server = server
        self._save = save
        self._contacts: defaultdict[bytes, Contact] = defaultdict(Contact)
        self._peers: tuple[list[MemberPeer], list[KnownPeer]] = ([], [])  # of the room and newcomers, as of the last look ...
        self._statics: set[bytes] = set()  # ... and what follows: of those of the room ...
        self._dialed: dict[bytes, KnownPeer] = {}  # ... and of all whom we dial
        self.detours = Detours(
            room,
            endpoint.carrying,
            carries=carries,
            reached=self.peering,
            known=lambda static: self._contacts[static].peering if static in self._contacts else None,
            dialing=lambda static: self._contacts[static].dialing if static in self._contacts else None,
        )
        self._redial_at: Instant | None = None  # the first of those of the contacts, as of the last look at them
        self._is_stale = True  # something has happened after which other connections may be wanted, or somebody waits for one
        self._has_left = False
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
        return member

    def meet(self, now: Instant, static: bytes, psk: bytes, *, invited: bool = False) -> None:
        """A creator's: whoever holds this key may join (Room.expect).  A joiner's: that is the creator's key."""
        self._is_stale = True
        if self.room.is_creator:
            self.room.expect(now, static, psk, invited=invited)
        else:
            self.room.paired(static, psk)

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
        self._is_stale |= not isinstance(event, PeeringEvent) or isinstance(event.event, ControlReceived)
        match event:
            case PeerPaired(peer=peer):
                self._store.newcomers.pop(peer.static, None)
                self.meet(now, peer.static, peer.psk)
            case PeeringStarted(peering=peering):
                self._started(now, peering)
            case PeeringRestarted(peering=peering):
                if (contact := self._of(peering)) is not None:
                    self._set_online(now, contact, False)
                    self._set_online(now, contact, peering.is_reachable)
            case PeeringClosed(peering=peering, reason=reason):
                self._closed(now, peering, reason.code)
                if reason.code == CloseCode.FORGOTTEN and reason.by_peer:
                    self.room.forgotten_by(peering.peer.static)
            case PeeringEvent(peering=peering, event=inner):
                if (contact := self._of(peering)) is None:
                    return
                if not isinstance(inner, ControlReceived):
                    self._set_online(now, contact, peering.is_reachable)
                elif inner.data[:1] == bytes((CONTROL_ROOM,)):
                    with peering.wall(now):
                        self.room.handle_message(now, peering.peer.static, inner.data[1:])
            case _:
                pass

    def _of(self, peering: Peering) -> Contact | None:
        """Return whose connection it is; None: another has taken its place."""
        contact = self._contacts.get(peering.peer.static)
        return contact if contact is not None and contact.peering is peering else None

    def _started(self, now: Instant, peering: Peering) -> None:
        contact = self._contacts[peering.peer.static]
        former, contact.peering = contact.peering, peering
        contact.since, contact.redial_at = now, None
        if contact.dialing is peering:
            contact.dialing = None
        if former is not None and former is not peering:
            self._set_online(now, contact, False)
            former.close(now, CloseCode.REPLACED, "met anew")
        self._set_online(now, contact, peering.is_reachable)

    def _closed(self, now: Instant, peering: Peering, code: int) -> None:
        contact = self._contacts[peering.peer.static]
        if contact.dialing is peering:
            contact.dialing = None
        elif contact.peering is peering:
            self._set_online(now, contact, False)
            contact.peering = None
            if contact.since is not None and now - contact.since >= SOUND_AFTER:
                contact.wait = FIRST_REDIAL
        elif peering.is_started:
            return
        wait = contact.wait if code != CloseCode.PATH_POLICY else LONGEST_REDIAL
        contact.wait = Seconds(min(2 * wait, LONGEST_REDIAL))
        contact.redial_at = Instant(now + wait)

    def _set_online(self, now: Instant, contact: Contact, is_online: bool) -> None:
        if is_online != contact.is_online and contact.peering is not None:
            contact.is_online = is_online
            (self.room.connected if is_online else self.room.disconnected)(now, contact.peering.peer.static)
            self.detours.changed(now, contact.peering.peer.static)

    # --- outputs

    def pump(self, now: Instant) -> list[RoomEvent]:
        """After every input and when it is time: save, let the endpoint know whom to talk to, send, and dial.

        Return what is different.
        """
        events: list[RoomEvent] = []
        if self._has_left:
            return events
        if (at := self.room.poll_timeout()) is not None and now >= at:
            self.room.handle_timeout(now)
            self._is_stale = True
        self.detours.handle_timeout(now)
        while (event := self.room.poll_event()) is not None:
            if isinstance(event, RosterChanged):
                self.detours.changed(now)
                if self._save is not None:
                    self._save(self.room.state())
            if isinstance(event, MemberRemoved) and (contact := self._contacts.get(event.member.static)) is not None:
                contact.redial_at, contact.wait = None, FIRST_REDIAL
            events.append(event)
        # Most inputs are no news of this kind, and a look at each member for each of them would cost the cube of the members.
        looks = bool(events) or self._is_stale or (self._redial_at is not None and now >= self._redial_at)
        if looks:
            self._know(now)
        self._send()
        if looks:
            self._is_stale = self._dial(now)
            self._redial_at = earliest(*(contact.redial_at for contact in self._contacts.values()))
        return events

    def _dial(self, now: Instant) -> bool:
        """Whoever is not connected to us, is not dialed yet and has to be; True when one waits for what tells no time."""
        dialed = self._dialed
        for static, contact in list(self._contacts.items()):
            if static not in dialed:
                contact.redial_at = None
                if static not in self._statics and contact.peering is None and contact.dialing is None:
                    del self._contacts[static]
        waits = False
        for static, peer in dialed.items():
            contact = self._contacts[static]
            if self._may_dial(now, static, contact):
                contact.redial_at = None
                contact.dialing = self.endpoint.dial(now, peer, self._server)
            waits |= contact.peering is None and contact.dialing is None and contact.redial_at is None
        return waits

    def _know(self, now: Instant) -> None:
        """Let the endpoint know whom to talk to, where that is different."""
        peers = self.room.peers(), [] if self.room.is_over else list(self._store.newcomers.values())
        if peers == self._peers:
            return
        self._peers = peers
        known = [
            KnownPeer(
                name=peer.name, static=peer.static, psk=peer.psk, server=self._server, is_awaited=not self.room.dials(peer.static)
            )
            for peer in peers[0]
        ]
        self._statics = {peer.static for peer in known}
        known += [peer for peer in peers[1] if peer.static not in self._statics]
        self._dialed = {peer.static: peer for peer in known if not peer.is_awaited}
        self.endpoint.set_peers(now, known)

    def _may_dial(self, now: Instant, static: bytes, contact: Contact) -> bool:
        """There is no connection, none is on its way (dialed, or paired by a code and not yet to be used), and it is time."""
        return (
            contact.peering is None
            and contact.dialing is None
            and (contact.redial_at is None or now >= contact.redial_at)
            and static not in self._store.newcomers
            and self.endpoint.has_server(self._server)
            and not any(peering.peer.static == static and not peering.is_started for peering in self.endpoint.peerings)
        )

    def _send(self) -> None:
        while (said := self.room.poll_message()) is not None:
            contact = self._contacts.get(said[0])
            if contact is not None and contact.peering is not None:
                contact.peering.send_message(CONTROL_ROOM, said[1])

    def poll_timeout(self) -> Instant | None:
        if self._has_left:
            return None
        return earliest(self.room.poll_timeout(), self.detours.poll_timeout(), self._redial_at)

    def peering(self, static: bytes) -> Peering | None:
        """The connection of a member, if there is one that reaches it."""
        contact = self._contacts.get(static)
        return contact.peering if contact is not None and contact.is_online else None
