"""A server whose name leads elsewhere after a while: what a client has registered goes with it."""

from __future__ import annotations

import pytest

from tests.unit.rendezvous.introductions import ROOMS, introduced, relays_both_ways
from tests.unit.rendezvous.world import SECOND, SERVER, V4, World
from tunnel.rendezvous import events, messages
from tunnel.units import Address, SocketId

SOCKET = SocketId(10)
OLD, NEW = (SOCKET, SERVER[V4]), (SOCKET, SERVER[SECOND])


def lost(world: World) -> None:
    """The server is no longer where it was, and everybody has noticed."""
    world.down.add(V4)
    world.run(30, until=lambda: not any(host.client.is_reached for host in world.hosts))


@pytest.mark.parametrize("is_restarted", [False, True])
def test_rooms_codes_and_channels_move_to_where_the_name_leads_now(is_restarted: bool) -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    listener.client.allocate(world.now)
    world.run(5, until=lambda: bool(listener.of(messages.Allocated)))
    nameplate = listener.of(messages.Allocated)[0].nameplate
    lost(world)
    if is_restarted:
        world.start_server()
    for host in world.hosts:
        host.client.move(world.now, [NEW])
    world.run(1, until=lambda: all(host.client.is_reached for host in world.hosts))
    world.run(3)
    assert [host.client.server for host in world.hosts] == [SERVER[SECOND]] * 2
    assert relays_both_ways(world, channel.channel)
    claimer = world.host("claimer")
    claimer.client.move(world.now, [NEW])
    claimer.client.claim(world.now, nameplate, b"pake")
    claimer.client.dial(world.now, ROOMS)
    world.run(10, until=lambda: bool(claimer.of(messages.Introduced)))
    if not is_restarted:  # one that does not keep its secret has to give out another code
        assert claimer.of(messages.ClaimAccepted)
    else:
        assert claimer.of(messages.ClaimAccepted) or listener.of(messages.Refused)
    assert [host.client.ways for host in (listener, dialer)] == [[NEW], [NEW]], "what it led to before is given up"


def test_addresses_that_never_answer_are_given_up_and_those_that_did_are_kept_until_another_does() -> None:
    world = World()
    host = world.host("host")
    world.run(1, until=lambda: host.client.is_reached)
    lost(world)
    for number in range(200):
        nowhere = (SOCKET, Address(f"203.0.113.{number}", 24531))
        host.client.move(world.now, [nowhere])
        world.hosts.clear()  # nothing of what it sends there arrives anywhere
        host.client.handle_timeout(world.now)
        while host.client.poll_transmit(world.now) is not None:
            pass
        assert host.client.ways == [OLD, nowhere]
        assert len(host.client._requests) < 10
    world.hosts.append(host)
    host.client.move(world.now, [NEW])
    world.run(2, until=lambda: host.client.is_reached)
    assert host.client.ways == [NEW]


def test_a_name_that_leads_elsewhere_while_the_server_still_answers_changes_nothing_yet() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    for host in world.hosts:
        host.client.move(world.now, [NEW])
    world.run(30)
    assert [host.client.server for host in world.hosts] == [SERVER[V4]] * 2
    assert relays_both_ways(world, channel.channel)
    assert not listener.of(events.Lost) + dialer.of(events.Lost)
    world.down.add(V4)
    world.run(20, until=lambda: all(host.client.ways == [NEW] for host in world.hosts))
    world.run(1)
    assert relays_both_ways(world, channel.channel)
    assert not listener.of(events.Lost) + dialer.of(events.Lost), "another one was ready"


def test_a_name_that_leads_back_is_followed_back() -> None:
    world = World()
    host = world.host("host")
    world.run(1, until=lambda: host.client.is_reached)
    lost(world)
    host.client.move(world.now, [NEW])
    world.run(2, until=lambda: host.client.is_reached)
    world.down = {SECOND}
    world.run(30, until=lambda: not host.client.is_reached)
    host.client.move(world.now, [OLD])
    world.run(2, until=lambda: host.client.is_reached)
    assert host.client.ways == [OLD]


def test_a_client_that_was_never_answered_follows_too() -> None:
    world = World()
    world.down.add(V4)
    host = world.host("host")
    host.client.listen(world.now, ROOMS)
    world.run(20)
    assert not host.client.is_reached
    host.client.move(world.now, [NEW])
    world.run(1, until=lambda: host.client.is_reached)
    world.run(1)
    assert len(world.server.registry.rooms) == len(ROOMS)
    assert host.client.ways == [NEW]


def test_what_was_asked_while_nobody_answered_is_asked_where_the_name_leads() -> None:
    world = World()
    host = world.host("host")
    world.run(1, until=lambda: host.client.is_reached)
    lost(world)
    host.client.allocate(world.now)
    host.client.listen(world.now, ROOMS)
    world.run(5)
    host.client.move(world.now, [NEW])
    world.run(2, until=lambda: bool(host.of(messages.Allocated)))
    world.run(1)
    assert len(world.server.registry.rooms) == len(ROOMS)
    assert [request for request in host.client._requests if not request.is_probe] == [], "nothing is asked twice"


def test_what_is_asked_first_of_another_server_does_not_hide_that_it_knows_nothing_of_us() -> None:
    """A request that was under way makes a session there, before it is asked whether there is one."""
    world = World()
    host = world.host("host")
    host.client.listen(world.now, ROOMS)
    world.run(2, until=lambda: len(world.server.registry.rooms) == len(ROOMS))
    world.down.add(V4)
    host.client.dial(world.now, [b"d" * 16])
    lost(world)
    world.start_server()
    host.client.move(world.now, [NEW])
    world.run(1, until=lambda: host.client.is_reached)
    world.run(3)
    assert len(world.server.registry.rooms) == len(ROOMS) + 1
