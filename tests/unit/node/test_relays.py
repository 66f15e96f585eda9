"""Which servers a link goes by, and what a peer may make us do about it."""

from __future__ import annotations

import pytest

from tests.sim.fleet import Several
from tunnel.errors import MalformedPacket
from tunnel.node.relays import (
    CLOCK,
    CONTROL_RELAYS,
    HAVE,
    MAX_RELAYS,
    MAX_SAID,
    MAX_TICKS,
    OPEN,
    OPEN_PATIENCE,
    choose,
    decode_have,
    encode_have,
)
from tunnel.transport.connection.paths import is_nearer


@pytest.mark.parametrize(
    ("sums", "kept", "chosen"),
    [
        ({1: 0.1, 2: 0.2, 3: 0.3}, (None,), [1, 2]),
        ({1: 0.1, 2: 0.2, 3: 0.4}, (3,), [1, 2]),  # much nearer ones are there
        ({1: 0.25, 2: 0.26, 3: 0.3}, (3,), [1, 3]),  # hardly nearer
        ({1: 0.25, 2: 0.26, 3: 0.3}, (3, 2), [2, 3]),
        ({1: 0.10, 2: 0.26, 3: 0.3}, (3, 2), [1, 2]),
        ({1: 0.003, 2: 0.006}, (2,), [1, 2]),
        ({1: 0.001, 2: 0.006, 3: 0.008}, (2, 3), [2, 3]),  # a third, but not by 10 ms
        ({1: 0.1}, (7, 8), [1]),  # what both had is gone
        ({}, (7,), []),
    ],
)
def test_a_link_keeps_its_servers_unless_others_are_much_nearer(
    sums: dict[int, float], kept: tuple[int | None, ...], chosen: list[int]
) -> None:
    assert sorted(choose(sums, *kept)) == chosen


def test_nearer_is_below_two_thirds_and_by_ten_milliseconds() -> None:
    assert is_nearer(0.065, 0.100)
    assert not is_nearer(0.068, 0.100)
    assert is_nearer(0.004, 0.015)
    assert not is_nearer(0.004, 0.013)


def test_a_list_of_servers_survives_the_wire_the_nearest_of_too_many() -> None:
    servers = {1 << 63 | number: 0.001 * number for number in range(MAX_SAID + 3)} | {7: 100.0}
    said = encode_have(servers)
    assert said[:2] == bytes((CONTROL_RELAYS, HAVE))
    read = decode_have(said[2:])
    assert len(read) == MAX_SAID
    assert all(abs(trip - servers[instance]) <= CLOCK for instance, trip in read.items())
    assert decode_have(encode_have({7: 100.0})[2:]) == {7: MAX_TICKS * CLOCK}


@pytest.mark.parametrize("size", [1, 9, 11, (MAX_SAID + 1) * 10])
def test_what_is_no_list_of_servers_is_refused(size: int) -> None:
    with pytest.raises(MalformedPacket):
        decode_have(bytes(size))


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x07rest", bytes((HAVE,)) + b"x", bytes((OPEN,)) + b"short"])
def test_messages_that_mean_nothing_are_counted_and_change_nothing(data: bytes) -> None:
    with Several(2) as world:
        world.link()
        (peering,) = world.home.live
        before = world.channels()
        peering.relays.handle(world.world.now, data)
        world.run(10)
        assert world.home.endpoint.drops["message about relays malformed"] == 1
        assert world.channels() == before


def test_a_peer_can_make_us_ask_for_a_few_channels_and_for_none_at_a_server_that_we_do_not_have() -> None:
    with Several(2) as world:
        world.link()
        (peering,) = world.home.live
        assert peering.connection is not None
        instances = world.instances
        for number in range(100):
            for instance in (*instances, 12_345):
                channel = bytes((0xC0, *number.to_bytes(7, "big")))
                peering.relays.handle(world.world.now, bytes((OPEN,)) + instance.to_bytes(8, "big") + channel + bytes(16))
        world.world.touch(world.home.host)
        world.run(1)
        assert len(peering.connection.channels) <= MAX_RELAYS
        assert sum(world.channels()) <= MAX_RELAYS
        assert world.home.endpoint.drops["relay channel not wanted"] > 100
        world.run(OPEN_PATIENCE + 60)
        assert sorted(world.channels()) == [1, 1]


def test_the_initiator_is_told_to_open_nothing() -> None:
    with Several(2) as world:
        world.link()
        (peering,) = world.friend.live
        instance = world.instances[0]
        peering.relays.handle(world.world.now, bytes((OPEN,)) + instance.to_bytes(8, "big") + b"\xc0" + bytes(7) + bytes(16))
        assert world.friend.endpoint.drops["message about relays malformed"] == 1


def test_status_says_which_server_carries_which_stands_by_and_why() -> None:
    with Several(3) as world:
        world.lay(world.home, 0.010, 0.030, 0.100)
        world.lay(world.friend, 0.010, 0.030, 0.100)
        world.link()
        (peering,) = world.friend.live
        first, second, third = peering.relays.describe(world.world.now)
        assert [each["server"] for each in (first, second, third)] == [str(server.addresses[0]) for server in world.servers]
        assert [each["role"] for each in (first, second, third)] == ["carries", "stands_by", "idle"]
        assert first["why"] == "the nearest to both sides"
        assert third["why"] == "farther from both sides"
        assert first["rtt_s"] == pytest.approx(0.020, abs=0.005)
        assert first["peer_rtt_s"] == pytest.approx(0.020, abs=0.005)


def test_status_says_so_where_the_other_side_reaches_no_other_server() -> None:
    with Several(2) as world:
        world.meet(world.home, 0)
        world.meet(world.friend)
        world.home.listen()
        peering = world.friend.connect(world.home)
        world.run(20)
        carries, idle = peering.relays.describe(world.world.now)
        assert carries["why"] == "the only one that both sides reach"
        assert idle["why"] == "the other side does not reach it"
