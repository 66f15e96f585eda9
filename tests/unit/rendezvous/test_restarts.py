"""Servers that stop, restart or stay away, and clients that sleep."""

from __future__ import annotations

import pytest

from tests.unit.rendezvous.introductions import ROOMS, introduced, relays_both_ways
from tests.unit.rendezvous.world import World
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.units import Address, SocketId


def test_after_a_restart_of_the_server_everything_is_registered_again_and_relaying_goes_on() -> None:
    world = World()
    owner, dialer, late = world.host("owner"), world.host("dialer"), world.host("late")
    owner.client.allocate(world.now)
    channel, _ = introduced(world)
    dialer.client.leave(world.now, ROOMS)  # the peer has answered
    world.run(1)
    world.start_server()
    world.run(1)
    owner.relay(channel.channel, b"\x80" + bytes(100))  # traffic notices at once: the server says it knows no such channel
    dialer.relay(channel.channel, b"\x80" + bytes(100))
    world.run(1)
    assert relays_both_ways(world, channel.channel)
    world.run(25)  # the rest comes back with the next refresh at the latest
    late.client.claim(world.now, owner.of(messages.Allocated)[0].nameplate, b"hello")
    late.client.dial(world.now, ROOMS)
    world.run(1)
    assert [e.body for e in owner.of(messages.ClaimReceived)] == [b"hello"]
    assert len(late.of(messages.Introduced)) == 1
    assert len(owner.of(messages.Allocated)) == 1  # nobody was told a second time


def test_a_server_that_stays_away_is_lost_and_found_within_five_seconds_of_its_return() -> None:
    world = World()
    host = world.host("a")
    host.client.listen(world.now, ROOMS)
    world.run(1)
    world.is_up = False
    went = world.now
    world.run(60)
    (lost,) = host.of(events.Lost)
    assert 0 <= lost.since - went <= 9
    assert not host.client.is_reached
    world.start_server()
    world.run(5.5, until=lambda: host.client.is_reached)
    world.run(1)
    assert world.server.counters()["rooms"] == len(ROOMS)
    assert len(host.of(events.Reached)) == 2


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_came_back_is_not_lost_again_by_a_request_of_before(seed: int) -> None:
    world = World(seed)
    host = world.host("a")
    host.client.listen(world.now, ROOMS)
    world.run(1)
    world.is_up = False
    for number in range(8):
        host.client.allocate(world.now)
        host.client.post(world.now, bytes((number,)) * 8, b"hello")
        world.run(5)
    assert len(host.of(events.Lost)) == 1
    world.start_server()
    world.loss = 0.4
    world.run(30, until=lambda: host.client.is_reached)
    world.loss = 0.0
    world.run(20)
    assert [type(event) for event in host.events if isinstance(event, events.Lost | events.Reached)] == [
        events.Reached, events.Lost, events.Reached,
    ]  # fmt: skip


def test_a_server_that_stops_says_so_and_is_found_again_after_its_restart() -> None:
    world = World()
    host = world.host("a")
    host.client.listen(world.now, ROOMS)
    world.run(1)
    world.server.stop(world.now)
    world.pump()
    world.run(0.1)
    assert len(host.of(events.Lost)) == 1
    world.start_server()
    world.run(7, until=lambda: len(world.server.registry.rooms) == len(ROOMS))
    assert host.client.is_reached


def test_a_server_with_ten_thousand_clients_tells_each_of_them_that_it_stops() -> None:
    world = World(config=ServerConfig(requests_per_second=1e6, request_burst=10**6))
    clients = [Address(f"198.18.{n // 200}.{n % 200}", 5000) for n in range(10_000)]
    for number, source in enumerate(clients):
        session = number.to_bytes(16, "big")
        world.ask(source, messages.Join(0, (session,)), session=session, cookie=world.cookie(source))
    world.server.stop(world.now)
    told = []
    while (transmit := world.server.poll_transmit(world.now)) is not None:
        assert isinstance(messages.decode_push(transmit.buffer).message, messages.Bye)
        told.append(transmit.remote)
    assert sorted(told) == sorted(clients)
    assert not world.server.drops["server_queue"]


def test_a_dialer_waits_through_a_restart_of_the_listener() -> None:
    world = World()
    world.host("listener"), world.host("dialer")
    introduced(world)
    world.hosts[0].client.close(world.now)
    world.run(1)
    again = world.host("again")
    again.client.listen(world.now, ROOMS)
    world.run(1)
    assert len(again.of(messages.Introduced)) == 1
    assert len(world.hosts[1].of(messages.Introduced)) == 2


def test_after_a_long_suspend_the_client_registers_again_by_itself() -> None:
    world = World()
    host = world.host("a")
    host.client.listen(world.now, ROOMS)
    host.client.allocate(world.now)
    world.run(1)
    nameplate = host.of(messages.Allocated)[0].nameplate
    world.hosts.remove(host)
    world.run(300)
    assert world.server.counters()["sessions"] == 0
    world.hosts.append(host)
    world.run(1)
    assert world.server.counters()["rooms"] == len(ROOMS)
    assert nameplate in world.server.registry.nameplates


def test_a_client_never_floods_however_long_the_server_is_away() -> None:
    world = World()
    host = world.host("a")
    for day in range(240):
        host.client.listen(world.now, [day.to_bytes(16, "big")])
    world.run(5)
    assert world.server.counters()["rooms"] == 240
    sent: list[int] = []
    world._arrive_at_server = lambda socket_id, source, data: sent.append(len(data))  # type: ignore[method-assign]
    world.run(300)
    assert 300 / 5 - 10 <= len(sent) <= 300 / 5 + 10  # one question each five seconds, whatever is registered


def test_the_silent_side_of_a_channel_is_back_within_one_refresh_after_a_crash_of_the_server() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    world.start_server()
    began = world.now
    while not listener.relayed:  # the listener itself sends nothing
        dialer.relay(channel.channel, b"\x80" + bytes(100))
        world.run(0.1)
    assert world.now - began < 8.5


def test_a_push_finds_a_listener_whose_nat_has_moved_it_meanwhile() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    listener.client.listen(world.now, ROOMS)
    world.run(1)
    listener.addresses[SocketId(10)] = Address("198.18.0.1", 7777)
    dialer.client.dial(world.now, ROOMS)
    world.run(9)
    assert len(listener.of(messages.Introduced)) == 1
    assert relays_both_ways(world, dialer.of(messages.Introduced)[0].channel.channel)
