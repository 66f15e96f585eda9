"""Remembered peers in virtual time: whoever comes first, late or again, and what is said where nothing gets through."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest

from tests.sim.dht import Home, World, cone, scattered, sequential
from tests.unit.dht.test_route import ROOM, world
from tunnel.dht.appointment import QUESTION_INTERVAL
from tunnel.dht.client import MAX_SEARCHES
from tunnel.dht.route import ABSENT_AFTER, NO_PATH_AFTER
from tunnel.rendezvous.events import NO_PATH
from tunnel.rendezvous.messages import Introduced, Join, Refused
from tunnel.units import Address, Instant

NAT = Callable[[Address], Address]
OURS, THEIRS = cone(), cone("198.18.0.9", 50_000)


def listening(at: World, external: NAT = OURS, seed: int = 21) -> Home:
    home = Home(at, external, seed=seed)
    home.part.listen(at.now, [ROOM])
    return home


def dialing(at: World, external: NAT = THEIRS, seed: int = 22) -> Home:
    friend = Home(at, external, seed=seed)
    friend.part.dial(at.now, [ROOM])
    return friend


def wait(at: World, seconds: float, *homes: Home) -> None:
    at.run(lambda: False, seconds, *homes)


def meet(at: World, home: Home, friend: Home, seconds: float = 20.0, count: int = 1) -> float:
    """Seconds until the friend is introduced to the home for the `count`th time."""
    begun = at.now
    assert at.run(lambda: len(friend.heard(Introduced)) >= count, seconds, home, friend)
    return at.now - begun


@pytest.mark.parametrize("late", [0.0, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("home_first", [True, False])
def test_both_may_start_at_nearly_the_same_time(late: float, home_first: bool) -> None:
    at = world()
    first = listening(at) if home_first else dialing(at)
    wait(at, late, first)
    second = dialing(at) if home_first else listening(at)
    assert meet(at, *((first, second) if home_first else (second, first))) < 4.0


@pytest.mark.parametrize("home_first", [True, False])
def test_one_may_wait_for_the_other_for_a_long_while(home_first: bool) -> None:
    at = world()
    first = listening(at) if home_first else dialing(at)
    wait(at, 1_200.0, first)
    second = dialing(at) if home_first else listening(at)
    assert meet(at, *((first, second) if home_first else (second, first))) < 4.0


@pytest.mark.parametrize("waits", [0.2, 120.0])
@pytest.mark.parametrize("whose", ["home", "friend"])
def test_a_router_that_gives_out_ports_in_order_is_met_by_name(whose: str, waits: float) -> None:
    at = world()
    ours, theirs = (sequential(), THEIRS) if whose == "home" else (OURS, sequential())
    home = listening(at, ours)
    wait(at, waits, home)
    assert meet(at, home, dialing(at, theirs)) < 8.0


def test_a_home_that_restarts_is_met_at_its_new_port() -> None:
    at = world()
    home, friend = listening(at), dialing(at)
    meet(at, home, friend)
    at.homes.remove(home)
    fresh = listening(at, cone(port=40_777), seed=31)
    friend.part.dial(at.now, [ROOM])  # as a dialer does when its connection has gone
    at.run(lambda: friend.paths()[-1].port == 40_777, 20.0, fresh, friend)
    assert friend.paths()[-1] == Address("198.18.0.7", 40_777)


def test_a_friend_that_restarts_is_met_again() -> None:
    at = world()
    home, friend = listening(at), dialing(at)
    meet(at, home, friend)
    wait(at, 60.0, home)
    at.homes.remove(friend)
    again = dialing(at, cone("198.18.0.9", 50_777), seed=32)
    assert meet(at, home, again) < 4.0


@pytest.mark.parametrize(("delay", "loss", "most"), [(0.01, 0.0, 2.5), (0.06, 0.03, 4.5)])
def test_remembered_peers_meet_in_seconds(delay: float, loss: float, most: float) -> None:
    """Half the nodes that nobody looks after are gone; programs take a second or two to start, beside this."""
    seconds = []
    for seed in range(1, 8):
        at = world(delay=delay, loss=loss, seed=seed)
        for each in list(at.nodes.values())[3:]:
            each.is_dead = at.rng.random() < 0.3
        home = listening(at, seed=seed)
        wait(at, 60.0, home)
        seconds.append(meet(at, home, dialing(at, seed=100 + seed)))
    assert median(seconds) < most, seconds


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (OURS, scattered(), "the router here uses a new port"),
        (scattered(), THEIRS, "the other side's router uses a new port"),
    ],
)
def test_a_remembered_pair_that_needs_a_relay_is_told_within_ten_seconds_and_once(ours: NAT, theirs: NAT, words: str) -> None:
    at = world()
    home = listening(at, ours)
    wait(at, 10.0, home)
    friend, begun = dialing(at, theirs), at.now
    assert at.run(lambda: bool(friend.heard(Refused)), 20.0, home, friend)
    assert NO_PATH_AFTER <= at.now - begun < ABSENT_AFTER
    ((_, request, _, _),) = friend.told(Refused)
    (refused,) = friend.heard(Refused)
    assert refused.code == NO_PATH
    assert words in refused.text
    assert "it has gone a short while ago" in refused.text
    assert isinstance(request, Join)
    assert request.rooms == (ROOM,)
    wait(at, 60.0, home, friend)
    assert len(friend.heard(Refused)) == 1


def test_whoever_was_met_is_never_said_to_be_out_of_reach() -> None:
    at = world()
    home, friend = listening(at), dialing(at)
    meet(at, home, friend)
    wait(at, 60.0, home, friend)
    assert not friend.heard(Refused)


@pytest.mark.parametrize("both_dial", [False, True])
def test_who_waits_for_a_peer_may_dial_it_too(both_dial: bool) -> None:
    """As a home that is always on does."""
    at = world()
    home, friend = listening(at), listening(at, THEIRS, seed=22)
    wait(at, 10.0, home, friend)
    for each in (friend, home) if both_dial else (friend,):
        each.part.dial(at.now, [ROOM])
    assert meet(at, home, friend) < 4.0
    assert at.run(lambda: bool(home.heard(Introduced)) == both_dial, 5.0, home, friend)
    friend.part.leave(at.now, [ROOM], None)
    assert not friend.part._appointments


def test_spare_rooms_cost_nothing() -> None:
    at = world()
    home = Home(at, OURS, seed=21)
    home.part.listen(at.now, [ROOM], is_spare=True)
    home.part.dial(at.now, [ROOM], is_spare=True)
    assert not home.part._appointments
    home.part.listen(at.now, [ROOM])
    assert len(home.part._appointments) == 1
    home.part.listen(at.now, [ROOM], is_spare=True)  # it was today's
    assert not home.part._appointments


def test_many_rooms_are_looked_up_a_few_at_a_time() -> None:
    at = world()
    home = Home(at, OURS, seed=21)
    home.part.listen(at.now, [bytes((number,)) * 16 for number in range(30)])
    (client,) = home.part._clients.values()
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, len(client._searches))
        return client.is_idle and not client._waiting

    assert at.run(look, 60.0, home)
    assert most == MAX_SEARCHES
    wait(at, 60.0, home)
    assert all(topic.holders for each in home.part._appointments.values() for topic in each.topics)


def test_a_question_is_asked_each_half_second_whatever_there_is_to_ask_for() -> None:
    at = world()
    home = Home(at, OURS, seed=21)
    home.part.listen(at.now, [bytes((number,)) * 16 for number in range(6)])
    wait(at, 60.0, home)
    before = home.sent
    wait(at, 60.0, home)
    assert home.sent - before == pytest.approx(60.0 / QUESTION_INTERVAL, abs=3)
    assert Instant(at.now) == 120.0
