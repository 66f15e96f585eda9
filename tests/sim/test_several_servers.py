"""Several servers under one name: what waits and what is relayed outlives the death of any of them, and goes by the nearest."""

from __future__ import annotations

import pytest

from tests.sim.fleet import Several
from tunnel.node.context import Context
from tunnel.node.events import Problem
from tunnel.node.peering import Peering
from tunnel.node.relays import BARRED, OPEN_PATIENCE, Relays
from tunnel.transport.connection.events import PathKind
from tunnel.units import Instant, Seconds

SILENCE = 1.5  # seconds: the goal for a link whose server is killed
DRAIN = 0.2  # seconds: the same where the server says goodbye


def test_a_relayed_link_has_a_channel_at_a_second_server_and_no_more() -> None:
    with Several(3) as world:
        world.link()
        assert len(world.standing_by(world.friend)) == len(world.standing_by(world.home)) == 1
        assert sorted(world.channels()) == [0, 1, 1]
        world.run(300)
        assert sorted(world.channels()) == [0, 1, 1]
        assert world.home.problems == world.friend.problems == []


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("delay", [0.005, 0.040])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_outlives_the_server_that_carries_it_with_a_short_silence(count: int, delay: float, seed: int) -> None:
    with Several(count, delay=Seconds(delay), seed=seed) as world:
        peering = world.link()
        transfer = world.friend.send(peering, bytes(range(256)) * 40_000)
        world.run_until(lambda: len(transfer.echo) > 1_000_000, 20)
        carrier, begun = world.carrier(world.friend), world.world.now
        world.servers[carrier].kill()
        world.run_until(lambda: transfer.is_done, 120)
        assert transfer.longest_silence(begun) < SILENCE
        assert world.carrier(world.friend) != carrier
        assert not transfer.is_cut


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_hardly_notices_a_server_that_says_goodbye(seed: int) -> None:
    with Several(2, seed=seed) as world:
        peering = world.link()
        transfer = world.friend.send(peering, bytes(range(256)) * 40_000)
        world.run_until(lambda: len(transfer.echo) > 1_000_000, 20)
        carrier, begun = world.servers[world.carrier(world.friend)], world.world.now
        carrier.server.stop(begun)
        world.world.touch(carrier.host)
        world.run(0.001)
        carrier.kill()
        world.run_until(lambda: transfer.is_done, 120)
        assert transfer.longest_silence(begun) < DRAIN


def test_a_third_server_stands_by_when_one_has_died_and_all_die_but_one() -> None:
    with Several(3) as world:
        peering = world.link()
        dead = world.carrier(world.friend)
        world.servers[dead].kill()
        world.run(60)
        (left,) = world.standing_by(world.friend)
        assert left not in (dead, world.carrier(world.friend))
        assert sorted((world.carrier(world.home), *world.standing_by(world.home))) == sorted((world.carrier(world.friend), left))
        world.servers[world.carrier(world.friend)].kill()
        transfer = world.friend.send(peering, b"still there" * 1000)
        world.run_until(lambda: transfer.is_done, 20)
        assert world.carrier(world.friend) == left


def test_a_server_that_returns_stands_by_again() -> None:
    with Several(2) as world:
        peering = world.link()
        dead = world.carrier(world.friend)
        world.servers[dead].kill()
        world.run(120)
        assert world.standing_by(world.friend) == []
        world.servers[dead].boot()
        world.run(BARRED + OPEN_PATIENCE + 60)
        assert world.standing_by(world.friend) == world.standing_by(world.home) == [dead]
        assert world.channels() == [1, 1]
        transfer = world.friend.send(peering, b"still there" * 1000)
        world.run_until(lambda: transfer.is_done, 20)


def test_what_is_relayed_goes_by_the_server_that_is_nearest_to_both() -> None:
    with Several(3) as world:
        world.lay(world.home, 0.005, 0.030, 0.100)
        world.lay(world.friend, 0.200, 0.035, 0.005)
        world.link(60)
        assert world.carrier(world.home) == world.carrier(world.friend) == 1
        assert world.standing_by(world.friend) == [2]


def test_a_server_that_is_a_little_nearer_moves_nobody() -> None:
    with Several(2) as world:
        world.lay(world.home, 0.020, 0.030)
        world.lay(world.friend, 0.020, 0.030)
        world.link()
        assert world.carrier(world.friend) == 0
        world.lay(world.home, 0.020, 0.010)
        world.run(120)
        assert world.carrier(world.friend) == 0


def test_two_whose_lists_share_one_server_have_one_channel() -> None:
    with Several(3) as world:
        world.meet(world.home, 0, 1)
        world.meet(world.friend, 1, 2)
        world.home.listen()
        world.friend.connect(world.home)
        world.run(60)
        assert world.channels() == [0, 1, 0]
        assert world.standing_by(world.friend) == []


class Ignorant(Relays):
    """Of a version that knows no message about relays."""

    def handle(self, now: Instant, data: bytes) -> None:
        """Left for later versions."""

    def handle_timeout(self, now: Instant) -> None:
        self.due_at = None


def test_a_peer_of_an_older_version_is_met_as_ever_and_moves_with_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(context: Context, peering: Peering) -> Relays:
        return (Ignorant if context.config.name == "home" else Relays)(context, peering)

    monkeypatch.setattr("tunnel.node.peering.Relays", make)
    with Several(2) as world:
        peering = world.link(60)
        assert sum(world.channels()) == 1
        transfer = world.friend.send(peering, b"as ever" * 1000)
        world.servers[world.carrier(world.friend)].kill()
        world.run_until(lambda: transfer.is_done, 60)


def test_who_waits_is_found_by_whoever_reaches_one_server_only() -> None:
    with Several(3) as world:
        world.meet(world.home)
        world.home.listen()
        world.run(1)
        for number in range(3):
            world.friend.boot()
            world.meet(world.friend, number)
            world.friend.connect(world.home, 5.0)


def test_who_waits_is_found_though_the_server_in_use_was_killed_a_moment_ago() -> None:
    with Several(2) as world:
        world.meet(world.home)
        world.home.listen()
        world.run(1)
        client = world.home.endpoint._context.clients["rv.example.net"]
        used = next(number for number, server in enumerate(world.servers) if server.addresses[0] == client.server)
        world.servers[used].kill()
        world.meet(world.friend)
        took = world.friend.connect(world.home, 5.0)
        assert took is not None


def test_who_dials_finds_a_peer_that_waits_at_another_server() -> None:
    with Several(2) as world:
        world.lay(world.friend, 0.005, 0.050)
        world.meet(world.friend, 0, 1)
        world.meet(world.home, 1)
        world.home.listen()
        world.run(1)
        world.friend.connect(world.home, 5.0)
        assert Problem.PEER_ABSENT not in world.friend.problems


def test_a_direct_link_asks_for_no_second_channel() -> None:
    with Several(2, path="auto") as world:
        world.link(60)
        assert world.friend.is_direct
        assert sum(world.channels()) <= 1
        (peering,) = world.friend.live
        assert peering.connection is not None
        assert peering.connection.current_path.kind is PathKind.DIRECT
