"""RangeSet against Python's own sets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.core.ranges import RangeSet

SPAN = 40
ranges = st.tuples(st.integers(0, SPAN), st.integers(0, SPAN))
steps = st.lists(st.tuples(st.sampled_from(["add", "remove", "pop"]), ranges), max_size=40)


def members(ranges: RangeSet) -> set[int]:
    return {n for start, stop in ranges for n in range(start, stop)}


def assert_is_canonical(ranges: RangeSet) -> None:
    flat = [bound for pair in ranges for bound in pair]
    assert flat == sorted(set(flat)), "sorted, disjoint, not adjacent, never empty"


@settings(max_examples=200, deadline=None)
@given(steps)
def test_a_range_set_is_a_set_of_integers(steps: list[tuple[str, tuple[int, int]]]) -> None:
    subject, model = RangeSet(), set[int]()
    for verb, (start, stop) in steps:
        span = set(range(start, stop))
        match verb:
            case "add":
                assert subject.add(start, stop) == len(span - model)
                model |= span
            case "remove":
                subject.remove(start, stop)
                model -= span
            case _ if model:
                first, after = subject.pop_first()
                assert first == min(model)
                assert set(range(first, after)) <= model
                assert after not in model
                model -= set(range(first, after))
        assert_is_canonical(subject)
        assert members(subject) == model
        assert bool(subject) == bool(model)
        if stop > start:
            gaps = subject.missing(start, stop)
            assert {n for low, high in gaps for n in range(low, high)} == span - model
            assert gaps == sorted(gaps)
            assert all(low < high for low, high in gaps)
            shared = list(subject.overlapping(start, stop))
            assert {n for low, high in shared for n in range(low, high)} & span == span & model
            assert all(low < stop and high > start for low, high in shared)
        assert all((n in subject) == (n in model) for n in range(SPAN + 1))
        assert list(reversed(subject)) == list(subject)[::-1]
        if model:
            assert subject.first[0] == min(model)
            assert subject.last[1] == max(model) + 1
        assert len(subject) == len(list(subject))
        assert repr(subject).startswith("RangeSet(")
