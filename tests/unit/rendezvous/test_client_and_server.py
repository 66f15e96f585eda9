"""A client and a server that talk to each other through a network with loss, reordering, restarts and NATs that move."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from tests.unit.rendezvous.introductions import ROOMS, introduced, relays_both_ways
from tests.unit.rendezvous.world import SERVER, V4, V6, World, entropy_of
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import GoneReason, RefusalCode, Role
from tunnel.rendezvous.standing import joins
from tunnel.units import Address, Instant, Seconds, SocketId


def paired(world: World) -> tuple[Any, Any]:
    """The hosts 0 and 1 meet over a code: ClaimReceived and ClaimAccepted, as `Host.of` has them."""
    owner, claimer = world.hosts[:2]
    owner.client.allocate(world.now)
    world.run(20, until=lambda: bool(owner.of(messages.Allocated)))
    claimer.client.claim(world.now, owner.of(messages.Allocated)[-1].nameplate, b"pake B")
    world.run(20, until=lambda: bool(claimer.of(messages.ClaimAccepted) and owner.of(messages.ClaimReceived)))
    return owner.of(messages.ClaimReceived)[-1], claimer.of(messages.ClaimAccepted)[-1]


def test_hello_is_answered_within_one_round_trip_and_tells_the_reflexive_address() -> None:
    world = World()
    started = world.now
    host = world.host("a")
    world.run(1, until=lambda: host.client.is_reached)
    assert world.now - started == pytest.approx(2 * world.delay)
    assert host.client.reflexive == {SocketId(10): Address("198.18.0.1", 5000)}
    assert host.client.round_trip == pytest.approx(2 * world.delay)
    assert host.client.server == SERVER[V4]
    assert [type(event) for event in host.events] == [events.Reached, events.ReflexiveChanged]


@pytest.mark.parametrize("varies", [False, True])
def test_the_second_port_tells_whether_the_mapping_varies(varies: bool) -> None:
    world = World()
    host = world.host("a")
    host.varies = varies
    assert host.client.mapping_varies is None
    world.run(1)
    assert host.client.mapping_varies is varies


def test_a_claim_reaches_the_owner_in_two_round_trips_and_posts_go_both_ways() -> None:
    world = World()
    owner, claimer = world.host("owner"), world.host("claimer")
    received, accepted = paired(world)
    assert received.body == b"pake B"
    assert received.mailbox == accepted.mailbox
    assert received.channel.channel == accepted.channel.channel
    assert (received.channel.side, accepted.channel.side) == (0, 1)
    owner.client.post(world.now, received.mailbox, b"pake A")
    claimer.client.post(world.now, accepted.mailbox, b"confirmed")
    world.run(1)
    assert [e.body for e in claimer.of(messages.Posted)] == [b"pake A"]
    assert [e.body for e in owner.of(messages.Posted)] == [b"confirmed"]
    assert relays_both_ways(world, received.channel.channel)


@pytest.mark.parametrize("seed", range(8))
def test_with_a_third_lost_and_everything_reordered_each_step_happens_exactly_once(seed: int) -> None:
    world = World(seed)
    world.loss, world.jitter = 0.33, 0.2
    owner, claimer = world.host("owner"), world.host("claimer")
    received, accepted = paired(world)
    owner.client.post(world.now, received.mailbox, b"pake A")
    world.run(30, until=lambda: bool(claimer.of(messages.Posted)))
    introduced(world)
    world.run(30)
    assert len(owner.of(messages.Allocated)) == len(owner.of(messages.ClaimReceived)) == 1
    assert len(claimer.of(messages.ClaimAccepted)) == len(claimer.of(messages.Posted)) == 1
    assert len(owner.of(messages.Introduced)) == len(claimer.of(messages.Introduced)) == 1
    assert world.server.counters()["channels"] == 2
    assert accepted.channel.token == received.channel.token


def test_a_code_is_claimed_once() -> None:
    world = World()
    owner, claimer, late = world.host("owner"), world.host("claimer"), world.host("late")
    received, _ = paired(world)
    late.client.claim(world.now, received.nameplate, b"me too")
    world.run(1)
    assert [e.code for e in late.of(messages.Refused)] == [RefusalCode.SPENT]
    owner.client.release(world.now, received.nameplate)
    world.run(1)
    late.client.claim(world.now, received.nameplate, b"me too")
    world.run(1)
    assert [e.code for e in late.of(messages.Refused)] == [RefusalCode.SPENT, RefusalCode.UNKNOWN_NAMEPLATE]
    assert len(owner.of(messages.ClaimReceived)) == 1
    assert claimer.of(messages.ClaimAccepted)


def test_an_owner_who_never_hears_of_a_claim_keeps_his_code() -> None:
    world = World()
    owner, claimer, late = world.host("owner"), world.host("claimer"), world.host("late")
    owner.client.allocate(world.now)
    world.run(1)
    owner.is_deaf = True
    nameplate = owner.of(messages.Allocated)[0].nameplate
    claimer.client.claim(world.now, nameplate, b"x")
    world.run(15)
    assert [e.reason for e in claimer.of(messages.Gone)] == [GoneReason.EXPIRED] * 2  # mailbox and channel
    owner.is_deaf = False
    late.client.claim(world.now, nameplate, b"y")
    world.run(1)
    assert [e.body for e in owner.of(messages.ClaimReceived)] == [b"y"]


@pytest.mark.parametrize("told_s", [30, 120])
def test_a_full_server_is_asked_again_no_sooner_than_it_said(told_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.rendezvous.server.RETRY_FULL", told_s)
    world = World(config=ServerConfig(max_sessions=1, sessions_per_address=1))
    first, second = world.host("first"), world.host("second")
    first.client.listen(world.now, ROOMS)
    world.run(1)
    asked_at: list[Instant] = []
    refuse = world.server._encode
    monkeypatch.setattr(world.server, "_encode", lambda *arguments: (asked_at.append(world.now), refuse(*arguments))[1])
    second.client.listen(world.now, ROOMS)
    world.run(600)
    refused_at = asked_at[:: len(list(joins(Role.LISTEN, ROOMS)))]
    assert 600 / told_s / 1.2 <= len(refused_at) <= 600 / told_s + 1
    assert all(after - before >= told_s for before, after in pairwise(refused_at))
    first.client.close(world.now)
    world.run(told_s * 1.2)
    assert second.client._session in world.server.registry.sessions
    assert set(ROOMS) <= set(world.server.registry.rooms)


def test_codes_expire_after_ten_minutes() -> None:
    world = World()
    owner, late = world.host("owner"), world.host("late")
    owner.client.allocate(world.now)
    world.run(1)
    assert owner.of(messages.Allocated)[0].expires_s == 600
    world.run(605)
    late.client.claim(world.now, owner.of(messages.Allocated)[0].nameplate, b"x")
    world.run(1)
    assert [e.code for e in late.of(messages.Refused)] == [RefusalCode.UNKNOWN_NAMEPLATE]


@pytest.mark.parametrize("listener_first", [True, False])
def test_a_dialer_meets_a_listener_once_whoever_comes_first(listener_first: bool) -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    for host in (listener, dialer) if listener_first else (dialer, listener):
        if host is listener:
            host.client.listen(world.now, ROOMS)
        else:
            host.client.dial(world.now, ROOMS)
        world.run(1)
    assert len(listener.of(messages.Introduced)) == len(dialer.of(messages.Introduced)) == 1
    first, second = listener.of(messages.Introduced)[0].channel, dialer.of(messages.Introduced)[0].channel
    assert first.channel == second.channel
    assert (first.side, second.side) == (0, 1)
    assert first.channel[0] >= 0xC0
    assert relays_both_ways(world, first.channel)


def test_dialing_again_makes_a_fresh_channel() -> None:
    world = World()
    world.host("listener"), world.host("dialer")
    first, _ = introduced(world)
    world.hosts[1].client.dial(world.now, ROOMS)
    world.run(1)
    assert len({e.channel.channel for e in world.hosts[1].of(messages.Introduced)}) == 2
    assert first.channel in {c.channel for c in world.hosts[0].client.channels}


def test_who_left_a_room_is_not_introduced_any_more() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    listener.client.listen(world.now, ROOMS)
    world.run(1)
    listener.client.leave(world.now, ROOMS)
    world.run(1)
    dialer.client.dial(world.now, ROOMS)
    world.run(1)
    assert not listener.of(messages.Introduced)
    assert not dialer.of(messages.Introduced)


def test_a_channel_ends_for_both_when_one_leaves_it_or_closes() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    dialer.client.leave_channel(world.now, channel.channel)
    world.run(1)
    assert [e.channel for e in listener.of(messages.Gone)] == [channel]
    assert world.server.counters()["channels"] == 0
    dialer.client.dial(world.now, ROOMS)
    world.run(1)
    assert world.server.counters()["channels"] == 1
    dialer.client.close(world.now)
    world.run(1)
    assert world.server.counters()["channels"] == 0
    assert [e.reason for e in listener.of(messages.Gone)] == [GoneReason.LEFT] * 2
    assert world.server.counters()["sessions"] == 1


def test_registrations_outlast_hours_of_quiet_and_end_soon_after_their_owner_falls_silent() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    world.run(3600)
    assert world.server.counters()["channels"] == 1
    assert relays_both_ways(world, channel.channel)
    world.hosts.remove(listener)
    world.run(200)
    assert world.server.counters()["channels"] == 0
    assert world.server.counters()["sessions"] == 1
    assert [e.reason for e in dialer.of(messages.Gone)] == [GoneReason.EXPIRED]


def test_a_new_address_is_noticed_by_traffic_and_the_channel_moves_with_its_mac() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    dialer.addresses[SocketId(10)] = Address("198.18.77.7", 6123)
    dialer.relay(channel.channel, b"\x80" + bytes(100))
    world.run(0.2)
    assert relays_both_ways(world, channel.channel)
    assert dialer.client.reflexive[SocketId(10)] == Address("198.18.77.7", 6123)
    assert dialer.of(events.ReflexiveChanged)[-1].address == Address("198.18.77.7", 6123)
    assert not listener.of(messages.Gone)


def test_a_new_address_is_noticed_by_the_next_refresh_or_at_once_when_the_host_says_so() -> None:
    world = World()
    world.host("listener")
    dialer = world.host("dialer")
    channel, _ = introduced(world)
    dialer.addresses[SocketId(10)] = Address("198.18.77.7", 6123)
    world.run(23)
    assert relays_both_ways(world, channel.channel)
    dialer.addresses[SocketId(10)] = Address("198.18.77.8", 6124)
    dialer.client.network_changed(world.now)
    world.run(0.2)
    assert relays_both_ways(world, channel.channel)


def test_both_families_are_greeted_and_the_other_takes_over_when_the_first_falls_silent() -> None:
    world = World()
    host, other = world.host("dual", "198.18.5.5", v6="3fff:5::5"), world.host("other")
    world.run(1)
    assert set(host.client.reflexive) == {SocketId(10), SocketId(11)}
    host.client.listen(world.now, ROOMS)
    other.client.dial(world.now, ROOMS)
    world.run(1)
    channel = host.of(messages.Introduced)[0].channel
    assert channel.server == SERVER[V4]
    world.down.add(V4)
    other.addresses = {SocketId(10): Address("3fff:6::6", 5000)}
    world.run(40, until=lambda: bool(host.of(events.ChannelMoved)))
    moved = host.of(events.ChannelMoved)[0]
    assert moved.new.server == SERVER[V6]
    assert moved.new.path_key.prefix == channel.channel
    world.run(1)
    assert world.server.relay.get(channel.channel).sides[0].remote == Address("3fff:5::5", 5000)  # type: ignore[union-attr]


def test_guessers_of_codes_are_shut_out_for_a_while() -> None:
    world = World()
    owner, guesser, neighbour = world.host("owner"), world.host("guesser"), world.host("neighbour")
    owner.client.allocate(world.now)
    world.run(1)
    nameplate = owner.of(messages.Allocated)[0].nameplate
    for wrong in range(world.config.wrong_claims + 1):
        guesser.client.claim(world.now, 1000 + wrong, b"x")
        world.run(0.5)
    guesser.client.claim(world.now, nameplate, b"x")
    world.run(0.5)
    codes = [e.code for e in guesser.of(messages.Refused)]
    assert codes == [RefusalCode.UNKNOWN_NAMEPLATE] * world.config.wrong_claims + [RefusalCode.LOCKED_OUT] * 2
    assert 0 < guesser.of(messages.Refused)[-1].retry_after_s <= world.config.lockout + 1
    assert not owner.of(messages.ClaimReceived)
    neighbour.client.claim(world.now, nameplate, b"fine")
    world.run(1)
    assert neighbour.of(messages.ClaimAccepted)
    world.run(world.config.lockout - 5)
    guesser.client.claim(world.now, nameplate, b"x")
    world.run(1)
    assert guesser.of(messages.Refused)[-1].code == RefusalCode.LOCKED_OUT
    world.run(5)
    guesser.client.claim(world.now, nameplate, b"x")
    world.run(1)
    assert guesser.of(messages.Refused)[-1].code == RefusalCode.SPENT


def test_the_bytes_of_a_pair_are_limited_and_both_are_told() -> None:
    world = World(config=ServerConfig(pair_bytes=1000, pair_bytes_period=Seconds(1000.0)))
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    for _ in range(3):
        listener.relay(channel.channel, b"\x80" + bytes(391))
    world.run(1)
    assert len(dialer.relayed) == 2
    assert [e.reason for e in listener.of(messages.Gone)] == [GoneReason.QUOTA]
    assert [e.reason for e in dialer.of(messages.Gone)] == [GoneReason.QUOTA]


def test_a_channel_that_runs_out_in_many_runs_of_one_batch_is_gone_once() -> None:
    world = World(config=ServerConfig(pair_bytes=1000, pair_bytes_period=Seconds(1000.0)))
    listener, dialer = world.host("listener"), world.host("dialer")
    channel, _ = introduced(world)
    run, between = channel.channel + bytes(592), b"\xc0" + bytes(599)
    batch = (run + between) * 20
    world.server.handle_batch(world.now, V4, listener.public(SocketId(10), SERVER[V4]), memoryview(batch), 600)
    for session in world.server.registry.sessions.values():
        assert [type(push.message) for push in session.pushes.values()] == [messages.Gone]
    world.run(1)
    assert len(listener.of(messages.Gone)) == len(dialer.of(messages.Gone)) == 1


def test_an_embedded_server_lets_only_its_own_machine_wait() -> None:
    world = World(config=ServerConfig(own_hosts=frozenset({"198.18.0.1"})))
    own, stranger = world.host("own"), world.host("stranger")
    for host in (own, stranger):
        host.client.allocate(world.now)
        host.client.listen(world.now, ROOMS)
    world.run(1)
    assert own.of(messages.Allocated)
    assert {(type(e.request), e.code) for e in stranger.of(messages.Refused)} == {
        (messages.Allocate, RefusalCode.DENIED),
        (messages.Join, RefusalCode.DENIED),
    }
    stranger.client.claim(world.now, own.of(messages.Allocated)[0].nameplate, b"x")
    world.run(1)
    assert stranger.of(messages.ClaimAccepted)


def test_a_full_room_is_asked_for_again_and_what_was_granted_is_left_alone() -> None:
    world = World(config=ServerConfig(listeners_per_room=1))
    first, second, dialer = world.host("first"), world.host("second"), world.host("dialer")
    for host in (first, second):
        host.client.listen(world.now, ROOMS)
        world.run(1)
    dialer.client.dial(world.now, ROOMS)
    world.run(1)
    (refused,) = second.of(messages.Refused)
    assert (refused.request.role, refused.code, set(refused.request.rooms)) == (Role.LISTEN, RefusalCode.FULL, set(ROOMS))
    first.client.close(world.now)
    world.run(31)
    assert len(second.of(messages.Introduced)) == 1
    assert len(dialer.of(messages.Introduced)) == 2  # the first listener, then the second, each once


def test_a_nameplate_given_away_meanwhile_is_reported_lost() -> None:
    world = World()
    host, other = world.host("a"), world.host("b")
    host.client.allocate(world.now)
    world.run(1)
    nameplate = host.of(messages.Allocated)[0].nameplate
    world.start_server()
    world.ask(Address("198.18.3.3", 3), messages.Hello())
    cookie = world.cookie(Address("198.18.3.3", 3))
    world.ask(Address("198.18.3.3", 3), messages.Allocate(nameplate), cookie=cookie)
    world.run(25)
    assert [e.request.wanted for e in host.of(messages.Refused)] == [nameplate]
    assert not other.of(messages.Refused)


def test_a_forged_answer_or_push_from_off_the_path_is_dropped() -> None:
    world = World()
    host = world.host("a")
    world.run(1)
    told = list(host.events)
    for data in (
        messages.encode_response(12345, messages.Allocated(731, 600)),
        messages.encode_push(b"x" * 16, 1, messages.Bye()),
        messages.encode_push(bytes(16), 0, messages.Gone(1, b"\xc0" + bytes(7), 4)),
        messages.encode_push(bytes(16), 0, messages.Bye()),
    ):
        host.client.handle_datagram(world.now, SocketId(10), SERVER[V4], data)
        host.client.handle_datagram(world.now, SocketId(10), Address("198.18.66.6", 6), data)
    world.run(1)
    assert host.events == told
    assert host.client.drops.total() == 8
    assert host.client.is_reached


@pytest.mark.parametrize(
    ("second_host", "is_asked"),
    [("", True), ("192.88.99.2", True), ("127.0.0.1", False), ("192.168.1.1", False), ("224.0.0.251", False), ("3fff::2", False)],
)
def test_a_server_cannot_make_us_flood_or_enter_the_lan_by_naming_a_second_address(second_host: str, is_asked: bool) -> None:
    client = Client(servers=[(SocketId(10), SERVER[V4])], now=Instant(0.0), rng=random.Random(1), entropy=entropy_of(1))
    elsewhere: list[Address] = []
    now = Instant(0.0)
    for turn in range(2_000):  # it answers whatever we ask, each time with another address of ours and port of its own
        now = Instant(now + 0.01)
        client.handle_timeout(now)
        while (sent := client.poll_transmit(now)) is not None:
            if sent[1] != SERVER[V4]:
                elsewhere.append(sent[1])
                continue
            you = messages.pack_address(Address("198.18.0.1", 1 + turn))
            host = messages.pack_host(second_host) if second_host else b""
            retry = messages.Retry(bytes(17), you, 1 + turn, host, 1)
            reply = messages.encode_response(messages.decode_request(sent[2]).transaction, retry)
            client.handle_datagram(now, SocketId(10), SERVER[V4], reply)
            break
        if turn % 10 == 0:
            client.network_changed(now)
    assert bool(elsewhere) == is_asked
    assert len(elsewhere) <= 16  # four times, four attempts each, within this minute
