"""What the server says unasked: to a session that does not answer never more than it sent itself."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.rendezvous.world import SERVER, V4, World
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import ResponseMessage
from tunnel.rendezvous.pushes import MAX_CREDIT
from tunnel.units import Address, Instant, PathKey

DEAF, LOUD = Address("198.18.0.1", 1000), Address("198.18.0.2", 1000)
ROOM = b"r" * 16
QUICK = ServerConfig(requests_per_second=1e6, request_burst=10**6, claim_rate=1e6, claim_burst=10**6)


def ask(
    world: World, source: Address, message: messages.RequestMessage, session: bytes, cookies: dict[Address, bytes]
) -> ResponseMessage:
    """Without a Hello for each."""
    if source not in cookies:
        cookies[source] = world.cookie(source)
    (answer,) = world.ask(source, message, session=session, cookie=cookies[source])
    return answer


def pass_time(world: World, seconds: float, step: float = 0.25) -> None:
    """The server's own time-outs, with all they send counted."""
    end = world.now + seconds
    while world.now < end:
        world.now = Instant(world.now + step)
        world.server.handle_timeout(world.now)
        while (transmit := world.server.poll_transmit(world.now)) is not None:
            world.bytes_out[transmit.remote] += len(transmit.buffer)


def test_posts_to_a_deaf_session_are_not_repeated_beyond_what_it_sent_itself() -> None:
    world = World(config=QUICK)
    cookies: dict[Address, bytes] = {}
    for index in range(4):
        allocated = ask(world, DEAF, messages.Allocate(), b"d" * 16, cookies)
        assert isinstance(allocated, messages.Allocated)
        claim = ask(world, LOUD, messages.Claim(allocated.nameplate, b"x" * 512), b"l" * 16, cookies)
        assert isinstance(claim, messages.ClaimAccepted)
        for _ in range(15):
            ask(world, LOUD, messages.Post(claim.mailbox, b"x" * 512), b"l" * 16, cookies)
        pass_time(world, 1.0 + index)
    pass_time(world, 100)
    assert world.bytes_out[DEAF] <= world.bytes_in[DEAF]
    assert world.server.drops["server_push_waits"]


def test_dialing_deaf_listeners_again_and_again_sends_them_no_more_than_they_sent() -> None:
    world = World(config=QUICK)
    cookies: dict[Address, bytes] = {}
    deaf = [Address(f"198.18.{index}.1", 1000) for index in range(40)]
    rooms = tuple(bytes((index,)) * 16 for index in range(10))
    for index, source in enumerate(deaf):
        ask(world, source, messages.Join(0, (rooms[index % 10],)), bytes((index,)) * 16, cookies)
    for _ in range(60):
        ask(world, LOUD, messages.Join(1, rooms), b"l" * 16, cookies)
        pass_time(world, 0.5)
        held = list(world.server.registry.sessions[b"l" * 16].channels)
        for start in range(0, len(held), messages.MAX_ROOMS):
            ask(world, LOUD, messages.Leave((), tuple(held[start : start + messages.MAX_ROOMS])), b"l" * 16, cookies)
    pass_time(world, 100)
    for source in (*deaf, LOUD):
        assert world.bytes_out[source] <= world.bytes_in[source]


def test_credit_earned_at_one_address_is_not_spent_at_another() -> None:
    world = World(config=QUICK)
    cookies: dict[Address, bytes] = {}
    victim = Address("198.18.99.99", 9)
    ask(world, LOUD, messages.Join(0, (ROOM,)), b"d" * 16, cookies)
    for _ in range(20):
        ask(world, LOUD, messages.Refresh(), b"d" * 16, cookies)
    ask(world, victim, messages.Refresh(), b"d" * 16, cookies)
    for index in range(40):
        source = Address(f"198.18.7.{index}", 1)
        ask(world, source, messages.Join(1, (ROOM,)), bytes((index,)) * 16, cookies)
    pass_time(world, 100)
    assert world.bytes_out[victim] <= world.bytes_in[victim]


def test_what_had_to_wait_comes_as_soon_as_the_session_is_heard() -> None:
    world = World(config=QUICK)
    listener = world.host("listener")
    listener.client.listen(world.now, [ROOM])
    world.run(1)
    listener.is_deaf = True
    cookies: dict[Address, bytes] = {}
    for index in range(12):
        ask(world, Address(f"198.18.7.{index}", 1), messages.Join(1, (ROOM,)), bytes((index,)) * 16, cookies)
    world.run(2)
    assert not listener.of(messages.Introduced)
    assert world.server.drops["server_push_waits"]
    listener.is_deaf = False
    listener.client.doubt(world.now, PathKey(V4, SERVER[V4], b""))  # asks at once
    world.run(0.2)
    assert len(listener.of(messages.Introduced)) == 12


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_fifty_peers_that_come_back_at_once_are_all_introduced(loss: float) -> None:
    world = World(config=QUICK)
    listener = world.host("listener")
    rooms = [bytes((index,)) * 16 for index in range(50)]
    listener.client.listen(world.now, rooms)
    world.run(1)
    world.loss = loss
    dialers = [world.host(f"dialer{index}") for index in range(50)]
    for dialer, room in zip(dialers, rooms, strict=True):
        dialer.client.dial(world.now, [room])
    world.run(1 if not loss else 15)
    assert len(listener.of(messages.Introduced)) == 50
    assert all(dialer.of(messages.Introduced) for dialer in dialers)


def test_a_listener_at_rest_earns_no_more_than_the_limit() -> None:
    world = World()
    listener = world.host("listener")
    listener.client.listen(world.now, [ROOM])
    for _ in range(30):
        world.run(7)
        (session,) = world.server.registry.sessions.values()
        assert session.credit <= MAX_CREDIT
    assert session.credit > MAX_CREDIT - 600


def test_after_a_push_that_nobody_acknowledged_nothing_is_repeated_until_the_session_is_heard() -> None:
    world = World(config=QUICK)
    cookies: dict[Address, bytes] = {}
    ask(world, DEAF, messages.Join(0, (ROOM,)), b"d" * 16, cookies)
    for _ in range(20):
        ask(world, DEAF, messages.Refresh(), b"d" * 16, cookies)
    sessions = itertools.count(1)

    def dial() -> None:
        ask(world, LOUD, messages.Join(1, (ROOM,)), next(sessions).to_bytes(16, "big"), cookies)

    dial()
    pass_time(world, 11)
    before = world.bytes_out[DEAF]
    assert before > 0
    for _ in range(10):
        dial()
        pass_time(world, 1)
    assert world.bytes_out[DEAF] == before
    ask(world, DEAF, messages.Refresh(), b"d" * 16, cookies)
    assert world.bytes_out[DEAF] > before + 200
