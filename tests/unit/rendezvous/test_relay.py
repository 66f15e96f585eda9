"""The relay's hot path: whole buffers, runs of one channel, no copy."""

from __future__ import annotations

import random

import pytest

from tests.unit.rendezvous.world import V4, V6, entropy_of
from tests.work import instructions
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.pacing import DEPTH
from tunnel.rendezvous.relay import Channel, Moved, Relay
from tunnel.units import Address, Instant, Transmit

NOW = Instant(50.0)
A, B, C = Address("198.18.0.1", 1), Address("198.18.0.2", 2), Address("3fff::3", 3)


def open_relay(**options: int) -> tuple[Relay, Channel, Channel]:
    relay = Relay(ServerConfig(**options), entropy_of(1))  # type: ignore[arg-type]
    first = relay.open(NOW, (V4, A, b"a"), (V4, B, b"b"))
    second = relay.open(NOW, (V4, A, b"a"), (V6, C, b"c"))
    assert first is not None
    assert second is not None
    return relay, first, second


def forward(relay: Relay, source: Address, data: bytes, stride: int) -> tuple[list[Transmit], list[tuple[bytes, int]]]:
    out: list[Transmit] = []
    strangers: list[tuple[bytes, int]] = []
    assert relay.forward(NOW, V4, source, memoryview(data), 0, stride, 1, out, strangers) == len(data)
    return out, strangers


@pytest.mark.parametrize("last", [1400, 700, 9])
def test_one_buffer_of_one_channel_is_one_transmit_and_not_a_copy(last: int) -> None:
    relay, channel, _ = open_relay()
    data = (channel.id + bytes(1392)) * 45 + (channel.id + bytes(1392))[:last]
    ((transmit,), strangers) = forward(relay, A, data, 1400)
    assert transmit[:3] == (V4, B, 1400)
    assert transmit.ecn == 1
    assert transmit.buffer.obj is data
    assert len(transmit.buffer) == len(data)
    assert not strangers
    assert relay.relayed_bytes == len(data)
    assert forward(relay, B, data, 1400)[0][0].remote == A


def test_a_buffer_of_several_channels_is_cut_into_runs() -> None:
    relay, first, second = open_relay()
    ids = [first.id] * 3 + [second.id] * 2 + [first.id] + [b"\xffunknown"[:8]] + [second.id]
    data = b"".join(identifier + bytes((index,)) * 92 for index, identifier in enumerate(ids))[:-40]
    transmits, strangers = forward(relay, A, data, 100)
    assert [(t.remote, len(t.buffer)) for t in transmits] == [(B, 300), (C, 200), (B, 100), (C, 60)]
    assert [t.buffer[8] for t in transmits] == [0, 3, 5, 7]
    assert [t.segment_size for t in transmits] == [100, 100, 100, 60]
    assert strangers == [(b"\xffunknown"[:8], 100)]


def test_a_difference_in_any_byte_of_any_header_is_seen() -> None:
    relay, channel, _ = open_relay()
    clean = (channel.id + bytes(92)) * 10
    for index in range(1, 10):
        for column in range(8):
            data = bytearray(clean)
            data[index * 100 + column] ^= 0x01
            transmits, strangers = forward(relay, A, bytes(data), 100)
            assert sum(len(t.buffer) for t in transmits) == 900
            assert len(strangers) == 1


def test_random_mixtures_are_split_as_a_slow_reading_says() -> None:
    rng = random.Random(4)
    relay, first, second = open_relay()
    for _ in range(300):
        stride = rng.randrange(9, 60)
        ids = [rng.choice([first.id, first.id, second.id, b"\xc5" + bytes(7)]) for _ in range(rng.randrange(1, 20))]
        data = b"".join((identifier + rng.randbytes(stride))[:stride] for identifier in ids)
        data = data[: len(data) - rng.randrange(stride)]
        transmits, _ = forward(relay, A, data, stride)
        got = [
            (t.remote, bytes(t.buffer[at : at + t.segment_size]))
            for t in transmits
            for at in range(0, len(t.buffer), t.segment_size)
        ]
        pieces = [data[at : at + stride] for at in range(0, len(data), stride)]
        places = {first.id: B, second.id: C}
        assert got == [(places[p[:8]], p) for p in pieces if p[:8] in places and len(p) >= 9]


def test_only_the_two_addresses_of_a_channel_pass_and_only_from_their_socket() -> None:
    relay, channel, _ = open_relay()
    data = channel.id + bytes(50)
    assert forward(relay, Address("198.18.0.9", 1), data, len(data))[0] == []
    assert forward(relay, Address(A.host, 9), data, len(data))[0] == []
    out: list[Transmit] = []
    relay.forward(NOW, V6, A, memoryview(data), 0, len(data), 0, out, [])
    assert out == []
    assert relay.drops["relay_stranger"] == 3


def test_channels_are_charged_to_the_address_that_asks_for_them_and_given_back() -> None:
    relay, _, _ = open_relay(channels_per_address=2)
    dialer, listener = (V4, Address("198.18.0.4", 4), b"d"), (V4, Address("198.18.0.5", 5), b"e")
    first = relay.open(NOW, (V4, A, b"a"), dialer)
    assert first is not None
    assert relay.open(NOW, (V4, A, b"a"), dialer) is not None
    assert relay.open(NOW, listener, dialer) is None
    assert relay.open(NOW, (V4, A, b"a"), listener) is not None  # A has four by now, none of which it asked for
    assert relay.open(NOW, listener, (V4, A, b"a")) is not None
    relay.close(first)
    assert relay.open(NOW, listener, dialer) is not None
    assert relay.drops["relay_address_quota"] == 1


def test_the_bytes_of_a_pair_are_shared_by_its_channels_and_come_back_with_time() -> None:
    relay, channel, _ = open_relay(pair_bytes=1000, pair_bytes_period=1000)
    again = relay.open(NOW, (V4, A, b"a"), (V4, Address(B.host, 77), b"b"))
    assert again is not None
    data = channel.id + bytes(592)
    assert len(forward(relay, A, data, 600)[0]) == 1
    other = again.id + bytes(592)
    assert len(forward(relay, A, other, 600)[0]) == 0
    assert relay.exhausted == [again]
    out: list[Transmit] = []
    relay.forward(Instant(NOW + 300), V4, A, memoryview(other), 0, 600, 0, out, [])
    assert len(out) == 1


def test_a_channel_restored_by_one_side_forwards_nothing_until_the_other_shows_the_same_token() -> None:
    relay = Relay(ServerConfig(), entropy_of(2))
    name, token = b"\xc7" + b"channel", b"t" * 16
    assert relay.restore(NOW, name, 0, token, V4, A, b"a") is Moved.DONE
    assert forward(relay, A, name + bytes(40), 48)[0] == []
    assert relay.restore(NOW, name, 1, b"x" * 16, V4, B, b"b") is Moved.WRONG
    assert relay.restore(NOW, name, 1, token, V4, B, b"b") is Moved.DONE
    assert len(forward(relay, A, name + bytes(40), 48)[0]) == 1
    assert relay.restore(NOW, b"\x70channel", 1, token, V4, B, b"b") is Moved.WRONG


def test_one_datagram_that_came_alone_goes_where_forward_would_send_it() -> None:
    relay, channel, _ = open_relay()
    other, others_channel, _ = open_relay()
    for source in (A, B):
        data = channel.id + b"\x80" + bytes(150)
        side = relay.forward_one(NOW, V4, source, memoryview(data))
        ((transmit,), _) = forward(other, source, others_channel.id + data[8:], len(data))
        assert side is not None
        assert (side.socket_id, side.remote) == (transmit.socket_id, transmit.remote)
    for name in ("relayed_bytes", "relayed_bursts"):
        assert getattr(relay, name) == getattr(other, name)
    assert channel.relayed_bytes == others_channel.relayed_bytes
    assert relay.ceiling.others == other.ceiling.others
    assert (relay._latest is None) == (other._latest is None)


@pytest.mark.parametrize("source", [C, Address("198.18.0.1", 2)])
def test_what_is_not_so_simple_is_left_to_forward(source: Address) -> None:
    relay, channel, _ = open_relay(pair_bytes=100)
    assert relay.forward_one(NOW, V4, source, memoryview(channel.id + b"\x80")) is None
    assert relay.forward_one(NOW, V6, A, memoryview(channel.id + b"\x80")) is None
    assert relay.forward_one(NOW, V4, A, memoryview(channel.id)) is None  # a runt
    assert relay.forward_one(NOW, V4, A, memoryview(b"\xc0" + bytes(9))) is None  # no channel
    assert relay.forward_one(NOW, V4, A, memoryview(channel.id[:5])) is None
    assert relay.forward_one(NOW, V4, A, memoryview(channel.id + bytes(100))) is None  # beyond the quota
    assert relay.relayed_bursts == 0


def test_under_a_low_ceiling_one_datagram_is_held_to_it_too() -> None:
    relay, channel, _ = open_relay()
    relay.ceiling._scale, relay.ceiling.is_low = 1.0, True
    data = memoryview(channel.id + b"\x80" + bytes(150))
    sides = [relay.forward_one(NOW, V4, A, data) for _ in range(1_000)]
    passed = sum(side is not None and side.remote is not None for side in sides)
    assert all(side is not None for side in sides)
    assert passed == relay.relayed_bursts
    assert DEPTH * relay._config.pair_bursts <= passed <= DEPTH * relay._config.pair_bursts + 2
    assert relay.drops["relay_rate"] == 1_000 - passed


def test_one_datagram_alone_takes_half_the_work() -> None:
    relay, channel, _ = open_relay()
    data = memoryview(channel.id + b"\x80" + bytes(150))
    alone = instructions(lambda: relay.forward_one(NOW, V4, A, data))
    assert 1.5 * alone < instructions(lambda: relay.forward(NOW, V4, A, data, 0, len(data), 0, [], []))


def test_all_channels_and_accounts_are_looked_at_a_part_at_a_time() -> None:
    relay = Relay(ServerConfig(), entropy_of(1))
    opened = [
        relay.open(NOW, (V4, Address(f"198.18.{n}.1", 1), b"a"), (V4, Address(f"198.19.{n}.1", 1), b"b")) for n in range(25)
    ]
    late = Instant(NOW + ServerConfig().channel_idle + 1)
    found: list[Channel] = []
    for turn in range(3):
        part = relay.expired(late, lambda _: False, 10)
        assert len(part) == (10, 10, 5)[turn]
        assert relay.is_looking == (turn < 2)
        found += part
    assert {each.id for each in found} == {each.id for each in opened if each is not None}
    for each in found:
        relay.close(each)
    for turn in range(3):
        relay.sweep(late, 10)
        assert len(relay._accounts) == (15, 5, 0)[turn]
        assert relay.is_looking == (turn < 2)
