"""One name with two addresses, at which servers stand that know nothing of each other."""

from __future__ import annotations

from tests.adversary.reproduction.people import SERVER, Person, ServerNode
from tests.sim.world import World
from tunnel.node.events import CodeIssued
from tunnel.pairing.grants import GrantSet

GRANTS = tuple(GrantSet.parse("22").to_dicts())


def code_of(home: Person) -> str:
    def codes() -> list[str]:
        return [event.code for event in home.told if isinstance(event, CodeIssued)]

    before = len(codes())
    home.endpoint.offer_code(home.world.now, SERVER, grants=GRANTS, keep=False)
    home.endpoint.listen(home.world.now)
    home.world.touch(home.host)
    home.world.run_until(lambda: len(codes()) > before)
    return codes()[-1]


def test_a_household_of_eight_whose_name_server_leads_to_the_wrong_server_pairs_all_the_same() -> None:
    """More right codes than wrong guesses are allowed there: none of them counts as one for long, and each is found."""
    with World(1) as world:
        here, there = ServerNode(world, world.host("here")), ServerNode(world, world.host("there"))
        home = Person(world, world.host("home", world.site("home", "prc")), "home")
        site = world.site("friends", "prc")
        home.meet(here, there)
        for number in range(8):
            friend = Person(world, world.host(f"friend{number}", site), f"friend{number}")
            friend.meet(there, here)
            friend.endpoint.claim_code(world.now, SERVER, code_of(home))
            world.touch(friend.host)
            world.run_until(lambda friend=friend: bool(friend.endpoint.peerings or friend.problems), 30.0)
            assert friend.problems == []
