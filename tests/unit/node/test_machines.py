"""One identity on two machines is noticed: by both, and by whoever meets the one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import SERVER, PeerNode
from tests.unit.node.test_clocks import told
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.node.machines import MAX_MACHINES, MAX_QUESTIONS, MAX_TOLD, TELL_AGAIN, Machines
from tunnel.node.peering import Peering
from tunnel.units import Instant, Seconds

HERE, THERE = b"machine one " + bytes(20), b"machine two " + bytes(20)
TWIN = "Another machine runs with this home's identity"
MOVED = "is on another machine than before, with the same key"


@contextmanager
def a_party(*, home: bytes = HERE, friend: bytes = b"friend's machine") -> Iterator[Cast]:
    with Cast() as party:
        party.home.machine, party.friend.machine = home, friend
        party.home.boot()
        party.friend.boot()
        party.acquaint()
        party.world.run(1.0)
        yield party


def copy_of(party: Cast, person: PeerNode, machine: bytes, *, at: str = "elsewhere") -> PeerNode:
    """A process with the same home, on that machine."""
    site = party.world.site(at, "prc")
    copy = PeerNode(party.world, party.world.host(at, site), person.name, static=person.static_key, machine=machine)
    copy.saved = dict(person.saved)
    copy.boots = 100 * len(party.world.hosts)  # so that chance is another
    copy.boot()
    copy.meet(party.server)
    return copy


def connect(party: Cast) -> Peering:
    peering = party.friend.dial(party.home)
    party.world.run_until(lambda: peering.connection is not None, 20)
    party.echoed(peering, b"hello")
    return peering


def leave(party: Cast, peering: Peering) -> None:
    peering.close(party.world.now, 0, "bye")
    party.world.touch(party.friend.host)
    party.world.run(5.0)


def of_machines(person: PeerNode) -> list[str]:
    return told(person, Problem.OTHER_MACHINE)


def test_two_machines_that_listen_with_one_identity_are_both_told_once() -> None:
    with a_party() as party:
        copy = copy_of(party, party.home, THERE)
        copy.listen()
        party.world.run_until(lambda: bool(of_machines(party.home) and of_machines(copy)), 3)
        party.world.run(200.0)
        for person in (party.home, copy):
            (text,) = of_machines(person)
            assert TWIN in text
        assert not party.friend.problems
        assert all(not client.channels for each in (party.home, copy) for client in each.endpoint._context.clients.values())


@pytest.mark.parametrize("machine", [b"", HERE], ids=["containers", "machines cloned whole"])
def test_copies_of_a_home_on_machines_that_nothing_tells_apart_are_both_told(machine: bytes) -> None:
    with a_party(home=machine) as party:
        for person in (party.home, party.friend):
            leave_it(party, person, b"boot 1, device 1, inode 1" + person.name.encode())
        copy = copy_of(party, party.home, machine)
        leave_it(party, copy, b"boot 1, device 2, inode 1")
        party.world.run_until(lambda: bool(of_machines(party.home) and of_machines(copy)), 10)
        party.world.run(200.0)
        assert [len(of_machines(person)) for person in (party.home, copy, party.friend)] == [1, 1, 0]
        leave(party, connect(party))
        assert not of_machines(party.friend), "peers are told of machines alone: a restart gives each another place"


def leave_it(party: Cast, person: PeerNode, place: bytes) -> None:
    """The person's home is that one; its program starts anew."""
    person.place = place
    restart(party, person)


def restart(party: Cast, person: PeerNode) -> None:
    person.boot()
    person.meet(party.server)
    person.listen()


@pytest.mark.parametrize("machine", [HERE, b""])
def test_a_machine_that_starts_anew_and_a_process_beside_are_no_copies(machine: bytes) -> None:
    with a_party(home=machine) as party:
        for boot in range(3):
            leave_it(party, party.home, b"boot %d" % boot)
            leave(party, connect(party))
            beside = copy_of(party, party.home, machine, at=f"process {boot}")
            leave_it(party, beside, party.home.place)
            party.world.run(60.0)
            beside.endpoint.close(party.world.now)
            party.home.endpoint.close(party.world.now)
            party.world.touch(beside.host)
            party.world.touch(party.home.host)
            party.world.run(1.0)
            assert not of_machines(party.home) + of_machines(beside) + of_machines(party.friend)


@pytest.mark.parametrize("machine", [HERE, b""])
def test_several_processes_of_one_home_on_one_machine_are_no_case_of_it(machine: bytes) -> None:
    with a_party() as party:
        for number in range(3):
            copy_of(party, party.home, machine, at=f"process {number}").listen()
        party.world.run(60.0)
        leave(party, connect(party))
        leave(party, connect(party))
        assert not party.home.problems
        assert not of_machines(party.friend)


def test_a_pair_that_listens_for_each_other_is_two_identities() -> None:
    with a_party() as party:
        party.friend.listen()
        party.world.run(60.0)
        connect(party)
        assert not of_machines(party.home) + of_machines(party.friend)


def test_an_exposer_that_crashed_is_not_taken_for_another() -> None:
    with a_party() as party:
        party.home.boot()  # the server still knows the former one, and will for a minute and a half
        party.home.meet(party.server)
        party.home.listen()
        party.world.run(200.0)
        assert not party.home.problems


def test_a_copy_that_begins_days_later_is_noticed_too_and_so_is_one_whose_server_was_away() -> None:
    with a_party() as party:
        for _ in range(4):
            party.server.days_ahead += 1
            party.world.run(100.0)
        party.server.boot()
        party.world.run(30.0)
        copy = copy_of(party, party.home, THERE)
        copy.listen()
        party.world.run_until(lambda: bool(of_machines(party.home) and of_machines(copy)), 10)


def test_who_meets_another_machine_under_the_same_key_is_told_once_for_each() -> None:
    with a_party() as party:
        leave(party, connect(party))
        assert not party.friend.problems
        for number, machine in enumerate((THERE, HERE, THERE, b"a third one " + bytes(20))):
            party.home.machine = machine
            party.home.boot()
            party.home.meet(party.server)
            party.home.listen()
            party.world.run(100.0)
            leave(party, connect(party))
            assert len(of_machines(party.friend)) == (1, 1, 1, 2)[number]
        assert all(f"home {MOVED}" in text for text in of_machines(party.friend))
        assert not party.home.problems


def test_a_peer_that_is_on_another_machine_each_time_fills_no_screen() -> None:
    """It may say what it likes, and connect as often as it likes."""
    with a_party() as party:
        context = party.friend.endpoint._context
        machines, peer = Machines(context), KnownPeer(name="home", static=bytes(32), psk=bytes(32), server=SERVER)
        told = 0
        for number in range(1_000):
            peer = machines.met(Instant(float(number)), peer, number.to_bytes(3, "big"))
            while context.events:
                told += isinstance(context.events.popleft(), Troubled)
            assert len(peer.machines) <= MAX_MACHINES
        assert told == MAX_TOLD + 1_000 // TELL_AGAIN


def test_what_was_met_is_remembered_over_a_restart() -> None:
    with a_party() as party:
        connect(party)
        known = party.friend.endpoint.peers[party.home.endpoint.static_public]
        assert [len(machine) for machine in known.machines] == [3]
        party.friend.saved[known.static] = known  # as the store does a moment later
        party.friend.boot()
        party.friend.meet(party.server)
        party.home.machine = THERE
        party.home.boot()
        party.home.meet(party.server)
        party.home.listen()
        party.world.run(100.0)
        connect(party)
        assert len(of_machines(party.friend)) == 1
        assert party.friend.endpoint.peers[known.static].machines[0] == known.machines[0]


def test_an_exposer_is_told_of_a_friend_on_two_machines() -> None:
    with a_party() as party:
        connect(party)
        copy = copy_of(party, party.friend, THERE)
        peering = copy.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None, 10)
        party.world.run(1.0)
        (text,) = of_machines(party.home)
        assert f"friend {MOVED}" in text


def test_peers_of_an_older_version_tell_no_machine_and_nothing_is_said() -> None:
    with a_party(friend=b"") as party:
        leave(party, connect(party))
        party.home.machine = b""
        party.home.boot()
        party.home.meet(party.server)
        party.home.listen()
        party.world.run(100.0)
        leave(party, connect(party))
        assert not of_machines(party.home) + of_machines(party.friend)


def test_as_many_machines_are_remembered_as_a_file_may_hold() -> None:
    with a_party() as party:
        for number in range(MAX_MACHINES + 2):
            party.home.machine = bytes((number,)) * 32
            party.home.boot()
            party.home.meet(party.server)
            party.home.listen()
            party.world.run(100.0)
            leave(party, connect(party))
        assert len(party.friend.endpoint.peers[party.home.endpoint.static_public].machines) == MAX_MACHINES
        assert len(of_machines(party.friend)) == MAX_MACHINES + 1


def test_no_more_of_our_key_are_asked_at_a_time_than_a_few() -> None:
    with a_party() as party:
        twins = party.home.endpoint._meetings._twins
        most = 0

        def watch() -> None:
            nonlocal most
            most = max(most, len(twins._questions))
            party.world.call_later(0.01, watch)

        watch()
        for number in range(2 * MAX_QUESTIONS):
            copy_of(party, party.home, HERE, at=f"process {number}").listen()
        party.world.run(Seconds(30.0))
        assert 0 < most <= MAX_QUESTIONS
        assert not twins._questions
