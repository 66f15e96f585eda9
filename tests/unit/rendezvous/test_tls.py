"""When a client wants TLS, what it does with it, and how it comes back to UDP."""

from __future__ import annotations

import pytest

from tests.unit.rendezvous.world import CLIENT_TLS, SERVER, TLS, V4, Host, World
from tunnel.rendezvous import events, messages

ROOMS = [bytes((1,)) * 16]


def wants(host: Host) -> list[str]:
    kinds = (events.FallbackWanted, events.FallbackUnwanted)
    return [type(event).__name__ for event in host.events if isinstance(event, kinds)]


def blocked(world: World, name: str = "friend") -> Host:
    host = world.host(name, has_fallback=True)
    host.blocks_udp = True
    return host


def test_a_server_that_answers_over_udp_is_never_asked_over_tls() -> None:
    world = World()
    host = world.host("friend", has_fallback=True)
    world.run(120)
    assert wants(host) == []


def test_an_owner_that_cannot_open_tls_connections_is_not_asked_to() -> None:
    world = World()
    world.is_up = False
    host = world.host("friend")
    world.run(60)
    assert wants(host) == []


def test_tls_is_wanted_half_a_second_after_the_start_without_an_answer_and_only_once() -> None:
    world = World()
    world.is_up = False
    host = blocked(world)
    world.run(0.49)
    assert wants(host) == []
    world.run(0.02)
    assert wants(host) == ["FallbackWanted"]
    world.run(60)
    assert wants(host) == ["FallbackWanted"]


def test_a_far_server_is_not_taken_for_a_silent_one() -> None:
    world = World()
    world.delay = 0.24
    host = world.host("friend", has_fallback=True)
    world.run(60)
    assert wants(host) == []


def test_a_satellite_link_tries_tls_once_and_stays_with_udp() -> None:
    world = World()
    world.delay = 0.35
    host = world.host("friend", has_fallback=True)
    world.run(120)
    assert wants(host) == ["FallbackWanted", "FallbackUnwanted"]
    assert not host.uses_fallback


def test_everything_goes_over_tls_where_udp_is_blocked() -> None:
    world = World()
    home, friend = world.host("home"), blocked(world)
    home.client.listen(world.now, ROOMS)
    friend.client.dial(world.now, ROOMS)
    world.run(0.6)
    friend.connect_tls()
    world.run(0.3, until=lambda: bool(friend.of(messages.Introduced)))
    assert friend.of(events.Reached)
    assert friend.uses_fallback
    assert friend.client.reflexive == {}  # a TCP port is no candidate
    assert friend.client.mapping_varies is None
    assert friend.client.ipv4_address is None
    channel = friend.of(messages.Introduced)[0].channel
    assert (channel.socket_id, channel.server) == (CLIENT_TLS, SERVER[TLS])
    assert friend.client.is_server(CLIENT_TLS, SERVER[TLS])
    for source, target in ((home, friend), (friend, home)):
        source.relay(channel.channel, b"\x80hello")
        world.run(0.1)
        assert target.relayed == [channel.channel + b"\x80hello"]
    assert not friend.of(events.ReflexiveChanged)


def test_udp_takes_over_within_seconds_of_working_and_tls_is_let_go_a_little_later() -> None:
    world = World()
    home, friend = world.host("home"), blocked(world)
    home.client.listen(world.now, ROOMS)
    friend.client.dial(world.now, ROOMS)
    world.run(0.6)
    friend.connect_tls()
    world.run(30)
    assert friend.uses_fallback
    friend.blocks_udp = False
    world.run(6, until=lambda: not friend.uses_fallback)
    moved = friend.of(events.ChannelMoved)
    assert [(each.old.server, each.new.server) for each in moved] == [(SERVER[TLS], SERVER[V4])]
    world.run(0.1)
    channel = moved[0].new
    friend.relay(channel.channel, b"\x80over udp")
    home.relay(channel.channel, b"\x80back")
    world.run(0.1)
    assert home.relayed == [channel.channel + b"\x80over udp"]
    assert friend.relayed == [channel.channel + b"\x80back"]
    assert friend.client.reflexive == {channel.socket_id: friend.addresses[channel.socket_id]}
    assert wants(friend) == ["FallbackWanted"]
    world.run(15)
    assert wants(friend) == ["FallbackWanted", "FallbackUnwanted"]


def test_udp_that_is_blocked_later_moves_every_channel_to_tls_as_soon_as_that_answers() -> None:
    world = World()
    home, friend = world.host("home"), world.host("friend", has_fallback=True)
    home.client.listen(world.now, ROOMS)
    friend.client.dial(world.now, ROOMS)
    world.run(1)
    channel = friend.of(messages.Introduced)[0].channel
    assert channel.server == SERVER[V4]
    friend.blocks_udp = True
    friend.client.network_changed(world.now)
    begun = world.now
    world.run(2, until=lambda: wants(friend) == ["FallbackWanted"])
    assert world.now - begun == pytest.approx(0.5, abs=0.01)
    friend.connect_tls()
    world.run(0.2, until=lambda: friend.uses_fallback)
    world.run(0.1)
    friend.relay(channel.channel, b"\x80still here")
    world.run(0.1)
    assert home.relayed == [channel.channel + b"\x80still here"]
    assert not friend.of(events.Lost)


def test_a_connection_that_ends_and_comes_again_claims_its_channels_anew() -> None:
    world = World()
    home, friend = world.host("home"), blocked(world)
    home.client.listen(world.now, ROOMS)
    friend.client.dial(world.now, ROOMS)
    world.run(0.6)
    friend.connect_tls()
    world.run(1)
    channel = friend.of(messages.Introduced)[0].channel
    friend.drop_tls()
    world.run(20)
    assert not friend.client.is_reached  # nothing answers, and nothing is sent to nowhere
    friend.connect_tls(port=7001)
    world.run(1)
    assert friend.client.is_reached
    home.relay(channel.channel, b"\x80again")
    world.run(0.1)
    assert friend.relayed == [channel.channel + b"\x80again"]


def test_a_server_restarted_under_tls_is_registered_with_again() -> None:
    world = World()
    home, friend = blocked(world, "home"), blocked(world)
    home.client.listen(world.now, ROOMS)
    world.run(0.6)
    home.connect_tls(port=7000)
    world.run(1)
    world.is_up = False
    home.drop_tls()
    world.run(3)
    world.start_server()
    home.connect_tls(port=7002)
    friend.connect_tls(port=7003)
    friend.client.dial(world.now, ROOMS)
    world.run(3)
    assert home.of(messages.Introduced)
    assert friend.of(messages.Introduced)


def test_another_address_of_the_server_takes_over_when_the_first_connection_is_gone() -> None:
    world = World()
    friend = blocked(world)
    world.run(0.6)
    friend.connect_tls()
    world.run(1)
    assert friend.client.server == SERVER[TLS]
    friend.drop_tls()
    elsewhere = SERVER[TLS]._replace(host="192.88.99.9")
    friend.client.fallback_up(world.now, CLIENT_TLS, elsewhere)
    assert not friend.client.is_server(CLIENT_TLS, SERVER[V4])
    assert friend.client.is_server(CLIENT_TLS, elsewhere)
    for number in range(50):  # however often the address changes, few are remembered
        friend.client.fallback_up(world.now, CLIENT_TLS, SERVER[TLS]._replace(host=f"192.88.98.{number}"))
    known = sum(friend.client.is_server(CLIENT_TLS, SERVER[TLS]._replace(host=f"192.88.98.{number}")) for number in range(50))
    assert known <= 4
