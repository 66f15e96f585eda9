"""The servers at which a node waits, as `status` shows them."""

from __future__ import annotations

from tests.sim.fleet import Several


def told(world: Several) -> list[tuple[str, str, str]]:
    return [(each["server"], each["role"], each["why"]) for each in world.home.endpoint.servers.describe(world.world.now)]


def waiting(world: Several) -> None:
    world.meet(world.home)
    world.home.listen()
    world.run(60)


def test_who_waits_is_told_which_server_is_in_use_which_stand_by_and_why() -> None:
    with Several(3) as world:
        waiting(world)
        (used, role, why), *others = told(world)
        assert (role, why) == ("in_use", "the first that answered")
        assert {each[1:] for each in others} == {("stands_by", "peers are awaited there, too")}
        assert {used, *(each[0] for each in others)} == {str(server.addresses[0]) for server in world.servers}
        next(server for server in world.servers if str(server.addresses[0]) == used).kill()
        world.run(60)
        first, second, last = told(world)
        assert first[1:] == ("in_use", "it took over from another")
        assert second[1] == "stands_by"
        assert last == (used, "silent", "it does not answer")
        assert world.home.endpoint.servers.describe(world.world.now)[-1]["rtt_s"] is None


def test_the_only_server_is_said_to_be_that_and_one_that_never_answered_is_silent() -> None:
    with Several(1) as world:
        waiting(world)
        assert told(world) == [(str(world.servers[0].addresses[0]), "in_use", "the only one")]
    with Several(1) as world:
        world.servers[0].kill()
        waiting(world)
        assert [each[1:] for each in told(world)] == [("silent", "it has not answered yet")]


def test_a_server_that_ends_in_good_order_is_said_to_end_and_the_other_is_in_use() -> None:
    with Several(2) as world:
        waiting(world)
        used = told(world)[0][0]
        ending = next(server for server in world.servers if str(server.addresses[0]) == used)
        ending.server.stop(world.world.now)
        world.world.touch(ending.host)
        world.run(1)
        assert [each[1] for each in told(world)] == ["in_use", "ends"]
        assert told(world)[1] == (used, "ends", "it has said so")
