"""Calendars that are wrong, that jump, or that simply go on while somebody waits: peers meet, and people are told."""

from __future__ import annotations

from hashlib import sha256

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import DAY_NS, EPOCH_NS, SERVER, PeerNode
from tunnel.node.clocks import spoken
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.node.flows.dial import MAX_LISTENING
from tunnel.pairing.identity import LAST_DAY, days_around, meeting_days
from tunnel.rendezvous.limits import ServerConfig
from tunnel.units import Seconds

TO_1970 = -EPOCH_NS / DAY_NS  # days
FIFTY_YEARS = 18_262.0
WRONG = [-2.0, 2.0, TO_1970, FIFTY_YEARS]
MEETS = 3.5  # seconds: today's room, or its neighbours two seconds later


def told(person: PeerNode, problem: Problem) -> list[str]:
    return [event.text for event in person.told if isinstance(event, Troubled) and event.problem is problem]


def go_by_own_calendar(person: PeerNode) -> None:
    """As before servers told theirs."""
    clocks = person.endpoint._meetings._clocks

    def days(now: object, client: object) -> tuple[int, ...]:
        yesterday, today, tomorrow = days_around(person.endpoint._context.unix_time())
        return today, tomorrow, yesterday

    clocks.days = days  # type: ignore[method-assign]


class Days:
    """Calendars of everybody, moved on together."""

    def __init__(self, party: Cast) -> None:
        self.party = party

    def pass_by(self, days: float) -> None:
        for person in (self.party.home, self.party.friend):
            person.days_ahead += days
        self.party.server.days_ahead += int(days)
        self.party.world.run(100.0)  # the machines were on, and their programs had the time to look


# --- days pass ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [1, 2, 3, 40])
def test_who_waits_for_an_absent_peer_meets_it_however_many_days_later(days: int) -> None:
    with Cast() as party:
        party.acquaint(listening=False)
        peering = party.friend.dial(party.home)
        party.world.run(10.0)
        party.home.host.node = None  # switched off
        for _ in range(days):
            Days(party).pass_by(1)
        party.home.boot()
        party.home.meet(party.server)
        party.home.listen()
        assert party.world.run_until(lambda: peering.connection is not None, 10) < MEETS
        party.echoed(peering, b"after a holiday")


@pytest.mark.parametrize("days", [1, 2, 3, 40])
def test_who_listens_is_met_however_many_days_later(days: int) -> None:
    with Cast() as party:
        party.acquaint()
        party.world.run(10.0)
        for _ in range(days):
            Days(party).pass_by(1)
        peering = party.friend.dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None, 10) < MEETS


@pytest.mark.parametrize("tells_time", [True, False])
def test_who_slept_while_waiting_waits_in_the_rooms_of_the_day_it_wakes(tells_time: bool) -> None:
    with Cast() as party:
        party.server.tells_time = tells_time
        party.acquaint(listening=False)
        peering = party.friend.dial(party.home)
        party.world.run(10.0)
        party.home.host.node = None
        party.world.suspend(party.friend.host, Seconds(3 * 86_400))
        party.world.run(3 * 86_400 + 5)
        party.friend.endpoint.network_changed(party.world.now)  # as the driver says after a jump of the clock
        party.world.touch(party.friend.host)
        party.home.boot()
        party.home.meet(party.server)
        party.home.listen()
        assert party.world.run_until(lambda: peering.connection is not None, 70) < 65


# --- calendars that are wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", WRONG)
@pytest.mark.parametrize("whose", ["home", "friend", "both"])
def test_a_calendar_that_is_days_or_years_off_keeps_nobody_apart_and_is_told(whose: str, days: float) -> None:
    with Cast() as party:
        people = [person for person in (party.home, party.friend) if whose in (person.name, "both")]
        for person in people:
            person.days_ahead = days
        party.acquaint()
        peering = party.friend.dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None, 10) < MEETS
        party.echoed(peering, b"hello")
        party.world.run(600.0)
        for person in (party.home, party.friend):
            assert Problem.PEER_ABSENT not in person.problems
            texts = told(person, Problem.CLOCK_OFF)
            assert len(texts) == (person in people), "told once"
            for text in texts:
                direction = "behind" if days < 0 else "ahead of"
                assert f"clock of this computer is {round(abs(days))} days {direction} that of the server {SERVER}" in text


@pytest.mark.parametrize("days", [-3 * 365, 20 * 365])
@pytest.mark.parametrize("old", ["", "home", "friend"])
def test_a_server_whose_calendar_is_wrong_keeps_nobody_apart_who_reads_it_or_who_does_not(old: str, days: int) -> None:
    with Cast() as party:
        party.server.days_ahead = days
        party.acquaint(listening=False)
        if old:
            go_by_own_calendar(party.home if old == "home" else party.friend)
        party.home.listen()
        party.world.run(5.0)
        peering = party.friend.dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None, 10) < MEETS


@pytest.mark.parametrize("days", [0.0, -1.0, 1.0])
def test_at_a_server_that_tells_no_time_their_own_calendars_count(days: float) -> None:
    with Cast() as party:
        party.server.tells_time = False
        party.friend.days_ahead = days
        party.acquaint()
        peering = party.friend.dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None, 10) < MEETS
        assert Problem.CLOCK_OFF not in party.friend.problems


@pytest.mark.parametrize("jump", [-3.0, 3.0, TO_1970, FIFTY_YEARS])
@pytest.mark.parametrize("whose", ["home", "friend"])
def test_a_clock_that_jumps_under_a_running_program_keeps_nobody_apart(whose: str, jump: float) -> None:
    with Cast() as party:
        party.acquaint()
        person = party.home if whose == "home" else party.friend
        first = party.friend.dial(party.home)
        party.world.run_until(lambda: first.connection is not None)
        person.days_ahead += jump
        party.world.run(300.0)  # keys are renewed meanwhile
        party.echoed(first, b"still here")
        second = party.friend.dial(party.home)
        assert party.world.run_until(lambda: second.connection is not None, 10) < MEETS
        person.days_ahead -= jump
        party.world.run(300.0)
        party.echoed(first, b"still here")
        third = party.friend.dial(party.home)
        assert party.world.run_until(lambda: third.connection is not None, 10) < MEETS
        assert len(told(person, Problem.CLOCK_OFF)) == 1


@pytest.mark.parametrize("days", [TO_1970, -2.0, 2.0, FIFTY_YEARS])
def test_a_code_pairs_with_any_calendar_and_they_meet_again(days: float) -> None:
    with Cast() as party:
        party.friend.days_ahead = days
        first = party.pair()
        party.echoed(first, b"hello")
        again = party.friend.dial(party.home)
        assert party.world.run_until(lambda: again.connection is not None, 10) < MEETS


def test_the_servers_day_counts_and_our_own_stays_one_of_them() -> None:
    day = 19_675
    own, server = day * 86_400 + 5.0, (day - 400) * 86_400 + 5.0
    assert meeting_days(own, None) == (day, day + 1, day - 1)
    assert meeting_days(own, own + 43_000) == (day, day + 1, day - 1)
    assert meeting_days(own, server) == (day - 400, day - 399, day - 401, day)
    assert meeting_days(1e30, -1e30) == (1, 2, 0, LAST_DAY)


def test_spans_of_time_are_said_as_people_say_them() -> None:
    assert [spoken(seconds) for seconds in (1.2, 89, 91, 7_300, 86_400, 172_799, 34_560_000)] == [
        "1 seconds", "89 seconds", "2 minutes", "2 hours", "24 hours", "2 days", "400 days",
    ]  # fmt: skip


# --- more peers than fit --------------------------------------------------------------------------------------------------------


def remember_many(party: Cast, count: int) -> None:
    """Home remembers so many others, all seen later than friend."""
    friend = party.home.saved.pop(party.friend.endpoint.static_public)
    for number in range(count):
        secret = sha256(b"%d" % number).digest()
        party.home.save(KnownPeer(name=f"peer{number}", static=secret, psk=secret, server=SERVER))
    party.home.save(friend)
    party.home.endpoint.set_peers(party.world.now, party.home.saved.values())


@pytest.mark.parametrize("others", [64, 340, 1_019])
def test_the_peer_that_was_seen_longest_ago_still_connects(others: int) -> None:
    with Cast() as party:
        party.acquaint(listening=False)
        remember_many(party, others)
        party.home.listen()
        party.world.run(2.0)
        peering = party.friend.dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None, 10) < MEETS
        assert not party.home.problems
        Days(party).pass_by(1)
        again = party.friend.dial(party.home)
        assert party.world.run_until(lambda: again.connection is not None, 10) < MEETS
        assert not party.home.problems


def test_more_peers_than_the_server_lets_one_wait_for_is_said_once() -> None:
    assert ServerConfig().rooms_per_session > MAX_LISTENING
    with Cast() as party:
        party.acquaint(listening=False)
        remember_many(party, MAX_LISTENING + 2)
        party.home.listen()
        party.world.run(200.0)
        assert told(party.home, Problem.TOO_MANY_PEERS) == [
            f"1,023 peers are remembered with the server {SERVER}, and 1,020 can be waited for at once: "
            "the 3 seen longest ago cannot connect. 'ptunnel peers forget NAME' makes room."
        ]
