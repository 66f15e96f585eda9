"""Which IK inits are new: by their timestamps while these grow, else by a challenge that only a present initiator can return.

A timestamp shows without a round trip that an init was not sent before.  Clocks go back, though, and were wrong before: an init
that is not newer than the newest is answered by a challenge, and one that brings it back counts, whatever the calendar says.
State is kept of remembered peers only.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final, NamedTuple

from tunnel.transport.crypto.params import CHALLENGE_SIZE
from tunnel.units import Instant, Seconds

CHALLENGE_LIFETIME: Final = Seconds(60.0)  # in which it may come back; half of that it is given out
MAX_USES: Final = 64  # connections of a peer that may use one challenge; as many as a peer may have


class Judgement(NamedTuple):
    """`is_new`: answer the init.  Otherwise send `challenge`.

    `behind`: nanoseconds by which the timestamp is older than expected: the newest one, and the time since; 0 if it is newer.
    """

    is_new: bool
    behind: int = 0
    challenge: bytes = b""


class Refused(NamedTuple):
    """The newest of the inits that came too late, and without a challenge, on one channel."""

    timestamp: int
    at: Instant  # when the last of them came


class _Challenge:
    __slots__ = ("issued_at", "used", "value")

    def __init__(self, value: bytes, now: Instant) -> None:
        self.value = value
        self.issued_at = now
        self.used: dict[int, int] = {}  # the newest timestamp that came with it, by the initiator's instance


class _Newest:
    """Of one static key."""

    __slots__ = ("challenges", "seen_at", "timestamp")

    def __init__(self, timestamp: int, now: Instant) -> None:
        self.timestamp = timestamp
        self.seen_at = now
        self.challenges: list[_Challenge] = []  # the one given out, and the one before it


class Freshness:
    """Judges inits whose static key has been authenticated, in the order in which they come."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._newest: dict[bytes, _Newest] = {}

    def judge(self, now: Instant, static: bytes, timestamp: int, instance: int, challenge: bytes) -> Judgement:
        newest = self._newest.get(static)
        if newest is None:
            self._newest[static] = _Newest(timestamp, now)
            return Judgement(True)
        if timestamp > newest.timestamp:
            newest.timestamp, newest.seen_at = timestamp, now
            return Judgement(True)
        behind = newest.timestamp + int((now - newest.seen_at) * 1e9) - timestamp
        if challenge and self._redeem(now, newest, timestamp, instance, challenge):
            return Judgement(True, behind)
        return Judgement(False, behind, self._issue(now, newest).value)

    def alive(self, now: Instant, static: bytes, refused: Refused) -> int | None:
        """The owner of the key has shown in another way that it is there, knows no challenges, and it was its init perhaps.

        What it sends from now on counts, if it is newer than what was refused.  By how many nanoseconds its clock is behind;
        None: a newer one came since.
        """
        newest = self._newest.get(static)
        if newest is None or newest.seen_at > refused.at:
            return None
        behind = newest.timestamp + int((now - newest.seen_at) * 1e9) - refused.timestamp
        newest.timestamp, newest.seen_at = refused.timestamp, now
        return behind

    def forget(self, static: bytes) -> None:
        self._newest.pop(static, None)

    def _issue(self, now: Instant, newest: _Newest) -> _Challenge:
        """The same one for a while, so that recorded inits which others send again take nothing from the owner's."""
        found = newest.challenges
        if not found or now - found[0].issued_at >= CHALLENGE_LIFETIME / 2 or len(found[0].used) >= MAX_USES:
            found[:] = [_Challenge(self._entropy(CHALLENGE_SIZE), now), *found[:1]]
        return found[0]

    @staticmethod
    def _redeem(now: Instant, newest: _Newest, timestamp: int, instance: int, value: bytes) -> bool:
        for challenge in newest.challenges:
            if now - challenge.issued_at < CHALLENGE_LIFETIME and hmac.compare_digest(challenge.value, value):
                if timestamp <= challenge.used.get(instance, -1):
                    return False  # sent again by somebody
                if instance not in challenge.used and len(challenge.used) >= MAX_USES:
                    return False
                challenge.used[instance] = timestamp
                return True
        return False
