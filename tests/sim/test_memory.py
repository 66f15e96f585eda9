"""What worked is tried first: what that gains, and that a wrong memory costs next to nothing.  All in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest

from tests.sim import oracle
from tests.sim.cast import Cast
from tests.sim.link import Link
from tests.sim.peers import PeerNode
from tunnel.nat.budget import POOL_SOCKETS
from tunnel.nat.candidate import CandidateKind
from tunnel.nat.memory import Remembered
from tunnel.units import Address, Seconds

FORGETTING = 400.0  # seconds in which every NAT forgets what it has mapped
EASY = ("open", "fw", "full", "restricted", "prc", "prcrace", "uprc", "cgn")


@dataclass(frozen=True)
class Outcome:
    """One meeting of remembered peers."""

    seconds: float  # from the connection to a direct path on both sides
    checks: int  # of both
    openers: int
    probes: int

    @classmethod
    def of(cls, cast: Cast, limit: float = 20.0) -> Outcome:
        """Friend starts anew, dials, and a direct path is waited for."""
        cast.friend.boot()
        cast.friend.meet(cast.server)
        cast.friend.dial(cast.home)
        cast.world.run_until(lambda: bool(cast.friend.live and cast.home.live), 10)
        begun = cast.world.now
        cast.world.run_until(cast.is_direct, limit)
        seconds = cast.world.now - begun
        spent = [each.punching(cast.world.now) for person in cast.people for each in person.live]
        return cls(
            seconds,
            sum(each["checks_sent"] for each in spent),
            sum(each["openers_sent"] for each in spent),
            sum(each["probes_sent"] for each in spent),
        )


def part(cast: Cast, pause: float = FORGETTING) -> None:
    """Friend hangs up and goes away."""
    for peering in cast.friend.live:
        cast.friend.hang_up(peering)
    cast.world.run(1.0)
    cast.friend.kill()
    cast.world.run(pause)


def prepared(cast: Cast, *, remembers: bool = True) -> Cast:
    cast.acquaint()
    for person in cast.people:
        person.remembers = remembers
    return cast


def twice(cast: Cast, *, remembers: bool) -> tuple[Outcome, Outcome]:
    prepared(cast, remembers=remembers)
    first = Outcome.of(cast)
    part(cast)
    if not remembers:
        for person in cast.people:
            person.memory.clear()
            person.endpoint.set_memory({})
    return first, Outcome.of(cast)


@pytest.mark.parametrize(("home", "friend"), [("sym", "prc"), ("prc", "sym"), ("symad", "prc")])
def test_a_pair_that_needed_the_birthday_technique_begins_with_it(home: str, friend: str) -> None:
    """How long the guessing takes is chance; when it begins is not."""
    opened: dict[bool, list[float]] = {True: [], False: []}
    for seed, remembers in product(range(2), (True, False)):
        with Cast(seed=seed, home=home, friend=friend) as cast:
            assert oracle.is_birthday(home, friend)
            prepared(cast)
            Outcome.of(cast)
            ways = [way for person in cast.people for way in person.memory.values()]
            assert {way.technique for way in ways} == {"birthday"}
            assert sum(way.opened for way in ways) == 1
            part(cast, pause=60.0)
            if not remembers:
                for person in cast.people:
                    person.memory.clear()
                    person.endpoint.set_memory({})
            open_before = {person: len(person.host.sockets) for person in cast.people}
            cast.friend.boot()
            cast.friend.meet(cast.server)
            cast.friend.dial(cast.home)
            cast.world.run_until(lambda: bool(cast.friend.live and cast.home.live), 10)
            begun = cast.world.now

            def has_pool() -> bool:
                return any(len(person.host.sockets) >= open_before[person] + POOL_SOCKETS // 4 for person in cast.people)  # noqa: B023

            cast.world.run_until(lambda: has_pool() or cast.is_direct(), 5)
            opened[remembers].append(cast.world.now - begun)
            cast.world.run_until(cast.is_direct, 20)
    assert max(opened[True]) < min(opened[False]) - 0.35, opened


def test_a_remembered_address_is_checked_before_the_peer_has_named_any() -> None:
    """The server is far away and the peer near: the words of the two take longer than a check."""
    times = {}
    for remembers in (True, False):
        with Cast(home="open", friend="prc") as cast:
            far = Link(delay=Seconds(0.150))
            cast.cut_off_server(far)
            _, second = twice(cast, remembers=remembers)
            times[remembers] = second.seconds
            if remembers:
                (way,) = cast.friend.memory.values()
                assert way.kind is CandidateKind.HOST
                assert way.remote.host == cast.home.host.addresses[0]
    assert times[True] < times[False] - 0.2


@pytest.mark.parametrize(("home", "friend"), list(product(EASY, EASY)))
def test_a_wrong_memory_costs_a_few_checks_and_no_time(home: str, friend: str) -> None:
    lies = [
        Remembered(Address("192.88.99.77", 4444), CandidateKind.SERVER_REFLEXIVE, "birthday", True, Seconds(4.0)),
        Remembered(Address("192.88.99.78", 4445), CandidateKind.HOST, "prediction", False, Seconds(25.0)),
        Remembered(Address("192.168.1.77", 4446), CandidateKind.HOST),
    ]
    for seed, lie in enumerate(lies):
        outcomes = []
        for is_told in (False, True):
            with Cast(seed=seed, home=home, friend=friend) as cast:
                prepared(cast)
                if is_told:
                    for person, other in (cast.people, cast.people[::-1]):
                        person.memory[other.endpoint.static_public] = lie
                        person.endpoint.set_memory(person.memory)
                outcomes.append(Outcome.of(cast))
        without, lied_to = outcomes
        assert lied_to.seconds <= without.seconds + 0.06, (home, friend, lie)
        assert lied_to.checks <= without.checks + 2 * 3 + 4, (home, friend, lie)  # three a side, and the jitter of the rest
        assert lied_to.probes == without.probes == 0


def test_a_stale_technique_opens_no_pool_where_the_peer_is_somewhere_else() -> None:
    """Friend needed 256 sockets towards home's old network; home has moved to an easy one."""
    with Cast(home="prc", friend="prc") as cast:
        prepared(cast)
        static = cast.home.endpoint.static_public
        moved_from = Address("192.88.99.99", 5555)
        cast.friend.memory[static] = Remembered(moved_from, CandidateKind.PEER_REFLEXIVE, "birthday", True)
        most = 0

        def watch() -> bool:
            nonlocal most
            most = max(most, len(cast.friend.host.sockets))
            return cast.is_direct()

        cast.friend.boot()
        cast.friend.meet(cast.server)
        cast.friend.dial(cast.home)
        cast.world.run_until(watch, 5)
        cast.world.run(20)
        assert most < POOL_SOCKETS


def test_what_leads_nowhere_is_forgotten() -> None:
    with Cast(home="sym", friend="sym") as cast:
        prepared(cast)
        for person, other in (cast.people, cast.people[::-1]):
            lie = Remembered(Address("192.88.99.9", 9), CandidateKind.HOST, "birthday", True)
            person.memory[other.endpoint.static_public] = lie
            person.endpoint.set_memory(person.memory)
        cast.friend.boot()
        cast.friend.meet(cast.server)
        cast.friend.dial(cast.home)
        cast.world.run(40)
        assert not cast.is_direct()
        assert cast.friend.memory == {}
        assert cast.home.memory == {}


def test_a_short_mapping_life_is_found_out_once() -> None:
    """Behind a router that forgets after some ten seconds, the second connection loses no path to its first silence."""

    def losses(person: PeerNode) -> int:
        return sum("fell silent" in text for at, who, text in cast.world._trace if who == person.name)

    with Cast(home="short", friend="prc") as cast:
        prepared(cast)
        Outcome.of(cast)
        cast.world.run(300)
        (way,) = cast.friend.memory.values()
        assert 0 < way.keepalive < 12
        part(cast)
        cast.home.boot()
        cast.home.meet(cast.server)
        cast.home.listen()
        Outcome.of(cast)
        before = losses(cast.friend), losses(cast.home)
        cast.world.run(120)
        assert (losses(cast.friend), losses(cast.home)) == before
        assert cast.is_direct()
