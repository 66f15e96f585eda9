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
from typing import ClassVar, Final, Self

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.room.core import addresses
from tunnel.room.core.addresses import MAX_MEMBERS, Prefix
from tunnel.room.core.events import (
    Entered,
    EntryUnanswered,
    JoinRefused,
    MemberJoined,
    MemberOffline,
    MemberOnline,
    MemberRemoved,
    Renumbered,
    RoomEvent,
    RosterChanged,
    YouWereRemoved,
)
from tunnel.room.core.messages import (
    Carried,
    Carry,
    DetourMessage,
    Have,
    Hello,
    Leave,
    Reach,
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
    NO_NEWS,
    Member,
    RoomState,
    Roster,
    commit,
    decode_roster,
    is_signed,
    pair_psk,
    why_refused,
)
from tunnel.units import Buffer, Hex, Instant, Seconds

HAVE_INTERVAL: Final = Seconds(30.0)  # between two Have to everybody; they are for what got lost, so rare
RESEND_AFTER: Final = Seconds(10.0)  # before a State that somebody seems not to have got is sent again
PASS_ON_INTERVAL: Final = Seconds(
    1.0
)  # between two times that all are told of a newer roster: when many join at once, each is one
ENTER_PATIENCE: Final = Seconds(32.0)  # from the first connection until we are let in; the creator's own word comes after 30


class Room:
    """A member's, made by join or restore; the creator's is a CreatorRoom."""

    is_creator: ClassVar[bool] = False

    def __init__(self, *, static: bytes, member_name: str, keeps: bool, entropy: Callable[[int], bytes]) -> None:
        self.static = static
        self.drops = Drops()
        self.roster: Roster | None = None
        self.is_over = False  # we were removed or refused
        self.on_detour: Callable[[Instant, bytes, DetourMessage], None] | None = None  # what members say of carrying for others
        self._member_name = member_name
        self._keeps = keeps
        self._entropy = entropy
        self._room = b""
        self._blob = b""
        self._secret = b""
        self._psks: dict[bytes, bytes] = {}
        self._derived: dict[bytes, bytes] = {}  # psks with other members that follow from the secret
        self._creator: bytes | None = None
        self._routes: tuple[Prefix, ...] = ()
        self._links: dict[bytes, MemberLink] = {}
        self._allowances = Allowances(MESSAGE_BURST, Seconds(1.0 / MESSAGE_RATE))  # of messages
        self._have_at: Instant | None = None
        self._pass_on_at: Instant | None = None  # when all are told of a newer roster, where it is too early now ...
        self._pass_on_from = Instant(0.0)  # ... and from when on it is not
        self._enter_by: Instant | None = None  # a joiner's: when it is over
        self._messages: deque[tuple[bytes, bytes]] = deque()
        self._events: deque[RoomEvent] = deque()

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
    ) -> Self:
        """As it was remembered; CreatorRoom restores that of a creator.  Raises MalformedPacket for a state that lies."""
        roster = decode_roster(state.roster)
        is_whole = is_signed(state.roster, state.room) and roster.room == state.room and commit(state.secret) == roster.commitment
        if not is_whole or roster.member(static) is None:
            raise MalformedPacket("room state: its parts do not fit together")
        if cls.is_creator != (roster.creator.static == static):
            raise MalformedPacket("room state: the creator and nobody else has the key")
        room = cls(static=static, member_name=state.member_name, keeps=True, entropy=entropy)
        room.roster, room._blob, room._secret, room._room = roster, state.roster, state.secret, state.room
        room._psks, room._creator, room._routes = dict(state.psks.items()), roster.creator.static, tuple(routes)
        room._have_at = Instant(now + HAVE_INTERVAL)
        return room

    # --- what is known

    @property
    def me(self) -> Member | None:
        return self.roster.member(self.static) if self.roster is not None else None

    def state(self) -> RoomState:
        """To be saved at every RosterChanged.  The room must have a roster."""
        if self.roster is None:
            raise ValueError("a room that was never entered has nothing to remember")
        return RoomState(
            member_name=self._member_name,
            room=self._room,
            private_key=None,
            secret=self._secret,
            epoch=self.roster.epoch,
            roster=self._blob,
            psks={Hex(static): psk for static, psk in self._psks.items()},
            former=(),
            highest=addresses.CREATOR_HOST,
        )

    def peers(self) -> list[MemberPeer]:
        """Everybody who may have a connection to us, with the key for it; whoever is not here is cut off."""
        if self.is_over:
            return []
        roster = self.roster
        if roster is None:
            return [MemberPeer(self._creator, "creator", self._psks[self._creator])] if self._creator is not None else []
        keys = ((member, self._psk(member.static)) for member in roster.members if member.static != self.static)
        return [MemberPeer(member.static, member.name, psk) for member, psk in keys if psk is not None]

    def _psk(self, static: bytes) -> bytes | None:
        if static == self._creator:
            return self._psks.get(static)
        psk = self._derived.get(static)
        if psk is None:
            psk = self._derived[static] = pair_psk(self._secret, self.static, static)
        return psk

    def dials(self, static: bytes) -> bool:
        """Whether we connect to that member, rather than it to us: members to the creator, among others the smaller key."""
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
        if self.roster is None and self._enter_by is None:
            self._enter_by = Instant(now + ENTER_PATIENCE)

    def disconnected(self, now: Instant, static: bytes) -> None:
        if self._links.pop(static, None) is None:
            return
        member = self.roster.member(static) if self.roster is not None else None
        if member is not None and not self.is_over:
            self._events.append(MemberOffline(member))

    def forgotten_by(self, static: bytes) -> None:
        """They have cut us off.  From the creator that is its word that we are no member; from others it means nothing."""
        if static != self._creator or self.is_over:
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
                case Reach() | Carry() | Carried():
                    self._on_detour(now, static, message)
        except MalformedPacket:
            self.drops["room message malformed"] += 1

    # --- inputs: what a person wants

    def paired(self, static: bytes, psk: bytes) -> None:
        """A joiner's: this is the creator, as the code or our memory of it says."""
        if self.roster is None:
            self._creator = static
            self._psks = {static: psk}

    def expect(self, now: Instant, static: bytes, psk: bytes, *, invited: bool = False) -> None:
        """A creator's: whoever holds this key may join by saying Hello, within JOIN_PATIENCE or (invited) at any time."""

    def remove(self, now: Instant, name: str) -> Member:
        """A creator's: send a member away.  Returns who it was.  Raises ConfigurationError."""
        raise ConfigurationError("Only who created the room can remove members.")

    def leave(self) -> bool:
        """We end.  Whoever does not keep the room tells the creator (True), so that its place is free."""
        if self._keeps or self.is_over or self._creator not in self._links:
            return False
        self.say(self._creator, Leave())
        return True

    def set_routes(self, now: Instant, routes: Iterable[Prefix]) -> None:
        """Our IPv4 routes, without those of the room's own interface."""
        routes = tuple(routes)
        if routes != self._routes:
            self._routes = routes
            self._use_routes(now)

    def _use_routes(self, now: Instant) -> None:
        if self._creator is not None:
            self.say(self._creator, Told(pack_routes(self._routes)))

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
        return None if self.is_over else earliest(self._have_at, self._pass_on_at, self._enter_by)

    def handle_timeout(self, now: Instant) -> None:
        if self._enter_by is not None and now >= self._enter_by:
            self._enter_by = None
            if self.roster is None:
                self.is_over = True
                self._events.append(EntryUnanswered())
        if self._pass_on_at is not None and now >= self._pass_on_at:
            self._pass_on_to_all(now)
        if self._have_at is not None and now >= self._have_at:
            self._have_at = Instant(now + HAVE_INTERVAL)
            if self.roster is not None:
                for static in self._links:
                    self.say(static, Have(self.roster.version))

    # --- messages

    def say(self, static: bytes, message: RoomMessage) -> None:
        """Tell it, if there is a connection."""
        self._messages.append((static, encode(message)))

    def _say_hello(self, static: bytes) -> None:
        version = self.roster.version if self.roster is not None else 0
        routes = pack_routes(self._routes) if static == self._creator else ()
        self.say(static, Hello(self._room, version, self._member_name[:64], self._keeps, routes, True, MAX_MEMBERS, True))

    def _tell_state(self, now: Instant, static: bytes, link: MemberLink) -> None:
        """To members only, and each version once, unless it seems to have got lost."""
        roster = self.roster
        if roster is None or roster.member(static) is None:
            return
        if link.told < roster.version or now >= link.told_at + RESEND_AFTER:
            link.told, link.told_at = roster.version, now
            self.say(static, State(self._blob, self._secret))

    def _on_hello(self, now: Instant, static: bytes, link: MemberLink, hello: Hello) -> None:
        link.knows_detours = hello.knows_detours
        self._on_have(now, static, link, hello.version)

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
            self.say(static, Have(roster.version))

    def _on_state(self, now: Instant, static: bytes, link: MemberLink, blob: bytes, secret: bytes) -> None:
        roster = decode_roster(blob)
        reason = why_refused(roster, blob, secret, ours=self.roster, sender=static, creator=self._creator, me=self.static)
        if reason is None:
            link.version = roster.version
            if secret != self._secret:
                self._derived.clear()
            self._blob, self._secret, self._room = blob, secret, roster.room
            self._accept(now, roster)
            return
        self.drops[reason] += 1
        if reason in NO_NEWS:
            link.version = max(link.version, roster.version)

    def _on_routes(self, now: Instant, static: bytes, routes: tuple[Prefix, ...]) -> None:
        """The creator's affair."""

    def _on_refused(self, static: bytes, reason: int) -> None:
        if static != self._creator:
            self.drops["room message from a stranger"] += 1
            return
        self.is_over = True
        self._events.append(JoinRefused(Reason(reason) if reason in Reason._value2member_map_ else reason))

    def _on_leave(self, now: Instant, static: bytes) -> None:
        """The creator's affair."""

    def _on_detour(self, now: Instant, static: bytes, message: DetourMessage) -> None:
        if self.on_detour is None or self.roster is None or self.roster.member(static) is None:
            self.drops["room message from a stranger"] += 1
        else:
            self.on_detour(now, static, message)

    def knows_detours(self, static: bytes) -> bool:
        """Whether that member, to which there is a connection, has said that it does."""
        link = self._links.get(static)
        return link is not None and link.knows_detours

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
        is_removal = before is not None and before.epoch != roster.epoch
        if is_removal or now >= self._pass_on_from:
            self._pass_on_to_all(now)
        elif self._pass_on_at is None:
            self._pass_on_at = self._pass_on_from

    def _pass_on_to_all(self, now: Instant) -> None:
        """Whoever has a connection to us, and may not know our roster yet."""
        roster = self.roster
        assert roster is not None
        self._pass_on_at, self._pass_on_from = None, Instant(now + PASS_ON_INTERVAL)
        for static, link in self._links.items():
            if link.version < roster.version and roster.member(static) is not None:
                self._pass_on(now, static, link, roster)

    def _pass_on(self, now: Instant, static: bytes, link: MemberLink, roster: Roster) -> None:
        """Tell somebody who may not know it of a newer roster: whoever has an older one asks for it."""
        self.say(static, Have(roster.version))
