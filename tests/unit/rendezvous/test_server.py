"""The server against strangers, floods, thieves and its own limits."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.unit.rendezvous.strangers import A, B, has_no_state, stun_ask
from tests.unit.rendezvous.world import SERVER, V4, World, entropy_of
from tunnel.core.prefixes import prefixes
from tunnel.errors import ConfigurationError
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous import messages
from tunnel.rendezvous.access import AccessList
from tunnel.rendezvous.admission import Cookies
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import RefusalCode, Role
from tunnel.units import Address, Instant, Seconds

ROOM = b"r" * 16
REQUESTS: list[messages.RequestMessage] = [
    messages.Hello(),
    messages.Refresh(),
    messages.Allocate(),
    messages.Release(7),
    messages.Claim(731, b"b" * 512),
    messages.Post(b"m" * 8, b"b" * 512),
    messages.Join(0, (ROOM,)),
    messages.Join(1, (ROOM,) * 24),
    messages.Leave((ROOM,)),
    messages.Rebind(b"\xc0" + bytes(7), 0, 1, bytes(16)),
    messages.Restore(b"\xc0" + bytes(7), 0, bytes(16)),
    messages.Goodbye(),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("cookie", [b"", bytes(17)])
def test_the_unproven_get_a_cookie_no_state_and_fewer_bytes_than_they_sent(
    message: messages.RequestMessage, cookie: bytes
) -> None:
    world = World()
    for _ in range(50):
        answers = world.ask(A, message, cookie=cookie)
        assert all(isinstance(answer, messages.Retry) for answer in answers)
        assert len(answers) == (not isinstance(message, messages.Goodbye))
    assert has_no_state(world.server)
    assert world.bytes_out[A] < world.bytes_in[A] / 3


def test_every_datagram_that_is_not_relayed_counts_as_somebody_besides_a_pair() -> None:
    world = World()
    for data in (messages.encode_request(1, b"s" * 16, messages.Hello()), b"rubbish", bytes(20)):
        world.server.handle_batch(world.now, V4, A, memoryview(data), len(data))
    assert world.server.relay.ceiling.others == 3


def test_what_is_asked_without_a_proof_is_not_even_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that refusing costs a fraction of serving; whatever stands there, the answer is a cookie."""
    world = World()
    monkeypatch.setattr(messages, "decode_request", lambda *_: pytest.fail("decoded"))
    for cookie in (b"", bytes(17), os.urandom(17), b"x" * 32):
        data = bytearray(messages.encode_request(7, b"s" * 16, messages.Join(0, (ROOM,)), cookie=cookie))
        data[27 + len(cookie) + 3 :] = b"\xc1" * len(data[27 + len(cookie) + 3 :])  # no msgpack at all
        world.server.handle_datagram(world.now, V4, A, bytes(data))
        transmit = world.server.poll_transmit(world.now)
        assert transmit is not None
        answer = messages.decode_response(transmit.buffer)
        assert answer.transaction == 7
        assert isinstance(answer.message, messages.Retry)


def test_a_wrong_cookie_costs_one_mac_and_gets_a_fresh_one() -> None:
    cookies = Cookies(entropy_of(1))
    right = cookies.issue(Instant(1000.0), A)
    for wrong in (b"", bytes(17), right[:16], right + b"x", right[:1] + bytes(16)):
        assert cookies.check(Instant(1000.0), A, wrong) == right
    assert cookies.check(Instant(1000.0), A, right) == b""
    assert cookies.check(Instant(1100.0), A, right) == b""
    assert cookies.check(Instant(1300.0), A, right) == cookies.issue(Instant(1300.0), A) != right


def test_a_hello_in_other_words_changes_nothing() -> None:
    """An array with a long header is msgpack too: it is answered, and makes no more of a stranger than a request would."""
    world = World()
    cookie = world.cookie(A)
    head = messages.encode_request(7, b"s" * 16, messages.Hello(), cookie=cookie)[: 27 + len(cookie) + 1]
    data = (head + (4).to_bytes(2, "big") + b"\xdc\x00\x01\x01").ljust(512, b"\0")
    world.server.handle_datagram(world.now, V4, A, data)
    transmit = world.server.poll_transmit(world.now)
    assert transmit is not None
    assert len(transmit.buffer) < len(data)


def test_short_requests_are_not_answered() -> None:
    world = World()
    data = messages.encode_request(1, b"s" * 16, messages.Hello())
    world.server.handle_datagram(world.now, V4, A, data[:511])
    assert world.server.poll_transmit(world.now) is None
    assert world.server.drops["server_malformed"] == 1


def test_a_cookie_is_good_for_one_address_and_some_minutes() -> None:
    """What `check` returns is a fresh one, in place of one that is not good."""
    cookies = Cookies(entropy_of(1))
    cookie = cookies.issue(Instant(1000.0), A)
    assert not cookies.check(Instant(1000.0), A, cookie)
    assert not cookies.check(Instant(1100.0), A, cookie)
    assert cookies.check(Instant(1300.0), A, cookie)
    assert cookies.check(Instant(1000.0), B, cookie)
    assert cookies.check(Instant(1000.0), Address(A.host, 1001), cookie)
    assert Cookies(entropy_of(2)).check(Instant(1000.0), A, cookie)


def test_another_version_is_refused_in_words() -> None:
    world = World()
    data = bytearray(messages.encode_request(5, b"s" * 16, messages.Hello()))
    data[1] = 9
    world.server.handle_datagram(world.now, V4, A, bytes(data))
    transmit = world.server.poll_transmit(world.now)
    assert transmit is not None
    response = messages.decode_response(transmit.buffer)
    assert response.transaction == 5
    assert isinstance(response.message, messages.Refused)
    assert response.message.code == RefusalCode.VERSION
    assert len(transmit.buffer) < len(data)


def test_registrants_are_capped_and_a_newcomer_never_evicts_one() -> None:
    world = World(config=ServerConfig(listeners_per_room=2, dialers_per_room=3))
    for role, cap in ((Role.LISTEN, 2), (Role.DIAL, 3)):
        for index in range(10):
            source = Address(f"198.18.{int(role)}.{index}", 1000)
            session = bytes((int(role), index)) * 8
            (answer,) = world.ask(source, messages.Join(int(role), (ROOM,)), session=session, cookie=world.cookie(source))
            assert answer == messages.Done(granted=int(index < cap))
    room = world.server.registry.rooms[ROOM]
    assert [session.id[1] for session in room.listeners] == [0, 1]
    assert [dial.session.id[1] for dial in room.dialers] == [0, 1, 2]


def test_state_stays_bounded_when_proven_clients_ask_for_everything() -> None:
    config = ServerConfig(
        max_sessions=50,
        sessions_per_address=20,
        rooms_per_session=10,
        max_room_entries=100,
        max_nameplates=30,
        nameplates_per_address=5,
        channels_per_address=6,
        max_channels=20,
        max_mailboxes=4,
        pushes_per_session=3,
        requests_per_second=1e6,
        request_burst=10**6,
    )
    world = World(config=config)
    codes: Counter[int] = Counter()
    for host in range(6):
        for index in range(30):
            source = Address(f"198.18.{host}.7", 1000 + index)
            session = bytes((host, index)) * 8
            cookie = world.cookie(source)
            wanted: list[messages.RequestMessage] = [
                messages.Allocate(),
                messages.Join(0, (ROOM, *(bytes((host, index, n, 0)) * 4 for n in range(23)))),
                messages.Join(1, (ROOM, *(bytes((host, index, n, 1)) * 4 for n in range(23)))),
                messages.Restore(bytes((0xC0, host, index)) + bytes(5), 0, bytes(16)),
            ]
            wanted += [messages.Claim(number, b"x") for number in list(world.server.registry.nameplates)[-2:]]
            for message in wanted:
                for answer in world.ask(source, message, session=session, cookie=cookie):
                    if isinstance(answer, messages.Refused):
                        codes[answer.code] += 1
    registry, relay = world.server.registry, world.server.relay
    assert len(registry.sessions) == 48  # 20, 20 and 5; of the last tenth, one for each newcomer
    assert registry.room_shares.used <= 100
    assert len(registry.nameplates) <= 30
    assert len(registry.mailboxes) <= 4
    assert len(relay) <= 20
    assert all(len(session.pushes) <= 3 for session in registry.sessions.values())
    assert {RefusalCode.FULL, RefusalCode.QUOTA} <= set(codes)
    world.run(700)  # everybody fell silent
    assert has_no_state(world.server)
    assert registry.room_shares.used == 0
    tables = (registry.session_shares, registry.nameplate_shares, registry.room_shares, registry.mailbox_shares, relay.shares)
    assert [shares.used for shares in tables] == [0] * 5
    assert not any(any(shares._counts.values()) for shares in tables)
    assert not relay._in_room


def test_one_address_cannot_take_all_rooms_or_mailboxes_whatever_sessions_it_makes() -> None:
    world = World(
        config=ServerConfig(rooms_per_address=30, mailboxes_per_address=3, requests_per_second=1e6, request_burst=10**6)
    )
    granted = 0
    for index in range(40):
        session, cookie = bytes((index,)) * 16, world.cookie(A)
        rooms = tuple(bytes((index, number)) * 8 for number in range(10))
        (answer,) = world.ask(A, messages.Join(index % 2, rooms), session=session, cookie=cookie)
        assert isinstance(answer, messages.Done)
        granted += answer.granted.bit_count()
    assert granted == world.server.registry.room_shares.used == 30
    moved = Address("198.18.0.99", 7)
    world.ask(moved, messages.Join(0, (ROOM,)), session=bytes((0,)) * 16, cookie=world.cookie(moved))
    shares = world.server.registry.room_shares
    assert (shares.held(prefixes(A.host)), shares.held(prefixes(moved.host))) == (20, 11)
    (answer,) = world.ask(B, messages.Join(0, (ROOM,)), session=b"b" * 16, cookie=world.cookie(B))
    assert answer == messages.Done(granted=1)
    codes: Counter[int] = Counter()
    for _ in range(10):  # owner and claimer are one; each code is given back, each channel left
        (allocated,) = world.ask(B, messages.Allocate(), session=b"o" * 16, cookie=world.cookie(B))
        assert isinstance(allocated, messages.Allocated)
        (answer,) = world.ask(A, messages.Claim(allocated.nameplate, b"x"), session=b"c" * 16, cookie=world.cookie(A))
        codes[answer.code if isinstance(answer, messages.Refused) else 0] += 1
        world.ask(B, messages.Release(allocated.nameplate), session=b"o" * 16, cookie=world.cookie(B))
    assert codes == {0: 3, RefusalCode.FULL: 7}


def test_strangers_cannot_make_an_embedded_server_their_relay() -> None:
    world = World(config=ServerConfig(own_hosts=frozenset({"198.18.0.77"})))
    channel, token = b"\xc0free!!!", b"t" * 16
    restored = [
        world.ask(source, messages.Restore(channel, side, token), session=bytes((side,)) * 16, cookie=world.cookie(source))
        for side, source in enumerate((A, B))
    ]
    assert restored[0] == [messages.Refused(int(RefusalCode.DENIED), "this server relays for its own machine only")]
    assert restored[1] == [messages.Done()]
    cookie = world.cookie(A)
    mac = messages.rebind_mac(token, channel, 0, 1, cookie)
    (answer,) = world.ask(A, messages.Rebind(channel, 0, 1, mac), session=b"a" * 16, cookie=cookie)
    assert isinstance(answer, messages.Refused)
    datagram = channel + b"\x80free ride"
    assert world.server.handle_batch(world.now, V4, B, memoryview(datagram), len(datagram)) == []


def test_one_address_asking_too_fast_is_told_to_slow_down() -> None:
    world = World(config=ServerConfig(request_burst=5))
    cookie = world.cookie(A)
    answers = [world.ask(A, messages.Refresh(), cookie=cookie)[0] for _ in range(8)]
    assert [isinstance(answer, messages.Welcome) for answer in answers] == [True] * 5 + [False] * 3
    assert isinstance(answers[-1], messages.Refused)
    assert answers[-1].code == RefusalCode.SLOW_DOWN
    assert isinstance(world.ask(B, messages.Refresh(), cookie=world.cookie(B))[0], messages.Welcome)


def test_nameplates_are_random_and_grow_with_the_crowd() -> None:
    world = World(config=ServerConfig(requests_per_second=1e6, request_burst=10**6))
    numbers = []
    for index in range(120):
        source = Address(f"198.18.0.{index}", 1000)
        (answer,) = world.ask(source, messages.Allocate(), session=bytes((index,)) * 16, cookie=world.cookie(source))
        assert isinstance(answer, messages.Allocated)
        numbers.append(answer.nameplate)
    assert len(set(numbers)) == 120
    few = int(900 * world.config.nameplate_density)
    assert all(100 <= number <= 999 for number in numbers[:few])
    assert all(1000 <= number <= 9999 for number in numbers[few:])
    assert sorted(numbers[:few]) != numbers[:few]


def test_another_client_cannot_take_release_or_leave_what_is_not_its_own() -> None:
    world = World()
    (mine,) = world.ask(A, messages.Allocate(), session=b"a" * 16, cookie=world.cookie(A))
    assert isinstance(mine, messages.Allocated)
    cookie = world.cookie(B)
    world.ask(B, messages.Release(mine.nameplate), session=b"b" * 16, cookie=cookie)
    assert mine.nameplate in world.server.registry.nameplates
    (answer,) = world.ask(B, messages.Allocate(mine.nameplate), session=b"b" * 16, cookie=cookie)
    assert isinstance(answer, messages.Refused)
    assert answer.code == RefusalCode.TAKEN
    (claim,) = world.ask(B, messages.Claim(mine.nameplate, b""), session=b"b" * 16, cookie=cookie)
    assert isinstance(claim, messages.ClaimAccepted)
    thief = Address("198.18.0.3", 1000)
    cookie = world.cookie(thief)
    world.ask(thief, messages.Leave((), (claim.channel,), (claim.mailbox,)), session=b"t" * 16, cookie=cookie)
    (answer,) = world.ask(thief, messages.Post(claim.mailbox, b""), session=b"t" * 16, cookie=cookie)
    assert isinstance(answer, messages.Refused)
    assert answer.code == RefusalCode.UNKNOWN_MAILBOX
    assert world.server.counters()["channels"] == world.server.counters()["mailboxes"] == 1


def test_a_channel_moves_only_with_its_tokens_mac_a_fresh_counter_and_the_movers_own_cookie() -> None:
    world = World()
    (mine,) = world.ask(A, messages.Allocate(), session=b"a" * 16, cookie=world.cookie(A))
    assert isinstance(mine, messages.Allocated)
    (claim,) = world.ask(B, messages.Claim(mine.nameplate, b""), session=b"b" * 16, cookie=world.cookie(B))
    assert isinstance(claim, messages.ClaimAccepted)
    channel = world.server.relay.get(claim.channel)
    assert channel is not None
    moved, thief = Address("198.18.9.9", 9), Address("198.18.6.6", 6)

    def rebind(source: Address, counter: int, token: bytes, mac_cookie: bytes | None = None) -> int:
        cookie = world.cookie(source)
        mac = messages.rebind_mac(token, claim.channel, 1, counter, cookie if mac_cookie is None else mac_cookie)
        message = messages.Rebind(claim.channel, 1, counter, mac)
        (answer,) = world.ask(source, message, session=b"b" * 16, cookie=cookie)
        return 0 if isinstance(answer, messages.Done) else answer.code  # type: ignore[union-attr]

    assert rebind(thief, 1, b"x" * 16) == RefusalCode.BAD_MAC
    assert channel.sides[1].remote == B
    assert rebind(moved, 5, claim.token) == 0
    assert channel.sides[1].remote == moved
    assert rebind(thief, 5, claim.token) == RefusalCode.BAD_MAC  # the counter does not grow
    assert rebind(thief, 6, claim.token, world.cookie(moved)) == RefusalCode.BAD_MAC  # overheard, replayed from elsewhere
    assert channel.sides[1].remote == moved
    (answer,) = world.ask(thief, messages.Restore(claim.channel, 1, b"x" * 16), session=b"t" * 16, cookie=world.cookie(thief))
    assert isinstance(answer, messages.Refused)
    assert channel.sides[1].remote == moved


def test_what_strangers_send_into_a_channel_goes_nowhere_and_hints_never_amplify() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    listener.client.listen(world.now, [ROOM])
    dialer.client.dial(world.now, [ROOM])
    world.run(1)
    channel = dialer.client.channels[0].channel
    stranger = Address("198.18.66.66", 6)
    for size in (1, 8, 9, 20, 39, 60, 1200):
        world.send_to_server(stranger, SERVER[V4], (channel + bytes(size))[:size])
    world.run(1)
    assert not listener.relayed
    assert not dialer.relayed
    assert world.bytes_out[stranger] <= world.bytes_in[stranger]
    assert all(len(data) <= 60 for _, _, data in world.stray)
    world.stray.clear()
    for _ in range(1000):
        world.send_to_server(stranger, SERVER[V4], b"\xc1" + bytes(1000))
    world.run(1)
    assert len(world.stray) <= 10 + 5


# who may use the server

ACCESS = """
# the office
198.18.0.0/24
3fff:1::/32   # and its IPv6
198.19.1.1
token correct-horse-battery-staple
"""


def test_an_access_list_admits_addresses_prefixes_and_tokens() -> None:
    world = World(config=ServerConfig(access=AccessList.parse(ACCESS)), stun=ServerStun())

    def is_admitted(host: str, token: bytes = b"") -> bool:
        source = Address(host, 1)
        cookie = world.cookie(source)
        (answer,) = world.ask(source, messages.Refresh(), cookie=cookie, access_token=token)
        assert isinstance(answer, messages.Welcome) or answer.code == RefusalCode.DENIED  # type: ignore[union-attr]
        return isinstance(answer, messages.Welcome)

    assert is_admitted("198.18.0.77")
    assert is_admitted("3fff:1::5")
    assert is_admitted("198.19.1.1")
    assert not is_admitted("198.19.1.2")
    assert is_admitted("198.19.1.2", b"correct-horse-battery-staple")
    assert not is_admitted("198.19.1.2", b"incorrect-horse-battery-staple")
    assert stun_ask(world, A)
    assert not stun_ask(world, Address("198.19.1.2", 1))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names nobody"),
        ("# nothing", "names nobody"),
        ("198.18.0.0/33", "line 1"),
        ("198.18.0.1\nexample.net", "line 2"),
        ("token short", "at least 16"),
        ("token", "one secret"),
        ("198.18.0.1 198.18.0.2", "line 1"),
    ],
)
def test_a_wrong_access_file_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        AccessList.parse(text)


def test_a_client_with_the_token_is_served_by_name() -> None:
    world = World(config=ServerConfig(access=AccessList.parse("token correct-horse-battery-staple")))
    good = world.host("good", access_token=b"correct-horse-battery-staple")
    bad = world.host("bad")
    for host in (good, bad):
        host.client.allocate(world.now)
    world.run(1)
    assert [type(event).__name__ for event in good.events if "eflexive" not in type(event).__name__] == ["Reached", "Told"]
    assert len(good.of(messages.Allocated)) == 1
    assert [e.code for e in bad.of(messages.Refused)] == [RefusalCode.DENIED]


def test_lifetimes_are_counted_on_the_clock_that_is_handed_in() -> None:
    world = World(config=ServerConfig(session_lifetime=Seconds(5.0)))
    world.ask(A, messages.Join(0, (ROOM,)), cookie=world.cookie(A))
    world.now = Instant(world.now + 6)  # a suspend
    world.server.handle_timeout(world.now)
    assert has_no_state(world.server)


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        (b"", "set PTUNNEL_ACCESS_TOKEN to the token that you were given"),
        (b"wrong-horse-battery-staple", "it does not know the token in PTUNNEL_ACCESS_TOKEN"),
    ],
)
def test_who_is_not_listed_is_told_what_to_do_with_a_token_and_without(token: bytes, advice: str) -> None:
    world = World(config=ServerConfig(access=AccessList.parse("token correct-horse-battery-staple")))
    host = world.host("stranger", access_token=token)
    host.client.allocate(world.now)
    world.run(5, until=lambda: bool(host.of(messages.Refused)))
    refused = host.of(messages.Refused)[-1]
    assert refused.code == RefusalCode.DENIED
    assert advice in refused.text
    # what older servers say is understood, too
    assert messages.NOT_LISTED == "this server's operator lets only listed clients in"


def test_the_rooms_of_who_waits_are_one_object_and_each_is_its_own_once_somebody_else_comes() -> None:
    """Three rooms for each of very many who wait: what is alike takes memory once."""
    world = World()
    rooms = [bytes((number,)) * 16 for number in range(3)]
    owner, other, dialer = world.host("owner"), world.host("other"), world.host("dialer")
    owner.client.listen(world.now, rooms)
    world.run(1)
    held = world.server.registry.rooms
    (session,) = held[rooms[0]].listeners
    assert held[rooms[0]] is held[rooms[1]] is held[rooms[2]]
    other.client.listen(world.now, rooms[:1])
    dialer.client.dial(world.now, rooms[1:2])
    world.run(1)
    assert [len(held[name].listeners) for name in rooms] == [2, 1, 1]
    assert [len(held[name].dialers) for name in rooms] == [0, 1, 0]
    assert all(held[name].listeners[0] is session for name in rooms)
    world.server.registry.leave(session, {rooms[0], rooms[2]})
    assert [len(held[name].listeners) for name in rooms[:2]] == [1, 1]
    assert rooms[2] not in held
