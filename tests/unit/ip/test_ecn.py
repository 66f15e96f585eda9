"""A congestion mark is carried inward, and IPv4's checksum stays right."""

from __future__ import annotations

import pytest

from tests.unit.ip.packets import Flow, slow_checksum
from tunnel.room.ip.ecn import mark_congestion


@pytest.mark.parametrize("tos", range(256))
def test_a_marked_packet_is_the_packet_with_the_mark(tos: int) -> None:
    assert mark_congestion(Flow(tos=tos).packet(b"x")) == Flow(tos=tos | 3).packet(b"x")
    assert mark_congestion(Flow(version=6, tos=tos).packet(b"x")) == Flow(version=6, tos=tos | 3).packet(b"x")


def test_the_checksum_of_a_header_with_options_stays_right() -> None:
    marked = mark_congestion(Flow(tos=1, ip_options=b"\1" * 8).packet(b"x"))
    assert slow_checksum(bytes(marked[:28])) == 0
