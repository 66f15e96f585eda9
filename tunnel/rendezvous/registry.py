"""The server's soft state: sessions, rooms, nameplates and mailboxes.

Every table is bounded, and a newcomer evicts nobody.  Only of rooms, of which one client may have a thousand, an address that
holds many gives some back, when there are no more, to one that wants few.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from tunnel.core.parts import Parts
from tunnel.core.prefixes import Prefixes, RankedShares, Shares, prefixes
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import MAILBOX_SIZE, PushMessage, Request
from tunnel.rendezvous.numbers import Numbers
from tunnel.units import Address, Instant, SocketId

REMEMBERED_ANSWERS: Final = 16  # answers a session, so that a repeated request is answered alike instead of done twice
SCARCE_SHARE: Final = 0.5  # of what addresses usually hold in rooms: so much is had of them when there are no more
LOOKED_AT: Final = 16  # rooms of who gives way; of these one in which nobody has met goes, if there is one


class Inbound(NamedTuple):
    """Where a request came from and what it was."""

    socket_id: SocketId
    remote: Address
    request: Request
    size: int  # bytes of it


class PendingPush:
    __slots__ = ("attempts", "expires_at", "is_waiting", "message", "push_id", "spent")

    def __init__(self, push_id: int, message: PushMessage, expires_at: Instant) -> None:
        self.push_id = push_id
        self.message = message
        self.attempts = 0
        self.spent = 0  # bytes sent
        self.is_waiting = False  # for its session to be heard
        self.expires_at = expires_at


class Dial:
    """One wish to meet each listener of some rooms once."""

    __slots__ = ("introduced", "rooms", "sent", "session")

    def __init__(self, session: Session, rooms: tuple[bytes, ...]) -> None:
        self.session = session
        self.rooms = rooms
        self.introduced: set[bytes] = set()
        self.sent: dict[int, Instant] | None = None  # to which servers of a fleet, and when


class _NoDict(dict[Any, Any]):
    """Nothing is put in it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("this is everybody's")


class _NoSet(set[Any]):
    """Nothing is put in it."""

    def add(self, element: Any) -> None:
        raise TypeError("this is everybody's")


NO_DICT: Final = _NoDict()
NO_SET: Final = _NoSet()


class Session:
    """One client process.  Whoever names its 16 random bytes from a proven address is that client."""

    __slots__ = (
        "answers",
        "channels",
        "credit",
        "dialing",
        "follows",
        "has_asked",
        "has_lost",
        "has_waiting",
        "id",
        "is_guest",
        "is_here",
        "keys",
        "knows_loss",
        "last_nameplate",
        "listening",
        "mailboxes",
        "nameplates",
        "pushes",
        "remote",
        "seen_at",
        "socket_id",
        "unmet_at",
        "welcome",
        "welcome_until",
    )

    def __init__(self, identifier: bytes, socket_id: SocketId, remote: Address, now: Instant) -> None:
        self.id = identifier
        self.socket_id = socket_id
        self.remote = remote
        self.keys = prefixes(remote.host)  # as limits count
        self.seen_at = now
        self.unmet_at: Instant | None = None  # when it was told that somebody could not be led to it
        self.credit = 0  # bytes that it may be told unasked
        self.is_here = True  # has not left
        self.is_guest = False  # has been led to a session of the server's own hosts
        self.follows = False  # it goes where it is sent, in a fleet
        self.has_lost = False  # a room to somebody else, and not registered anything since it was told
        self.knows_loss = False  # that was told
        self.has_waiting = False  # pushes that wait for it to be heard
        # What few of them have at a time is empty and common to all, until something is put in: see own().
        self.listening: set[bytes] = NO_SET
        self.dialing: dict[bytes, Dial] = NO_DICT
        self.nameplates: set[int] = NO_SET
        self.mailboxes: set[bytes] = NO_SET
        self.channels: set[bytes] = NO_SET
        self.answers: dict[int, bytes] = NO_DICT
        self.pushes: dict[int, PendingPush] = NO_DICT
        self.last_nameplate = 0  # whoever learned it learned nothing of the next
        self.has_asked = False  # for anything but to stay, since it last rested
        self.welcome = b""  # what it is told when it says that it is still there, see refreshes.py; empty: not what it was
        self.welcome_until = now

    def own(self, name: str) -> Any:
        """A container to put something in: two hundred thousand who only wait have none of most."""
        held = getattr(self, name)
        if held is NO_SET:
            held = set()
        elif held is NO_DICT:
            held = {}
        else:
            return held
        setattr(self, name, held)
        return held

    def rest(self) -> None:
        """Let go of the containers that nothing is in, and of answers once it has rested before: none is asked for again."""
        if not self.has_asked:
            self.answers.clear()
        self.has_asked = False
        self.dialing = self.dialing or NO_DICT
        self.answers = self.answers or NO_DICT
        self.pushes = self.pushes or NO_DICT
        self.nameplates = self.nameplates or NO_SET
        self.mailboxes = self.mailboxes or NO_SET
        self.channels = self.channels or NO_SET

    @property
    def key(self) -> str:
        """Its address alone."""
        return self.keys[0]

    def remember(self, transaction: int, answer: bytes) -> None:
        answers, self.has_asked = self.answers, True
        if answers is NO_DICT:
            answers = self.answers = {}
        answers[transaction] = answer
        if len(answers) > REMEMBERED_ANSWERS:
            del answers[next(iter(answers))]


class Room(NamedTuple):
    """Never changed, only replaced: nearly all have one listener and nobody else, and the three of who waits are one object."""

    listeners: tuple[Session, ...] = ()
    dialers: tuple[Dial, ...] = ()


EMPTY: Final = Room()


class Nameplate:
    __slots__ = ("claims", "expires_at", "is_for_many", "left", "owner")

    def __init__(self, owner: Session, expires_at: Instant, claims: int) -> None:
        self.owner = owner
        self.expires_at = expires_at
        self.is_for_many = claims > 1
        self.left = claims  # how many may still claim it
        self.claims: dict[bytes, Prefixes] = {}  # open mailboxes of those who did, and where they are


class Mailbox:
    __slots__ = ("channel", "expires_at", "id", "keys", "nameplate", "posts", "sides")

    def __init__(
        self, identifier: bytes, sides: tuple[Session, Session], channel: bytes, nameplate: int, expires_at: Instant
    ) -> None:
        self.id = identifier
        self.sides = sides
        self.keys = sides[1].keys  # who opened it, as limits count
        self.channel = channel
        self.nameplate = nameplate
        self.posts = 0
        self.expires_at = expires_at


class Registry:
    """Tables and their bounds; what to tell whom is the server's business."""

    def __init__(
        self,
        config: ServerConfig,
        entropy: Callable[[int], bytes],
        numbers: Numbers,
        has_met: Callable[[bytes], bool],
    ) -> None:
        """`has_met`: whether a channel that is open came of this room."""
        self._config = config
        self._has_met = has_met
        self._entropy = entropy
        self._numbers = numbers
        self.sessions: Parts[Session] = Parts()  # in each part the longest silent first
        self.rooms: Parts[Room] = Parts()
        self.nameplates: OrderedDict[int, Nameplate] = OrderedDict()  # the first to expire first
        self.mailboxes: OrderedDict[bytes, Mailbox] = OrderedDict()  # likewise
        self.session_shares = Shares(total=config.max_sessions, each=config.sessions_per_address)
        self.nameplate_shares = Shares(total=config.max_nameplates, each=config.nameplates_per_address)
        self.room_shares = RankedShares(total=config.max_room_entries, each=config.rooms_per_address)
        self.mailbox_shares = Shares(total=config.max_mailboxes, each=config.mailboxes_per_address)
        self.given_up = 0  # registrations in rooms, to others
        self.on_room: Callable[[bytes], None] | None = None  # hears in which room somebody came or went
        self.on_number: Callable[[int], None] | None = None  # ... and which number is over
        self._at: defaultdict[str, dict[str, tuple[Session, ...]]] = defaultdict(dict)  # by address, in parts as in Shares
        self._latest = Room()  # of who came last to a room in which nobody was

    # sessions

    def enter(self, now: Instant, identifier: bytes, socket_id: SocketId, remote: Address) -> Session | None:
        """A new session; None when a limit forbids that."""
        keys = prefixes(remote.host)
        if not self.session_shares.has_room(keys):
            return None
        session = self.sessions[identifier] = Session(identifier, socket_id, remote, now)
        self.session_shares.add(keys)
        self._come_to_address(session)
        return session

    def touch(self, now: Instant, session: Session, socket_id: SocketId, remote: Address) -> bool:
        """A sign of life, maybe from a new address; False when that one has no room for it and all that it holds."""
        if session.remote != remote:
            if not self._move(session, prefixes(remote.host)):
                return False
            session.credit = 0  # earned elsewhere
            session.remote = remote  # else it stays the same object, which others hold too
        session.seen_at = now
        sessions = self.sessions.of(session.id)
        sessions[session.id] = sessions.pop(session.id)
        session.socket_id = socket_id
        return True

    def _move(self, session: Session, keys: Prefixes) -> bool:
        """Else sessions made at one address could be gathered at another, beyond any limit."""
        if keys == session.keys:
            return True
        held = (
            (self.session_shares, 1),
            (self.nameplate_shares, len(session.nameplates)),
            (self.room_shares, len(session.listening) + len(session.dialing)),
        )
        if not all(shares.may_move(session.keys, keys, count) for shares, count in held):
            return False
        for shares, count in held:
            shares.move(session.keys, keys, count)
        self._leave_address(session)
        session.keys = keys
        self._come_to_address(session)
        return True

    def _come_to_address(self, session: Session) -> None:
        at = self._at[session.keys[-1][-1]]
        at[session.key] = (*at.get(session.key, ()), session)

    def _leave_address(self, session: Session) -> None:
        at = self._at[session.keys[-1][-1]]
        here = tuple(each for each in at[session.key] if each is not session)
        if here:
            at[session.key] = here
        else:
            del at[session.key]

    def remove_session(self, session: Session) -> None:
        """With its rooms and nameplates; mailboxes and channels have two sides, the server tells the other."""
        if self.sessions.pop(session.id, None) is None:
            return
        session.is_here = False
        self.leave(session, session.listening | session.dialing.keys())
        for number in list(session.nameplates):
            self.remove_nameplate(number)
        self.session_shares.remove(session.keys)
        self._leave_address(session)

    # rooms

    def listen(self, session: Session, name: bytes) -> bool:
        if name in session.listening:
            return True
        rooms = self.rooms.of(name)
        room = rooms.get(name)
        if room is not None and len(room.listeners) >= self._config.listeners_per_room:
            return False
        if not self._may_enter(session):
            return False
        room = rooms.get(name)  # somebody may have given way
        rooms[name] = self._alone(session) if room is None else Room((*room.listeners, session), room.dialers)
        session.own("listening").add(name)
        self.room_shares.add(session.keys)
        if self.on_room is not None:
            self.on_room(name)
        return True

    def dial(self, dial: Dial, name: bytes) -> tuple[Session, ...] | None:
        """Replaces what this session dialed there before.  Returns who listens there; None: a limit forbids it."""
        session = dial.session
        rooms = self.rooms.of(name)
        room = rooms.get(name, EMPTY)
        if name in session.dialing:
            dialers = _but(room.dialers, session)
        else:
            if len(room.dialers) >= self._config.dialers_per_room or not self._may_enter(session):
                return None
            self.room_shares.add(session.keys)
            room = rooms.get(name, EMPTY)  # somebody may have given way
            dialers = room.dialers
        rooms[name] = Room(room.listeners, (*dialers, dial))
        session.own("dialing")[name] = dial
        if self.on_room is not None:
            self.on_room(name)
        return room.listeners

    def _alone(self, session: Session) -> Room:
        """A room with nobody else in it: the same one for all that it enters together."""
        if session not in self._latest.listeners:
            here = self._at[session.keys[-1][-1]][session.key]
            self._latest = Room(here if len(here) == 1 else (session,))
        return self._latest

    def _may_enter(self, session: Session) -> bool:
        if _held(session) >= self._config.rooms_per_session:
            return False
        shares = self.room_shares
        return shares.has_room(session.keys) or self._give_way(session.keys)

    def _give_way(self, newcomer: Prefixes) -> bool:
        """There are no more rooms, and that address wants few: who came last to hold what is usual, or more, gives one back.

        The last to come, so that a crowd takes from itself before it takes from those who were here.
        """
        shares = self.room_shares
        if shares.held(newcomer) + 1 > SCARCE_SHARE * shares.usual or shares.crowded(newcomer) is not None:
            return False
        part, address = shares.latest()
        session = max(self._at[part][address], key=_held)
        names = list(islice(chain(session.listening, session.dialing), LOOKED_AT))
        self.leave(session, {next((name for name in names if not self._has_met(name)), names[0])})
        session.has_lost, session.knows_loss, session.welcome = True, False, b""
        self.given_up += 1
        return True

    def leave(self, session: Session, names: set[bytes]) -> None:
        for name in names:
            rooms = self.rooms.of(name)
            room = rooms.get(name)
            if room is None:
                continue
            listeners, dialers = room
            if name in session.listening:
                session.listening.discard(name)
                listeners = tuple(each for each in listeners if each is not session) if len(listeners) > 1 else ()
                self.room_shares.remove(session.keys)
                for dial in dialers:  # should it come back, it is met again
                    dial.introduced.discard(session.id)
            if session.dialing.pop(name, None) is not None:
                dialers = _but(dialers, session) if len(dialers) > 1 else ()
                self.room_shares.remove(session.keys)
            if not listeners and not dialers:
                del rooms[name]
            elif listeners is not room.listeners or dialers is not room.dialers:
                rooms[name] = Room(listeners, dialers)
            if self.on_room is not None:
                self.on_room(name)

    # nameplates

    def allocate(self, now: Instant, session: Session, wanted: int, claims: int = 1) -> int | None:
        """A number; None when a limit or another owner forbids it.  A wanted one of our own stays, and is renewed if for many."""
        config = self._config
        expires_at = Instant(now + config.nameplate_lifetime)
        if wanted:
            known = self.nameplates.get(wanted)
            if known is not None and known.owner is session and known.is_for_many and claims > 1:
                known.expires_at, known.left = expires_at, claims
                self.nameplates.move_to_end(wanted)
            if known is not None:
                return wanted if known.owner is session else None
        if not self.nameplate_shares.has_room(session.keys):
            return None
        held = self.nameplate_shares.held(session.keys)
        number = wanted or self._numbers.draw(now, session.key, held, self.nameplates, session.last_nameplate)
        if number is None:
            return None
        self.nameplates[number] = Nameplate(session, expires_at, claims)
        self.nameplate_shares.add(session.keys)
        session.own("nameplates").add(number)
        session.last_nameplate = number
        return number

    def remove_nameplate(self, number: int) -> None:
        nameplate = self.nameplates.pop(number, None)
        if nameplate is not None:
            nameplate.owner.nameplates.discard(number)
            self.nameplate_shares.remove(nameplate.owner.keys)
            if self.on_number is not None:
                self.on_number(number)

    def sweep_codes(self, now: Instant) -> None:
        """Forget the nameplates and mailboxes whose time is over."""
        while self.nameplates:
            number = next(iter(self.nameplates))
            if now < self.nameplates[number].expires_at:
                break
            self.remove_nameplate(number)
        while self.mailboxes:
            mailbox = next(iter(self.mailboxes.values()))
            if now < mailbox.expires_at:
                break
            self.remove_mailbox(mailbox)

    # mailboxes

    def open_mailbox(self, now: Instant, owner: Session, claimer: Session, channel: bytes, nameplate: int) -> Mailbox:
        """The caller has looked at may_open_mailbox, and at what is left of the nameplate's claims."""
        identifier = self._entropy(MAILBOX_SIZE)
        while identifier in self.mailboxes:
            identifier = self._entropy(MAILBOX_SIZE)
        expires_at = Instant(now + self._config.mailbox_lifetime)
        mailbox = Mailbox(identifier, (owner, claimer), channel, nameplate, expires_at)
        self.mailboxes[identifier] = mailbox
        self.mailbox_shares.add(mailbox.keys)
        claimed = self.nameplates[nameplate]
        claimed.left -= 1
        claimed.claims[identifier] = mailbox.keys
        owner.own("mailboxes").add(identifier)
        claimer.own("mailboxes").add(identifier)
        return mailbox

    def may_open_mailbox(self, claimer: Session) -> bool:
        return self.mailbox_shares.has_room(claimer.keys)

    def remove_mailbox(self, mailbox: Mailbox) -> None:
        if self.mailboxes.pop(mailbox.id, None) is not None:
            self.mailbox_shares.remove(mailbox.keys)
            claimed = self.nameplates.get(mailbox.nameplate)
            if claimed is not None:
                claimed.claims.pop(mailbox.id, None)
        for session in mailbox.sides:
            session.mailboxes.discard(mailbox.id)


def _but(dialers: tuple[Dial, ...], session: Session) -> tuple[Dial, ...]:
    return tuple(each for each in dialers if each.session is not session)


def _held(session: Session) -> int:
    """Registrations in rooms."""
    return len(session.listening) + len(session.dialing)
