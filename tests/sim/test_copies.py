"""A process that is copied while its links stand: nothing is ever sealed twice under one key and number.

The copy is made by fork, which leaves both with everything, and each goes on in a world of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import PeerNode, entropy_of
from tests.sim.world import Host
from tunnel.node.events import Problem
from tunnel.units import Address, Seconds

SAID = "the calendar jumped"
Sealed = tuple[int, int]  # receiver index, sequence number


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a copy is made by fork")


def wakes_as(person: PeerNode, name: str, by: float) -> None:
    """The system gives each copy chance of its own, and the one whose calendar has jumped looks at its clock first."""
    context = person.endpoint._context
    context.entropy = entropy_of(name)
    context.rng.seed(name)
    if by:
        wall_ns = context.wall_ns
        context.wall_ns = lambda: wall_ns() + int(by * 1e9)
        person.endpoint.give_up_keys(person.world.now, SAID)
        person.world.touch(person.host)


def sealed_by(cast: Cast, person: PeerNode) -> dict[Sealed, bytes]:
    """Filled from now on with what `person` seals."""
    found: dict[Sealed, bytes] = {}

    def note(sender: Host, _destination: Address, datagram: bytes) -> bool:
        plain = datagram[8:] if datagram[0] >= 0xC0 else datagram
        if sender is person.host and plain[0] in (0x80, 0x81):
            found[int.from_bytes(plain[1:5], "big"), int.from_bytes(plain[5:13], "big")] = plain
        return True

    cast.world.filter = note
    return found


def in_a_child(work: Callable[[], dict[Sealed, bytes]]) -> dict[Sealed, bytes]:
    """What `work()` returns there."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(writing, "w") as pipe:
                pipe.writelines(f"{index} {number} {datagram.hex()}\n" for (index, number), datagram in work().items())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        rows = [line.split() for line in pipe]
    os.waitpid(child, 0)
    return {(int(index), int(number)): bytes.fromhex(datagram) for index, number, datagram in rows}


def sealed_twice(who: str, after: float, by: float) -> list[Sealed]:
    """Under one key and number, and not the same; a copy is made so long after the meeting, with a calendar that jumps so far."""
    with Cast() as cast:
        peering = cast.meet()
        cast.world.run(after)
        person = cast.who(who)
        ours = sealed_by(cast, person)

        def go_on(name: str, by: float) -> dict[Sealed, bytes]:
            wakes_as(person, name, by)
            cast.friend.send(peering, random.Random(name).randbytes(20_000))
            cast.world.run(1.0)
            return ours

        theirs = in_a_child(lambda: go_on("copy", by))
        go_on("original", 0.0)
        assert len(ours) > 3
        assert len(theirs) > 3
        return [place for place in ours.keys() & theirs.keys() if ours[place] != theirs[place]]


@pytest.mark.parametrize("who", ["home", "friend"])
@pytest.mark.parametrize("after", [0.0, 0.3, 3.0, 119.99, 120.01, 120.03])
def test_a_copy_and_its_original_never_seal_twice_under_one_key_and_number(who: str, after: float) -> None:
    """Also where a rekey was under way when the copy was made: at 120 seconds one is."""
    assert not sealed_twice(who, after, 3_600.0)


@pytest.mark.parametrize("who", ["home", "friend"])
def test_a_copy_that_does_not_notice_would(who: str) -> None:
    """So that the test above can fail."""
    assert sealed_twice(who, 3.0, 0.0)


@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "sym")])
@pytest.mark.parametrize("who", [("home",), ("friend",), ("home", "friend")])
def test_a_calendar_that_is_set_costs_a_rekey_and_no_link(home: str, friend: str, who: tuple[str, ...]) -> None:
    with Cast(home=home, friend=friend) as cast:
        peering = cast.meet() if home == "sym" else cast.meet_directly()
        transfer = cast.friend.send(peering, cast.bytes_of(2_000_000))
        cast.world.run_until(lambda: len(transfer.echo) > 100_000)
        begun = cast.world.now
        for name in who:
            cast.who(name).endpoint.give_up_keys(begun, SAID)
            cast.world.touch(cast.who(name).host)
        cast.world.run_until(lambda: transfer.is_done, 60)
        assert transfer.longest_silence(begun) < 0.3
        assert cast.home.restarts == cast.friend.restarts == 0
        for person in cast.people:
            told = [Problem.KEYS_GIVEN_UP] if person.name in who else []
            assert person.problems == told
            assert not person.closed


def test_who_gives_keys_up_while_handshakes_are_lost_waits_for_new_ones() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        cast.cut_off_server()
        for sender in ("home", "friend"):
            cast.black_hole(sender)
        cast.friend.endpoint.give_up_keys(cast.world.now, SAID)
        cast.world.run(60.0)
        cast.cut_off_server(cast.world.internet.link)
        for a, b in ((cast.home, cast.friend), (cast.friend, cast.home)):
            cast.world.set_link(a.host, b.host, cast.world.internet.link)
        assert cast.transfer(peering) < 15.0
        assert not cast.home.closed + cast.friend.closed


def test_dialing_goes_on_where_the_process_was_copied_meanwhile() -> None:
    with Cast() as cast:
        cast.acquaint()
        peering = cast.friend.dial(cast.home)
        cast.world.run_until(lambda: peering.handshake is not None)
        for person in cast.people:
            person.endpoint.give_up_keys(cast.world.now, SAID)
            cast.world.touch(person.host)
        assert cast.world.run_until(lambda: peering.is_confirmed, 10) < Seconds(2.0)
        cast.transfer(peering)
