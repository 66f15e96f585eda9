"""Claims of numbers that are elsewhere: how long they wait, and what they may cost."""

from __future__ import annotations

import pytest

from tests.sim.fleet_servers import FleetWorld
from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet import codes
from tunnel.rendezvous.fleet.codes import FRESH, LOOK_PATIENCE, MAX_FRESH, ORPHAN
from tunnel.rendezvous.messages import MAX_SERVERS, RefusalCode


def test_a_claim_waits_for_the_store_no_longer_than_a_second() -> None:
    world = FleetWorld(2)
    friend = world.caller(1)
    world.run(1.0)
    world.store.is_stopped = True
    friend.claim(700_001)
    begun = world.now
    world.run(2.0, lambda: bool(friend.answers))
    assert world.now - begun < LOOK_PATIENCE + 0.1


def test_numbers_whose_server_is_not_there_are_not_said_to_be_wrong_while_the_store_is_away() -> None:
    world = FleetWorld(2)
    friend = world.caller(1)
    world.run(1.0)
    world.store.is_down = True
    world.run(10.0)
    given = {world.servers[0].fleet.members.index, world.servers[1].fleet.members.index}
    number = next(each for each in range(100_000, 100_200) if world.servers[1].fleet._numbers.giver(each) not in given)
    friend.claim(number)
    world.run(2.0, lambda: bool(friend.answers))
    (answer,) = friend.of(messages.Refused)
    assert isinstance(answer, messages.Refused)
    assert answer.code == RefusalCode.UNKNOWN_NAMEPLATE
    assert "cannot be asked" in answer.text
    assert not world.servers[1].server._codes._lockouts


def test_more_claims_than_may_wait_are_answered_without_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "MAX_LOOKS", 3)
    world = FleetWorld(2)
    world.store.delay = 0.3
    callers = [world.caller(1) for _ in range(5)]
    world.run(1.0)
    for number, caller in enumerate(callers):
        caller.claim(700_001 + number)
    world.run(0.1)
    assert sum(bool(caller.answers) for caller in callers) == 2
    assert world.servers[1].fleet.codes._looks == 3
    world.run(3.0)
    assert all(caller.answers for caller in callers)
    assert world.servers[1].fleet.codes._looks == 0


def test_where_a_number_is_is_remembered_for_a_moment_and_of_a_bounded_number() -> None:
    world = FleetWorld(2)
    asked = world.servers[1].fleet.codes
    for number in range(MAX_FRESH + 10):
        asked._remember(world.now, number, None)
    assert len(asked._fresh) == MAX_FRESH
    friend = world.caller(1)
    friend.claim(700_001)
    world.run(1.0)
    assert len(friend.answers) == 1
    world.store.is_stopped = True
    friend.claim(700_001)
    world.run(0.2, lambda: len(friend.answers) == 2)
    world.run(FRESH)
    friend.claim(700_001)
    world.run(0.5)
    assert len(friend.answers) == 2
    world.run(1.0, lambda: len(friend.answers) == 3)


def test_a_minute_after_the_end_of_a_server_its_codes_are_wrong() -> None:
    world = FleetWorld(3)
    home = world.caller(0)
    home.allocate()
    world.run(1.0)
    number = next(iter(home.numbers))
    world.servers[0].kill()
    home.contacts.clear()
    world.run(14.0 + ORPHAN)
    friend = world.caller(1)
    friend.claim(number)
    world.run(3.0, lambda: friend.refusals() == [RefusalCode.UNKNOWN_NAMEPLATE])


def test_each_server_gives_its_own_of_as_many_numbers_as_there_may_be_servers() -> None:
    world = FleetWorld(2)
    one, other = (each.fleet._numbers for each in world.servers)
    for start in range(0, 10 * MAX_SERVERS, MAX_SERVERS):
        block = range(start, start + MAX_SERVERS)
        assert sorted(one.giver(number) for number in block) == list(range(MAX_SERVERS))
        assert [one.giver(number) for number in block] == [other.giver(number) for number in block]
        assert [number for number in block if one.may_be_ours(number)] == [
            number for number in block if one.giver(number) == world.servers[0].fleet.members.index
        ]


def test_more_new_codes_than_may_wait_for_the_store_are_told_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = FleetWorld(2)
    monkeypatch.setattr(world.servers[0].fleet.codes._unsaid, "_most", 3)
    world.store.is_stopped = True
    callers = [world.caller(0) for _ in range(5)]
    for caller in callers:
        caller.allocate()
    world.run(0.5)
    assert sum(bool(caller.numbers) for caller in callers) == 2
    world.run(LOOK_PATIENCE)
    assert all(len(caller.numbers) == 1 for caller in callers)
    assert len(world.servers[0].server.registry.nameplates) == 5
