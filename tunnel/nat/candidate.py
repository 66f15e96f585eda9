"""Candidates: where a peer may be reached, how they are checked, ranked and put on the wire.

Source: RFC 8445 §5.1 for the kinds and the priority; docs/protocol.md for the encoding.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from tunnel.core.scope import is_loopback, is_reserved, unmapped
from tunnel.core.wire import Reader, Writer
from tunnel.errors import MalformedPacket
from tunnel.nat.behaviour import Mapping
from tunnel.nat.hints import Hint, decode_hints, encode_hints
from tunnel.units import Address, Buffer, SocketId

#: The most candidates one side may name; more are ignored, ours are cut.  Few: each costs some 25 checks a round.
MAX_CANDIDATES: Final = 16

FLAG_OPENED: Final = 0x01
FLAG_SEARCHING: Final = 0x02
FLAG_CONFIRMED: Final = 0x04
_IPV4_LENGTH: Final = 4
_IPV6_LENGTH: Final = 16


class CandidateKind(Enum):
    """RFC 8445 §5.1.1, and PORT_MAPPED for what the router granted on request.  The values go over the wire."""

    HOST = 1
    SERVER_REFLEXIVE = 2
    PEER_REFLEXIVE = 3
    PORT_MAPPED = 4
    RELAYED = 5


#: RFC 8445 §5.1.2.2 for the four of its kinds; a mapped port outlives a reflexive one, so it stands above.
TYPE_PREFERENCE: Final = {
    CandidateKind.HOST: 126,
    CandidateKind.PEER_REFLEXIVE: 110,
    CandidateKind.PORT_MAPPED: 105,
    CandidateKind.SERVER_REFLEXIVE: 100,
    CandidateKind.RELAYED: 0,
}
#: No NAT has to be opened before they answer.
OPEN_KINDS: Final = frozenset({CandidateKind.HOST, CandidateKind.PORT_MAPPED})
IPV6_PREFERENCE: Final = 40_000  # RFC 8421 §4: IPv6 first within a kind, since nothing is translated there
IPV4_PREFERENCE: Final = 30_000


class Candidate(NamedTuple):
    """One address where a peer may be reached.  `base` is our own socket behind it; in a remote candidate it says nothing."""

    kind: CandidateKind
    address: Address
    base: SocketId = SocketId(0)
    priority: int = 0


class Offer(NamedTuple):
    """The message of one agent to the other over the authenticated channel.

    `generation` rises with each offer.  `searching`: the sender has no direct path: begin a round together.  `opened` says
    only: my openers towards the candidates of your generation `generation` are out, so send at full TTL; it names no candidates.
    `confirmed`: `mapping` was compared at two addresses of the server, so an address-dependent one would have been seen.
    `hints` is what the costlier techniques have to say; they travel in notices of the generation NO_GENERATION.
    """

    generation: int
    candidates: tuple[Candidate, ...] = ()
    mapping: Mapping = Mapping.UNKNOWN
    opened: bool = False
    searching: bool = True
    confirmed: bool = False
    hints: tuple[Hint, ...] = ()


#: Of a notice that is about no offer at all.
NO_GENERATION: Final = 0xFFFF_FFFF


def compute_priority(kind: CandidateKind, address: Address) -> int:
    """RFC 8445 §5.1.2.1, for component 1."""
    local = IPV6_PREFERENCE if address.is_ipv6 else IPV4_PREFERENCE
    return (TYPE_PREFERENCE[kind] << 24) + (local << 8) + 255


def make_candidate(kind: CandidateKind, address: Address, base: SocketId) -> Candidate:
    """A candidate of our own, canonical and ranked.  Raises MalformedPacket when the host is not numeric."""
    address = Address(canonical(address.host), address.port)
    return Candidate(kind, address, base, compute_priority(kind, address))


def canonical(host: str) -> str:
    """The one spelling of a numeric host: IPv4-mapped IPv6 becomes IPv4, IPv6 is compressed.  Raises MalformedPacket."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise MalformedPacket("not a numeric address") from None
    return str(unmapped(address))


#: UDP services that answer strangers, with more than they were asked (RFC 9000 §21.5.6; CISA alert TA14-017A).  No peer sits
#: there: NATs keep the ports below 1024 to those who come from there (RFC 4787 REQ-3), and we do not.
MIN_PORT: Final = 1024
REFLECTOR_PORTS: Final = frozenset(
    {1434, 1900, 3283, 3702, 5093, 5350, 5351, 5353, 5355, 5683, 10001, 11211, 17185, 37810}
)  # MS-SQL, SSDP, ARD, WS-Discovery, Sentinel, NAT-PMP/PCP (2), mDNS, LLMNR, CoAP, Ubiquiti, memcached, VxWorks, DHDiscover


def is_allowed(address: Address, same_machine: bool = False) -> bool:
    """May checks be sent there because a peer said so?  Loopback only when both peers are known to share this machine."""
    if not 0 < address.port <= 0xFFFF:
        return False
    try:
        host = unmapped(ipaddress.ip_address(address.host))
    except ValueError:
        return False
    if is_loopback(host):
        return same_machine
    return address.port >= MIN_PORT and address.port not in REFLECTOR_PORTS and not is_reserved(host)


def encode_candidates(candidates: Iterable[Candidate]) -> bytes:
    """A count, then per candidate: kind u8, address length u8 (4 or 16), address, port u16, priority u32.

    Only the first MAX_CANDIDATES are written.
    """
    chosen: Sequence[Candidate] = tuple(candidates)[:MAX_CANDIDATES]
    writer = Writer().u8(len(chosen))
    for candidate in chosen:
        packed = ipaddress.ip_address(canonical(candidate.address.host)).packed
        writer.u8(candidate.kind.value).u8(len(packed)).raw(packed).u16(candidate.address.port).u32(candidate.priority)
    return writer.finish()


def decode_candidates(data: Buffer | Reader) -> tuple[Candidate, ...]:
    """Read what encode_candidates wrote.  Kinds from a later version are left out.  Raises MalformedPacket.

    The addresses are canonical, not yet allowed: the agent filters them.
    """
    reader = data if isinstance(data, Reader) else Reader(data)
    count = reader.u8()
    if count > MAX_CANDIDATES:
        raise MalformedPacket(f"{count} candidates, at most {MAX_CANDIDATES} are allowed")
    found: list[Candidate] = []
    for _ in range(count):
        kind, length = reader.u8(), reader.u8()
        if length not in (_IPV4_LENGTH, _IPV6_LENGTH):
            raise MalformedPacket(f"an address of {length} bytes")
        packed = reader.take(length)
        host = ".".join(map(str, packed)) if length == _IPV4_LENGTH else str(unmapped(ipaddress.ip_address(packed)))
        address = Address(host, reader.u16())
        priority = reader.u32()
        if kind in _KINDS:
            found.append(Candidate(CandidateKind(kind), address, SocketId(0), priority))
    return tuple(found)


_KINDS: Final = frozenset(kind.value for kind in CandidateKind)
_MAPPINGS: Final = frozenset(mapping.value for mapping in Mapping)


def encode_offer(offer: Offer) -> bytes:
    """flags u8, mapping u8, generation u32, candidates, hints; docs/protocol.md."""
    flags = (FLAG_OPENED if offer.opened else 0) | (FLAG_SEARCHING if offer.searching else 0)
    flags |= FLAG_CONFIRMED if offer.confirmed else 0
    head = Writer().u8(flags).u8(offer.mapping.value).u32(offer.generation)
    return head.raw(encode_candidates(offer.candidates)).raw(encode_hints(offer.hints)).finish()


def decode_offer(data: Buffer) -> Offer:
    """Unknown flags, an unknown mapping, unknown hints and trailing bytes are ignored.  Raises MalformedPacket."""
    reader = Reader(data)
    flags, mapping, generation = reader.u8(), reader.u8(), reader.u32()
    candidates = decode_candidates(reader)
    known = Mapping(mapping) if mapping in _MAPPINGS else Mapping.UNKNOWN
    return Offer(
        generation,
        candidates,
        known,
        bool(flags & FLAG_OPENED),
        bool(flags & FLAG_SEARCHING),
        bool(flags & FLAG_CONFIRMED),
        decode_hints(reader.rest()),
    )
