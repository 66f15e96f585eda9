"""Super-packets: what the kernel says of one (the virtio-net header), how one is cut, and how a run of segments is joined.

A super-packet is up to 64 KB of one TCP or UDP flow under one IP and transport header, with `gso_size` bytes of payload for
each segment.  Only that size, an index and a flag cross the wire; whatever the receiving kernel is told of offsets and types
comes from headers parsed here.  Sources: virtio 1.2 §5.1.6, Linux tuntap.rst and include/linux/virtio_net.h, which refuses
(EINVAL) what these functions never write.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from tunnel.errors import MalformedPacket
from tunnel.room.ip.checksum import complement, pseudo_sum, word_sum
from tunnel.room.ip.header import IPV6_HEADER, MAX_PACKET, TCP, UDP, UDP_HEADER, Inner
from tunnel.units import Buffer

VIRTIO_NET_HDR_F_NEEDS_CSUM: Final = 1
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3  # UFO: the kernel fragments; never asked for, never cut
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5  # USO
GSO_ECN: Final = 0x80  # the first segment alone carries CWR

# The header is in the byte order of the machine (TUNSETVNETLE is not set).
_VIRTIO = Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VIRTIO_HEADER: Final = _VIRTIO.size  # 10 bytes

MAX_UDP_SEGMENTS: Final = 64
"""Segments of one UDP run: UDP_MAX_SEGMENTS of Linux before 6.7 (128 since); a longer run is refused with EINVAL."""

MIN_TCP_SEGMENT: Final = 8
"""Bytes of payload of one TCP segment in a run: TCP_MIN_GSO_SIZE of Linux, below which no sender goes."""

MAX_SEGMENTS: Final = 256
"""Segments of one super-packet: the index on the wire has one byte.  64 KB of them have 256 bytes each."""

MAX_HEAD: Final = 255
"""Bytes of a super-packet's head: its size on the wire has one byte.  IPv6 and TCP with all their options have 100."""

NOT_CUTTABLE: Final = "a kind of super-packet that is not cut"
MISMATCHED: Final = "a super-packet whose kind is not that of its headers"
BAD_SEGMENT_SIZE: Final = "a super-packet with a segment size out of bounds"
BAD_RUN: Final = "a run of segments that is no piece of a super-packet"
BAD_PARTIAL: Final = "a partial checksum where there is none to finish"

_FIN: Final = 0x01
_SYN: Final = 0x02
_RST: Final = 0x04
_PSH: Final = 0x08
_CWR: Final = 0x80

_U16 = Struct("!H")
_U32 = Struct("!I")
_TWO_U16 = Struct("!HH")


class Offload(NamedTuple):
    """The virtio-net header of a packet read from the interface."""

    needs_checksum: bool  # the checksum is partial
    gso_type: int  # GSO_NONE and so on, perhaps with GSO_ECN
    gso_size: int  # bytes of payload of each segment
    checksum_start: int  # bytes, from the frame's first: where summing begins
    checksum_offset: int  # bytes from there to the field


def decode_offload(buffer: Buffer, at: int) -> Offload:
    """The virtio-net header at `buffer[at]`, VIRTIO_HEADER bytes.  Raises MalformedPacket when it is cut."""
    if at < 0 or at + VIRTIO_HEADER > len(buffer):
        raise MalformedPacket("virtio-net header: cut")
    flags, gso_type, _, gso_size, start, offset = _VIRTIO.unpack_from(buffer, at)
    return Offload(flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0, gso_type, gso_size, start, offset)


def wants_cut(offload: Offload, inner: Inner, size: int) -> tuple[int, int] | None:
    """Head size and segment size, in bytes, of a super-packet of `size` bytes; None for a packet that goes as it is.

    Raises MalformedPacket for a super-packet that cannot be cut at the borders its kernel gives.
    """
    kind = offload.gso_type & ~GSO_ECN
    if kind == GSO_NONE:
        return None
    if kind == GSO_UDP_L4:
        fits = inner.protocol == UDP
    elif kind == GSO_TCPV4:
        fits = inner.protocol == TCP and inner.version == 4
    elif kind == GSO_TCPV6:
        fits = inner.protocol == TCP and inner.version == 6
    else:
        raise MalformedPacket(NOT_CUTTABLE)
    head, step = inner.head_size, offload.gso_size
    if not fits or inner.is_fragment or inner.total_size != size:
        raise MalformedPacket(MISMATCHED)
    if size - head <= step:
        return None
    if head > MAX_HEAD or step < (MIN_TCP_SEGMENT if kind != GSO_UDP_L4 else 1) or size - head > step * MAX_SEGMENTS:
        raise MalformedPacket(BAD_SEGMENT_SIZE)
    return head, step


def build_prefix(inner: Inner, partial: bool, ethernet: bytes) -> bytes:
    """Return the prefix of an ordinary packet in a write to the interface: virtio-net header and the Ethernet header given.

    Raises MalformedPacket when `partial` is said of a packet that has no TCP or UDP checksum of its own.
    """
    if not partial:
        return _NOTHING + ethernet
    if inner.head_size == inner.network_size:
        raise MalformedPacket(BAD_PARTIAL)
    start = len(ethernet) + inner.network_size
    offset = 16 if inner.protocol == TCP else 6
    return _VIRTIO.pack(VIRTIO_NET_HDR_F_NEEDS_CSUM, GSO_NONE, 0, 0, start, offset) + ethernet


_NOTHING: Final = bytes(VIRTIO_HEADER)


def build_run(
    inner: Inner,
    head: Buffer,
    index: int,
    count: int,
    payload_size: int,
    gso_size: int,
    is_last: bool,
    partial: bool,
    ethernet: bytes,
) -> bytearray:
    """Return the bytes before the payloads of `count` consecutive segments in ONE write to the interface.

    The run begins at segment `index` of a super-packet of which `head` is the head and `inner` what parse_head made of it,
    and has `payload_size` bytes in all; `is_last` when the super-packet's last segment is its last.  The result: virtio-net
    header, `ethernet` (14 bytes, or none for a TUN), and the head with lengths, identification, sequence number and flags as
    Linux gives them when it cuts (tcp_gso_segment, __udp_gso_segment, inet_gso_segment).  The checksum is partial.
    With `gso_size` 0 it is an ordinary packet of one piece: the head stays as it is, and `partial` says what its checksum is.
    Raises MalformedPacket for numbers that no super-packet gives.
    """
    if gso_size == 0:
        if count != 1 or index or inner.head_size + payload_size > MAX_PACKET:
            raise MalformedPacket(BAD_RUN)
        out = bytearray(build_prefix(inner, partial, ethernet))
        out += head
        return out
    protocol, network = inner.protocol, inner.network_size
    link = len(ethernet)
    gso_type = hdr_len = size = 0
    if count > 1:
        hdr_len, size = link + inner.head_size, gso_size
        if protocol == UDP:
            gso_type = GSO_UDP_L4
            if count > MAX_UDP_SEGMENTS:
                raise MalformedPacket(BAD_RUN)
        else:
            flags = head[network + 13]
            if flags & (_SYN | _RST) or gso_size < MIN_TCP_SEGMENT:
                raise MalformedPacket(BAD_RUN)
            gso_type = GSO_TCPV4 if inner.version == 4 else GSO_TCPV6
            if flags & _CWR and not index:
                gso_type |= GSO_ECN
    out = bytearray(
        _VIRTIO.pack(VIRTIO_NET_HDR_F_NEEDS_CSUM, gso_type, hdr_len, size, link + network, 16 if protocol == TCP else 6)
    )
    out += ethernet
    out += head
    _correct(out, VIRTIO_HEADER + link, inner, index, count, payload_size, gso_size, is_last)
    return out


def _correct(
    out: bytearray, at: int, inner: Inner, index: int, count: int, payload_size: int, gso_size: int, is_last: bool
) -> None:
    """Makes the super-packet's head at `out[at]` that of `count` segments from `index` on, with a partial checksum."""
    version, protocol, source, destination, network, head_size = inner[:6]
    start = index * gso_size
    full = count * gso_size
    total = head_size + payload_size
    if (
        count < 1
        or index < 0
        or start + total > (MAX_PACKET if version == 4 else MAX_PACKET + IPV6_HEADER)
        or payload_size > full
        or (payload_size != full and (not is_last or (payload_size <= full - gso_size and (count > 1 or index))))
    ):
        raise MalformedPacket(BAD_RUN)
    if version == 4:
        identification = out[at + 4] << 8 | out[at + 5]
        _TWO_U16.pack_into(out, at + 2, total, (identification + index) & 0xFFFF)
        _U16.pack_into(out, at + 10, 0)
        _U16.pack_into(out, at + 10, complement(word_sum(out[at : at + network])))
    else:
        _U16.pack_into(out, at + 4, total - IPV6_HEADER)
    transport = at + network
    if protocol == TCP:
        if index:
            (sequence,) = _U32.unpack_from(out, transport + 4)
            _U32.pack_into(out, transport + 4, (sequence + start) & 0xFFFF_FFFF)
            out[transport + 13] &= ~_CWR
        if not is_last:
            out[transport + 13] &= ~(_FIN | _PSH)
        _U16.pack_into(out, transport + 16, pseudo_sum(source, destination, TCP, total - network))
    else:
        length = total - network
        _TWO_U16.pack_into(out, transport + 4, length, pseudo_sum(source, destination, UDP, length))


def cut_in_software(
    inner: Inner, head: Buffer, payload: Buffer, gso_size: int, *, index: int = 0, is_last: bool = True
) -> Iterator[bytearray]:
    """Whole packets with finished checksums, one a segment: for a device that lacks the offload.

    `head` and `inner` as for build_run, `payload` from segment `index` on.  Raises MalformedPacket as build_run.
    """
    if gso_size < 1:
        raise MalformedPacket(BAD_SEGMENT_SIZE)
    view = memoryview(payload)
    network, protocol = inner.network_size, inner.protocol
    for at in range(0, len(view) or 1, gso_size):
        piece = view[at : at + gso_size]
        ends = is_last and at + gso_size >= len(view)
        packet = bytearray(head)
        _correct(packet, 0, inner, index + at // gso_size, 1, len(piece), gso_size, ends)
        packet += piece
        # The field holds the pseudo-header's sum, so the sum over all of it is the whole sum.
        field = complement(word_sum(memoryview(packet)[network:]))
        if protocol == UDP:
            field = field or 0xFFFF  # RFC 768: zero means that there is none
        _U16.pack_into(packet, network + (16 if protocol == TCP else 6), field)
        yield packet


def finish_checksum(buffer: bytearray | memoryview, at: int, end: int, inner: Inner) -> None:
    """Writes the whole TCP or UDP checksum of the packet at `buffer[at]`, which ends at or before `end`, whatever was there.

    Raises MalformedPacket for a fragment or another transport: they have no checksum that could be partial.
    """
    network = inner.network_size
    if inner.head_size == network or at + inner.total_size > end:
        raise MalformedPacket(BAD_PARTIAL)
    transport = at + network
    if inner.protocol == TCP:
        length, field = inner.total_size - network, transport + 16
    else:
        (length,) = _U16.unpack_from(buffer, transport + 4)
        field = transport + 6
        if not UDP_HEADER <= length <= inner.total_size - network:
            raise MalformedPacket(BAD_PARTIAL)
    _U16.pack_into(buffer, field, pseudo_sum(inner.source, inner.destination, inner.protocol, length))
    value = complement(word_sum(memoryview(buffer)[transport : transport + length]))
    if inner.protocol == UDP:
        value = value or 0xFFFF
    _U16.pack_into(buffer, field, value)


def finish_foreign_checksum(buffer: bytearray | memoryview, at: int, end: int, offload: Offload) -> None:
    """Finishes a checksum by the kernel's own words: sums from `at + checksum_start` to `end`, the field's content included.

    `at` is where the frame begins.  For packets inside of packets, on the machine that they come from.  Raises
    MalformedPacket when the offsets lie beyond `end`.
    """
    start = at + offload.checksum_start
    field = start + offload.checksum_offset
    if field + 2 > end or end > len(buffer):
        raise MalformedPacket(BAD_PARTIAL)
    _U16.pack_into(buffer, field, complement(word_sum(memoryview(buffer)[start:end])) or 0xFFFF)
