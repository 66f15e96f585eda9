"""Inner packets of every kind and length, sound and broken, from a seeded generator: what a member or our own kernel may send."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.unit.ip.packets import A4, A6, B4, B6, Flow, ip4, ip6, padded_options

PROTOCOLS = (0, 1, 2, 4, 6, 17, 33, 41, 43, 44, 47, 50, 51, 58, 59, 60, 89, 103, 112, 115, 132, 136, 137, 255)
PORTS = (0, 5, 53, 67, 68, 137, 319, 520, 546, 646, 1701, 1985, 3784, 4445, 4789, 5353, 6081, 8472, 27_015, 41_641, 65_535)
GROUPS4 = (b"\xff" * 4, A4[:3] + b"\xff", bytes((224, 0, 2, 60)), bytes((239, 255, 255, 250)), bytes((192, 168, 1, 1)))
GROUPS6 = (b"\xff\x02" + bytes(13) + b"\x01", b"\xff\x0e" + bytes(14), b"\xfe\x80" + bytes(14))


def every_short_packet() -> Iterator[bytes]:
    """Whole packets and fragments, first and later, of 0 to 100 bytes, for each protocol."""
    for protocol in PROTOCOLS:
        for field in (0, 0x4000, 0x2000, 0x2001, 1, 175, 0x1FFF):
            for size in range(101):
                yield ip4(protocol, bytes(80), field=field, total=size)[:size]
        for extensions in (
            [],
            [(44, struct.pack("!BHI", 0, 1, 9))],
            [(44, struct.pack("!BHI", 0, 0x00F8, 9))],
            [(0, padded_options(8))],
        ):
            for size in range(101):
                yield ip6(protocol, bytes(80), extensions=extensions, length=max(0, size - 40))[:size]


def any_packet(rng: random.Random, most: int = 1_500) -> bytes:
    """One that is mostly plausible: from A to B or to everybody, cut, lengthened, with bytes changed."""
    made = bytearray(rng.choice(_KINDS)(rng, _size(rng, most)))
    if rng.random() < 0.2:
        destination = rng.choice(GROUPS4 if made[0] >> 4 == 4 else GROUPS6)
        at = 16 if made[0] >> 4 == 4 else 24
        made[at : at + len(destination)] = destination
    if rng.random() < 0.3:
        del made[rng.randrange(len(made) + 1) if rng.random() < 0.5 else rng.randrange(min(len(made), 101)) :]
        if rng.random() < 0.7:
            _set_length(made)
    for _ in range(rng.choice((0, 0, 0, 1, 2, 4))):
        if made:
            made[rng.randrange(min(len(made), 100 if rng.random() < 0.9 else len(made)))] = rng.choice(
                (0, 1, 4, 255, rng.randrange(256))
            )
    return bytes(made)


def _size(rng: random.Random, most: int) -> int:
    """Mostly at borders: nothing, little, around a path's size and its multiples."""
    border = rng.choice((0, 8, 20, 40, 64, 1_208, 1_280, 1_348, 1_400, 1_429, 1_437, 1_472, most))
    return max(0, min(most, border + rng.randint(-4, 4)))


def _set_length(packet: bytearray) -> None:
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        struct.pack_into("!H", packet, 2, len(packet))
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        struct.pack_into("!H", packet, 4, len(packet) - 40)


def _transport(rng: random.Random, size: int) -> bytes:
    flow = Flow(
        version=rng.choice((4, 6)),
        protocol=rng.choice((6, 17, 17)),
        options=rng.choice((b"", b"\x01" * 12, struct.pack("!BBH", 2, 4, 8960), b"\x02\x04", b"\x05\x00\x01\x01")),
        flags=rng.randrange(256),
        tos=rng.choice((0, 1, 2, 3, 184)),
        ports=(rng.choice(PORTS), rng.choice(PORTS)),
    )
    flow = replace(flow, options=flow.options + bytes(-len(flow.options) % 4))
    return flow.packet(bytes(size), partial=rng.random() < 0.5)


def _any_protocol(rng: random.Random, size: int) -> bytes:
    body = rng.randbytes(8) + bytes(size)
    if rng.random() < 0.5:
        options = rng.choice((b"", b"\x01\x01\x01\x00", b"\x83\x04\x04\x00", b"\x07\x03\x04\x00", b"\x44\xff\x01\x01"))
        return ip4(rng.choice(PROTOCOLS), body, options=options, field=rng.choice((0, 0x4000)))
    extensions = [
        rng.choice(((0, padded_options(8)), (43, bytes((0, 0, 1)) + bytes(4)), (60, padded_options(16)), (51, bytes(7))))
        for _ in range(rng.randrange(4))
    ]
    return ip6(rng.choice(PROTOCOLS), body, extensions=extensions)


def _fragment(rng: random.Random, size: int) -> bytes:
    body = struct.pack("!HHHH", rng.choice(PORTS), rng.choice(PORTS), 8 + size, 0) + bytes(size)
    protocol = rng.choice((17, 17, 17, *PROTOCOLS))
    if rng.random() < 0.7:
        field = rng.choice((0x2000, 0x2001, 1, 175, 0x20AF, 0x1FFF, 0x3FFF))
        return ip4(protocol, body[: rng.choice((1, 2, 3, 4, 5, 8, len(body)))], field=field, ident=rng.randrange(4))
    offset = rng.choice((0, 1, 8, 9, 0x578, 0xFFF8, 0xFFF9))
    return ip6(protocol, body[: rng.choice((1, 4, 8, len(body)))], extensions=[(44, struct.pack("!BHI", 0, offset, 9))])


def _icmp(rng: random.Random, size: int) -> bytes:
    kind = rng.choice((0, 3, 5, 8, 9, 11, 12, 13, 128, 1, 2, 134, 136, 143))
    head = struct.pack("!BBHI", kind, 0, 0, rng.randrange(1 << 32))
    if rng.random() < 0.5:
        quote = rng.choice((ip4(17, bytes(8), source=B4, destination=A4), ip4(6, bytes(8)), b""))[: rng.choice((7, 19, 20, 28))]
        return ip4(1, head + quote + bytes(size % 64))
    quote = rng.choice((ip6(17, bytes(8), source=B6, destination=A6), ip6(6, bytes(8)), b""))[: rng.choice((7, 39, 40, 48))]
    return ip6(58, head + quote + bytes(size % 64))


def _noise(rng: random.Random, size: int) -> bytes:
    return rng.choice((b"\x45", b"\x46", b"\x60", b"\x00", b"\xff")) + rng.randbytes(size)


_KINDS: tuple[Callable[[random.Random, int], bytes], ...] = (
    _transport,
    _transport,
    _any_protocol,
    _fragment,
    _fragment,
    _icmp,
    _noise,
)
