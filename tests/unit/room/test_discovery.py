"""What goes to everybody, and how much of it."""

from __future__ import annotations

import ipaddress

import pytest

from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.room.core.discovery import (
    EVERYBODY_BURST,
    EVERYBODY_BYTES,
    EVERYBODY_BYTES_BURST,
    EVERYBODY_MEMBERS,
    EVERYBODY_RATE,
    Allowance,
    is_for_everybody,
    weight_in,
)
from tunnel.room.members import LanAddresses, LanTable
from tunnel.units import Instant

SUBNET = bytes((10, 1, 2, 0))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("255.255.255.255", True),
        ("10.1.2.255", True),
        ("224.0.0.251", True),
        ("239.255.255.250", True),
        ("224.0.2.60", True),
        ("10.1.3.255", False),
        ("10.1.2.7", False),
        ("223.255.255.255", False),
        ("240.0.0.1", False),
        ("ff02::fb", True),
        ("ff0e::1", True),
        ("fe80::1", False),
        ("fd00::1", False),
    ],
)
def test_which_destinations_go_to_everybody(address: str, expected: bool) -> None:
    assert is_for_everybody(ipaddress.ip_address(address).packed, SUBNET) is expected


def test_other_lengths_go_to_nobody() -> None:
    assert not is_for_everybody(b"\xff" * 5, SUBNET)
    assert not is_for_everybody(b"", SUBNET)


def test_a_burst_passes_then_only_the_rate() -> None:
    allowance = Allowance()
    passed = sum(allowance.take(Instant(0.0), 1, 100) for _ in range(1_000))
    assert passed == EVERYBODY_BURST
    passed = sum(allowance.take(Instant(step / 1_000), 1, 100) for step in range(1, 10_001))
    assert passed == pytest.approx(10 * EVERYBODY_RATE, abs=2)


def test_large_packets_are_limited_by_their_bytes() -> None:
    allowance = Allowance()
    size = 65_000
    passed = sum(allowance.take(Instant(0.0), 1, size) for _ in range(100))
    assert passed == EVERYBODY_BYTES_BURST // size
    passed = sum(allowance.take(Instant(step / 100), 1, size) for step in range(1, 1_001))
    assert passed == pytest.approx(10 * EVERYBODY_BYTES / size, abs=8)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    allowance = Allowance()
    while allowance.take(Instant(100.0), 1, 1):
        pass
    assert not allowance.take(Instant(50.0), 1, 1)


def test_in_a_larger_room_all_together_send_no_more_than_in_one_of_sixteen() -> None:
    assert weight_in(2) == weight_in(EVERYBODY_MEMBERS) == 1.0
    table = LanTable(LanAddresses("", b"", b"", ()), SUBNET)
    places = [
        LanAddresses(f"m{n}", bytes((n,)) * 32, bytes((10, 1, 2, n)), (bytes(15) + bytes((n,)),))
        for n in range(2, MAX_MEMBERS + 1)
    ]
    table.set(LanAddresses("me", b"\1" * 32, bytes((10, 1, 2, 1)), (bytes(15) + b"\1",)), SUBNET, places)
    assert table.weight == weight_in(MAX_MEMBERS) == MAX_MEMBERS / EVERYBODY_MEMBERS
    allowance = Allowance()
    passed = sum(allowance.take(Instant(0.0), 1, 100, table.weight) for _ in range(1_000))
    assert passed == EVERYBODY_BURST * EVERYBODY_MEMBERS // MAX_MEMBERS
    passed = sum(allowance.take(Instant(step / 1_000), 1, 100, table.weight) for step in range(1, 10_001))
    assert passed * MAX_MEMBERS == pytest.approx(10 * EVERYBODY_RATE * EVERYBODY_MEMBERS, rel=0.02)
    table.set(LanAddresses("me", b"\1" * 32, bytes((10, 1, 2, 1)), ()), SUBNET, places[:3])
    assert table.weight == 1.0
