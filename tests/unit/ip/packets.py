"""Packets made from a flow's numbers, checksums the slow way, and the kernel's cutting as its source describes it.

None of it uses tunnel.room.ip, so that a fault there is not made twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

A4, B4 = bytes((10, 86, 0, 1)), bytes((10, 86, 0, 2))
A6 = bytes.fromhex("fd70747000000000000000000000000a")
B6 = bytes.fromhex("fd70747000000000000000000000000b")
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))


def slow_sum(data: bytes) -> int:
    """RFC 1071 §1, word by word, with the carry folded back each time."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


def slow_checksum(data: bytes) -> int:
    return ~slow_sum(data) & 0xFFFF


def ip4(
    protocol: int,
    body: bytes,
    *,
    source: bytes = A4,
    destination: bytes = B4,
    options: bytes = b"",
    ident: int = 7,
    field: int = 0x4000,
    tos: int = 0,
    total: int | None = None,
) -> bytes:
    """An IPv4 packet; `field` is flags and fragment offset."""
    size = 20 + len(options)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | size // 4, tos, size + len(body) if total is None else total, ident, field, 64, protocol, 0,
        source, destination,
    )  # fmt: skip
    header += options
    return header[:10] + struct.pack("!H", slow_checksum(header)) + header[12:] + body


def ip6(
    protocol: int,
    body: bytes,
    *,
    source: bytes = A6,
    destination: bytes = B6,
    extensions: list[tuple[int, bytes]] | None = None,
    traffic_class: int = 0,
    length: int | None = None,
) -> bytes:
    """An IPv6 packet; an extension is its number and its bytes after the next-header field."""
    chain, following = b"", protocol
    for kind, data in reversed(extensions or []):
        chain = bytes([following]) + data + chain
        following = kind
    size = len(chain) + len(body) if length is None else length
    return struct.pack("!IHBB", 6 << 28 | traffic_class << 20, size, following, 64) + source + destination + chain + body


def padded_options(size: int) -> bytes:
    """What follows the next-header byte in a hop-by-hop or destination options header of `size` bytes: PadN."""
    return bytes([size // 8 - 1, 1, size - 4]) + bytes(size - 4)


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!IHBB", length, 0, 0, protocol)


@dataclass(frozen=True)
class Flow:
    """One TCP or UDP flow, of which packets are made."""

    version: int = 4
    protocol: int = 6
    options: bytes = b""  # of TCP
    ip_options: bytes = b""  # of IPv4
    extensions: tuple[tuple[int, bytes], ...] = ()  # of IPv6
    ident: int = 65_533
    sequence: int = 0xFFFF_FF00
    flags: int = ACK
    ports: tuple[int, int] = (40_000, 5_001)
    tos: int = 0

    @property
    def addresses(self) -> tuple[bytes, bytes]:
        return (A4, B4) if self.version == 4 else (A6, B6)

    def packet(self, payload: bytes, *, partial: bool = False) -> bytes:
        """The whole packet; with `partial`, the checksum field holds the pseudo-header's sum."""
        size = 20 + len(self.options) if self.protocol == 6 else 8
        base = pseudo(*self.addresses, self.protocol, size + len(payload))
        if self.protocol == 6:
            front = struct.pack("!HHIIBBH", *self.ports, self.sequence & 0xFFFF_FFFF, 99, size // 4 << 4, self.flags, 500)
            back = struct.pack("!H", 0) + self.options
        else:
            front, back = struct.pack("!HHH", *self.ports, size + len(payload)), b""
        field = slow_sum(base) if partial else slow_checksum(base + front + bytes(2) + back + payload)
        if self.protocol == 17 and not partial:
            field = field or 0xFFFF
        return self.around(front + struct.pack("!H", field) + back + payload)

    def around(self, body: bytes) -> bytes:
        if self.version == 4:
            return ip4(self.protocol, body, options=self.ip_options, ident=self.ident & 0xFFFF, tos=self.tos)
        return ip6(self.protocol, body, extensions=list(self.extensions), traffic_class=self.tos)

    @property
    def head_size(self) -> int:
        return len(self.packet(b""))

    def segments(self, payload: bytes, step: int) -> list[bytes]:
        """What the flow's own stack would have sent in packets of `step` bytes of payload."""
        pieces = [payload[at : at + step] for at in range(0, len(payload), step)]
        made = []
        for index, piece in enumerate(pieces):
            flags = self.flags
            if index:
                flags &= ~CWR
            if index < len(pieces) - 1:
                flags &= ~(FIN | PSH)
            made.append(replace(self, ident=self.ident + index, sequence=self.sequence + index * step, flags=flags).packet(piece))
        return made


@dataclass(frozen=True)
class Frame:
    """What the kernel makes of one write to an interface with IFF_VNET_HDR."""

    packets: list[bytes]
    gso_type: int


class Refused(Exception):
    """The kernel would answer EINVAL."""


def kernel_takes(written: bytes, link: int = 14) -> Frame:
    """virtio_net_hdr_to_skb, then tcp_gso_segment or __udp_gso_segment, then skb_checksum_help, as Linux 6.18 has them."""
    flags, gso_type, hdr_len, gso_size, start, offset = struct.unpack_from("=BBHHHH", written)
    frame = written[10:]
    if flags & 1 and start + offset + 2 > hdr_len:
        hdr_len = start + offset + 2
    if hdr_len > len(frame):
        raise Refused("hdr_len")
    kind = gso_type & ~0x80
    packet = bytearray(frame[link:])
    if kind == 0:
        if not flags & 1:
            return Frame([bytes(packet)], 0)
        return Frame([_finish(packet, start - link, offset)], 0)
    if kind not in (1, 4, 5) or not gso_size or gso_size == 0xFFFF or not flags & 1:
        raise Refused("gso")
    version = packet[0] >> 4
    if (kind == 1 and version != 4) or (kind == 4 and version != 6) or offset != (6 if kind == 5 else 16):
        raise Refused("kind")
    transport = start - link
    head = transport + (8 if kind == 5 else (packet[transport + 12] >> 4) * 4)
    data = packet[head:]
    if kind == 5 and len(data) > gso_size * 128:
        raise Refused("UDP_MAX_SEGMENTS")
    if len(data) <= gso_size:
        raise AssertionError("a run of one segment has no GSO type")
    # The field must be the pseudo-header's sum with the length of the whole: the kernel only adds differences.
    made = []
    old_length = len(packet) - transport
    for index, at in enumerate(range(0, len(data), gso_size)):
        piece = data[at : at + gso_size]
        one = bytearray(packet[:head])
        if version == 4:
            (ident,) = struct.unpack_from("!H", one, 4)
            struct.pack_into("!HH", one, 2, head + len(piece), (ident + index) & 0xFFFF)
            one[10:12] = bytes(2)
            struct.pack_into("!H", one, 10, slow_checksum(bytes(one[: (one[0] & 15) * 4])))
        else:
            struct.pack_into("!H", one, 4, head + len(piece) - 40)
        (field,) = struct.unpack_from("!H", one, transport + offset)
        new_length = head - transport + len(piece)
        field = slow_sum(struct.pack("!HHH", field, ~old_length & 0xFFFF, new_length))
        struct.pack_into("!H", one, transport + offset, field)
        if kind == 5:
            struct.pack_into("!H", one, transport + 4, new_length)
        else:
            (sequence,) = struct.unpack_from("!I", one, transport + 4)
            struct.pack_into("!I", one, transport + 4, (sequence + at) & 0xFFFF_FFFF)
            if index:
                one[transport + 13] &= ~CWR
            if at + gso_size < len(data):
                one[transport + 13] &= ~(FIN | PSH)
        made.append(_finish(one + piece, transport, offset))
    return Frame(made, gso_type)


def _finish(packet: bytearray, start: int, offset: int) -> bytes:
    value = slow_checksum(bytes(packet[start:]))
    if offset == 6:
        value = value or 0xFFFF
    struct.pack_into("!H", packet, start + offset, value)
    return bytes(packet)


def is_right(packet: bytes) -> bool:
    """Whether IPv4, TCP, UDP, ICMP and ICMPv6 checksums of a whole packet without extension headers are right."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        (total,) = struct.unpack_from("!H", packet, 2)
        if slow_sum(packet[:size]) != 0xFFFF or total != len(packet):
            return False
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
    else:
        size, protocol, source, destination = 40, packet[6], packet[8:24], packet[24:40]
        if struct.unpack_from("!H", packet, 4)[0] != len(packet) - 40:
            return False
    base = b"" if protocol == 1 else pseudo(source, destination, protocol, len(packet) - size)
    return slow_sum(base + packet[size:]) == 0xFFFF
