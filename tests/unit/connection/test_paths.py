"""Paths: upgrade to a direct one without losing a byte, leave one that died in either direction, keys and goodbyes."""

from __future__ import annotations

import random

import pytest

from tests.unit.connection.pair import RELAY, SERVER, A, B, Pair, keypairs
from tunnel.transport.connection.connection import IDLE_LIMIT
from tunnel.transport.connection.events import (
    AllPathsLost,
    CloseCode,
    ConnectionClosed,
    ControlReceived,
    PathChanged,
    PathInDoubt,
    PathKind,
    PathLost,
    PathProbed,
    RekeyDue,
)
from tunnel.transport.connection.paths import VERIFY_SPACING
from tunnel.units import Address, Instant, PathKey, SocketId


def upgrade(pair: Pair) -> None:
    for name, side in pair.sides.items():
        side.challenge(pair.now, pair.direct(name), PathKind.DIRECT)
    pair.run_until(lambda: all(s.current_path.kind is PathKind.DIRECT for s in pair.sides.values()), 5)


def test_a_transfer_upgrades_from_relay_to_direct_without_losing_a_byte() -> None:
    pair = Pair()
    stream = pair.a.open_stream()
    data = random.Random(1).randbytes(1_500_000)
    pair.write_all("a", stream, data[:700_000], fin=False)
    upgrade(pair)
    pair.write_all("a", stream, data[700_000:])
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == data)
    kinds = [e.kind for e in pair.events["a"] if isinstance(e, PathChanged)]
    assert kinds == sorted(kinds, key=[PathKind.RELAY, PathKind.DIRECT].index)
    assert PathKind.DIRECT in kinds


@pytest.mark.parametrize("silent", ["a", "b"])
@pytest.mark.parametrize("writer", ["a", "b"])
@pytest.mark.parametrize("seed", range(4))
def test_a_direct_path_black_holed_one_way_is_left_within_two_seconds(silent: str, writer: str, seed: int) -> None:
    pair = Pair(seed)
    upgrade(pair)
    pair.run(0.5)
    stream = pair.a.open_stream() if writer == "a" else pair.b.open_stream()
    reader = "b" if writer == "a" else "a"
    data = random.Random(1).randbytes(6_000_000)
    side, at = pair.sides[writer], 0
    stalled_since, longest, before = pair.now, 0.0, 0
    while len(pair.read[reader].get(stream, b"")) < len(data):
        at += side.stream_write(stream, data[at : at + 200_000])
        if at > 1_000_000:
            pair.cut.add((silent, False))
        assert pair.step()
        got = len(pair.read[reader].get(stream, b""))
        if got > before:
            before, stalled_since = got, pair.now
        longest = max(longest, pair.now - stalled_since)
        assert longest < 2.0
    assert pair.read[reader][stream] == data
    assert any(isinstance(e, PathLost) for e in pair.events["a"] + pair.events["b"])


def test_an_idle_path_that_died_is_noticed_by_its_keepalive() -> None:
    pair = Pair()
    upgrade(pair)
    pair.cut |= {("a", False), ("b", False)}
    pair.run(25)
    assert pair.a.current_path.kind is PathKind.RELAY
    assert pair.b.current_path.kind is PathKind.RELAY


def doubts(pair: Pair, side: str) -> int:
    return pair.events[side].count(PathInDoubt())


def test_a_quiet_path_that_leaves_two_challenges_unanswered_is_told_to_be_in_doubt_before_it_is_lost() -> None:
    pair = Pair(relayed=False)
    pair.run(1)
    pair.cut |= {("a", False), ("b", False)}
    pair.run_until(lambda: doubts(pair, "a") > 0, 30)
    assert AllPathsLost() not in pair.events["a"]
    at = pair.now
    pair.run_until(lambda: AllPathsLost() in pair.events["a"], 5)
    assert pair.now > at
    pair.run(300)
    assert doubts(pair, "a") == 1  # not with each challenge after that


def test_one_challenge_that_is_lost_puts_no_path_in_doubt() -> None:
    pair = Pair(relayed=False)
    pair.run(1)
    lost: list[bytes] = []

    def first_of_each(sender: str, relayed: bool, data: bytes) -> list[float] | None:
        if sender == "a" and not lost:
            lost.append(data)
            return []
        return None

    for _ in range(5):
        lost.clear()
        pair.hook = first_of_each
        pair.run(40)
        assert lost
    assert doubts(pair, "a") == 0


def test_a_path_that_swallows_data_is_in_doubt_one_challenge_sooner() -> None:
    told: list[float] = []
    for has_data in (False, True):
        pair = Pair(relayed=False)
        stream = pair.a.open_stream()
        pair.write_all("a", stream, b"before", fin=False)
        pair.run(1)
        pair.cut |= {("a", False), ("b", False)}
        if has_data:
            pair.a.stream_write(stream, b"after")
        else:
            pair.a.verify_paths(pair.now)
        begun = pair.now
        pair.run_until(lambda pair=pair: doubts(pair, "a") > 0, 30)
        told.append(pair.now - begun)
    assert told[1] < told[0] + VERIFY_SPACING / 2  # though the first challenge waits for a probe timeout there


def test_what_a_probe_repeats_goes_over_the_other_path_first() -> None:
    pair = Pair()
    upgrade(pair)
    pair.run(0.5)
    for side in pair.sides.values():  # the relay is the newer path now, as of a link that has got a channel again
        relay = next(key for key in side.paths if key.prefix)
        side.drop_path(pair.now, relay)
        side.add_relay(pair.now, relay)
    pair.run(1.0)
    stream = pair.a.open_stream()
    pair.cut |= {("a", False), ("b", False)}
    begun = pair.now
    pair.write_all("a", stream, b"are you there", fin=False)
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == b"are you there", 5)
    assert pair.now - begun < 0.2  # at the first probe timeout, before the direct path is given up
    assert pair.a.current_path.kind is PathKind.DIRECT


def test_a_path_that_comes_while_the_current_one_is_in_doubt_carries_what_waits_at_once() -> None:
    pair = Pair(delay=0.1)
    upgrade(pair)
    pair.run(0.5)
    for side in pair.sides.values():
        side.drop_path(pair.now, next(key for key in side.paths if key.prefix))
    stream = pair.a.open_stream()
    pair.write_all("a", stream, b"before", fin=False)
    pair.run(5.0)
    pair.cut |= {("a", False), ("b", False)}
    pair.write_all("a", stream, b" after", fin=False)
    pair.run_until(lambda: doubts(pair, "a") > 0, 5)
    for side in pair.sides.values():
        side.expect_relay(pair.now, PathKey(SocketId(0), SERVER, RELAY))
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == b"before after", 5)
    assert pair.a.current_path.kind is PathKind.DIRECT  # that is not given up yet


def test_a_relay_that_did_not_answer_is_asked_again_when_the_peer_asks_over_it() -> None:
    pair = Pair()
    upgrade(pair)
    pair.run(0.5)
    keys = {name: next(key for key in side.paths if key.prefix) for name, side in pair.sides.items()}
    for name, side in pair.sides.items():
        side.drop_path(pair.now, keys[name])
    pair.cut |= {("a", True), ("b", True)}
    pair.b.expect_relay(pair.now, keys["b"])
    pair.run(5.0)  # b has asked in vain
    assert not pair.b.is_path(keys["b"])
    pair.cut.clear()
    pair.run(5.0)
    assert not pair.b.is_path(keys["b"])
    pair.a.expect_relay(pair.now, keys["a"])
    pair.run(0.2)
    assert pair.a.is_path(keys["a"])
    assert pair.b.is_path(keys["b"])


def test_with_no_path_left_the_owner_is_told_and_data_resumes_when_it_heals() -> None:
    pair = Pair(relayed=False)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, b"before", fin=False)
    pair.run(1)
    pair.cut |= {("a", False), ("b", False)}
    pair.a.stream_write(stream, b" after")
    pair.run_until(lambda: AllPathsLost() in pair.events["a"], 10)
    pair.run(60)
    pair.cut.clear()
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == b"before after", 10)


def test_a_packet_from_an_unknown_address_is_reported_and_not_trusted() -> None:
    pair = Pair()
    pair.run(0.2)
    stranger = PathKey(SocketId(0), Address("192.88.99.77", 7), b"")
    out = bytearray(65536)
    pair.a.challenge(pair.now, PathKey(SocketId(0), B, b""), PathKind.DIRECT)
    transmit = pair.a.poll_transmit(pair.now, out)
    assert transmit is not None
    pair.b.handle_datagrams(pair.now, stranger, transmit.buffer, 0, transmit.segment_size)
    answer = pair.b.poll_transmit(pair.now, bytearray(65536))
    assert answer is not None
    assert answer.remote == stranger.remote
    assert len(answer.buffer) <= len(transmit.buffer)
    pair.flush()
    assert PathProbed(stranger) in pair.events["b"]
    assert pair.b.current_path.kind is PathKind.RELAY


def test_policy_relay_never_leaves_the_relay_and_policy_direct_carries_no_stream_over_it() -> None:
    pair = Pair()
    pair.a.set_policy(pair.now, "direct")
    pair.b.set_policy(pair.now, "direct")
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, b"secret")
    pair.a.send_control(b"candidates")
    pair.run(1.0)
    assert ControlReceived(b"candidates") in pair.events["b"]
    assert not pair.read["b"].get(stream)
    upgrade(pair)
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == b"secret")
    pair.a.set_policy(pair.now, "relay")
    pair.run(0.1)
    assert pair.a.current_path.kind is PathKind.RELAY


def test_rekey_is_asked_for_after_two_minutes_and_nothing_is_lost_across_it() -> None:
    pair = Pair(loss=0.05, seed=3)
    stream = pair.a.open_stream()
    data = b""
    for second in range(125):
        piece = bytes([second]) * 100
        data += piece
        pair.a.stream_write(stream, piece)
        pair.run(1.0)
    assert RekeyDue() in pair.events["a"]
    assert RekeyDue() not in pair.events["b"]
    key_a, key_b = keypairs(random.Random(9), base=500)
    pair.b.install_keypair(pair.now, key_b, confirmed=False)
    pair.a.install_keypair(pair.now, key_a, confirmed=True)
    pair.a.stream_write(stream, b"end")
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == data + b"end")
    assert 500 in pair.a.indices()
    pair.run(60)
    assert pair.a.indices() == (500,)
    assert pair.b.indices() == (501,)


@pytest.mark.parametrize("closer", ["a", "b"])
def test_close_reaches_the_peer_even_if_the_first_goodbye_is_lost(closer: str) -> None:
    other = "b" if closer == "a" else "a"
    pair = Pair()
    pair.run(0.5)
    stream = pair.sides[other].open_stream()
    lost = [True]

    def first_is_lost(name: str, relayed: bool, data: bytes) -> list[float] | None:
        return [] if name == closer and lost and lost.pop() else None

    pair.hook = first_is_lost
    pair.sides[closer].close(pair.now, CloseCode.NO_ERROR, "bye")
    pair.flush()
    pair.sides[other].stream_write(stream, b"still here")
    pair.run_until(lambda: any(isinstance(e, ConnectionClosed) for e in pair.events[other]), 1)
    reason = pair.sides[other].close_reason
    assert reason is not None
    assert (reason.by_peer, reason.text) == (True, "bye")
    pair.run(3)
    assert pair.a.is_drained
    assert pair.b.is_drained


def test_eight_hours_of_suspend_end_an_abandoned_connection_by_its_idle_limit() -> None:
    pair = Pair()
    pair.run(1)
    pair.now = Instant(pair.now + 8 * 3600)
    pair.a.handle_timeout(pair.now)
    assert pair.a.close_reason is not None
    assert pair.a.close_reason.code == CloseCode.IDLE


def test_ten_minutes_of_suspend_are_survived() -> None:
    pair = Pair()
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, b"before")
    pair.run(1)
    assert IDLE_LIMIT > 600
    pair.now = Instant(pair.now + 600)
    pair.a.stream_write(stream, b" after")
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == b"before after", 5)


def test_idle_traffic_is_small() -> None:
    pair = Pair()
    upgrade(pair)
    pair.run(10)
    before = pair.a.stats().sent_bytes + pair.b.stats().sent_bytes
    pair.run(3600)
    assert pair.a.stats().sent_bytes + pair.b.stats().sent_bytes - before < 200_000


__all__ = ["A", "B"]
