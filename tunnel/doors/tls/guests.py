"""The connections at a server's TLS port: strangers, those in a handshake, and those that belong to a session.

Three tables, and in each of them every address has a share, with the prefixes around it (core/prefixes.py).  Whoever has proven
nothing gives way: when a table of strangers is full, the one that has stood there longest, of the site with most of them, is sent
off for a newcomer.  A connection with a session never gives way.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from tunnel.core.prefixes import SITE, Prefixes, Shares, prefixes

MAX_CONNECTIONS: Final = 4_096  # of sessions, in all; some 30 KB each, and one descriptor
MAX_PER_ADDRESS: Final = 256  # of those from one address, like the sessions of a rendezvous server: a carrier's NAT
MAX_STRANGERS: Final = 1_024  # that have proven nothing yet: what a restart brings at once, or 1,024 silent connections
STRANGERS_PER_ADDRESS: Final = 64  # of those; behind a carrier's NAT the others come a second later
MAX_HANDSHAKES: Final = 128  # under way at once: each is a millisecond of our CPU, and between two turns all others wait
HANDSHAKES_PER_ADDRESS: Final = 8  # of those
GRACE: Final = 1.0  # seconds before a stranger gives way to another: time for an honest handshake and a first request
LOOKED_AT: Final = 64  # addresses that are asked when a turn is free, so that many in vain cost no more than few
TICK: Final = 0.1  # seconds between looks while somebody waits for a turn


class Stage(Enum):
    """How far a guest has come."""

    SILENT = auto()  # has said nothing yet, and costs a descriptor
    WAITING = auto()  # has begun its handshake, and waits for a turn
    SHAKING = auto()
    FRESH = auto()  # has shaken hands; nothing of a session has come
    PROVEN = auto()
    GONE = auto()


class Guest:
    """One connection.  Its owner sets what happens when it is its turn and when it has to go."""

    __slots__ = ("begin", "dismiss", "keys", "since", "stage")

    def __init__(self, keys: Prefixes, since: float) -> None:
        self.keys = keys
        self.since = since  # that it is at its stage
        self.stage = Stage.SILENT
        self.begin: Callable[[], None] = _nothing
        self.dismiss: Callable[[], None] = _nothing

    @property
    def site(self) -> str:
        return self.keys[min(SITE, len(self.keys) - 1)]


def _nothing() -> None:
    return


class _Crowd:
    """Guests by each prefix around them, the longest there first; knows the site that has most of them."""

    __slots__ = ("_by_count", "_by_key", "_most")

    def __init__(self) -> None:
        self._by_key: dict[str, dict[Guest, None]] = {}
        self._by_count: dict[int, dict[str, None]] = {}
        self._most = 0

    def add(self, guest: Guest) -> None:
        for key in guest.keys:
            self._by_key.setdefault(key, {})[guest] = None
        count = len(self._by_key[guest.site])
        self._recount(guest.site, count - 1, count)
        self._most = max(self._most, count)

    def remove(self, guest: Guest) -> None:
        count = len(self._by_key[guest.site])
        self._recount(guest.site, count, count - 1)
        for key in guest.keys:
            del self._by_key[key][guest]
            if not self._by_key[key]:
                del self._by_key[key]
        if self._most not in self._by_count:
            self._most -= 1  # this site has so many now, or there is nobody

    def _recount(self, site: str, old: int, new: int) -> None:
        if old:
            del self._by_count[old][site]
            if not self._by_count[old]:
                del self._by_count[old]
        if new:
            self._by_count.setdefault(new, {})[site] = None

    def oldest(self, key: str | None) -> Guest | None:
        """In that prefix; None: at the site that has most."""
        if key is None:
            if not self._most:
                return None
            key = next(iter(self._by_count[self._most]))
        return next(iter(self._by_key.get(key, ())), None)


class GuestBook:
    """Says who may come in, whose turn it is and who has to go.  `now` is any clock that goes evenly."""

    def __init__(
        self,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_per_address: int = MAX_PER_ADDRESS,
        max_strangers: int = MAX_STRANGERS,
        strangers_per_address: int = STRANGERS_PER_ADDRESS,
        max_handshakes: int = MAX_HANDSHAKES,
        handshakes_per_address: int = HANDSHAKES_PER_ADDRESS,
    ) -> None:
        self._members = Shares(total=max_connections, each=max_per_address)
        self._strangers = Shares(total=max_strangers, each=strangers_per_address, reserved=0.0)
        self._turns = Shares(total=max_handshakes, each=handshakes_per_address, reserved=0.0)
        self._standing = _Crowd()  # all strangers
        self._shaking = _Crowd()
        self._waiting: OrderedDict[str, deque[Guest]] = OrderedDict()  # by address, which take turns
        self._tick_at: float | None = None

    def __len__(self) -> int:
        return self._members.used + self._strangers.used

    def is_full(self, now: float) -> bool:
        """Nobody can come in just now, whoever it is: better leave newcomers to the kernel for a moment."""
        return self._strangers.is_full and self._victim(self._standing, None, now) is None

    def arrive(self, now: float, host: str) -> Guest | None:
        """A connection from there; None when it has to be closed."""
        keys = prefixes(host)
        if not self._members.has_room(keys) or not self._make_room(now, self._strangers, self._standing, keys):
            return None
        guest = Guest(keys, now)
        self._strangers.add(keys)
        self._standing.add(guest)
        self._deal(now)  # who gave way may have had a turn
        return guest

    def speak(self, now: float, guest: Guest) -> None:
        """It wants to shake hands; `begin` follows, now or later."""
        if guest.stage is not Stage.SILENT:
            return
        guest.stage = Stage.WAITING
        if guest.keys[0] not in self._waiting and self._make_room(now, self._turns, self._shaking, guest.keys):
            self._begin(now, guest)
        else:
            self._waiting.setdefault(guest.keys[0], deque()).append(guest)
            self._tick_at = now + TICK if self._tick_at is None else self._tick_at

    def shaken(self, now: float, guest: Guest) -> None:
        """The handshake is done."""
        if guest.stage is Stage.SHAKING:
            self._end_turn(guest)
            guest.stage, guest.since = Stage.FRESH, now
            self._deal(now)

    def prove(self, guest: Guest) -> bool:
        """Something of a session came.  False when there are as many connections as may be."""
        if guest.stage is Stage.FRESH:
            if not self._members.has_room(guest.keys):
                return False
            self._leave_strangers(guest)
            self._members.add(guest.keys)
            guest.stage = Stage.PROVEN
        return guest.stage is Stage.PROVEN

    def leave(self, now: float, guest: Guest) -> None:
        """The connection has ended."""
        self._remove(guest)
        self._deal(now)

    def _remove(self, guest: Guest) -> None:
        if guest.stage is Stage.GONE:
            return
        if guest.stage is Stage.PROVEN:
            self._members.remove(guest.keys)
        else:
            if guest.stage is Stage.WAITING:
                queue = self._waiting[guest.keys[0]]
                queue.remove(guest)
                if not queue:
                    del self._waiting[guest.keys[0]]
            elif guest.stage is Stage.SHAKING:
                self._end_turn(guest)
            self._leave_strangers(guest)
        guest.stage = Stage.GONE

    def relieve(self, now: float) -> None:
        """Something ran out that each of them costs: the next stranger goes, however short it has been here."""
        victim = self._standing.oldest(None)
        if victim is not None:
            self._displace(victim)
            self._deal(now)

    def handle_timeout(self, now: float) -> None:
        if self._tick_at is not None and now >= self._tick_at:
            self._deal(now)

    def poll_timeout(self) -> float | None:
        return self._tick_at

    def _begin(self, now: float, guest: Guest) -> None:
        guest.stage, guest.since = Stage.SHAKING, now
        self._turns.add(guest.keys)
        self._shaking.add(guest)
        guest.begin()

    def _leave_strangers(self, guest: Guest) -> None:
        self._strangers.remove(guest.keys)
        self._standing.remove(guest)

    def _end_turn(self, guest: Guest) -> None:
        self._turns.remove(guest.keys)
        self._shaking.remove(guest)

    def _make_room(self, now: float, shares: Shares, crowd: _Crowd, keys: Prefixes) -> bool:
        """Whether one more fits there, after somebody else gave way if need be."""
        if shares.has_room(keys):
            return True
        victim = self._victim(crowd, shares.crowded(keys), now)
        if victim is None:
            return False
        self._displace(victim)
        return shares.has_room(keys)

    def _victim(self, crowd: _Crowd, crowded: str | None, now: float) -> Guest | None:
        oldest = crowd.oldest(crowded)
        return oldest if oldest is not None and now - oldest.since >= GRACE else None

    def _displace(self, guest: Guest) -> None:
        self._remove(guest)
        guest.dismiss()

    def _deal(self, now: float) -> None:
        """Give turns, one address after the other."""
        in_vain = 0
        while in_vain < min(LOOKED_AT, len(self._waiting)):
            key, queue = next(iter(self._waiting.items()))
            guest = queue[0]
            if not self._make_room(now, self._turns, self._shaking, guest.keys):
                self._waiting.move_to_end(key)
                in_vain += 1
                continue
            queue.popleft()
            self._waiting.move_to_end(key)
            if not queue:
                del self._waiting[key]
            self._begin(now, guest)
        self._tick_at = now + TICK if self._waiting else None
