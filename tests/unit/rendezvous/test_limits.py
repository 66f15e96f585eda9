"""The limits of a server by default: each is reached, and what is beyond it is refused, dropped or ends."""

from __future__ import annotations

import random

import pytest

from tests.unit.rendezvous.world import V4, World, entropy_of
from tunnel.core.prefixes import prefixes
from tunnel.rendezvous import messages
from tunnel.rendezvous.admission import BUCKET_SLOTS, MAX_COOKIES, Buckets, Cookies, Lockouts
from tunnel.rendezvous.directory import Directory
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import RefusalCode
from tunnel.rendezvous.numbers import DRAW_EPOCH, DRAWN_NUMBERS, Numbers
from tunnel.rendezvous.relay import Relay
from tunnel.rendezvous.requests import MAX_REQUESTS, PendingRequest, RequestTable
from tunnel.rendezvous.server import CHANNEL_SLICE, CHANNEL_SWEEP_INTERVAL, MAX_QUEUE, SLICE, SLICE_PAUSE, SWEEP_INTERVAL
from tunnel.units import Address, Instant

CONFIG = ServerConfig()
A, B = Address("198.18.0.1", 1000), Address("198.18.0.2", 1000)


def code_of(world: World) -> int:
    """Of a fresh host, the last one."""
    owner = world.host("owner")
    owner.client.allocate(world.now)
    world.run(1)
    return int(owner.of(messages.Allocated)[-1].nameplate)


def test_so_many_cookies_are_remembered_and_all_others_are_made_again_alike() -> None:
    cookies = Cookies(entropy_of(1))
    now = Instant(1000.0)
    told = {Address(f"20.{n >> 8}.{n & 255}.1", 1000): b"" for n in range(MAX_COOKIES + 100)}
    for remote in told:
        told[remote] = cookies.issue(now, remote)
        assert len(cookies._known) <= MAX_COOKIES
    assert len(cookies._known) == 100
    assert all(cookies.check(now, remote, cookie) == b"" for remote, cookie in told.items())
    assert len(set(told.values())) == len(told)


def test_a_code_ends_with_its_lifetime_and_not_before() -> None:
    world = World()
    number = code_of(world)
    early, late = world.host("early"), world.host("late")
    world.run(CONFIG.nameplate_lifetime - 2)
    assert number in world.server.registry.nameplates
    early.client.claim(world.now, number, b"x")
    world.run(1 + SWEEP_INTERVAL)
    assert early.of(messages.ClaimAccepted)
    assert number not in world.server.registry.nameplates
    late.client.claim(world.now, number, b"x")
    world.run(1)
    assert [event.code for event in late.of(messages.Refused)] == [RefusalCode.UNKNOWN_NAMEPLATE]


def test_a_mailbox_takes_so_many_posts_and_ends_with_its_lifetime() -> None:
    world = World()
    claimer = world.host("claimer")
    claimer.client.claim(world.now, code_of(world), b"x")
    world.run(1)
    (accepted,) = claimer.of(messages.ClaimAccepted)
    for _ in range(CONFIG.posts_per_mailbox):
        claimer.client.post(world.now, accepted.mailbox, b"x")
        world.run(0.5)
    owner = world.hosts[-1]
    assert len(owner.of(messages.Posted)) == CONFIG.posts_per_mailbox
    assert not claimer.of(messages.Refused)
    claimer.client.post(world.now, accepted.mailbox, b"one too many")
    world.run(1)
    assert [event.code for event in claimer.of(messages.Refused)] == [RefusalCode.FULL]
    assert len(owner.of(messages.Posted)) == CONFIG.posts_per_mailbox
    (mailbox,) = world.server.registry.mailboxes.values()
    world.run(mailbox.expires_at - world.now - 0.1)
    assert CONFIG.mailbox_lifetime - 12 < mailbox.expires_at - 1000.0 < CONFIG.mailbox_lifetime + 12
    assert world.server.registry.mailboxes
    world.run(0.1 + SWEEP_INTERVAL)
    assert not world.server.registry.mailboxes


def test_an_address_draws_its_codes_from_few_numbers_until_the_epoch_ends_and_then_from_others() -> None:
    numbers = Numbers(CONFIG, entropy_of(1), None)

    def drawn(now: float) -> set[int | None]:
        return {numbers.draw(Instant(now), A.host, 0, ()) for _ in range(1_000)}

    began = 5 * DRAW_EPOCH
    first = drawn(began)
    assert DRAWN_NUMBERS / 2 < len(first) <= DRAWN_NUMBERS
    assert drawn(began + DRAW_EPOCH - 0.1) == first
    assert len(drawn(began + DRAW_EPOCH) & first) <= 2  # by chance: sixteen of nine hundred, twice


# the relay


def test_a_channel_that_one_side_restored_waits_so_long_for_the_other() -> None:
    relay = Relay(CONFIG, entropy_of(2))
    now = Instant(50.0)
    relay.restore(now, b"\xc7channel", 0, bytes(16), V4, A, b"a")
    assert relay.expired(Instant(now + CONFIG.restore_patience), lambda _session: True) == []
    (expired,) = relay.expired(Instant(now + CONFIG.restore_patience + 0.1), lambda _session: True)
    assert expired.id == b"\xc7channel"
    relay.restore(Instant(now + 1), b"\xc7channel", 1, bytes(16), V4, B, b"b")
    assert relay.expired(Instant(now + CONFIG.restore_patience + 0.1), lambda _session: True) == []


def test_a_channel_ends_when_one_side_was_silent_too_long_and_its_session_is_gone() -> None:
    relay = Relay(CONFIG, entropy_of(2))
    now = Instant(50.0)
    channel = relay.open(now, (V4, A, b"a"), (V4, B, b"b"))
    assert channel is not None
    later = Instant(now + CONFIG.channel_idle + 0.1)
    data = memoryview(channel.id + bytes(40))
    relay.forward(later, V4, A, data, 0, len(data), 0, [], [])  # the other one speaks on
    assert relay.expired(Instant(now + CONFIG.channel_idle), lambda session: session == b"a") == []
    assert relay.expired(later, lambda _session: True) == []
    assert relay.expired(later, lambda session: session == b"a") == [channel]


def test_the_server_ends_such_a_channel_and_tells_who_is_left() -> None:
    world = World()
    claimer = world.host("claimer")
    claimer.client.claim(world.now, code_of(world), b"x")
    world.run(1)
    (channel,) = world.server.relay
    claimer.is_deaf = claimer.blocks_udp = True
    world.server.registry.sessions[channel.sides[1].session].channels.clear()  # as after Restore by another session
    world.run(CONFIG.channel_idle + CHANNEL_SWEEP_INTERVAL + 2)
    assert not len(world.server.relay)
    assert [event.channel.channel for event in world.hosts[-1].of(messages.Gone) if event.channel] == [channel.id]


# what strangers can make it hold


def test_any_number_of_strangers_shares_a_table_of_fixed_size() -> None:
    buckets = Buckets(0.0, 1.0, b"salt")
    allowed = sum(buckets.take(Instant(1.0), number) for number in range(4 * BUCKET_SLOTS))
    assert 0.9 * BUCKET_SLOTS < allowed <= BUCKET_SLOTS
    assert len(buckets._full) == BUCKET_SLOTS


def test_answers_that_no_socket_takes_are_dropped_beyond_the_queue_and_counted() -> None:
    world = World()
    question = messages.encode_request(1, bytes(16), messages.Hello())
    for number in range(MAX_QUEUE + 10):
        world.server.handle_datagram(world.now, V4, Address(A.host, 1000 + number), question)
    assert world.server.drops["server_queue"] == 10
    sent = [transmit.remote.port for transmit in iter(lambda: world.server.poll_transmit(world.now), None)]
    assert sent == list(range(1000, 1000 + MAX_QUEUE))
    world.server.handle_datagram(world.now, V4, B, question)
    assert world.server.poll_transmit(world.now) is not None


# what a client keeps


def test_so_many_requests_wait_for_an_answer_and_the_oldest_goes() -> None:
    table = RequestTable(random.Random(1))
    for number in range(MAX_REQUESTS + 3):
        table.add(PendingRequest(number, messages.Refresh(), None, Instant(1.0)))
    assert [request.transaction for request in table] == list(range(3, MAX_REQUESTS + 3))


def test_sessions_that_all_expire_at_once_end_a_few_at_a_time() -> None:
    world = World()
    count = 3 * SLICE + 10
    for number in range(count):
        source = Address(f"198.{18 + number // 250}.{number % 250}.1", 1_000)
        session = number.to_bytes(16, "big")
        cookie = world.cookie(source)
        world.ask(source, messages.Join(messages.Role.LISTEN, (session,)), session=session, cookie=cookie)
    registry = world.server.registry
    assert len(registry.sessions) == count
    world.now = Instant(world.now + CONFIG.session_lifetime + SWEEP_INTERVAL)
    left = []
    for _ in range(4):
        world.server.handle_timeout(world.now)
        left.append(len(registry.sessions))
        if left[-1]:
            assert world.server.poll_timeout() == Instant(world.now + SLICE_PAUSE)
            world.now = Instant(world.now + SLICE_PAUSE)
    assert left == [count - SLICE, count - 2 * SLICE, 10, 0]
    assert not registry.rooms
    due = world.server.poll_timeout()
    assert due is not None
    assert due > world.now + SLICE_PAUSE


def test_all_channels_are_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    seen: list[int] = []
    monkeypatch.setattr(Relay, "is_looking", property(lambda _: len(seen) < 3))
    monkeypatch.setattr(Relay, "expired", lambda _relay, _now, _is_alive, most: seen.append(most) or [])
    began = world.now
    world.run(CHANNEL_SWEEP_INTERVAL + 3 * SLICE_PAUSE)
    assert seen == [CHANNEL_SLICE] * 3
    assert world.now == Instant(began + CHANNEL_SWEEP_INTERVAL + 3 * SLICE_PAUSE)


def test_codes_begin_with_so_many_digits() -> None:
    assert len(str(code_of(World()))) == CONFIG.first_nameplate_digits
    assert len(str(code_of(World(config=ServerConfig(first_nameplate_digits=6))))) == 6


def test_a_wrong_claim_is_forgiven_after_its_time() -> None:
    lockouts = Lockouts(
        limit=CONFIG.wrong_claims, refill=CONFIG.wrong_claim_refill, duration=CONFIG.lockout, size=CONFIG.max_lockouts
    )
    keys, now = prefixes(A.host), Instant(100.0)
    for _ in range(CONFIG.wrong_claims - 1):
        assert not lockouts.is_last(now, keys)
        lockouts.count(now, keys)
    assert lockouts.is_last(now, keys)
    assert lockouts.is_last(Instant(now + CONFIG.wrong_claim_refill - 1), keys)
    assert not lockouts.is_last(Instant(now + CONFIG.wrong_claim_refill), keys)


def test_who_asked_the_directory_is_listed_for_its_lifetime() -> None:
    directory = Directory(lifetime=CONFIG.directory_lifetime, size=CONFIG.directory_entries)
    directory.ask(Instant(0.0), A)
    assert A.host.encode() in directory.ask(Instant(CONFIG.directory_lifetime - 1), B)
    assert A.host.encode() not in directory.ask(Instant(CONFIG.directory_lifetime + 1), B)
