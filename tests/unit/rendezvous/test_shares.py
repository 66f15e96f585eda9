"""State at the server is charged to who asked for it, and no address, home or site fills a table for the others."""

from __future__ import annotations

from dataclasses import fields
from hashlib import sha256
from typing import Any

import pytest

from tests.unit.rendezvous.world import V4, World
from tests.work import instructions
from tunnel.core.prefixes import RESERVED, limits, prefixes
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.admission import Lockouts, TreeBuckets
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import RefusalCode, Role
from tunnel.rendezvous.registry import LOOKED_AT, SCARCE_SHARE
from tunnel.units import Address, Instant, Seconds

ROOMS = [bytes((day,)) * 16 for day in range(3)]
FAST: dict[str, Any] = {"requests_per_second": 1e6, "request_burst": 10**6}
HOME = [Address(f"2a00:1:2:33{n:02x}::1", 1000) for n in range(256)]  # all that a household has: a /56
FRIEND = Address("198.18.0.1", 1000)

#: Every table of the server, and what one address may have of it.
TABLES = {
    "max_sessions": "sessions_per_address",
    "max_room_entries": "rooms_per_address",
    "max_nameplates": "nameplates_per_address",
    "max_mailboxes": "mailboxes_per_address",
    "max_channels": "channels_per_address",
    "max_pairs": "pairs_per_address",
    "claims_at_once": "claims_at_once_per_address",
}


def identifier(source: Address, number: int) -> bytes:
    return sha256(repr((source.host, number)).encode()).digest()[:16]


def test_every_table_has_a_share_per_address_that_is_far_below_it() -> None:
    config = ServerConfig()
    named = {field.name for field in fields(config) if field.name.startswith("max_") or field.name.endswith("_per_address")}
    assert named - {"max_lockouts"} == {*TABLES, *TABLES.values()} - {"claims_at_once"}
    for table, share in TABLES.items():
        total, each = getattr(config, table), getattr(config, share)
        address, home, site, provider = limits(each, total)
        if table != "claims_at_once":  # of a code for a room: some friends
            assert address <= total / 16
            assert address <= total * RESERVED  # so who is new finds something whatever one address does
        assert address < home <= site <= provider <= total / 2


def register(world: World, source: Address, number: int) -> messages.ResponseMessage:
    """A session that waits in as many rooms as it may."""
    session, cookie = identifier(source, number), world.cookie(source)
    for start in range(0, 1024, messages.MAX_ROOMS):
        rooms = tuple(session[:12] + at.to_bytes(4, "big") for at in range(start, start + messages.MAX_ROOMS))
        (answer,) = world.ask(source, messages.Join(Role.LISTEN, rooms), session=session, cookie=cookie)
    return answer


def test_a_home_cannot_fill_the_rooms() -> None:
    world = World(config=ServerConfig(max_room_entries=20_000, rooms_per_address=819, **FAST))  # a tenth of the real ones
    for source in HOME[:64]:
        register(world, source, 0)
    assert world.server.registry.room_shares.used == 4 * 819
    (answer,) = world.ask(FRIEND, messages.Join(Role.LISTEN, tuple(ROOMS)), cookie=world.cookie(FRIEND))
    assert answer == messages.Done(granted=0b111)


def test_a_home_cannot_fill_the_relay_by_restoring_channels_that_never_were() -> None:
    world = World(config=ServerConfig(max_channels=1_600, channels_per_address=25, **FAST))
    for source in HOME:
        session, cookie = identifier(source, 0), world.cookie(source)
        for number in range(25):
            channel = b"\xc0" + identifier(source, number)[-7:]
            world.ask(source, messages.Restore(channel, 0, bytes(16)), session=session, cookie=cookie)
    assert len(world.server.relay) == 100
    listener, dialer = world.host("listener"), world.host("dialer")
    listener.client.listen(world.now, ROOMS)
    dialer.client.dial(world.now, ROOMS)
    world.run(1)
    assert dialer.of(messages.Introduced)
    world.run(80)  # the other side of none of them has come
    assert len(world.server.relay) == 1


SITES = [Address(f"198.{18 + n // 250}.{n % 250}.1", 1000) for n in range(100)]
SMALL: dict[str, Any] = {"max_room_entries": 4_000, "rooms_per_address": 400, "rooms_per_session": 400}


def take(world: World, source: Address, count: int, number: int = 0) -> int:
    """How many rooms one session gets that asks for so many and holds none."""
    session, cookie, got = identifier(source, number), world.cookie(source), 0
    for start in range(0, count, messages.MAX_ROOMS):
        rooms = tuple(session[:12] + at.to_bytes(4, "big") for at in range(start, min(count, start + messages.MAX_ROOMS)))
        (answer,) = world.ask(source, messages.Join(Role.LISTEN, rooms), session=session, cookie=cookie)
        got += answer.granted.bit_count() if isinstance(answer, messages.Done) else 0
    return got


def crowded(**options: Any) -> World:
    """A hundred sites have come one after the other, and each has taken all that it got: the first most."""
    world = World(config=ServerConfig(**SMALL, **FAST, **options))
    for source in SITES:
        take(world, source, 400)
    return world


def test_two_meet_and_are_relayed_though_a_hundred_sites_take_all_rooms_that_they_get() -> None:
    world = crowded()
    registry = world.server.registry
    assert registry.room_shares.used == world.config.max_room_entries
    listener, dialer = world.host("listener", "203.0.113.1"), world.host("dialer", "192.0.2.1")
    listener.client.listen(world.now, ROOMS)
    world.run(1)
    dialer.client.dial(world.now, ROOMS)
    world.run(1)
    (introduced,) = dialer.of(messages.Introduced)
    dialer.relay(introduced.channel.channel, b"\x80hello")
    world.run(1)
    assert world.server.relay.relayed_bursts == 1
    assert registry.room_shares.used == world.config.max_room_entries
    assert world.server.counters()["rooms_given_up"] >= 6


def test_rooms_are_given_back_by_the_last_that_hold_many_and_not_by_who_was_there_before() -> None:
    world = World(config=ServerConfig(**SMALL, **FAST))
    large, small = Address("203.0.113.1", 1000), [Address(f"192.0.{n}.1", 1000) for n in range(20)]
    assert take(world, large, 300) == 300
    assert [take(world, source, 3) for source in small] == [3] * 20
    for source in SITES[:20]:
        take(world, source, 200)
    late = [Address(f"203.1.{n}.1", 1000) for n in range(50)]
    assert [take(world, source, 3) for source in late] == [3] * 50
    held = world.server.registry.room_shares.held
    assert world.server.registry.given_up > 50
    assert held(prefixes(large.host)) == 300
    assert {held(prefixes(source.host)) for source in (*small, *late)} == {3}


def test_when_there_are_no_more_rooms_one_address_gets_half_of_what_is_usual() -> None:
    world = crowded()
    shares = world.server.registry.room_shares
    usual = shares.usual
    assert usual == 32  # 4,000 for 100
    newcomer = Address("203.0.113.1", 1000)
    assert take(world, newcomer, 400) == SCARCE_SHARE * usual
    assert take(world, Address(newcomer.host, 7), 400, number=1) == 0  # nor by another session
    assert shares.held(prefixes(newcomer.host)) == SCARCE_SHARE * usual


def test_what_is_refused_costs_less_than_what_is_given() -> None:
    """Else a crowd that is told no would take the server's time by asking again."""
    source = SITES[0]
    full, empty = crowded(), World(config=ServerConfig(**SMALL, **FAST))
    costs = []
    for world in (full, empty):
        cookie, rooms = world.cookie(source), tuple(bytes((number,)) * 16 for number in range(messages.MAX_ROOMS))
        data = messages.encode_request(7, b"s" * 16, messages.Join(Role.LISTEN, rooms), cookie=cookie)
        costs.append(instructions(lambda world=world, data=data: world.server.handle_datagram(world.now, V4, source, data)))
    assert costs[0] < costs[1]


def test_who_has_given_rooms_back_registers_again_what_it_can() -> None:
    world = World(config=ServerConfig(**SMALL, **FAST))
    for source in SITES[:40]:
        take(world, source, 400)
    owner = world.host("owner", "203.0.113.1")
    rooms = [b"room of a friend".replace(b"room", n.to_bytes(4, "big")) for n in range(6)]
    owner.client.listen(world.now, rooms)
    world.run(1)
    registry = world.server.registry
    assert registry.room_shares.held(prefixes("203.0.113.1")) == 6
    (session,) = (each for each in registry.sessions.values() if each.remote.host == "203.0.113.1")
    registry.leave(session, set(rooms[:2]))  # as if it had held most
    session.has_lost = True
    world.run(8)
    assert session.listening == set(rooms)
    assert not session.has_lost


def test_a_wish_that_crosses_the_loss_of_rooms_does_not_hide_it() -> None:
    world = World(config=ServerConfig(**SMALL, **FAST))
    owner = world.host("owner", "203.0.113.1")
    rooms = [bytes((number,)) * 16 for number in range(6)]
    owner.client.listen(world.now, rooms)
    world.run(1)
    registry = world.server.registry
    (session,) = registry.sessions.values()
    registry.leave(session, set(rooms[:2]))  # as if it had held most
    session.has_lost = True
    owner.client.dial(world.now, [b"another one here"])
    world.run(0.5)
    assert session.dialing
    assert session.listening == set(rooms[2:])
    world.run(8)
    assert session.listening == set(rooms)
    assert not session.has_lost


def test_a_room_in_which_two_have_met_is_given_back_last() -> None:
    world = World(config=ServerConfig(max_room_entries=200, rooms_per_address=36, **FAST))
    for source in SITES[:33]:
        take(world, source, 5)
    listener, dialer = world.host("listener", "203.0.113.1"), world.host("dialer", "192.0.2.1")
    rooms = [bytes((number,)) * 16 for number in range(LOOKED_AT - 2)]
    listener.client.listen(world.now, rooms)
    world.run(1)
    dialer.client.dial(world.now, rooms[3:4])
    world.run(1)
    assert dialer.of(messages.Introduced)
    registry = world.server.registry
    (session,) = (each for each in registry.sessions.values() if each.remote.host == "203.0.113.1")
    for source in SITES[33:66]:
        assert take(world, source, 1) == 1
    assert registry.given_up == 13
    assert session.listening == {rooms[3]}


def test_a_table_that_many_sites_have_filled_lets_a_newcomer_in() -> None:
    world = World(config=ServerConfig(max_sessions=400, sessions_per_address=25, **FAST))
    sources = [Address(f"2a00:{n:x}::1", 1000) for n in range(1, 30)]
    for source in sources:
        for number in range(25):
            world.ask(source, messages.Allocate(), session=identifier(source, number), cookie=world.cookie(source))
    assert 360 <= len(world.server.registry.sessions) < 400
    (answer,) = world.ask(FRIEND, messages.Allocate(), cookie=world.cookie(FRIEND))
    assert isinstance(answer, messages.Allocated)


def test_sessions_are_not_gathered_at_one_address_by_moving_there() -> None:
    """An address makes as many as it may and hands them to another, which has as many already."""
    world = World(config=ServerConfig(sessions_per_address=10, nameplates_per_address=10, **FAST))
    maker, keeper = Address("198.18.0.1", 1000), Address("198.18.1.1", 1000)
    for number in range(20):
        session = identifier(maker, number)
        world.ask(maker, messages.Allocate(), session=session, cookie=world.cookie(maker))
        (answer,) = world.ask(keeper, messages.Refresh(), session=session, cookie=world.cookie(keeper))
        assert isinstance(answer, messages.Welcome) == (number < 10)
    registry = world.server.registry
    assert registry.session_shares.held(prefixes(keeper.host)) == registry.nameplate_shares.held(prefixes(keeper.host)) == 10
    assert registry.session_shares.held(prefixes(maker.host)) == 10
    assert isinstance(answer, messages.Refused)
    assert answer.code == RefusalCode.FULL


def test_a_channel_does_not_move_to_an_address_that_has_its_share() -> None:
    world = World(config=ServerConfig(channels_per_address=2, **FAST))
    dialers = [world.host(f"dialer {n}", f"198.18.{n}.1", port=5000 + n) for n in range(3)]
    world.host("listener", "198.19.0.1").client.listen(world.now, ROOMS)
    for dialer in dialers:
        dialer.client.dial(world.now, ROOMS)
    world.run(1)
    for dialer in dialers:
        dialer.addresses = {socket_id: Address("198.18.9.9", address.port) for socket_id, address in dialer.addresses.items()}
        dialer.client.network_changed(world.now)
        world.run(1)
    assert world.server.relay.shares.held(prefixes("198.18.9.9")) == 2
    assert world.server.relay.drops["relay_address_quota"] >= 1


def test_who_dials_a_listener_pays_for_the_channels() -> None:
    """A peer that dials 257 times shuts neither the listener out nor anybody who dials it."""
    world = World(config=ServerConfig(**FAST))
    listener = world.host("listener", "198.18.0.1")
    listener.client.listen(world.now, ROOMS)
    world.run(1)
    codes = set()
    for number in range(300):
        source = Address("198.18.66.6", 1000 + number // 4)
        session = identifier(source, number // 4)
        room = ROOMS[number % 3]
        (answer,) = world.ask(source, messages.Join(Role.DIAL, (room,)), session=session, cookie=world.cookie(source))
        codes.add(answer.code if isinstance(answer, messages.Refused) else 0)
        world.run(0.05)
    relay, config = world.server.relay, world.config
    assert codes == {0, RefusalCode.QUOTA}
    assert len(relay) == relay.shares.held(prefixes("198.18.66.6")) == 3 * config.channels_per_room
    assert relay.drops["relay_room_quota"]
    assert not relay.shares.held(prefixes("198.18.0.1"))
    friend = world.host("friend", "198.18.1.1")
    listener.client.listen(world.now, [b"another pair's room"[:16]])
    friend.client.dial(world.now, [b"another pair's room"[:16]])
    world.run(1)
    assert friend.of(messages.Introduced)


def test_in_a_full_room_a_dialer_replaces_a_channel_of_its_own_that_came_to_nothing() -> None:
    """A client that gives nothing back dials a listener again and again; the channel that both use is left alone."""
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    listener.client.listen(world.now, ROOMS[:1])
    for _ in range(60):
        dialer.client.dial(world.now, ROOMS[:1])
        world.run(5)
        (used, *_) = [event.channel.channel for event in dialer.of(messages.Introduced)]
        for host in (listener, dialer):
            host.relay(used, b"\x80still here")
    assert not dialer.of(messages.Refused)
    introduced = [event.channel.channel for event in dialer.of(messages.Introduced)]
    assert len(introduced) == 60
    for host in (listener, dialer):
        assert [info.channel for info in host.client.channels] == [used, *introduced[1 - world.config.channels_per_room :]]
    assert len(world.server.relay) == world.config.channels_per_room
    other = world.host("other")
    other.client.dial(world.now, ROOMS[:1])
    world.run(1)
    assert not other.of(messages.Introduced)  # what others pay for is not replaced


def test_nobody_hears_of_a_channel_that_has_ended_meanwhile() -> None:
    """The news of a channel is repeated until it is acknowledged: not beyond the end of the channel."""
    world = World(config=ServerConfig(channels_per_room=1, channel_unused=Seconds(0.1)))
    listener, dialer = world.host("listener"), world.host("dialer")
    listener.client.listen(world.now, ROOMS[:1])
    world.run(1)
    listener.is_deaf = True
    for _ in range(2):
        dialer.client.dial(world.now, ROOMS[:1])
        world.run(0.2)
    listener.is_deaf = False
    world.run(5)
    (channel,) = [event.channel.channel for event in listener.of(messages.Introduced)]
    assert channel == dialer.of(messages.Introduced)[-1].channel.channel


def test_a_home_cannot_take_all_claims_on_the_code_of_a_room() -> None:
    world = World(config=ServerConfig(**FAST))
    (code,) = world.ask(FRIEND, messages.Allocate(0, 32), session=b"o" * 16, cookie=world.cookie(FRIEND))
    assert isinstance(code, messages.Allocated)

    def claim(source: Address) -> bool:
        (answer,) = world.ask(
            source, messages.Claim(code.nameplate, b"x"), session=identifier(source, 0), cookie=world.cookie(source)
        )
        return isinstance(answer, messages.ClaimAccepted)

    assert sum(claim(source) for source in HOME) == 8
    assert claim(Address("198.18.4.4", 1000))


def test_a_server_that_says_slow_down_again_and_again_is_not_lost() -> None:
    world = World(config=ServerConfig(requests_per_second=0.001, request_burst=1))
    host = world.host("impatient")
    host.client.listen(world.now, ROOMS)
    for _ in range(4):
        world.run(10)
        host.client.dial(world.now, ROOMS)
    assert world.server.drops["server_request_rate"] > 10
    assert not host.of(events.Lost)


def test_rates_and_lockouts_count_a_home_as_few_addresses() -> None:
    now = Instant(5.0)
    rate = TreeBuckets(1.0, 10, b"salt")
    assert sum(rate.take(now, prefixes(source.host)) for source in HOME[:8] for _ in range(20)) == 40
    friends = [f"198.18.{site}.1" for site in range(3)]  # one may share a slot of the table with somebody of the home
    assert sum(rate.take(now, prefixes(friend)) for friend in friends) >= 2
    lockouts = Lockouts(limit=5, refill=Seconds(60.0), duration=Seconds(120.0), size=1000)
    guesses = 0
    for source in HOME:
        while not lockouts.remaining(now, prefixes(source.host)):
            lockouts.count(now, prefixes(source.host))
            guesses += 1
    assert guesses == 20
    assert not lockouts.remaining(now, prefixes("2a00:1:2:4400::1"))
    later = Instant(now + 121.0)
    assert not lockouts.remaining(later, prefixes(HOME[9].host))
    lockouts.sweep(Instant(now + 1000))
    assert not len(lockouts)


@pytest.mark.parametrize(
    ("guessers", "neighbour"),
    [
        ([f"203.0.113.{last}" for last in range(1, 51)], "203.0.113.200"),
        ([f"2a00:1:{site:x}::1" for site in range(1, 65)], "2a00:1:ff::1"),
    ],
    ids=["an IPv4 /24", "a provider's IPv6 /32"],
)
def test_those_who_guess_lock_out_nobody_who_only_lives_near_them(guessers: list[str], neighbour: str) -> None:
    now = Instant(5.0)
    lockouts = Lockouts(limit=5, refill=Seconds(60.0), duration=Seconds(120.0), size=1000)
    for guesser in guessers:
        for _ in range(5):
            lockouts.count(now, prefixes(guesser))
        assert lockouts.remaining(now, prefixes(guesser))
    assert not lockouts.remaining(now, prefixes(neighbour))
    assert not lockouts.is_last(now, prefixes(neighbour))


@pytest.mark.parametrize("lifetime", [5.0])
def test_all_shares_are_given_back_when_sessions_end(lifetime: float) -> None:
    world = World(config=ServerConfig(session_lifetime=Seconds(lifetime), **FAST))
    for source in HOME[:5]:
        register(world, source, 0)
    world.now = Instant(world.now + 60)
    world.server.handle_timeout(world.now)
    registry = world.server.registry
    for shares in (registry.session_shares, registry.room_shares):
        assert not shares.used
        assert not any(shares._counts.values())
