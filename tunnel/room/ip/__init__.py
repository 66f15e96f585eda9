"""Inner IPv4 and IPv6 packets: parse them, cut and join super-packets, say too big, clamp MSS, find needless ACKs,
judge what a member sends.

Bytes in, bytes out; nothing here has state but the filter's two sets.
"""

from tunnel.room.ip.acks import ACK_SIZES, PureAck, is_needless, is_repeated, read_ack
from tunnel.room.ip.filter import REASONS, MemberFilter
from tunnel.room.ip.header import ICMP, ICMPV6, TCP, UDP, UNSAFE, Inner, destination_of, parse, parse_head
from tunnel.room.ip.icmp import fragment, too_big
from tunnel.room.ip.mss import clamp
from tunnel.room.ip.offload import (
    ETHERNET_HEADER,
    MAX_UDP_SEGMENTS,
    REFUSALS,
    VIRTIO_HEADER,
    Offload,
    build_prefix,
    build_run,
    cut_in_software,
    decode_offload,
    finish_checksum,
    finish_foreign_checksum,
    is_own_checksum,
    most_in_run,
    wants_cut,
)

__all__ = [
    # header
    "Inner", "parse", "parse_head", "destination_of", "UNSAFE", "ICMP", "ICMPV6", "TCP", "UDP",
    # offload
    "Offload", "decode_offload", "is_own_checksum", "wants_cut", "most_in_run", "build_run", "build_prefix",
    "cut_in_software", "finish_checksum", "finish_foreign_checksum",
    "VIRTIO_HEADER", "ETHERNET_HEADER", "MAX_UDP_SEGMENTS", "REFUSALS",
    # acks
    "PureAck", "read_ack", "is_needless", "is_repeated", "ACK_SIZES",
    # icmp, mss, filter
    "too_big", "fragment", "clamp", "MemberFilter", "REASONS",
]  # fmt: skip
