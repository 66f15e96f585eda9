"""The server's soft state: sessions, rooms, nameplates and mailboxes.  Every table is bounded; a newcomer never evicts."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from tunnel.proto.rendezvous.admission import address_key
from tunnel.proto.rendezvous.limits import ServerConfig
from tunnel.proto.rendezvous.messages import MAILBOX_SIZE, PushMessage
from tunnel.proto.rendezvous.numbers import Numbers
from tunnel.units import Address, Instant, SocketId

REMEMBERED_ANSWERS: Final = 16  # answers a session, so that a repeated request is answered alike instead of done twice


class PendingPush:
    __slots__ = ("attempts", "expires_at", "message", "push_id")

    def __init__(self, push_id: int, message: PushMessage, expires_at: Instant) -> None:
        self.push_id = push_id
        self.message = message
        self.attempts = 0
        self.expires_at = expires_at


class Dial:
    """One wish to meet each listener of some rooms once."""

    __slots__ = ("introduced", "rooms", "session")

    def __init__(self, session: Session, rooms: tuple[bytes, ...]) -> None:
        self.session = session
        self.rooms = rooms
        self.introduced: set[bytes] = set()


class Session:
    """One client process.  Whoever names its 16 random bytes from a proven address is that client."""

    __slots__ = (
        "answers",
        "channels",
        "dialing",
        "id",
        "is_guest",
        "key",
        "last_nameplate",
        "listening",
        "mailboxes",
        "nameplates",
        "pushes",
        "remote",
        "seen_at",
        "socket_id",
    )

    def __init__(self, identifier: bytes, socket_id: SocketId, remote: Address, now: Instant) -> None:
        self.id = identifier
        self.socket_id = socket_id
        self.remote = remote
        self.key = address_key(remote.host)
        self.seen_at = now
        self.is_guest = False  # has been led to a session of the server's own hosts
        self.listening: set[bytes] = set()
        self.dialing: dict[bytes, Dial] = {}
        self.nameplates: set[int] = set()
        self.last_nameplate = 0  # whoever learned it learned nothing of the next
        self.mailboxes: set[bytes] = set()
        self.channels: set[bytes] = set()
        self.answers: OrderedDict[int, bytes] = OrderedDict()
        self.pushes: OrderedDict[int, PendingPush] = OrderedDict()

    def remember(self, transaction: int, answer: bytes) -> None:
        self.answers[transaction] = answer
        if len(self.answers) > REMEMBERED_ANSWERS:
            self.answers.popitem(last=False)


class Room:
    __slots__ = ("dialers", "listeners")

    def __init__(self) -> None:
        self.listeners: dict[bytes, Session] = {}
        self.dialers: dict[bytes, Dial] = {}


class Nameplate:
    __slots__ = ("claims", "expires_at", "is_for_many", "left", "owner")

    def __init__(self, owner: Session, expires_at: Instant, claims: int) -> None:
        self.owner = owner
        self.expires_at = expires_at
        self.is_for_many = claims > 1
        self.left = claims  # how many may still claim it
        self.claims: dict[bytes, str] = {}  # open mailboxes of those who did, and their address_key


class Mailbox:
    __slots__ = ("channel", "expires_at", "id", "key", "nameplate", "posts", "sides")

    def __init__(
        self, identifier: bytes, sides: tuple[Session, Session], channel: bytes, nameplate: int, expires_at: Instant
    ) -> None:
        self.id = identifier
        self.sides = sides
        self.key = sides[1].key  # who opened it, as limits count
        self.channel = channel
        self.nameplate = nameplate
        self.posts = 0
        self.expires_at = expires_at


class Registry:
    """Tables and their bounds; what to tell whom is the server's business."""

    def __init__(self, config: ServerConfig, entropy: Callable[[int], bytes], numbers: Numbers) -> None:
        self._config = config
        self._entropy = entropy
        self._numbers = numbers
        self.sessions: OrderedDict[bytes, Session] = OrderedDict()  # the longest silent first
        self.rooms: dict[bytes, Room] = {}
        self.nameplates: OrderedDict[int, Nameplate] = OrderedDict()  # the first to expire first
        self.mailboxes: OrderedDict[bytes, Mailbox] = OrderedDict()  # likewise
        self._sessions_per_key: Counter[str] = Counter()
        self._nameplates_per_key: Counter[str] = Counter()
        self._rooms_per_key: Counter[str] = Counter()
        self._mailboxes_per_key: Counter[str] = Counter()
        self._room_entries = 0

    @property
    def room_entries(self) -> int:
        return self._room_entries

    # sessions

    def session(self, now: Instant, identifier: bytes, socket_id: SocketId, remote: Address) -> Session | None:
        """The session, made if need be, moved to where it speaks from; None when a limit forbids a new one."""
        session = self.sessions.get(identifier)
        if session is None:
            key = address_key(remote.host)
            if len(self.sessions) >= self._config.max_sessions:
                return None
            if self._sessions_per_key[key] >= self._config.sessions_per_address:
                return None
            session = self.sessions[identifier] = Session(identifier, socket_id, remote, now)
            self._sessions_per_key[key] += 1
            return session
        self.touch(now, session, socket_id, remote)
        return session

    def touch(self, now: Instant, session: Session, socket_id: SocketId, remote: Address) -> None:
        """A sign of life, maybe from a new address."""
        session.seen_at = now
        self.sessions.move_to_end(session.id)
        session.socket_id = socket_id
        if session.remote != remote:
            session.remote = remote
            key = address_key(remote.host)
            _decrement(self._sessions_per_key, session.key)
            self._sessions_per_key[key] += 1
            _move(self._nameplates_per_key, session.key, key, len(session.nameplates))
            _move(self._rooms_per_key, session.key, key, len(session.listening) + len(session.dialing))
            session.key = key

    def remove_session(self, session: Session) -> None:
        """With its rooms and nameplates; mailboxes and channels have two sides, the server tells the other."""
        if self.sessions.pop(session.id, None) is None:
            return
        self.leave(session, session.listening | session.dialing.keys())
        for number in list(session.nameplates):
            self.remove_nameplate(number)
        _decrement(self._sessions_per_key, session.key)

    # rooms

    def listen(self, session: Session, name: bytes) -> bool:
        if name in session.listening:
            return True
        room = self.rooms.get(name)
        if room is not None and len(room.listeners) >= self._config.listeners_per_room:
            return False
        if not self._may_enter(session):
            return False
        if room is None:
            room = self.rooms[name] = Room()
        room.listeners[session.id] = session
        session.listening.add(name)
        self._entered(session, 1)
        return True

    def dial(self, dial: Dial, name: bytes) -> bool:
        """Replaces what this session dialed there before."""
        session = dial.session
        room = self.rooms.get(name)
        if name not in session.dialing:
            if room is not None and len(room.dialers) >= self._config.dialers_per_room:
                return False
            if not self._may_enter(session):
                return False
            self._entered(session, 1)
        if room is None:
            room = self.rooms[name] = Room()
        room.dialers[session.id] = dial
        session.dialing[name] = dial
        return True

    def _may_enter(self, session: Session) -> bool:
        return (
            self._room_entries < self._config.max_room_entries
            and self._rooms_per_key.get(session.key, 0) < self._config.rooms_per_address
            and len(session.listening) + len(session.dialing) < self._config.rooms_per_session
        )

    def _entered(self, session: Session, change: int) -> None:
        self._room_entries += change
        _add(self._rooms_per_key, session.key, change)

    def leave(self, session: Session, names: set[bytes]) -> None:
        for name in names:
            room = self.rooms.get(name)
            if room is None:
                continue
            if name in session.listening:
                session.listening.discard(name)
                del room.listeners[session.id]
                self._entered(session, -1)
                for dial in room.dialers.values():  # should it come back, it is met again
                    dial.introduced.discard(session.id)
            if session.dialing.pop(name, None) is not None:
                del room.dialers[session.id]
                self._entered(session, -1)
            if not room.listeners and not room.dialers:
                del self.rooms[name]

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
        if len(self.nameplates) >= config.max_nameplates:
            return None
        held = self._nameplates_per_key[session.key]
        if held >= config.nameplates_per_address:
            return None
        number = wanted or self._numbers.draw(now, session.key, held, self.nameplates, session.last_nameplate)
        if number is None:
            return None
        self.nameplates[number] = Nameplate(session, expires_at, claims)
        self._nameplates_per_key[session.key] += 1
        session.nameplates.add(number)
        session.last_nameplate = number
        return number

    def remove_nameplate(self, number: int) -> None:
        nameplate = self.nameplates.pop(number, None)
        if nameplate is not None:
            nameplate.owner.nameplates.discard(number)
            _decrement(self._nameplates_per_key, nameplate.owner.key)

    # mailboxes

    def open_mailbox(self, now: Instant, owner: Session, claimer: Session, channel: bytes, nameplate: int) -> Mailbox:
        """The caller has looked at may_open_mailbox, and at what is left of the nameplate's claims."""
        identifier = self._entropy(MAILBOX_SIZE)
        while identifier in self.mailboxes:
            identifier = self._entropy(MAILBOX_SIZE)
        expires_at = Instant(now + self._config.mailbox_lifetime)
        mailbox = Mailbox(identifier, (owner, claimer), channel, nameplate, expires_at)
        self.mailboxes[identifier] = mailbox
        self._mailboxes_per_key[mailbox.key] += 1
        claimed = self.nameplates[nameplate]
        claimed.left -= 1
        claimed.claims[identifier] = mailbox.key
        owner.mailboxes.add(identifier)
        claimer.mailboxes.add(identifier)
        return mailbox

    def may_open_mailbox(self, claimer: Session) -> bool:
        config = self._config
        of_address = self._mailboxes_per_key.get(claimer.key, 0)
        return len(self.mailboxes) < config.max_mailboxes and of_address < config.mailboxes_per_address

    def remove_mailbox(self, mailbox: Mailbox) -> None:
        if self.mailboxes.pop(mailbox.id, None) is not None:
            _decrement(self._mailboxes_per_key, mailbox.key)
            claimed = self.nameplates.get(mailbox.nameplate)
            if claimed is not None:
                claimed.claims.pop(mailbox.id, None)
        for session in mailbox.sides:
            session.mailboxes.discard(mailbox.id)


def _add(counter: Counter[str], key: str, change: int) -> None:
    """Without leaving zeros behind."""
    counter[key] += change
    if counter[key] <= 0:
        del counter[key]


def _decrement(counter: Counter[str], key: str) -> None:
    _add(counter, key, -1)


def _move(counter: Counter[str], old: str, new: str, count: int) -> None:
    _add(counter, old, -count)
    _add(counter, new, count)
