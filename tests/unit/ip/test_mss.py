from __future__ import annotations

import struct

import pytest

from tests.unit.ip.packets import ACK, SYN, Flow, ip4, is_right, padded_options
from tunnel.room.ip.header import parse
from tunnel.room.ip.mss import MIN_MSS, clamp, may_be_syn


def mss(value: int) -> bytes:
    return struct.pack("!BBH", 2, 4, value)


USUAL = b"\x04\x02\x08\x0a" + bytes(8) + b"\x01\x03\x03\x07"  # SACK permitted, timestamps, window scale


@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
@pytest.mark.parametrize(("version", "most"), [(4, 1340), (6, 1320)])
@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", USUAL), (USUAL, b""), (b"\x01", USUAL + b"\0\0\0"), (b"\x01\x01\x01", b"\0"), (b"\x01", b"\x03\x03\x07")],
)
def test_a_syn_is_told_what_the_path_carries(flags: int, version: int, most: int, before: bytes, after: bytes) -> None:
    def packet(value: int) -> bytearray:
        return bytearray(b"##" + Flow(version=version, flags=flags, options=before + mss(value) + after).packet(b"early"))

    changed = packet(8960)
    inner = parse(changed, 2, len(changed))
    assert clamp(changed, 2, inner, 1380)
    assert changed == packet(most)
    assert is_right(bytes(changed[2:]))
    assert not clamp(changed, 2, inner, 1380)
    assert changed == packet(most)


def test_every_pair_of_values_leaves_a_right_checksum() -> None:
    for old in range(49, 65_536, 997):
        for options in (mss(old), b"\x01" + mss(old) + b"\x01\x01\0"):
            for mtu in (88, 89, 576, 1280, 1500, 9000):
                packet = bytearray(Flow(flags=SYN, options=options).packet(b""))
                assert clamp(packet, 0, parse(packet, 0, len(packet)), mtu) == (old > mtu - 40)
                assert is_right(bytes(packet))


def test_a_partial_checksum_does_not_cover_the_option() -> None:
    packet = bytearray(Flow(flags=SYN, options=mss(1460)).packet(b"", partial=True))
    field = packet[36:38]
    assert clamp(packet, 0, parse(packet, 0, len(packet)), 1280, partial=True)
    assert packet[42:44] == struct.pack("!H", 1240)
    assert packet[36:38] == field


def test_extension_headers_do_not_hide_it_and_a_tiny_path_has_a_floor() -> None:
    packet = bytearray(Flow(version=6, flags=SYN, options=mss(1460), extensions=((60, padded_options(8)),)).packet(b""))
    assert clamp(packet, 0, parse(packet, 0, len(packet)), 60)
    assert packet[-2:] == struct.pack("!H", MIN_MSS)


@pytest.mark.parametrize(
    "packet",
    [
        Flow(flags=ACK, options=mss(9000)).packet(b""),
        Flow(flags=SYN).packet(b"\x02\x04\x23\x28"),  # payload is no option
        Flow(flags=SYN, options=mss(536)).packet(b""),
        Flow(flags=SYN, options=USUAL).packet(b""),
        Flow(flags=SYN, options=b"\0" + mss(9000) + b"\0\0\0").packet(b""),  # behind the end
        Flow(flags=SYN, options=b"\x02\x03\xff\x01").packet(b""),
        Flow(flags=SYN, options=b"\x02\x06\xff\xff\0\0\0\0").packet(b""),
        Flow(flags=SYN, options=b"\x08\x01" + mss(9000) + b"\x01\x01").packet(b""),
        Flow(flags=SYN, options=b"\x01\x01\x02\x04").packet(b"\xff\xff"),
        Flow(flags=SYN, options=b"\x01\x01\x01\x02").packet(b"\x04\xff\xff"),
        ip4(6, Flow(flags=SYN, options=mss(9000)).packet(b"")[20:], field=0x2000),
        Flow(protocol=17).packet(bytes(40)),
    ],
)
def test_anything_else_is_left_alone(packet: bytes) -> None:
    changed = bytearray(packet)
    assert not clamp(changed, 0, parse(packet, 0, len(packet)), 576)
    assert changed == packet


@pytest.mark.parametrize("version", [4, 6])
def test_a_quick_look_finds_a_syn_and_reads_nothing_behind_the_end(version: int) -> None:
    for flags in (SYN, SYN | ACK):
        packet = Flow(version=version, flags=flags).packet(b"")
        assert may_be_syn(b"#" + packet, 1, 1 + len(packet))
        assert not may_be_syn(packet, 0, len(packet) - 7)
    for other in (Flow(version=version, flags=ACK), Flow(version=version, protocol=17)):
        assert not may_be_syn(other.packet(b"\xff" * 40), 0, len(other.packet(b"")) + 40)
