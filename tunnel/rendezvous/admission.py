"""Rate limits of a server: cookies, token buckets in tables of fixed size, and lock-outs."""

from __future__ import annotations

import hmac
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Final

from tunnel.core.prefixes import GROWTH, IPV6_BYTES, SITE, Prefixes, prefixes
from tunnel.units import Address, Instant, Seconds

COOKIE_EPOCH: Final = Seconds(120.0)  # a cookie is good in its own epoch and the next one
COOKIE_SIZE: Final = 17  # bytes: the epoch's low byte and a MAC
MAX_COOKIES: Final = 4_096  # addresses whose cookie is remembered while its epoch lasts; then all are forgotten, and made again
ROUNDING: Final = 1e-6  # tokens, by which a sum of many may be too large
BUCKET_SLOTS: Final = 16_384  # slots; strangers share them, so that no number of strangers grows our memory


def address_key(host: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 address.  Raises ValueError for no numeric address.

    For what can be forged: there a limit for a wider prefix would let one forger silence all who are in it.
    """
    return prefixes(host)[0]


class Cookies:
    """Stateless proof that somebody receives at an address (RFC 6347 §4.2.1 has the same idea)."""

    __slots__ = ("_ends_at", "_epoch", "_keyed", "_known")

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        # A third of HMAC's time.
        self._keyed = blake2b(digest_size=COOKIE_SIZE - 1, key=entropy(32), person=b"ptunnel cookie")
        self._epoch = -1
        self._ends_at = Instant(0.0)
        self._known: dict[Address, bytes] = {}  # of this epoch: whoever comes says two or three things

    def issue(self, now: Instant, remote: Address) -> bytes:
        if now >= self._ends_at or len(self._known) >= MAX_COOKIES:
            self._epoch = int(now // COOKIE_EPOCH)
            self._ends_at = Instant((self._epoch + 1) * COOKIE_EPOCH)
            self._known.clear()
        known = self._known.get(remote)
        if known is None:
            known = self._known[remote] = self._make(self._epoch, remote)
        return known

    def check(self, now: Instant, remote: Address, cookie: bytes) -> bytes:
        """Empty if this one is right, else a fresh one: a wrong cookie costs no more than none."""
        fresh = self.issue(now, remote)
        if cookie and (
            hmac.compare_digest(cookie, fresh)
            or (cookie[0] == (self._epoch - 1) & 0xFF and hmac.compare_digest(cookie, self._make(self._epoch - 1, remote)))
        ):
            return b""
        return fresh

    def _make(self, epoch: int, remote: Address) -> bytes:
        mac = self._keyed.copy()
        mac.update(f"{epoch} {remote.host} {remote.port}".encode())
        return bytes((epoch & 0xFF,)) + mac.digest()


class Buckets:
    """Token buckets in a table of fixed size: two keys may share a slot, and then share its tokens.

    Of each one number is kept: when it is full again, in tokens that have come since the clock's beginning.
    """

    __slots__ = ("_burst", "_full", "_rate", "_salt", "_slots")

    def __init__(self, rate: float, burst: float, salt: bytes, slots: int = BUCKET_SLOTS) -> None:
        self._rate = rate
        self._burst = burst
        self._salt = salt
        self._slots = slots
        self._full = array("d", [0.0]) * slots

    def take(self, now: Instant, key: Hashable, amount: float = 1.0) -> bool:
        """Whether so many more are allowed.  An amount beyond the burst is, when the bucket is full."""
        slot = hash((self._salt, key)) % self._slots
        come, full = now * self._rate, self._full[slot]
        if full < come:
            full = come
        elif full - come > self._burst - amount + ROUNDING and full > come:
            return False
        self._full[slot] = full + amount
        return True


class TreeBuckets:
    """Rates for proven addresses, and GROWTH times as much for each wider prefix around them."""

    __slots__ = ("_levels",)

    def __init__(self, rate: float, burst: float, salt: bytes) -> None:
        self._levels = [Buckets(rate * GROWTH**level, burst * GROWTH**level, salt) for level in range(len(IPV6_BYTES))]

    def take(self, now: Instant, keys: Prefixes) -> bool:
        """Whether one more is allowed.  What an address is refused costs the others around it nothing."""
        for level, key in zip(self._levels, keys, strict=False):  # noqa: SIM110  a generator takes twice as long
            if not level.take(now, key):
                return False
        return True


class Lockouts:
    """Lock-outs of guessers of codes.  Keyed exactly, so that nobody pays for a neighbour; bounded, oldest out first.

    An IPv6 /56 or /48 has GROWTH times as many guesses, forgiven as much faster.  A provider's /32 and an IPv4 /24 are not
    counted: they hold many owners, and a few of those would lock all the others out.
    """

    __slots__ = ("_duration", "_guesses", "_limit", "_refill", "_size")

    def __init__(self, *, limit: int, refill: Seconds, duration: Seconds, size: int) -> None:
        self._limit = limit
        self._refill = refill
        self._duration = duration
        self._size = size
        self._guesses: OrderedDict[str, tuple[float, Instant, Instant]] = OrderedDict()  # count, as of, locked until

    def __len__(self) -> int:
        return len(self._guesses)

    def remaining(self, now: Instant, keys: Prefixes) -> Seconds:
        """How long this address still may not claim; 0 if it may."""
        entries = (self._guesses.get(key) for key in _of_one_owner(keys))
        return Seconds(max((entry[2] - now for entry in entries if entry is not None and entry[2] > now), default=0.0))

    def is_last(self, now: Instant, keys: Prefixes) -> bool:
        """Whether one more wrong guess locks this address out, or it is locked out already."""
        for level, key in enumerate(_of_one_owner(keys)):
            factor = GROWTH**level
            count, as_of, until = self._guesses.get(key, (0.0, now, now))
            if until > now or max(0.0, count - (now - as_of) * factor / self._refill) + 1.0 > self._limit * factor - 1:
                return True
        return False

    def count(self, now: Instant, keys: Prefixes) -> None:
        """One more wrong guess."""
        for level, key in enumerate(_of_one_owner(keys)):
            factor = GROWTH**level
            count, as_of, until = self._guesses.pop(key, (0.0, now, now))
            count = max(0.0, count - (now - as_of) * factor / self._refill) + 1.0
            if count > self._limit * factor - 1:  # what little was forgiven in between does not buy a guess
                until = Instant(now + self._duration)
            self._guesses[key] = (count, now, until)
            if len(self._guesses) > self._size:
                self._guesses.popitem(last=False)

    def sweep(self, now: Instant) -> None:
        """Forget those at the front whose guesses are long ago."""
        old = self._duration + self._limit * self._refill
        while self._guesses:
            key = next(iter(self._guesses))
            if now - self._guesses[key][1] < old:
                return
            del self._guesses[key]


def _of_one_owner(keys: Prefixes) -> Prefixes:
    """An IPv4 address, or the /64, /56 and /48 around an IPv6 address."""
    return keys[: SITE + 1] if len(keys) == len(IPV6_BYTES) else keys[:1]
