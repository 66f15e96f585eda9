"""A fleet's rules: two sides that both want to meet do, or are told, whatever fails in between."""

from __future__ import annotations

import random

import pytest

from tests.sim.fleet_servers import Caller, FleetServer, FleetWorld
from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet.codes import LOOK_PATIENCE
from tunnel.rendezvous.fleet.members import SERVERS
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import RefusalCode
from tunnel.units import Seconds

ROOM = b"r" * 16
ALLOCATED = messages.Allocated


def pair(world: FleetWorld, listener: int = 0, dialer: int = 1) -> tuple[Caller, Caller]:
    return world.caller(listener), world.caller(dialer)


def number_of(caller: Caller) -> int:
    caller.world.run(5.0, lambda: bool(caller.numbers))
    return next(iter(caller.numbers))


def is_met(*callers: Caller) -> bool:
    return all(caller.met() for caller in callers)


def test_the_servers_of_a_fleet_know_each_other_and_say_the_same_list() -> None:
    world = FleetWorld(3)
    assert {len(each.fleet.members) for each in world.servers} == {2}
    assert len({each.fleet.members.index for each in world.servers}) == 3
    assert len({each.server.epoch for each in world.servers}) == 1
    caller = world.caller()
    world.run(1.0, lambda: caller.list is not None)
    assert caller.list is not None
    assert {messages.unpack_address(each.at[0]) for each in caller.list.servers} == {each.address for each in world.servers}


@pytest.mark.parametrize("is_listener_first", [True, False])
def test_a_dialer_is_sent_to_the_server_where_somebody_listens(is_listener_first: bool) -> None:
    world = FleetWorld(3)
    home, friend = pair(world)
    if is_listener_first:
        home.listen(ROOM)
        world.run(3.0)
    friend.dial(ROOM)
    world.run(3.0)
    if not is_listener_first:
        home.listen(ROOM)
    world.run(2.0, lambda: is_met(home, friend))
    assert home.met()[0].channel == friend.met()[0].channel
    assert {server for server, message in friend.pushes if isinstance(message, messages.Introduced)} == {world.servers[0]}
    assert len(world.servers[0].server.relay) == 1
    assert len(world.servers[1].server.relay) == 0


def test_who_does_not_follow_is_sent_nowhere_and_meets_who_is_on_its_server() -> None:
    world = FleetWorld(2)
    home, beside = world.caller(0), world.caller(1)
    old = world.caller(1, follows=False)
    home.listen(ROOM)
    old.dial(ROOM)
    world.run(5.0)
    assert not old.pushes
    beside.listen(ROOM)
    world.run(2.0, lambda: is_met(beside, old))


def test_a_server_that_has_come_is_known_to_the_others_at_once_and_to_who_comes_there_then() -> None:
    world = FleetWorld(1)
    world.servers.append(FleetServer(world, 1, ServerConfig()))
    world.run(0.5)
    assert [len(each.fleet.members) for each in world.servers] == [1, 1]
    caller = world.caller(0)
    caller.allocate()
    world.run(1.0, lambda: bool(caller.numbers))
    assert caller.list is not None
    assert len(caller.list.servers) == 2


def test_a_server_that_drains_and_one_that_has_left_are_known_to_the_others_at_once() -> None:
    world = FleetWorld(2)
    one, other = (each.fleet for each in world.servers)
    one.drain(world.now, Seconds(30.0))
    world.run(0.5)
    assert [each.record.drains for each in other.members] == [True]
    one.leave(world.now)
    world.run(0.5)
    assert len(other.members) == 0


def test_a_code_is_told_when_the_store_has_it() -> None:
    world = FleetWorld(2)
    world.store.delay = 0.2
    home = world.caller(0)
    home.allocate()
    world.run(2.0, lambda: bool(home.numbers))
    (number,) = home.numbers
    assert world.store.hashes[world.servers[0].fleet.codes._name(number)]
    assert list(world.servers[0].server.registry.nameplates) == [number]


@pytest.mark.parametrize("how", ["stopped", "killed", "cut off"])
def test_a_code_is_told_within_a_second_where_the_store_does_not_take_it(how: str) -> None:
    world = FleetWorld(2)
    home = world.caller(1)
    world.run(1.0)
    fails(world, how)
    home.allocate()
    world.run(LOOK_PATIENCE + 0.2, lambda: bool(home.numbers))
    comes_back(world, how)
    world.run(10.0)
    (number,) = home.numbers
    assert world.store.hashes[world.servers[1].fleet.codes._name(number)]


def test_a_code_is_found_from_every_server() -> None:
    world = FleetWorld(3)
    home = world.caller(0)
    home.allocate()
    number = number_of(home)
    for server in (1, 2):
        friend = world.caller(server)
        friend.claim(number)
        world.run(2.0, lambda friend=friend: bool(friend.of(messages.ClaimAccepted) or friend.refusals()[1:]))  # type: ignore[misc]
        expected = [RefusalCode.WRONG_SERVER] if server == 1 else [RefusalCode.WRONG_SERVER, RefusalCode.SPENT]
        assert friend.refusals() == expected


def test_wrong_guesses_count_at_all_servers() -> None:
    world = FleetWorld(3)
    guesser = world.caller(0)
    for guess in range(5):
        guesser.claim(700_000 + guess, world.servers[guess % 3])
        world.run(2.0)
    for server in world.servers:
        guesser.claim(800_000, server)
        world.run(2.0)
    assert guesser.refusals()[-3:] == [RefusalCode.LOCKED_OUT] * 3
    other = world.caller(1)
    other.claim(800_000)
    world.run(2.0)
    assert RefusalCode.LOCKED_OUT not in other.refusals()


def test_a_code_that_was_read_out_stays_good_when_its_server_dies() -> None:
    world = FleetWorld(3)
    home = world.caller(0)
    home.allocate()
    number = number_of(home)
    world.run(1.0)
    dead = world.servers[0]
    dead.kill()
    world.run(20.0, lambda: home.home is not dead and len(home.of(ALLOCATED)) == 2)
    assert [answer.nameplate for answer in home.of(ALLOCATED) if isinstance(answer, ALLOCATED)] == [number] * 2
    friend = world.caller(1 if home.home is world.servers[2] else 2)
    friend.claim(number)
    world.run(3.0, lambda: bool(friend.of(messages.ClaimAccepted)))
    dead.boot()
    world.run(10.0)
    assert number not in dead.server.registry.nameplates


def test_a_claim_waits_for_an_owner_whose_server_has_just_died() -> None:
    world = FleetWorld(3)
    home = world.caller(0)
    home.allocate()
    number = number_of(home)
    world.run(1.0)
    world.servers[0].kill()
    home.contacts.clear()  # it takes its time
    world.run(14.0)
    friend = world.caller(1)
    friend.claim(number)
    world.run(3.0)
    assert not friend.answers  # nor told that there is no such code
    home.move(world.servers[2])
    world.run(6.0, lambda: bool(friend.of(messages.ClaimAccepted)))


def test_a_number_that_has_moved_is_no_more_at_the_server_where_it_was() -> None:
    world = FleetWorld(2)
    home = world.caller(0)
    home.allocate()
    number = number_of(home)
    world.run(1.0)
    lifetime = world.servers[0].server.registry.nameplates[number].expires_at
    home.move(world.servers[1])
    world.run(2.0, lambda: number not in world.servers[0].server.registry.nameplates)
    assert abs(world.servers[1].server.registry.nameplates[number].expires_at - lifetime) <= 1.0
    friend = world.caller(0)
    friend.claim(number)
    world.run(2.0, lambda: bool(friend.of(messages.ClaimAccepted)))


def test_nobody_takes_a_number_over_without_its_ticket() -> None:
    world = FleetWorld(2)
    home = world.caller(0)
    home.allocate()
    number = number_of(home)
    thief = world.caller(1)
    for ticket in (b"", bytes(30), home.numbers[number][:-1] + b"\0"):
        thief.contact(world.servers[1]).ask(messages.Allocate(number, 1, ticket))
        world.run(1.0)
    assert thief.refusals() == [RefusalCode.TAKEN] * 3
    assert number in world.servers[0].server.registry.nameplates


def test_no_two_servers_give_the_same_number() -> None:
    world = FleetWorld(4)
    numbers: list[int] = []
    for each in range(24):
        caller = world.caller(each % 4)
        caller.allocate()
        numbers.append(number_of(caller))
    assert len(set(numbers)) == len(numbers)


# the store fails


def fails(world: FleetWorld, how: str) -> None:
    store = world.store
    if how == "killed":
        store.is_down = True
        store.hashes.clear()
    elif how == "stopped":
        store.is_stopped = True
    else:
        store.cut.add(world.servers[1])


def comes_back(world: FleetWorld, how: str) -> None:
    store = world.store
    if how == "killed":
        store.restart_empty()
    elif how == "stopped":
        store.go_on()
    else:
        store.cut.clear()


@pytest.mark.parametrize("how", ["killed", "stopped", "cut off"])
def test_without_the_store_pairs_on_one_server_meet_and_others_within_ten_seconds_of_its_return(how: str) -> None:
    world = FleetWorld(3)
    fails(world, how)
    world.run(10.0)
    assert [each.fleet.directory.is_broken for each in world.servers] == [how != "cut off", True, how != "cut off"]
    here, there = world.caller(1), world.caller(1)
    here.listen(ROOM)
    there.dial(ROOM)
    world.run(1.0, lambda: is_met(here, there))
    home, friend = pair(world)
    home.listen(ROOM[::-1] + b"")
    other = bytes(15) + b"x"
    home.listen(other)
    friend.dial(other)
    world.run(50.0)
    assert not is_met(home)
    comes_back(world, how)
    world.run(10.0, lambda: is_met(home, friend))
    assert not any(each.fleet.directory.is_broken for each in world.servers)


def test_a_claim_finds_its_way_by_the_number_while_the_store_is_away() -> None:
    world = FleetWorld(3)
    home = world.caller(0)
    home.allocate()
    number = number_of(home)
    world.store.is_down = True
    world.run(10.0)
    friend = world.caller(1)
    friend.claim(number)
    world.run(2.0, lambda: bool(friend.of(messages.ClaimAccepted)))


def test_a_store_that_takes_half_a_second_slows_nobody_on_one_server() -> None:
    world = FleetWorld(2)
    world.store.delay = 0.25
    home, friend = pair(world, 1, 1)
    home.listen(ROOM)
    friend.dial(ROOM)
    world.run(0.5, lambda: is_met(home, friend))
    other, far = pair(world)
    room = bytes(16)
    other.listen(room)
    far.dial(room)
    world.run(5.0, lambda: is_met(other, far))


def test_orders_to_a_broken_directory_cost_nothing_that_grows() -> None:
    world = FleetWorld(2)
    world.store.is_down = True
    world.run(10.0)
    caller = world.caller(0)
    before = world.store.operations
    for each in range(200):
        caller.listen(each.to_bytes(16, "big"))
        world.run(0.05)
    directory = world.servers[0].fleet.directory
    assert world.store.operations == before
    assert len(directory._waiting) <= 2


def test_a_late_drop_of_a_stopped_store_hides_nobody() -> None:
    world = FleetWorld(2)
    home, friend = pair(world)
    home.listen(ROOM)
    world.run(2.0)
    world.store.is_stopped = True
    home.contact(world.servers[0]).ask(messages.Leave(rooms=(ROOM,)))
    world.run(5.0)
    home.listen(ROOM)
    world.run(10.0)
    world.store.go_on()
    world.run(8.0)
    friend.dial(ROOM)
    world.run(2.0, lambda: is_met(home, friend))


# servers die


def test_a_server_that_dies_is_out_of_the_list_after_ten_seconds_and_of_the_store_after_a_minute() -> None:
    world = FleetWorld(3)
    world.servers[2].kill()
    world.run(14.0)
    assert {len(each.fleet.members) for each in world.servers[:2]} == {1}
    world.run(60.0)
    assert len(world.store.hashes[SERVERS]) == 2
    world.servers[2].boot()
    world.run(8.0)
    assert {len(each.fleet.members) for each in world.servers} == {2}


def test_two_servers_that_start_at_once_do_not_share_an_index() -> None:
    for seed in range(12):
        world = FleetWorld(8, seed=seed)
        assert len({each.fleet.members.index for each in world.servers}) == 8, seed


def test_a_server_that_drains_takes_nobody_and_sends_all_who_follow_on() -> None:
    world = FleetWorld(3)
    callers = [world.caller(0) for _ in range(40)]
    for number, caller in enumerate(callers):
        caller.listen(number.to_bytes(16, "big"))
    old = world.caller(0, follows=False)
    old.listen(ROOM)
    world.run(3.0)
    drained = world.servers[0]
    drained.fleet.drain(world.now, 30)  # type: ignore[arg-type]
    world.run(10.0, lambda: len(drained.server.registry.sessions) == 1)
    assert drained.fleet.is_empty
    homes = [caller.home for caller in callers]
    assert min(homes.count(each) for each in world.servers[1:]) >= 8
    late = world.caller(0)
    late.listen(bytes(16))
    world.run(2.0)
    assert drained.server.drops["server_drains"] > 0
    friend = world.caller(1)
    friend.dial(*((0).to_bytes(16, "big"),))
    world.run(3.0, lambda: is_met(friend))


def test_servers_of_one_machine_are_a_fleet_by_their_ports_and_may_be_restarted_one_after_the_other() -> None:
    """A process for each processor, as the template of the unit starts them."""
    world = FleetWorld(3, is_one_machine=True)
    assert {len(each.fleet.members) for each in world.servers} == {2}
    assert not any(each.fleet.has_twin(world.now) for each in world.servers)
    home, friend = world.caller(0), world.caller(2)
    home.listen(ROOM)
    friend.dial(ROOM)
    world.run(2.0, lambda: is_met(home, friend))
    home.allocate()
    number = number_of(home)
    friend.claim(number)
    world.run(2.0, lambda: bool(friend.of(messages.ClaimAccepted)))
    waiting = [world.caller(0) for _ in range(9)]
    for each, caller in enumerate(waiting):
        caller.listen(bytes((each,)) * 16)
    world.run(3.0)
    for server in world.servers:
        server.fleet.drain(world.now, 30)  # type: ignore[arg-type]
        world.run(10.0, lambda server=server: server not in {caller.home for caller in waiting})  # type: ignore[misc]
        server.fleet.leave(world.now)
        world.run(1.0)
        server.kill()
        world.run(2.0)
        server.boot()
        world.run(20.0, lambda: all(len(each.fleet.members) == 2 and each.fleet.members.is_settled for each in world.servers))
    late = [world.caller(number % 3) for number in range(9)]
    for each, caller in enumerate(late):
        caller.dial(bytes((each,)) * 16)
    world.run(10.0, lambda: is_met(*waiting, *late))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_two_who_both_wait_meet_in_the_end(seed: int) -> None:
    """Servers die and come back, the store fails in every way, news and datagrams are lost, late, twice and in any order."""
    world = FleetWorld(4, seed=seed)
    chance = random.Random(seed)
    world.loss, world.jitter = 0.05, 0.2
    world.store.loss, world.store.jitter, world.store.twice = 0.1, 0.2, 0.2
    pairs: list[tuple[Caller, Caller]] = []
    for number in range(12):
        room = number.to_bytes(16, "big")
        home, friend = pair(world, chance.randrange(4), chance.randrange(4))
        world.later(chance.random() * 60.0, lambda home=home, room=room: home.listen(room))  # type: ignore[misc]
        world.later(chance.random() * 60.0, lambda friend=friend, room=room: friend.dial(room))  # type: ignore[misc]
        pairs.append((home, friend))
    for start in (5.0, 25.0, 45.0):
        victim = world.servers[chance.randrange(4)]
        world.later(start, victim.kill)
        world.later(start + 15.0 * chance.random(), victim.boot)
        how = chance.choice(["killed", "stopped", "cut off"])
        world.later(start + 3.0, lambda how=how: fails(world, how))  # type: ignore[misc]
        world.later(start + 12.0, lambda how=how: comes_back(world, how))  # type: ignore[misc]
    world.run(65.0)
    world.loss = world.store.loss = 0.0
    world.run(60.0, lambda: all(is_met(*each) for each in pairs))


# many clients


def test_the_load_of_ten_servers_stays_within_a_third_of_the_mean() -> None:
    """All come to one server first, as if the name led there alone."""
    world = FleetWorld(10, config=ServerConfig(max_sessions=200, sessions_per_address=200))
    for number in range(400):
        caller = world.caller(0)
        caller.listen(number.to_bytes(16, "big"))
        world.run(0.1)
    world.run(60.0)

    def loads() -> list[int]:
        return [len(each.server.registry.sessions) for each in world.servers]

    assert sum(loads()) == 400
    assert max(loads()) <= 1.3 * 40


def test_a_store_that_writes_what_it_likes_sends_nobody_anywhere() -> None:
    """It copies records from place to place, repeats old notes, and makes some of its own."""
    world = FleetWorld(3)
    home, friend = pair(world)
    home.listen(ROOM)
    friend.dial(ROOM)
    world.run(3.0, lambda: is_met(home, friend))
    victim = world.caller(2)
    victim.wanted[1].add(bytes(16))
    victim.dial(bytes(16))
    world.run(2.0)
    hashes = world.store.hashes
    records = [value for each in hashes.values() for value in each.values()]
    chance = random.Random(5)
    for key in list(hashes):
        for number in range(20):
            field = chance.choice([b"%d" % number, chance.randbytes(8), world.servers[0].server._instance.to_bytes(8, "big")])
            value = chance.choice([chance.choice(records), chance.randbytes(40), b""])
            if key != SERVERS or field not in hashes[key]:
                hashes[key].setdefault(field, value)
    for server in world.servers:
        for channel in server.fleet.notes.channels:
            for value in (*records, b"", chance.randbytes(60)):
                server.hear(channel, value)
    for room in (ROOM, bytes(16)):
        for server in world.servers:
            server.fleet.rooms.changed(room)
    world.run(10.0)
    assert {len(each.fleet.members) for each in world.servers} == {2}
    assert not [message for _, message in victim.pushes if isinstance(message, messages.Elsewhere)]
    assert sum(each.fleet.drops["fleet_note"] for each in world.servers) > 0
    assert sum(each.fleet.members.rejected for each in world.servers) > 0
