from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.transport.crypto.replay import LIMIT, WINDOW, ReplayWindow

ALL_64 = (1 << 64) - 1


def test_each_number_is_accepted_once() -> None:
    window = ReplayWindow()
    assert [window.accept(number) for number in (0, 1, 1, 3, 2, 3, 0)] == [True, True, False, True, True, False, False]


@pytest.mark.parametrize(
    ("marked", "asked", "answer"),
    [
        (WINDOW, 0, False),
        (WINDOW, 1, True),
        (WINDOW - 1, 0, True),
        (10 * WINDOW + 77, 9 * WINDOW + 77, False),
        (10 * WINDOW + 77, 9 * WINDOW + 78, True),
        (LIMIT - 1, LIMIT - 1, False),
        (LIMIT - 1, LIMIT - WINDOW, True),
        (0, LIMIT, False),
        (0, LIMIT - 1, True),
        (0, -1, False),
    ],
)
def test_the_window_ends_exactly_where_it_says(marked: int, asked: int, answer: bool) -> None:
    window = ReplayWindow()
    assert window.accept(marked)
    assert window.check(asked) is answer
    assert window.accept(asked) is answer
    assert not window.check(asked)


def test_check_changes_nothing() -> None:
    window = ReplayWindow()
    assert window.check(5)
    assert window.check(5)
    assert window.highest == -1


def test_a_run_in_order_is_wholly_new_and_then_wholly_old() -> None:
    window = ReplayWindow()
    for first in range(0, 3 * WINDOW, 64):
        assert window.accept_run(first, 64) == ALL_64
        assert window.accept_run(first, 64) == 0
    assert window.accept_run(3 * WINDOW - WINDOW - 10, 20) == 0


def test_a_run_that_overlaps_gives_what_was_missing() -> None:
    window = ReplayWindow()
    window.accept(3)
    assert window.accept_run(2, 4) == 0b1101
    assert window.accept_run(0, 8) == 0b11000011
    assert window.accept_run(5, 0) == 0
    assert window.accept_run(LIMIT - 2, 5) == 0b11
    assert window.accept_run(-3, 5) == 0


def test_a_run_that_began_before_the_window_is_cut() -> None:
    window = ReplayWindow()
    window.accept(WINDOW + 9)
    assert window.accept_run(0, 20) == ((1 << 20) - 1) ^ ((1 << 10) - 1)


def test_a_long_jump_forgets_what_lay_before() -> None:
    window = ReplayWindow()
    window.accept_run(0, 64)
    window.accept(40 * WINDOW + 3)
    for number in range(39 * WINDOW + 4, 39 * WINDOW + 600):
        assert window.check(number)


class Model:
    """The same by definition: a set of all that was seen."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.highest = -1

    def accept(self, number: int) -> bool:
        if number in self.seen or number <= self.highest - WINDOW:
            return False
        self.seen.add(number)
        self.highest = max(self.highest, number)
        return True

    def accept_run(self, first: int, count: int) -> int:
        self.highest = max(self.highest, first + count - 1)
        return sum(1 << index for index in range(count) if self.accept(first + index))


STEPS = st.lists(
    st.tuples(st.integers(-WINDOW - 300, 3 * WINDOW) | st.integers(-80, 80) | st.integers(-700, 700), st.integers(1, 90)),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_it_agrees_with_a_set_of_everything_seen(steps: list[tuple[int, int]]) -> None:
    window, model = ReplayWindow(), Model()
    for jump, count in steps:
        first = max(0, window.highest + jump)
        if count == 1:
            assert window.check(first) is (first not in model.seen and first > model.highest - WINDOW)
            assert window.accept(first) is model.accept(first)
        else:
            assert window.accept_run(first, count) == model.accept_run(first, count)
        assert window.highest == model.highest
