"""Calendars that are wrong keep nobody apart, and people are told whose it is."""

from __future__ import annotations

import pytest

from tests.adversary.reproduction.people import Cast, Person


def start(cast: Cast, person: Person, *, days_ahead: float = 0.0) -> None:
    """Its program begins anew, under that calendar."""
    person.days_ahead = days_ahead
    person.boot()
    person.meet(cast.server)
    if person is cast.home:
        person.listen()
    cast.world.run(1.0)


@pytest.mark.parametrize("hours", [2, 24])
def test_who_was_connected_before_its_clock_went_back_connects_again_and_both_people_are_told(hours: int) -> None:
    with Cast("friend") as cast:
        friend = cast.people["friend"]
        friend.connect(cast.home)
        friend.end()
        start(cast, friend, days_ahead=-hours / 24)
        friend.connect(cast.home, 20.0)
        cast.world.run(60.0)
        for person in (cast.home, friend):
            assert any("clock" in sentence for sentence in person.problems), person.problems


@pytest.mark.parametrize("days", [-3.0, 3.0, 50 * 365.0])
@pytest.mark.parametrize("whose", ["home", "friend"])
def test_a_clock_that_is_days_or_years_off_keeps_nobody_apart_and_its_owner_is_told(whose: str, days: float) -> None:
    with Cast("friend") as cast:
        person = cast.people[whose]
        person.end()
        start(cast, person, days_ahead=days)
        cast.people["friend"].connect(cast.home, 20.0)
        cast.world.run(60.0)
        assert any("clock of this computer" in sentence for sentence in person.problems), person.problems


def test_who_waits_for_a_peer_that_is_away_for_days_meets_it_when_it_comes_back() -> None:
    with Cast("friend") as cast:
        cast.home.host.node = None  # switched off
        cast.world.run(200.0)  # the server notices
        friend = cast.people["friend"]
        peering = friend.dial(cast.home)
        for day in range(1, 5):
            friend.days_ahead = cast.server.days_ahead = float(day)
            cast.world.run(100.0)  # its program was on meanwhile
        start(cast, cast.home, days_ahead=4.0)
        cast.world.run_until(lambda: peering.is_confirmed, 120.0)
