"""Which keypairs open and which one seals, when handshakes overtake or cross one another."""

from __future__ import annotations

import random
from typing import Any

from tests.unit.connection.pair import RELAY, SERVER, Pair, keypairs
from tunnel.transport.connection.events import AllPathsLost, PathKind, RekeyDue
from tunnel.transport.connection.keyring import MAX_PENDING, OVERLAP, Keyring
from tunnel.transport.connection.switching import NO_KEYS_AFTER
from tunnel.transport.crypto.keys import REJECT_AFTER, REJECT_AFTER_PACKETS, REKEY_AFTER, REKEY_AFTER_PACKETS
from tunnel.units import Instant, PathKey, SocketId, StreamId

NOW = Instant(100.0)


def test_a_newer_pending_keypair_survives_the_confirmation_of_an_older_one() -> None:
    pair = Pair()
    pair.run(0.5)
    first, second = keypairs(random.Random(1), base=300), keypairs(random.Random(2), base=400)
    stream = pair.a.open_stream()
    for key_a, key_b in (first, second):
        pair.b.install_keypair(pair.now, key_b, confirmed=False)
        pair.a.install_keypair(pair.now, key_a, confirmed=True)
        pair.a.stream_write(stream, b"x")
        pair.flush()  # the first is on its way while the second is agreed on
    pair.run(2)
    assert pair.read["b"][stream] == b"xx"
    pair.run(60)
    assert pair.a.indices() == (400,)
    assert pair.b.indices() == (401,)


def test_handshakes_that_cross_leave_both_sides_able_to_hear() -> None:
    pair = Pair()
    pair.run(0.5)
    one, two = keypairs(random.Random(1), base=300), keypairs(random.Random(2), base=400)
    pair.a.install_keypair(pair.now, two[0], confirmed=False)
    pair.b.install_keypair(pair.now, one[1], confirmed=False)
    pair.a.install_keypair(pair.now, one[0], confirmed=True)
    pair.b.install_keypair(pair.now, two[1], confirmed=True)
    stream = pair.a.open_stream()
    for number in range(1, 100):
        pair.a.stream_write(stream, b"x")
        pair.run(1)
        assert len(pair.read["b"][stream]) == number


def test_pending_keypairs_are_few_and_the_oldest_goes_first() -> None:
    made = [keypairs(random.Random(n), base=10 * n)[1] for n in range(1, 9)]
    ring = Keyring(made[0], NOW)
    for keypair in made[1:]:
        ring.install(keypair, NOW, confirmed=False)
    assert len(ring.by_index) == 1 + MAX_PENDING
    assert ring.current is made[0]
    assert ring.authenticated(made[-1], NOW)
    assert set(ring.by_index.values()) == {made[0], made[-1]}
    ring.expire(Instant(NOW + OVERLAP))
    assert set(ring.by_index.values()) == {made[-1]}


# --- their end ----------------------------------------------------------------------------------------------------------------


def aged(seconds: float, **options: Any) -> tuple[Pair, StreamId]:
    """Two sides that nobody gives new keys, so long after their handshake, and a stream that has carried something."""
    pair = Pair(renews_keys=False, **options)
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, b"young")
    pair.run(seconds)
    assert pair.read["b"][stream] == b"young"
    return pair, stream


def test_a_keypair_past_its_age_seals_nothing() -> None:
    pair, stream = aged(REJECT_AFTER - 2)
    pair.a.stream_write(stream, b", old")
    pair.run(1)
    assert pair.read["b"][stream] == b"young, old"
    pair.run(2)
    sent = pair.datagrams
    pair.a.stream_write(stream, b", dead")
    pair.b.send_datagrams(pair.now, 1, [b"dead"])
    pair.a.send_control(b"dead")
    pair.a.challenge(pair.now, pair.direct("a"), PathKind.DIRECT)
    pair.run(600)
    assert pair.datagrams == sent
    assert pair.a.packets is pair.b.packets is None
    pair.a.close(pair.now, 0, "not even that")
    pair.run(5)
    assert pair.datagrams == sent


def test_a_keypair_past_its_age_opens_nothing() -> None:
    pair, stream = aged(1.0)
    late: list[bytes] = []

    def keep(name: str, relayed: bool, data: bytes) -> list[float] | None:
        late.append(data)
        return [] if name == "a" else None

    pair.hook = keep
    pair.a.stream_write(stream, b", kept back")
    pair.run(0.001)
    assert late
    pair.hook = None
    pair.run(REJECT_AFTER)
    key = PathKey(SocketId(0), SERVER, RELAY)
    received = pair.b.stats().packets_received
    for data in late:
        assert pair.b.handle_datagrams(pair.now, key, memoryview(data), 0, len(data)) == 0
    assert pair.b.stats().packets_received == received
    assert not pair.b.indices()


def test_new_keys_after_the_end_of_the_old_lose_no_byte() -> None:
    pair, stream = aged(REJECT_AFTER + 100)
    pair.a.stream_write(stream, b" again")
    pair.run(10)
    for side in "ab":
        assert [event.no_keys for event in pair.events[side] if isinstance(event, AllPathsLost)] == [True]
        assert not pair.sides[side].has_path
    pair.renew_keys("b")
    pair.run(1)
    assert pair.read["b"][stream] == b"young again"
    assert pair.a.has_path
    assert pair.b.has_path
    pair.run(REJECT_AFTER - 3)
    assert pair.a.has_path  # and they have a life of their own


def test_what_was_under_way_on_a_path_that_was_left_is_sent_again_under_new_keys() -> None:
    """The other path was found better a moment before the keys ended, and nothing of the old one arrived."""
    pair, stream = aged(REJECT_AFTER - 0.06)
    pair.cut.add(("a", True))
    pair.a.stream_write(stream, b", and lost")
    pair.flush()
    pair.a.migrate(pair.now, pair.direct("a"), PathKind.DIRECT)
    pair.b.migrate(pair.now, pair.direct("b"), PathKind.DIRECT)
    assert pair.a.current_path.kind is PathKind.DIRECT
    outstanding = [path.recovery.bytes_in_flight for path in pair.a._shared.paths.known.values()]
    assert outstanding[0] > 0
    pair.run(10)
    assert pair.a.is_mute
    pair.renew_keys("a")
    pair.a.migrate(pair.now, pair.direct("a"), PathKind.DIRECT)
    pair.b.migrate(pair.now, pair.direct("b"), PathKind.DIRECT)
    pair.run(0.2)
    assert pair.read["b"][stream] == b"young, and lost"


def test_a_side_whose_peer_was_silent_for_long_is_not_said_to_be_kept_from_new_keys() -> None:
    pair, _ = aged(100.0)
    pair.cut |= {("a", True), ("b", True)}
    pair.run(100.0)
    assert not [event for event in pair.events["a"] if isinstance(event, AllPathsLost) and event.no_keys]


def test_it_asks_for_new_keys_as_long_as_there_are_none() -> None:
    pair, _ = aged(REKEY_AFTER - 1)
    assert pair.events["a"].count(RekeyDue()) == 0
    pair.run(REJECT_AFTER + 100 - (REKEY_AFTER - 1))
    often = (REJECT_AFTER + 100 - REKEY_AFTER) / 10 + 1  # every ten seconds
    assert pair.events["a"].count(RekeyDue()) == often
    pair.run(1000)
    assert pair.events["a"].count(RekeyDue()) == often + 100


def test_a_keypair_that_has_sealed_all_it_may_seals_nothing_more() -> None:
    pair, stream = aged(1.0)
    keypair = pair.a._shared.keys.current
    keypair.sent_packets = REKEY_AFTER_PACKETS
    pair.run(30)
    assert RekeyDue() in pair.events["a"]
    keypair.sent_packets = REJECT_AFTER_PACKETS - 3
    for _ in range(10):
        pair.a.stream_write(stream, b"x")
        pair.run(0.1)
    assert keypair.sent_packets == REJECT_AFTER_PACKETS
    assert pair.read["b"][stream] == b"youngxxx"
    pair.renew_keys("a")
    pair.run(1.0)
    assert pair.read["b"][stream] == b"young" + 10 * b"x"


def test_a_keypair_that_has_opened_all_it_may_opens_nothing_more() -> None:
    pair, stream = aged(1.0)
    pair.b._shared.keys.current.received_packets = REJECT_AFTER_PACKETS - 3  # the peer keeps no count
    for _ in range(10):
        pair.a.stream_write(stream, b"x")
        pair.run(0.1)
    assert pair.read["b"][stream] == b"youngxxx"


def test_keys_that_are_given_up_seal_nothing_and_open_until_new_ones_are_there() -> None:
    pair, stream = aged(1.0)
    back = pair.b.open_stream()
    pair.run(0.5)
    pair.a.give_up_keys(pair.now)
    sent = pair.a.stats().packets_sent
    pair.a.stream_write(stream, b" again")
    pair.b.stream_write(back, b"hello")
    pair.run(1.0)
    assert pair.a.stats().packets_sent == sent
    assert pair.read["a"][back] == b"hello"
    assert RekeyDue() in pair.events["a"]
    assert pair.a.has_path  # a moment without keys costs no path
    pair.renew_keys("a")
    pair.run(1.0)
    assert pair.read["b"][stream] == b"young again"
    assert not [event for event in pair.events["a"] if isinstance(event, AllPathsLost)]


def test_who_gets_no_keys_after_giving_them_up_meets_the_peer_anew() -> None:
    pair, _ = aged(1.0)
    pair.a.give_up_keys(pair.now)
    pair.run(NO_KEYS_AFTER + 0.1)
    assert [event for event in pair.events["a"] if isinstance(event, AllPathsLost)]
