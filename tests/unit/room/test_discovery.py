"""What goes to everybody, and how much of it."""

from __future__ import annotations

import ipaddress

import pytest

from tunnel.room.core.discovery import (
    EVERYBODY_BURST,
    EVERYBODY_BYTES,
    EVERYBODY_BYTES_BURST,
    EVERYBODY_RATE,
    Allowance,
    is_for_everybody,
)
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
