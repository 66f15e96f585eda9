"""What is new in an ACK, against sets of integers, and what it costs to find nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.core.ranges import RangeSet
from tunnel.transport.recovery.news import MAX_TOLD, AckNews

MOST = 40
frames = st.lists(st.tuples(st.sets(st.integers(0, MOST), min_size=1), st.integers(0, 4)), max_size=30)


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    """As an ACK has them: low and high, highest first."""
    found = RangeSet()
    for number in numbers:
        found.add(number, number + 1)
    return [(start, stop - 1) for start, stop in reversed(found)]


@settings(max_examples=300, deadline=None)
@given(frames)
def test_news_is_what_no_frame_told_of_before(frames: list[tuple[set[int], int]]) -> None:
    subject, told, lowest = AckNews(), set[int](), 0
    for numbers, forgotten in frames:
        lowest += forgotten
        fresh = subject.take(ranges_of(numbers), lowest)
        found = [n for low, high in fresh for n in range(low, high + 1)]
        assert len(found) == len(set(found))
        assert {n for n in found if n >= lowest} == {n for n in numbers if n >= lowest} - told
        assert not set(found) & told
        assert fresh == sorted(fresh, reverse=True)
        told |= {n for n in numbers if n >= lowest}


def test_a_peer_that_tells_of_every_other_packet_for_ever_makes_us_remember_a_bounded_number() -> None:
    subject = AckNews()
    for top in range(10, 20_000, 10):
        subject.take([(n, n) for n in range(top, top - 10, -2)], 0)
        assert len(subject._told) <= MAX_TOLD
    assert len(subject._told) == MAX_TOLD
