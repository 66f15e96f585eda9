"""Addresses and the prefixes around them as sources, and bounded tables in which each source has a share.

IPv6 is given out by prefixes: a machine has a /64, a household a /56, a company a /48, a provider a /32.  So a limit for one
address alone is no limit for whoever holds a prefix.  IPv4 addresses are counted one by one and by their /24.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from operator import itemgetter
from typing import Final, TypeAlias

from tunnel.core.parts import PARTS, SHIFT

IPV6_BYTES: Final = (8, 7, 6, 4)  # of the prefixes that are counted: /64, /56, /48, /32
GROWTH: Final = 4  # times as much for each wider prefix, though it holds 256 times as many: most of them are one owner's
WIDEST_SHARE: Final = 0.5  # of a table, for any prefix that holds several addresses
RESERVED: Final = 0.1  # of a table, for who holds next to nothing of it: so a full one still lets newcomers in
NEWCOMER: Final = 1 / 64  # of an address's share: who holds no more counts as a newcomer, ...
NEW_SITE: Final = 1 / 4  # ... where all of its site holds no more than so much of an address's share
IPV4_LEVELS: Final = 2  # prefixes that are counted of IPv4: the address, and its /24
SITE: Final = 2  # index of the prefix that is a site: /48, or the /24 of IPv4

#: From an address (an IPv4 address, or the /64 of an IPv6 one) to the widest prefix around it.
Prefixes: TypeAlias = tuple[str, ...]


@lru_cache(maxsize=8192)
def prefixes(host: str) -> Prefixes:
    """Raises ValueError for what is no numeric address."""
    if ":" not in host:
        return host, host.rpartition(".")[0]
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return prefixes(str(address.ipv4_mapped))
    return tuple(address.packed[:size].hex() for size in IPV6_BYTES)


@lru_cache(maxsize=8192)
def around(host: str) -> Prefixes:
    """The same and an IPv4 /16: for what is only held back, and only while more comes than can be done."""
    keys = prefixes(host)
    return (*keys, keys[1].rpartition(".")[0]) if len(keys) == IPV4_LEVELS else keys


def limits(each: int, total: int) -> tuple[int, ...]:
    """Return how many of `total` entries an address may hold, and each wider prefix around it."""
    widest = max(each, int(total * WIDEST_SHARE))
    return (each, *(min(each * GROWTH**level, widest) for level in range(1, len(IPV6_BYTES))))


def in_parts() -> tuple[dict[str, int], ...]:
    """Dicts as core.parts has them in a class, for who looks into them ten times for each who is introduced."""
    return tuple({} for _ in range(PARTS))


class Shares:
    """Counts the entries of one bounded table by who holds them.  Never evicts: it says who may have one more."""

    __slots__ = ("_counts", "_limits", "_new_site", "_newcomer", "_open", "_total", "used")

    def __init__(self, *, total: int, each: int, reserved: float = RESERVED) -> None:
        """`total` entries in all, `each` of them for one address; a table whose entries give way needs nothing `reserved`."""
        self.used = 0
        self._total = total
        self._open = total - int(total * reserved)
        self._newcomer = max(1, int(each * NEWCOMER))
        self._new_site = max(1, int(each * NEW_SITE))
        self._limits = limits(each, total)
        self._counts = in_parts()  # all prefixes around an address are in the part of the widest

    def held(self, keys: Prefixes) -> int:
        """By one address."""
        return self._counts[hash(keys[-1]) >> SHIFT].get(keys[0], 0)

    @property
    def is_full(self) -> bool:
        return self.used >= self._total

    def has_room(self, keys: Prefixes, count: int = 1) -> bool:
        """Whether `count` more fit, in all and for each prefix around the address."""
        used = self.used + count
        if used > self._total:
            return False
        held = self._counts[hash(keys[-1]) >> SHIFT].get
        for key, limit in zip(keys, self._limits):  # noqa: B905  IPv4 has fewer; this is asked four times for each introduction
            if held(key, 0) + count > limit:
                return False
        if used <= self._open:
            return True
        site = keys[min(SITE, len(keys) - 1)]
        return held(keys[0], 0) + count <= self._newcomer and held(site, 0) + count <= self._new_site

    def crowded(self, keys: Prefixes, count: int = 1, *, besides: Prefixes = ()) -> str | None:
        """The narrowest prefix that has no room for so many more, those of `besides` aside; None if all have."""
        held = self._counts[hash(keys[-1]) >> SHIFT].get
        for key, limit in zip(keys, self._limits, strict=False):
            if held(key, 0) + count > limit and key not in besides:
                return key
        return None

    def add(self, keys: Prefixes, count: int = 1) -> int:
        """Whoever has looked at has_room, or is owed it, takes it.  Returns what the address holds then."""
        self.used += count
        counts = self._counts[hash(keys[-1]) >> SHIFT]
        for key in keys:
            counts[key] = counts.get(key, 0) + count
        return counts[keys[0]]

    def remove(self, keys: Prefixes, count: int = 1) -> int:
        """Likewise."""
        self.used -= count
        counts = self._counts[hash(keys[-1]) >> SHIFT]
        for key in keys:
            left = counts.get(key, 0) - count
            if left > 0:
                counts[key] = left
            else:
                counts.pop(key, None)
        return counts.get(keys[0], 0)

    def may_move(self, old: Prefixes, new: Prefixes, count: int = 1) -> bool:
        """Whether entries may change hands; prefixes that both addresses are in are not asked."""
        return not count or self.crowded(new, count, besides=old) is None

    def move(self, old: Prefixes, new: Prefixes, count: int = 1) -> None:
        if count:
            self.remove(old, count)
            self.add(new, count)


class RankedShares(Shares):
    """Knows besides who holds much: addresses in classes of twice as much each, and in each those at the end that came last."""

    __slots__ = ("_classes", "_holders", "_turn")

    def __init__(self, *, total: int, each: int) -> None:
        super().__init__(total=total, each=each)
        self._classes = [in_parts() for _ in range(total.bit_length() + 1)]  # by the bits of what they hold
        self._turn = 0
        self._holders = 0  # addresses that hold something

    @property
    def usual(self) -> int:
        """The mean number of entries of an address, rounded down to a power of two."""
        return 1 << (self.used // self._holders).bit_length() - 1 if self._holders else 0

    def latest(self) -> str:
        """The address that came last to hold what is usual, or more.  There is one wherever anybody holds anything."""
        classes = self._classes[self.usual.bit_length() :]
        last = [next(reversed(part.items())) for each in classes for part in each if part]
        return max(last, key=itemgetter(1))[0]

    def add(self, keys: Prefixes, count: int = 1) -> int:
        held = super().add(keys, count)
        self._rank(keys[0], held - count, held)
        return held

    def remove(self, keys: Prefixes, count: int = 1) -> int:
        held = super().remove(keys, count)
        self._rank(keys[0], held + count, held)
        return held

    def _rank(self, address: str, held: int, holds: int) -> None:
        before, after = held.bit_length(), holds.bit_length()
        if before != after:
            part = hash(address) >> SHIFT
            if before:
                self._classes[before][part].pop(address, None)
            else:
                self._holders += 1
            if after:
                self._turn += 1
                self._classes[after][part][address] = self._turn
            else:
                self._holders -= 1
