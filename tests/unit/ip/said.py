"""What the product says of inner packets, and two of its promises as functions, for tests to hold it to."""

from __future__ import annotations

from tunnel.doors.tun.tap import ETHERNET_SIZE as ETHERNET_HEADER
from tunnel.room.ip import filter as said
from tunnel.room.ip import header, offload
from tunnel.room.ip.header import MAX_PACKET, TCP, UDP, Inner
from tunnel.room.ip.offload import MAX_UDP_SEGMENTS, Offload

#: What `header.Inner.unsafe`, `MemberFilter.why_dropped` and the functions of offload.py may say.
UNSAFE = (header.SOURCE_ROUTE, header.ROUTING_HEADER, header.JUMBO, header.TOO_MANY_EXTENSIONS, header.MISPLACED_HOP_BY_HOP)
REASONS = (
    said.WRONG_SOURCE, said.WRONG_DESTINATION, said.REDIRECT_OR_ROUTER, said.NEIGHBOUR_DISCOVERY,
    said.GROUP_MEMBERSHIP, said.UNKNOWN_ICMP, said.FOREIGN_QUOTE, said.ENCAPSULATED, said.UNKNOWN_PROTOCOL,
    said.HOST_CONFIGURATION, said.UDP_TUNNEL, said.ROUTERS, said.CLOCKS,
)  # fmt: skip
REFUSALS = (offload.NOT_CUTTABLE, offload.MISMATCHED, offload.BAD_SEGMENT_SIZE, offload.BAD_RUN, offload.BAD_PARTIAL)


def is_own_checksum(offload: Offload, inner: Inner, link_size: int = ETHERNET_HEADER) -> bool:
    """Whether the partial checksum is that of the transport header which `inner` found, so that the far side finds it too.

    It is not for a packet inside of a packet (VXLAN, WireGuard): finish that with finish_foreign_checksum.
    """
    if inner.is_fragment or offload.checksum_start != link_size + inner.network_size:
        return False
    return (inner.protocol == TCP and offload.checksum_offset == 16) or (inner.protocol == UDP and offload.checksum_offset == 6)


def most_in_run(inner: Inner, gso_size: int) -> int:
    """How many segments of `gso_size` bytes (at least 1) one write to the interface may join."""
    most = (MAX_PACKET - inner.head_size) // gso_size
    return min(most, MAX_UDP_SEGMENTS) if inner.protocol == UDP else most
