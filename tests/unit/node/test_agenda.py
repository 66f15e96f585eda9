"""The agenda: who is due when, and who has something to send or to tell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnel.node.agenda import RECORDS_AN_OWNER, RECORDS_BESIDES, Agenda, Entry
from tunnel.units import Instant


class Owner:
    """Somebody with a deadline, who counts how often it is asked for it."""

    def __init__(self, agenda: Agenda[Owner], at: float | None = None) -> None:
        self.at = at
        self.asked = 0
        self.entry: Entry[Owner] = agenda.enter(self, self.ask)

    def ask(self) -> Instant | None:
        self.asked += 1
        return None if self.at is None else Instant(self.at)

    def move(self, at: float | None) -> None:
        self.at = at
        self.entry.doubt()


def test_the_first_deadline_is_next_and_whoever_is_due_comes_in_order() -> None:
    agenda: Agenda[Owner] = Agenda()
    assert agenda.next() is None
    assert agenda.due(Instant(9.0)) == []
    second, first, third, never = (Owner(agenda, at) for at in (2.0, 1.0, 3.0, None))
    assert agenda.next() == 1.0
    assert agenda.due(Instant(0.5)) == []
    assert agenda.due(Instant(2.0)) == [first, second]
    first.at, second.at = None, 4.0  # what they did about it
    assert agenda.next() == 3.0
    third.move(None)
    assert agenda.due(Instant(10.0)) == [second]
    assert never.asked == 1


def test_nobody_is_asked_but_those_in_doubt() -> None:
    agenda: Agenda[Owner] = Agenda()
    owners = [Owner(agenda, float(number)) for number in range(100)]
    assert agenda.next() == 0.0
    owners[7].move(-1.0)
    owners[7].move(-2.0)
    assert agenda.next() == -2.0
    assert agenda.due(Instant(-3.0)) == []
    assert [owner.asked for owner in owners] == [2 if number == 7 else 1 for number in range(100)]


def test_whoever_does_nothing_about_its_deadline_stays_due() -> None:
    agenda: Agenda[Owner] = Agenda()
    lazy = Owner(agenda, 1.0)
    for _ in range(3):
        assert agenda.due(Instant(1.0)) == [lazy]
        assert agenda.next() == 1.0


def test_what_is_overdue_is_known_without_a_question_and_is_due_all_the_same() -> None:
    agenda: Agenda[Owner] = Agenda()
    owner = Owner(agenda, 1.0)
    assert agenda.next() == 1.0
    assert agenda.overdue(Instant(1.0)) == [owner]
    assert owner.asked == 1
    assert agenda.overdue(Instant(1.0)) == []
    assert agenda.due(Instant(1.0)) == [owner]


def test_whoever_is_touched_stands_in_both_queues_once() -> None:
    agenda: Agenda[Owner] = Agenda()
    first, second = Owner(agenda), Owner(agenda)
    for owner in (second, first, second):
        owner.entry.touch()
    assert list(agenda.ready) == list(agenda.untold) == [second, first]
    agenda.leave(second.entry)
    assert list(agenda.ready) == list(agenda.untold) == [first]


def test_an_entry_without_an_owner_has_a_deadline_and_stands_in_no_queue() -> None:
    agenda: Agenda[Owner] = Agenda()
    entry = agenda.enter(None, lambda: Instant(1.0))
    entry.touch()
    assert not agenda.ready
    assert agenda.due(Instant(1.0)) == [None]


def test_whoever_left_is_never_due_again() -> None:
    agenda: Agenda[Owner] = Agenda()
    owner = Owner(agenda, 1.0)
    agenda.next()
    agenda.leave(owner.entry)
    owner.move(0.0)
    assert agenda.next() is None
    assert agenda.due(Instant(5.0)) == []


def test_a_deadline_that_moves_for_ever_leaves_a_bounded_number_of_records() -> None:
    agenda: Agenda[Owner] = Agenda()
    moving, resting = Owner(agenda, 1000.0), [Owner(agenda, 500.0) for _ in range(10)]
    most = 0
    for number in range(5_000):
        moving.move(1000.0 + number)
        assert agenda.next() == 500.0
        most = max(most, len(agenda.heap))
    limit = RECORDS_BESIDES + RECORDS_AN_OWNER * (1 + len(resting))
    assert limit / 2 < most <= limit
    assert set(agenda.due(Instant(500.0))) == set(resting)


def test_deadlines_that_come_back_to_where_they_were_leave_one_record_of_each_when_others_are_thrown_out() -> None:
    """Else the heap stays full of equal ones, and each that is added costs a look at all of them."""
    agenda: Agenda[Owner] = Agenda()
    owners = [Owner(agenda, 1000.0 + number) for number in range(100)]
    sizes: list[int] = []
    cleanings = 0
    for step in range(2_000):
        owner, far = owners[step % 100], 1000.0 + step % 100
        for at in (step * 0.001, far):  # an acknowledgement that is due soon, and is sent
            owner.move(at)
            assert agenda.next() == min(at, 1000.0)
            cleanings += len(agenda.heap) < (sizes[-1] if sizes else 0) - 10
            sizes.append(len(agenda.heap))
    assert max(sizes) <= RECORDS_BESIDES + RECORDS_AN_OWNER * 100
    assert cleanings <= 2_000 * 2 / (RECORDS_BESIDES + (RECORDS_AN_OWNER - 2) * 100)
    assert min(sizes[1_000:]) <= 2 * 100


Step = tuple[str, int, float | None]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["move", "move", "move", "due", "overdue", "next", "leave"]),
        st.integers(0, 5),
        st.none() | st.integers(0, 20).map(float),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_agrees_with_a_table_of_all_deadlines(steps: list[Step]) -> None:
    agenda: Agenda[Owner] = Agenda()
    owners = [Owner(agenda) for _ in range(6)]
    there = list(owners)
    for kind, number, at in steps:
        owner = owners[number]
        if kind == "move":
            owner.move(at)
        elif kind == "leave" and owner in there:
            there.remove(owner)
            agenda.leave(owner.entry)
        elif kind in ("due", "overdue") and at is not None:
            if kind == "overdue":
                agenda.next()
            expected = {each for each in there if each.at is not None and each.at <= at}
            found = agenda.due(Instant(at)) if kind == "due" else agenda.overdue(Instant(at))
            assert set(found) == expected
            assert [each.at for each in found if each is not None] == sorted(each.at or 0.0 for each in expected)
            for number_due, each in enumerate(found):
                assert each is not None
                if number_due % 2:
                    each.at = None if number_due % 3 else at + number_due  # the others do nothing about it
        assert agenda.next() == min((each.at for each in there if each.at is not None), default=None)
