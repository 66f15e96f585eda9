"""For whom a Room needs a key, what it knows of a connection, and how often something may be done."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunnel.core.bucket import Bucket
from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.units import Instant, Seconds

MESSAGE_RATE: Final = 2.0  # messages a second from one member, by however many connections; a join costs three
MESSAGE_BURST: Final = 4 * MAX_MEMBERS  # messages; when all others join at once the creator says two to each of them for each
MAX_SPENDERS: Final = 256  # keys whose allowance is remembered, connected or not; that of the one longest silent is forgotten


class MemberPeer(NamedTuple):
    """Somebody for whom the endpoint needs a key."""

    static: bytes
    name: str
    psk: bytes


class MemberLink:
    """A connection to somebody."""

    __slots__ = ("knows_detours", "told", "told_at", "version")

    def __init__(self, now: Instant) -> None:
        self.knows_detours = False  # as they said
        self.version = 0  # what they have at least
        self.told = 0  # the newest that we have sent there ...
        self.told_at = now  # ... and when


class Allowances:
    """Of something that each key may do so often in a row, and then once in a while.  Kept whether or not it is connected."""

    __slots__ = ("_most", "_rate", "_spent")

    def __init__(self, most: int, refill: Seconds) -> None:
        """`refill` is the time after which one more may be done."""
        self._most = most
        self._rate = 1.0 / refill
        self._spent: dict[bytes, Bucket] = {}  # who did something last is the last

    def spent(self, now: Instant, who: bytes) -> float:
        """Return the amount used by `who`, less what came back since."""
        bucket = self._spent.get(who)
        return 0.0 if bucket is None else self._most - bucket.level(now)

    def ready_at(self, now: Instant, who: bytes) -> Instant:
        """When it may do it again; now if it may."""
        return now if self.spent(now, who) <= self._most - 1.0 else self._spent[who].ready_at(now)

    def take(self, now: Instant, who: bytes) -> bool:
        """Whether it may do it now; then it has."""
        if self.ready_at(now, who) > now:
            return False
        self.note(now, who)
        return True

    def note(self, now: Instant, who: bytes) -> None:
        """It has done it."""
        bucket = self._spent.pop(who, None) or Bucket(self._most, self._rate)
        if len(self._spent) >= MAX_SPENDERS:
            del self._spent[next(iter(self._spent))]
        self._spent[who] = bucket
        bucket.spend(now)
