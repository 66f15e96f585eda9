"""Whether a member may send us this inner packet.

A member speaks from its own inner addresses, to ours or to all, and may not reconfigure our host: the interface does no
neighbour discovery and has no router, so whatever would change neighbours, routes, addresses or groups is an attack.
The lists of what is allowed are short on purpose: what nobody thought of is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tunnel.room.ip.header import ICMP, ICMPV6, IGMP, IPV4_HEADER, IPV6_HEADER, TCP, UDP, Inner
from tunnel.units import Buffer

WRONG_SOURCE: Final = "the source is not the member's"
WRONG_DESTINATION: Final = "the destination is not ours"
REDIRECT_OR_ROUTER: Final = "ICMP redirect or router advertisement"
NEIGHBOUR_DISCOVERY: Final = "neighbour discovery"
GROUP_MEMBERSHIP: Final = "IGMP or MLD"
UNKNOWN_ICMP: Final = "an ICMP type that no member needs"
FOREIGN_QUOTE: Final = "an ICMP error about a packet that was not for the member"
ENCAPSULATED: Final = "a packet inside of a packet"
UNKNOWN_PROTOCOL: Final = "a protocol that no member needs"
HOST_CONFIGURATION: Final = "DHCP"
UDP_TUNNEL: Final = "a packet inside of a UDP datagram"
ROUTERS: Final = "a protocol of routers over UDP"
CLOCKS: Final = "PTP"

# IP in IP, IPv6, GRE, AX.25, Ethernet, encapsulation header, L2TP, MPLS: a kernel with such a device open to anybody would
# unpack them, and forward what is inside past this filter.
_TUNNELS: Final = frozenset({4, 41, 47, 93, 94, 97, 98, 115, 137})

# DCCP, ESP, AH, SCTP, UDP-Lite beside these two: what programs speak end to end.  Not among them are those by which routers
# speak (OSPF, PIM, VRRP ...): a host that is one would believe a member.
_TRANSPORTS: Final = frozenset({TCP, UDP, 33, 50, 51, 132, 136})

# What is refused by the UDP port that it goes to, for the reasons above: assigned ports (IANA "Service Name and Transport
# Protocol Port Number Registry") and the kernel's defaults.  Nothing can be told of devices that were given another port, nor of
# FOU, which has none of its own.  No game is known to use any of them; what one may share is left out (6118: TIPC, and Warcraft).
#
# DHCP: clients of DHCP (RFC 2131 §4.1) and DHCPv6 (RFC 8415 §7.2).  A host may ask on every interface there is, and would take
# address, default route and name server from whoever answers.
# Tunnels: L2TP, GTP user plane (v1, v0), AMT, LISP (data, control), GRE in UDP, VXLAN, VXLAN-GPE, GUE, GENEVE, MPLS in UDP, and
# VXLAN as Linux and flannel number it.  Docker's swarm and flannel have such devices, open to whoever sends.
# Routers: MANET, RIP, RIPng, LDP, AODV, OLSR, HSRP (IPv4, IPv6), GLBP, BFD over several hops, Babel.
# Clocks: PTP events and messages (IEEE 1588): the best clock of the network is whoever says so.
_REFUSED_PORTS: Final = {
    **dict.fromkeys((68, 546), HOST_CONFIGURATION),
    **dict.fromkeys((1701, 2152, 2268, 3386, 4341, 4342, 4754, 4789, 4790, 6080, 6081, 6635, 8472), UDP_TUNNEL),
    **dict.fromkeys((269, 520, 521, 646, 654, 698, 1985, 2029, 3222, 4784, 6696), ROUTERS),
    **dict.fromkeys((319, 320), CLOCKS),
}

# BFD over one hop: control, echo, and on links of an aggregate.  It is heard with this TTL alone (RFC 5881 §5), which no host's
# stack sends by itself, while Ventrilo, by which players talk, uses the first two ports.
_ONE_HOP_PORTS: Final = frozenset({3784, 3785, 6784})
_ONE_HOP: Final = 255

_ICMP_ALLOWED: Final = frozenset({0, 8, 13, 14})  # echo, timestamp
_ICMP_ERRORS: Final = frozenset({3, 11, 12})  # unreachable with too big, time exceeded, parameter problem
_ICMP_REASONS: Final = {5: REDIRECT_OR_ROUTER, 9: REDIRECT_OR_ROUTER, 10: REDIRECT_OR_ROUTER}

_ICMPV6_ALLOWED: Final = frozenset({128, 129})  # echo
_ICMPV6_ERRORS: Final = frozenset({1, 2, 3, 4})  # unreachable, too big, time exceeded, parameter problem
_ICMPV6_REASONS: Final = {
    130: GROUP_MEMBERSHIP, 131: GROUP_MEMBERSHIP, 132: GROUP_MEMBERSHIP, 143: GROUP_MEMBERSHIP,
    133: REDIRECT_OR_ROUTER, 134: REDIRECT_OR_ROUTER, 137: REDIRECT_OR_ROUTER, 138: REDIRECT_OR_ROUTER,
    135: NEIGHBOUR_DISCOVERY, 136: NEIGHBOUR_DISCOVERY, 141: NEIGHBOUR_DISCOVERY, 142: NEIGHBOUR_DISCOVERY,
}  # fmt: skip

_ICMP_HEADER: Final = 8  # bytes before the quoted packet, RFC 792 and RFC 4443 §3
_BROADCAST: Final = b"\xff\xff\xff\xff"


class MemberFilter:
    """The filter for packets of one member.  Sets of 4- and 16-byte addresses; nothing in it grows."""

    __slots__ = ("_destinations", "_sources")

    def __init__(self, sources: Iterable[bytes], ours: Iterable[bytes], broadcasts: Iterable[bytes] = ()) -> None:
        """`sources` are the member's inner addresses, `ours` our own; `broadcasts` are the subnet's."""
        self._sources = frozenset(sources)
        self._destinations = frozenset({*ours, *broadcasts, _BROADCAST})

    def why_dropped(self, inner: Inner, buffer: Buffer, at: int = 0) -> str | None:
        """None when the packet at `buffer[at]`, which parse or parse_head read, may pass; else a reason, one of a fixed few.

        `buffer` need hold no more than what `inner` was read from.
        """
        if inner.source not in self._sources:
            return WRONG_SOURCE
        destination = inner.destination
        if destination not in self._destinations and not (
            destination[0] & 0xF0 == 0xE0 if inner.version == 4 else destination[0] == 0xFF
        ):
            return WRONG_DESTINATION
        if inner.unsafe:
            return inner.unsafe
        if inner.head_size != inner.network_size:  # a whole TCP or UDP packet
            return self._why_not_port(inner, buffer, at) if inner.protocol == UDP else None
        return self._why_not_transport(inner, buffer, at)

    def _why_not_transport(self, inner: Inner, buffer: Buffer, at: int) -> str | None:
        protocol = inner.protocol
        if protocol in _TUNNELS:
            return ENCAPSULATED
        if protocol == IGMP:
            return GROUP_MEMBERSHIP
        if inner.is_fragment and not inner.is_first_fragment:
            return None  # nothing without its first fragment, which was looked at: the ports are in that one alone
        if protocol == UDP:
            return self._why_not_port(inner, buffer, at)
        if protocol != ICMP and protocol != ICMPV6:
            return None if protocol in _TRANSPORTS else UNKNOWN_PROTOCOL
        if inner.total_size == inner.network_size or (protocol == ICMP) != (inner.version == 4):
            return UNKNOWN_ICMP
        kind = buffer[at + inner.network_size]
        if kind in (_ICMP_ERRORS if protocol == ICMP else _ICMPV6_ERRORS):
            return self._why_not_error(inner, buffer, at)
        if protocol == ICMP:
            return None if kind in _ICMP_ALLOWED else _ICMP_REASONS.get(kind, UNKNOWN_ICMP)
        return None if kind in _ICMPV6_ALLOWED else _ICMPV6_REASONS.get(kind, UNKNOWN_ICMP)

    @staticmethod
    def _why_not_port(inner: Inner, buffer: Buffer, at: int) -> str | None:
        """Where a UDP packet must not go.  A first fragment that is too short to tell is refused as well."""
        if inner.total_size < inner.network_size + 4:
            return HOST_CONFIGURATION
        where = at + inner.network_size + 2
        port = buffer[where] << 8 | buffer[where + 1]
        if port in _ONE_HOP_PORTS and buffer[at + (8 if inner.version == 4 else 7)] == _ONE_HOP:
            return ROUTERS
        return _REFUSED_PORTS.get(port)

    def _why_not_error(self, inner: Inner, buffer: Buffer, at: int) -> str | None:
        """A member can only know of a packet from us to itself: else it could tell our host that others are far or narrow."""
        quote, end = at + inner.network_size + _ICMP_HEADER, at + inner.total_size
        if inner.version == 4:
            size, header = 4, IPV4_HEADER
        else:
            size, header = 16, IPV6_HEADER
        middle = quote + header - size
        # No error is so long that it must be in pieces, and a later piece could change what was looked at here.
        if inner.is_fragment or quote + header > end or buffer[quote] >> 4 != inner.version:
            return FOREIGN_QUOTE
        # In both versions the two addresses are what the fixed header ends with.
        source, destination = bytes(buffer[middle - size : middle]), bytes(buffer[middle : middle + size])
        return None if source in self._destinations and destination in self._sources else FOREIGN_QUOTE
