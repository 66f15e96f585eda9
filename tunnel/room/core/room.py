"""One member's view of a room: who is in it, who is here, and what to tell whom.

Sans IO.  The owner says which connections stand and hands in what came over them; it takes messages, events, and the list of
those for whom its endpoint needs a key.  Only the creator changes the roster.  There is one signer, so versions are in order and
whoever hears of a newer one has it: after any split all end with the same.

What is told whom: on a new connection both sides say Hello with their version.  Whoever has the newer roster sends it (State).
Whoever learns a newer one says Have to everybody else whose version it does not know to be that new.  Have is repeated now and
then, so nothing that got lost stays lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.room.core import addresses
from tunnel.room.core.addresses import HostNumbers, Prefix
from tunnel.room.core.creator import Change, Creator
from tunnel.room.core.events import (
    Entered,
    JoinRefused,
    MemberJoined,
    MemberOffline,
    MemberOnline,
    MemberRemoved,
    Renumbered,
    RoomEvent,
    RoomFull,
    RosterChanged,
    YouWereRemoved,
)
from tunnel.room.core.messages import (
    Have,
    Hello,
    Leave,
    Reason,
    Refused,
    RoomMessage,
    State,
    Told,
    decode_message,
    encode,
    pack_routes,
    unpack_routes,
)
from tunnel.room.core.records import MESSAGE_BURST, MESSAGE_RATE, Allowances, MemberLink, MemberPeer
from tunnel.room.core.roster import (
    KEY_SIZE,
    NO_NEWS,
    Member,
    RoomState,
    Roster,
    commit,
    decode_roster,
    is_signed,
    make_label,
    pair_psk,
    public_key,
    sign_roster,
    why_refused,
)
from tunnel.units import Buffer, Hex, Instant, Seconds

HAVE_INTERVAL: Final = Seconds(30.0)  # between two Have to everybody; they are for what got lost, so rare
RESEND_AFTER: Final = Seconds(10.0)  # before a State that somebody seems not to have got is sent again


class Room:
    """Make one by create, join or restore."""

    def __init__(self, *, static: bytes, member_name: str, keeps: bool, entropy: Callable[[int], bytes]) -> None:
        self.static = static
        self.drops = Drops()
        self.roster: Roster | None = None
        self.is_over = False  # we were removed or refused
        self._member_name = member_name
        self._keeps = keeps
        self._entropy = entropy
        self._office: Creator | None = None  # the creator has one
        self._room = b""
        self._blob = b""
        self._secret = b""
        self._psks: dict[bytes, bytes] = {}
        self._creator: bytes | None = None
        self._routes: tuple[Prefix, ...] = ()
        self._links: dict[bytes, MemberLink] = {}
        self._allowances = Allowances(MESSAGE_BURST, Seconds(1.0 / MESSAGE_RATE))  # of messages
        self._have_at: Instant | None = None
        self._messages: deque[tuple[bytes, bytes]] = deque()
        self._events: deque[RoomEvent] = deque()

    @classmethod
    def create(
        cls,
        *,
        now: Instant,
        static: bytes,
        member_name: str,
        room_name: str,
        routes: Iterable[Prefix] = (),
        keeps: bool = False,
        entropy: Callable[[int], bytes],
    ) -> Room:
        """A new room with ourselves in it.  `room_name` is a label.  Raises ConfigurationError when no subnet is left."""
        room = cls(static=static, member_name=member_name, keeps=keeps, entropy=entropy)
        room._office = Creator(entropy(KEY_SIZE), entropy, room.drops)
        room._room = public_key(room._office.private_key)
        room._creator = static
        room._routes = room._office.routes[static] = tuple(routes)
        subnet = addresses.choose_subnet(entropy, room._routes)
        if subnet is None:
            raise ConfigurationError("Every private IPv4 network is in use here: take away a route, then create the room.")
        room._secret = entropy(KEY_SIZE)
        roster = Roster(
            room=room._room,
            version=1,
            epoch=1,
            name=room_name,
            subnet=subnet,
            ula=addresses.choose_ula(entropy),
            commitment=commit(room._secret),
            members=(Member(static, make_label(member_name), addresses.CREATOR_HOST),),
        )
        room._sign(now, Change(roster))
        room._have_at = Instant(now + HAVE_INTERVAL)
        return room

    @classmethod
    def join(
        cls,
        *,
        static: bytes,
        member_name: str,
        keeps: bool = False,
        routes: Iterable[Prefix] = (),
        entropy: Callable[[int], bytes],
    ) -> Room:
        """A room that we know nothing of yet: see paired."""
        room = cls(static=static, member_name=member_name, keeps=keeps, entropy=entropy)
        room._routes = tuple(routes)
        return room

    @classmethod
    def restore(
        cls, state: RoomState, *, now: Instant, static: bytes, routes: Iterable[Prefix] = (), entropy: Callable[[int], bytes]
    ) -> Room:
        """As it was remembered.  A creator whose routes clash now renumbers.  Raises MalformedPacket for a state that lies."""
        roster = decode_roster(state.roster)
        is_ours = state.private_key is None or public_key(state.private_key) == state.room
        is_whole = is_signed(state.roster, state.room) and roster.room == state.room and commit(state.secret) == roster.commitment
        if not is_ours or not is_whole or roster.member(static) is None:
            raise MalformedPacket("room state: its parts do not fit together")
        if (state.private_key is not None) != (roster.creator.static == static):
            raise MalformedPacket("room state: the creator and nobody else has the key")
        room = cls(static=static, member_name=state.member_name, keeps=True, entropy=entropy)
        room.roster, room._blob, room._secret, room._room = roster, state.roster, state.secret, state.room
        room._psks, room._creator, room._routes = dict(state.psks.items()), roster.creator.static, tuple(routes)
        room._have_at = Instant(now + HAVE_INTERVAL)
        if state.private_key is not None:
            highest = max(state.highest, *(member.host for member in roster.members))
            room._office = Creator(state.private_key, entropy, room.drops, HostNumbers(state.former, highest))
            room._office.routes[static] = room._routes
            room._renumber(now)
        return room

    # --- what is known

    @property
    def is_creator(self) -> bool:
        return self._office is not None

    @property
    def me(self) -> Member | None:
        return self.roster.member(self.static) if self.roster is not None else None

    @property
    def online(self) -> tuple[Member, ...]:
        """Other members that we have a connection to."""
        members = self.roster.members if self.roster is not None else ()
        return tuple(member for member in members if member.static in self._links and member.static != self.static)

    def state(self) -> RoomState:
        """To be saved at every RosterChanged.  The room must have a roster."""
        if self.roster is None:
            raise ValueError("a room that was never entered has nothing to remember")
        return RoomState(
            member_name=self._member_name,
            room=self._room,
            private_key=self._office.private_key if self._office is not None else None,
            secret=self._secret,
            epoch=self.roster.epoch,
            roster=self._blob,
            psks={Hex(static): psk for static, psk in self._psks.items()},
            former=tuple((Hex(static), host) for static, host in self._office.numbers.former) if self._office is not None else (),
            highest=self._office.numbers.highest if self._office is not None else addresses.CREATOR_HOST,
        )

    def peers(self) -> list[MemberPeer]:
        """Everybody who may have a connection to us, with the key for it; whoever is not here is cut off."""
        if self.is_over:
            return []
        found: dict[bytes, MemberPeer] = {}
        roster = self.roster
        if roster is None and self._creator is not None:
            found[self._creator] = MemberPeer(self._creator, "creator", self._psks[self._creator])
        for member in roster.members if roster is not None else ():
            if self.is_creator or member.static == self._creator:
                psk = self._psks.get(member.static)
            else:
                psk = pair_psk(self._secret, self.static, member.static)
            if member.static != self.static and psk is not None:
                found[member.static] = MemberPeer(member.static, member.name, psk)
        for static, expected in self._office.expected.items() if self._office is not None else ():
            name = found[static].name if static in found else "newcomer"
            found[static] = MemberPeer(static, name, expected.psk)
        return list(found.values())

    def dials(self, static: bytes) -> bool:
        """Whether we connect to that member, rather than it to us: members to the creator, among others the smaller key."""
        if self.is_creator:
            return False
        return static == self._creator or self.static < static

    # --- inputs: connections

    def connected(self, now: Instant, static: bytes) -> None:
        """A connection to them stands, or a new one in the place of the old."""
        member = self.roster.member(static) if self.roster is not None else None
        if static not in self._links and member is not None:
            self._events.append(MemberOnline(member))
        self._links[static] = MemberLink(now)
        self._say_hello(static)
        if self._have_at is None:
            self._have_at = Instant(now + HAVE_INTERVAL)

    def disconnected(self, now: Instant, static: bytes) -> None:
        if self._links.pop(static, None) is None:
            return
        member = self.roster.member(static) if self.roster is not None else None
        if member is not None and not self.is_over:
            self._events.append(MemberOffline(member))

    def forgotten_by(self, static: bytes) -> None:
        """They have cut us off.  From the creator that is its word that we are no member; from others it means nothing."""
        if static != self._creator or self.is_over or self.is_creator:
            return
        self.is_over = True
        self._events.append(YouWereRemoved() if self.roster is not None else JoinRefused(Reason.UNKNOWN))

    def handle_message(self, now: Instant, static: bytes, body: Buffer) -> None:
        """One message from the holder of this key.  What does not fit is counted and dropped."""
        link = self._links.get(static)
        if link is None or self.is_over:
            self.drops["room message from nobody"] += 1
            return
        if not self._allowances.take(now, static):
            self.drops["room messages too fast"] += 1
            return
        try:
            message = decode_message(body)
            match message:
                case Hello():
                    self._on_hello(now, static, link, message)
                case State(roster=blob, secret=secret):
                    self._on_state(now, static, link, blob, secret)
                case Have(version=version):
                    self._on_have(now, static, link, version)
                case Told(routes=routes):
                    self._on_routes(now, static, unpack_routes(routes))
                case Refused(reason=reason):
                    self._on_refused(static, reason)
                case Leave():
                    self._on_leave(now, static)
        except MalformedPacket:
            self.drops["room message malformed"] += 1

    # --- inputs: what a person wants

    def paired(self, static: bytes, psk: bytes) -> None:
        """A joiner's: this is the creator, as the code or our memory of it says."""
        if self.roster is None and not self.is_creator:
            self._creator = static
            self._psks = {static: psk}

    def expect(self, now: Instant, static: bytes, psk: bytes, *, invited: bool = False) -> None:
        """A creator's: whoever holds this key may join by saying Hello, within JOIN_PATIENCE or (invited) at any time."""
        if self._office is not None:
            self._office.expect(now, static, psk, invited=invited)

    def remove(self, now: Instant, name: str) -> Member:
        """A creator's: send a member away.  Returns who it was.  Raises ConfigurationError."""
        roster, office = self.roster, self._office
        if roster is None or office is None:
            raise ConfigurationError("Only who created the room can remove members.")
        member = roster.named(name)
        if member is None:
            names = ", ".join(each.name for each in roster.members[1:])
            raise ConfigurationError(f"No member is called {name!r}: {f'there are {names}.' if names else 'you are alone.'}")
        if member.static == self.static:
            raise ConfigurationError("You cannot remove yourself: end the room with Ctrl-C, and others play on.")
        office.turn_away()
        self._sign(now, office.drop(roster, member, is_sent_away=True))
        return member

    def leave(self) -> bool:
        """We end.  Whoever does not keep the room tells the creator (True), so that its place is free."""
        if self._keeps or self.is_creator or self.is_over or self._creator not in self._links:
            return False
        self._say(self._creator, Leave())
        return True

    def set_routes(self, now: Instant, routes: Iterable[Prefix]) -> None:
        """Our IPv4 routes, without those of the room's own interface."""
        routes = tuple(routes)
        if routes == self._routes:
            return
        self._routes = routes
        if self._office is not None:
            self._office.routes[self.static] = routes
            self._renumber(now)
        elif self._creator is not None:
            self._say(self._creator, Told(pack_routes(routes)))

    # --- outputs

    def poll_message(self) -> tuple[bytes, bytes] | None:
        """(static key, body): send it there.  Before it, act on all events."""
        while self._messages:
            static, body = self._messages.popleft()
            if static in self._links:
                return static, body
        return None

    def poll_event(self) -> RoomEvent | None:
        return self._events.popleft() if self._events else None

    def poll_timeout(self) -> Instant | None:
        if self.is_over:
            return None
        return earliest(self._have_at, self._office.poll_timeout() if self._office is not None else None)

    def handle_timeout(self, now: Instant) -> None:
        if self._have_at is not None and now >= self._have_at:
            self._have_at = Instant(now + HAVE_INTERVAL)
            if self.roster is not None:
                for static in self._links:
                    self._say(static, Have(self.roster.version))
        if self._office is not None and self.roster is not None:
            self._sign(now, self._office.let_go(now, self.roster))
            if self._office.handle_timeout(now):
                self._renumber(now)

    # --- messages

    def _say(self, static: bytes, message: RoomMessage) -> None:
        self._messages.append((static, encode(message)))

    def _say_hello(self, static: bytes) -> None:
        version = self.roster.version if self.roster is not None else 0
        routes = pack_routes(self._routes) if static == self._creator else ()
        self._say(static, Hello(self._room, version, self._member_name[:64], self._keeps, routes, True))

    def _tell_state(self, now: Instant, static: bytes, link: MemberLink) -> None:
        """To members only, and each version once, unless it seems to have got lost."""
        roster = self.roster
        if roster is None or roster.member(static) is None:
            return
        if link.told < roster.version or now >= link.told_at + RESEND_AFTER:
            link.told, link.told_at = roster.version, now
            self._say(static, State(self._blob, self._secret))

    def _on_hello(self, now: Instant, static: bytes, link: MemberLink, hello: Hello) -> None:
        if self._office is not None and not self._admit(now, self._office, static, hello):
            return
        self._on_have(now, static, link, hello.version)

    def _admit(self, now: Instant, office: Creator, static: bytes, hello: Hello) -> bool:
        """Whether whoever said that is a member now."""
        assert self.roster is not None
        routes = unpack_routes(hello.routes)
        verdict = Reason.OTHER_ROOM
        if hello.room in (b"", self._room):
            outcome = office.admit(now, self.roster, static, hello, self._links)
            if not isinstance(outcome, Reason):
                (office.narrow.discard if hello.knows_spare else office.narrow.add)(static)
                self._welcome(now, office, static, routes, outcome)
                return True
            verdict = outcome
        if verdict is Reason.FULL:
            self._events.append(RoomFull(make_label(hello.name)))
        self._say(static, Refused(verdict))
        return False

    def _welcome(self, now: Instant, office: Creator, static: bytes, routes: tuple[Prefix, ...], changes: list[Change]) -> None:
        expected = office.expected.get(static)
        if expected is not None:
            self._psks[static] = expected.psk
            if expected.until is not None:
                del office.expected[static]
        office.routes[static] = routes
        for change in changes:
            self._sign(now, change)
        if expected is not None and not changes and self.roster is not None:
            self._events.append(RosterChanged(self.roster))  # paired anew: the same roster, another psk
        self._renumber(now)

    def _on_have(self, now: Instant, static: bytes, link: MemberLink, version: int) -> None:
        roster = self.roster
        if roster is None:
            return
        if roster.member(static) is None:
            self.drops["room message from a stranger"] += 1
            return
        link.version = max(link.version, version)
        if version < roster.version:
            self._tell_state(now, static, link)
        elif version > roster.version:
            self._say(static, Have(roster.version))

    def _on_state(self, now: Instant, static: bytes, link: MemberLink, blob: bytes, secret: bytes) -> None:
        roster = decode_roster(blob)
        reason = why_refused(roster, blob, secret, ours=self.roster, sender=static, creator=self._creator, me=self.static)
        if reason is None:
            link.version = roster.version
            self._blob, self._secret, self._room = blob, secret, roster.room
            self._accept(now, roster)
            return
        self.drops[reason] += 1
        if reason in NO_NEWS:
            link.version = max(link.version, roster.version)

    def _on_routes(self, now: Instant, static: bytes, routes: tuple[Prefix, ...]) -> None:
        if self._office is not None and self.roster is not None and self.roster.member(static) is not None:
            self._office.routes[static] = routes
            self._renumber(now)

    def _on_refused(self, static: bytes, reason: int) -> None:
        if static != self._creator or self.is_creator:
            self.drops["room message from a stranger"] += 1
            return
        self.is_over = True
        self._events.append(JoinRefused(Reason(reason) if reason in Reason._value2member_map_ else reason))

    def _on_leave(self, now: Instant, static: bytes) -> None:
        roster, office = self.roster, self._office
        member = roster.member(static) if roster is not None else None
        if roster is not None and office is not None and member is not None:
            self._sign(now, office.leave(now, roster, member))

    # --- the roster

    def _accept(self, now: Instant, roster: Roster) -> None:
        """It is newer than ours, and genuine."""
        before, self.roster = self.roster, roster
        old = {member.static: member for member in before.members} if before is not None else {}
        new = {member.static: member for member in roster.members}
        if before is None:
            self._events.append(Entered(roster))
        for static, member in old.items():
            if static not in new:
                self._links.pop(static, None)
                self._psks.pop(static, None)
                self._events.append(MemberRemoved(member))
        for static, member in new.items():
            if static != self.static and static not in old:
                if before is not None:
                    self._events.append(MemberJoined(member))
                if static in self._links:
                    self._events.append(MemberOnline(member))
        if before is not None and (before.subnet, before.ula) != (roster.subnet, roster.ula):
            self._events.append(Renumbered(roster))
        self._events.append(RosterChanged(roster))
        for static, link in self._links.items():
            if link.version >= roster.version or static not in new:
                continue
            if self.is_creator:
                self._tell_state(now, static, link)
            else:
                self._say(static, Have(roster.version))

    def _sign(self, now: Instant, change: Change | None) -> None:
        assert self._office is not None
        if change is None:
            return
        if change.secret is not None:
            self._secret = change.secret
        self._blob = sign_roster(change.roster, self._office.private_key)
        self._accept(now, change.roster)

    def _renumber(self, now: Instant) -> None:
        if self._office is not None and self.roster is not None:
            self._sign(now, self._office.renumber(now, self.roster))
