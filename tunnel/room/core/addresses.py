"""The addresses of a room: a subnet that clashes with nobody's routes, a host number for each member, and what follows from both.

Host number n (1 to 254; the creator has 1): IPv4 `subnet + n`, IPv6 `ULA::n` and `fe80::7074:0:0:n`, MAC `02:70:74:00:00:n`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

from tunnel.core.scope import PRIVATE

MAX_MEMBERS: Final = 64  # of a room, creator included: each has a connection to every other one
MEMBERS_UNSAID: Final = 16  # of a room that somebody takes who does not say how many: what versions took that did not say it
SUBNET_BITS: Final = 24  # of the room's IPv4 network: 254 hosts are plenty for MAX_MEMBERS, and every game knows such a network
ULA_BITS: Final = 64  # of its IPv6 prefix (RFC 4193: fd, 40 random bits, 16 of subnet, which are random here too)
CREATOR_HOST: Final = 1
LAST_HOST: Final = 254  # 255 is the broadcast address
SHORTEST_ROUTE: Final = 8  # bits; a shorter prefix is a default route or a VPN's half of the internet, and clashes with nothing

#: Private IPv4 (RFC 1918), in the order in which they are tried: the larger, the fewer home routers are in it.
BLOCKS: Final = tuple((str(network.network_address), network.prefixlen) for network in PRIVATE)

#: Where somebody has something in each of those: half of what RFC 2544 sets apart for measuring, of which nobody's network is
#: made.  The other half is what proxies invent addresses from.  Last, since games know private addresses as those of a LAN.
SPARE_BLOCK: Final = ("198.19.0.0", 16)

_LINK_LOCAL: Final = bytes.fromhex("fe80000000000000707400000000") + b"\0"
_MAC: Final = bytes.fromhex("0270740000")
_SPARE: Final = ipaddress.IPv4Address(SPARE_BLOCK[0]).packed[:2]
_SUBNETS: Final = 1 << (32 - SUBNET_BITS)  # addresses of one subnet


class Prefix(NamedTuple):
    """An IPv4 network: `network` as a number, without host bits, and `bits` of it."""

    network: int
    bits: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """ "192.168.1.0/24"; host bits are cut off.  Raises ValueError."""
        network = ipaddress.IPv4Network(text, strict=False)
        return cls(int(network.network_address), network.prefixlen)

    def overlaps(self, other: Prefix) -> bool:
        shift = 32 - min(self.bits, other.bits)
        return self.network >> shift == other.network >> shift

    def __str__(self) -> str:
        return f"{ipaddress.IPv4Address(self.network)}/{self.bits}"


def subnet_prefix(subnet: bytes) -> Prefix:
    """Of a Roster's `subnet`, 4 bytes."""
    return Prefix(int.from_bytes(subnet, "big"), SUBNET_BITS)


def clashes(subnet: bytes, routes: Iterable[Prefix]) -> bool:
    """Whether a host with these routes would lose something to the subnet, or the subnet to it."""
    own = subnet_prefix(subnet)
    return any(route.bits >= SHORTEST_ROUTE and own.overlaps(route) for route in routes)


def is_spare(subnet: bytes) -> bool:
    """Whether it is of SPARE_BLOCK, which some members do not know."""
    return subnet[:2] == _SPARE


def is_possible(subnet: bytes) -> bool:
    """Whether a room may have this network address (4 bytes)."""
    own = subnet_prefix(subnet)
    return not subnet[3] and any(own.overlaps(Prefix.parse(f"{base}/{bits}")) for base, bits in (*BLOCKS, SPARE_BLOCK))


def choose_subnet(entropy: Callable[[int], bytes], routes: Iterable[Prefix], *, may_be_spare: bool = True) -> bytes | None:
    """A /24 (4 bytes) that none of `routes` overlaps, random as far as there is choice; None when there is no such one.

    The lowest two of a block and the highest, which routers like, only when there is no other.
    """
    taken = sorted(
        (route.network // _SUBNETS, (route.network + (1 << (32 - route.bits)) - 1) // _SUBNETS + 1)
        for route in routes
        if route.bits >= SHORTEST_ROUTE
    )
    for base, bits in (*BLOCKS, SPARE_BLOCK) if may_be_spare else BLOCKS:
        first, count = int(ipaddress.IPv4Address(base)) // _SUBNETS, 1 << (SUBNET_BITS - bits)
        free = _gaps(taken, first + 2, first + count - 1) or _gaps(taken, first, first + count)
        if free:
            number = int.from_bytes(entropy(4), "big") % sum(high - low for low, high in free)
            for low, high in free:
                if number < high - low:
                    return ((low + number) * _SUBNETS).to_bytes(4, "big")
                number -= high - low
    return None


def _gaps(taken: Iterable[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """Return the ranges from `low` to below `high` that the sorted ranges leave free."""
    free = []
    for begin, end in taken:
        if begin > low:
            free.append((low, min(begin, high)))
        low = max(low, end)
        if low >= high:
            return free
    free.append((low, high))
    return free


def choose_ula(entropy: Callable[[int], bytes]) -> bytes:
    """A /64 of RFC 4193: 8 bytes."""
    return b"\xfd" + entropy(7)


def ipv4(subnet: bytes, host: int) -> bytes:
    """4 bytes."""
    return subnet[:3] + bytes((host,))


def ipv6(ula: bytes, host: int) -> bytes:
    """16 bytes."""
    return ula + bytes(7) + bytes((host,))


def link_local(host: int) -> bytes:
    """fe80::7074:0:0:n, 16 bytes."""
    return _LINK_LOCAL + bytes((host,))


def mac(host: int) -> bytes:
    """6 bytes: locally administered, unicast."""
    return _MAC + bytes((host,))


def ipv4_text(subnet: bytes, host: int) -> str:
    return str(ipaddress.IPv4Address(ipv4(subnet, host)))


def link_local_text(host: int) -> str:
    return str(ipaddress.IPv6Address(link_local(host)))


def ipv6_text(ula: bytes, host: int) -> str:
    return str(ipaddress.IPv6Address(ipv6(ula, host)))


class HostNumbers:
    """Host numbers of present and former members.  A member that comes back gets its own; a free one is reused late."""

    __slots__ = ("_former", "_highest")

    def __init__(self, former: Iterable[tuple[bytes, int]] = (), highest: int = CREATOR_HOST) -> None:
        """`former`: static keys and numbers of those that have left, the longest gone first."""
        self._former = dict(former)
        self._highest = max((highest, *self._former.values()))

    @property
    def former(self) -> tuple[tuple[bytes, int], ...]:
        return tuple(self._former.items())

    @property
    def highest(self) -> int:
        """The highest number ever given."""
        return self._highest

    def take(self, static: bytes, used: Collection[int]) -> int:
        """A number for `static` that is not among `used`, of which there are fewer than LAST_HOST."""
        known = self._former.pop(static, None)
        if known is not None and known not in used:
            return known
        if self._highest < LAST_HOST:
            self._highest += 1
            return self._highest
        for other, number in list(self._former.items()):
            del self._former[other]
            if number not in used:
                return number
        return next(number for number in range(CREATOR_HOST + 1, LAST_HOST + 1) if number not in used)

    def give_back(self, static: bytes, host: int) -> None:
        self._former.pop(static, None)
        self._former[static] = host
