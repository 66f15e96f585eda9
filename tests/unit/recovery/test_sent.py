"""The ring of sent bursts."""

from __future__ import annotations

from tunnel.transport.recovery.sent import SentBurst, SentRing
from tunnel.units import Instant


def ring_of(*runs: tuple[int, int]) -> SentRing:
    ring = SentRing()
    for index, (first, count) in enumerate(runs):
        ring.append(SentBurst(first, count, 100, 50, Instant(float(index))))
    return ring


def test_a_packet_number_finds_its_burst_and_a_gap_finds_none() -> None:
    ring = ring_of((0, 4), (4, 64), (100, 1))
    assert [burst.first for number in (0, 3, 4, 67, 100) if (burst := ring.find(number))] == [0, 0, 4, 4, 100]
    assert ring.find(68) is None
    assert ring.find(99) is None
    assert ring.find(101) is None
    assert ring.index_from(68) == 2


def test_settled_bursts_leave_the_front_but_lost_ones_are_remembered_for_a_while() -> None:
    ring = ring_of(*((n, 1) for n in range(5)))
    for burst in ring.bursts[:4]:
        burst.outstanding = 0
    ring.bursts[1].lost = 1
    ring.settle()
    ring.reclaim(Instant(0.5), keep=10)
    assert len(ring) == 4
    assert [burst.first for burst in ring] == [4]
    ring.reclaim(Instant(0.5), keep=1)
    assert len(ring) == 1


def test_a_long_life_keeps_only_what_is_outstanding() -> None:
    ring = SentRing()
    for n in range(10_000):
        ring.append(SentBurst(n * 64, 64, 1200, 1200, Instant(float(n))))
        if n >= 20:
            ring.find((n - 20) * 64).outstanding = 0  # type: ignore[union-attr]
            ring.settle()
            ring.reclaim(Instant(float(n)), keep=256)
    assert len(ring) == 20
    assert len(ring.bursts) < 600
    assert ring.find(9_999 * 64 + 63) is ring.bursts[-1]
