"""Two servers behind one name that know nothing of each other: a right code at the wrong one is no guess, and finds its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.sim.peers import SERVER, PeerNode, ServerNode
from tests.sim.world import World
from tunnel.node.events import Problem, Troubled

ONE, OTHER = bytes(range(32)), bytes(range(1, 33))


class Two:
    """Home's resolver names one server first, that of everybody else the other one."""

    def __init__(self, world: World, secrets: tuple[bytes | None, bytes | None]) -> None:
        self.world = world
        self.here = ServerNode(world, world.host("here"), secret=secrets[0])
        self.there = ServerNode(world, world.host("there"), secret=secrets[1])
        self.site = world.site("friends", "prc")
        self.home = PeerNode(world, world.host("home", world.site("home", "prc")), "home")
        self.meet(self.home, self.here, self.there)

    def friend(self, name: str) -> PeerNode:
        node = PeerNode(self.world, self.world.host(name, self.site), name)
        self.meet(node, self.there, self.here)
        return node

    def meet(self, node: PeerNode, *servers: ServerNode) -> None:
        """The first of them answers first."""
        node.endpoint.add_server(self.world.now, SERVER, [server.addresses[0] for server in servers])
        self.world.touch(node.host)

    def code(self) -> str:
        before = len(self.home.codes)
        self.home.offer()
        self.world.run_until(lambda: len(self.home.codes) > before)
        return self.home.codes[-1]


@contextmanager
def two(*secrets: bytes | None, seed: int = 1) -> Iterator[Two]:
    with World(seed) as world:
        yield Two(world, (secrets or (ONE, OTHER)))  # type: ignore[arg-type]


def guesses(server: ServerNode) -> int:
    return len(server.server._codes._lockouts)


def test_a_code_is_found_at_the_server_that_gave_it_and_the_other_counts_no_guess() -> None:
    with two() as world:
        code = world.code()
        friend = world.friend("friend")
        friend.claim(code)
        world.world.run_until(lambda: bool(friend.live and world.home.live), 10)
        assert friend.problems == []
        assert guesses(world.here) == guesses(world.there) == 0
        assert not world.here.server.registry.nameplates


def test_a_household_of_eight_with_right_codes_at_the_wrong_server_is_not_locked_out() -> None:
    with two() as world:
        friends = [world.friend(f"friend{number}") for number in range(8)]
        for friend in friends:
            friend.claim(world.code())
            world.world.run_until(lambda friend=friend: bool(friend.live), 30)
        assert [friend.problems for friend in friends] == [[]] * 8
        codes = world.there.server._codes
        assert max((count for count, _, _ in codes._lockouts._guesses.values()), default=0) <= 2  # one in sixteen is mistaken


def test_after_that_the_two_meet_again_where_they_met() -> None:
    with two() as world:
        friend = world.friend("friend")
        friend.claim(world.code())
        world.world.run_until(lambda: bool(friend.live and world.home.live), 10)
        world.home.kill()
        world.world.run(5)
        world.home.boot()
        world.meet(world.home, world.here, world.there)
        world.home.listen()
        world.world.run_until(lambda: bool(world.home.live), 60)


def test_a_number_that_the_wrong_server_could_have_given_counts_there_and_is_found_all_the_same() -> None:
    with two(ONE, None) as world:  # without a secret every number may be its own
        friend = world.friend("friend")
        friend.claim(world.code())
        world.world.run_until(lambda: bool(friend.live), 10)
        assert guesses(world.there) > 0
        assert friend.problems == []


@pytest.mark.parametrize("is_down", [False, True])
def test_a_code_that_no_server_knows_is_told_in_one_sentence_soon(is_down: bool) -> None:
    with two() as world:
        friend = world.friend("friend")
        if is_down:
            world.here.kill()
        foreign = next(
            number for number in range(100, 1000)
            if not any(each.server._numbers.may_be_ours(number) for each in (world.here, world.there))
        )  # fmt: skip
        friend.claim(f"{foreign}-abandon-ability")
        took = world.world.run_until(lambda: bool(friend.problems), 5)
        assert took < 2
        assert friend.problems == [Problem.CODE_UNKNOWN]
        (told,) = [event for event in friend.told if isinstance(event, Troubled)]
        assert told.is_final
        assert "both sides name the same server" in told.text
        assert guesses(world.there) == 0
        world.world.run(10)
        assert len(friend.problems) == 1


def test_a_guess_at_the_right_servers_numbers_still_counts_there() -> None:
    with two() as world:
        friend = world.friend("friend")
        number = next(n for n in range(100, 1000) if world.there.server._numbers.may_be_ours(n))
        friend.claim(f"{number}-abandon-ability")
        world.world.run_until(lambda: bool(friend.problems), 5)
        (told,) = [event for event in friend.told if isinstance(event, Troubled)]
        assert "Nobody waits under this code" in told.text
        assert guesses(world.there) > 0


def test_an_exposer_whose_server_dies_shows_a_fresh_code_of_the_other_and_is_found_there() -> None:
    with two() as world:
        first = world.code()
        world.here.kill()
        world.world.run_until(lambda: len(world.home.codes) > 1, 60)
        assert world.home.codes[-1] != first
        friend = world.friend("friend")
        friend.claim(world.home.codes[-1])
        world.world.run_until(lambda: bool(friend.live), 20)
        assert guesses(world.there) == 0


def test_a_link_that_stands_is_not_given_up_for_a_code_that_is_looked_for() -> None:
    with two() as world:
        friend = world.friend("friend")
        friend.claim(world.code())
        world.world.run_until(lambda: bool(friend.live), 10)
        server = friend.endpoint._context.clients[SERVER].server
        other = world.there if server == world.here.addresses[0] else world.here
        owner = PeerNode(world.world, world.world.host("owner", world.world.site("owner", "prc")), "owner")
        world.meet(owner, other)
        owner.offer()
        world.world.run_until(lambda: bool(owner.codes))
        friend.claim(owner.codes[0])
        world.world.run_until(lambda: bool(friend.problems), 5)
        assert friend.endpoint._context.clients[SERVER].server == server
        assert friend.live
