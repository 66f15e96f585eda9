"""Any bytes to the decoders of the DHT: a value or MalformedPacket, nothing else; what is written is read back."""

from __future__ import annotations

import contextlib
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.core.trace import Drops
from tunnel.dht.bencode import MAX_DEPTH, Value, decode_value, encode_value
from tunnel.dht.checks import Keys, tag_of
from tunnel.dht.krpc import Question, Refusal, Reply, decode_message
from tunnel.dht.ledger import Ledger
from tunnel.dht.meeting import MAX_CHECKS, MAX_CHECKS_IN_WINDOW, Meeting
from tunnel.errors import MalformedPacket
from tunnel.units import Address, Instant, SocketId

numbers = st.integers(-(10**18), 10**18)
values: st.SearchStrategy[Value] = st.recursive(
    numbers | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.binary(max_size=6), inner, max_size=5),
    max_leaves=20,
)
ids = st.binary(min_size=18, max_size=22)
keys = st.sampled_from([b"id", b"nodes", b"nodes6", b"token", b"values", b"p"])
answers = st.fixed_dictionaries({b"id": ids}).flatmap(
    lambda known: st.dictionaries(keys, values | st.binary(max_size=60), max_size=4).map(lambda more: {**more, **known})
)
messages = st.fixed_dictionaries(
    {b"t": st.binary(max_size=6) | values, b"y": st.sampled_from([b"r", b"e", b"q", b"x"])},
    optional={b"r": answers | values, b"e": values, b"ip": st.binary(max_size=20) | values, b"ro": values},
)


def depth(value: Value) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 1 + max(map(depth, value.values()), default=0) if isinstance(value, dict) else 0


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    for decode in (decode_value, decode_message):
        with contextlib.suppress(MalformedPacket):
            decode(data)


@given(values)
@settings(max_examples=200)
def test_what_is_written_is_read_back(value: Value) -> None:
    if depth(value) <= MAX_DEPTH:
        assert decode_value(encode_value(value)) == value


@given(messages)
@settings(max_examples=400)
def test_what_looks_like_a_message_is_one_or_malformed(message: dict[bytes, Value]) -> None:
    try:
        found = decode_message(memoryview(encode_value(message)))
    except MalformedPacket:
        return
    assert isinstance(found, Reply | Refusal | Question)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 7), st.binary(max_size=80))
@settings(max_examples=200)
def test_a_meeting_takes_anything_even_from_who_has_its_key(data: bytes, kind: int, body: bytes) -> None:
    home, friend = Keys(bytes(32), 0), Keys(bytes(32), 1)
    ledger, drops = Ledger(MAX_CHECKS, MAX_CHECKS_IN_WINDOW), Drops()
    meeting = Meeting(bytes(32), 0, entropy=Random(1).randbytes, ledger=ledger, drops=drops, own_host=lambda _socket: None)
    way = (SocketId(0), Address("44.1.1.1", 4_000))
    for datagram in (home.seal(kind, body), friend.seal(kind, body), data):
        with contextlib.suppress(MalformedPacket):
            tag_of(datagram)
            meeting.handle_datagram(Instant(1.0), way, datagram)
        meeting.handle_timeout(Instant(2.0))
    assert drops.total() >= 1
