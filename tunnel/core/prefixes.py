"""Addresses and the prefixes around them as sources, and bounded tables in which each source has a share.

IPv6 is given out by prefixes: a machine has a /64, a household a /56, a company a /48, a provider a /32.  So a limit for one
address alone is no limit for whoever holds a prefix.  IPv4 addresses are counted one by one and by their /24.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from functools import lru_cache
from operator import itemgetter
from typing import Final, TypeAlias

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
        # In parts, as core.parts has them, by how the widest prefix ends: all around an address are in the same part.
        self._counts: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def held(self, keys: Prefixes) -> int:
        """By one address."""
        return self._counts[keys[-1][-1]].get(keys[0], 0)

    @property
    def is_full(self) -> bool:
        return self.used >= self._total

    def has_room(self, keys: Prefixes, count: int = 1) -> bool:
        """Whether `count` more fit, in all and for each prefix around the address."""
        used = self.used + count
        if used > self._total:
            return False
        held = self._counts[keys[-1][-1]].get
        limits = self._limits
        if len(keys) == IPV4_LEVELS:  # most are, and this is asked four times for each who is introduced
            if held(keys[0], 0) + count > limits[0] or held(keys[1], 0) + count > limits[1]:
                return False
        elif self.crowded(keys, count) is not None:
            return False
        if used <= self._open:
            return True
        site = keys[min(SITE, len(keys) - 1)]
        return held(keys[0], 0) + count <= self._newcomer and held(site, 0) + count <= self._new_site

    def crowded(self, keys: Prefixes, count: int = 1, *, besides: Prefixes = ()) -> str | None:
        """The narrowest prefix that has no room for so many more, those of `besides` aside; None if all have."""
        held = self._counts[keys[-1][-1]].get
        for key, limit in zip(keys, self._limits, strict=False):
            if held(key, 0) + count > limit and key not in besides:
                return key
        return None

    def add(self, keys: Prefixes, count: int = 1) -> int:
        """Whoever has looked at has_room, or is owed it, takes it.  Returns what the address holds then."""
        self.used += count
        counts = self._counts[keys[-1][-1]]
        for key in keys:
            counts[key] = counts.get(key, 0) + count
        return counts[keys[0]]

    def remove(self, keys: Prefixes, count: int = 1) -> int:
        """Likewise."""
        self.used -= count
        counts = self._counts[keys[-1][-1]]
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
        # By the bits of what they hold, and in parts likewise.
        self._classes: list[defaultdict[str, dict[str, int]]] = [defaultdict(dict) for _ in range(total.bit_length() + 1)]
        self._turn = 0
        self._holders = 0  # addresses that hold something

    @property
    def usual(self) -> int:
        """The mean number of entries of an address, rounded down to a power of two."""
        return 1 << (self.used // self._holders).bit_length() - 1 if self._holders else 0

    def latest(self) -> tuple[str, str]:
        """The address that came last to hold what is usual, or more, behind the name of its part.

        There is one wherever anybody holds anything.
        """
        classes = self._classes[self.usual.bit_length() :]
        last = [(*next(reversed(part.items())), name) for each in classes for name, part in each.items() if part]
        address, _, name = max(last, key=itemgetter(1))
        return name, address

    def add(self, keys: Prefixes, count: int = 1) -> int:
        held = Shares.add(self, keys, count)
        self._rank(keys, held - count, held)
        return held

    def remove(self, keys: Prefixes, count: int = 1) -> int:
        held = Shares.remove(self, keys, count)
        self._rank(keys, held + count, held)
        return held

    def _rank(self, keys: Prefixes, held: int, holds: int) -> None:
        address = keys[0]
        before, after = held.bit_length(), holds.bit_length()
        if before != after:
            part = keys[-1][-1]
            if before:
                self._classes[before][part].pop(address, None)
            else:
                self._holders += 1
            if after:
                self._turn += 1
                self._classes[after][part][address] = self._turn
            else:
                self._holders -= 1
