"""Any bytes to the decoders of the DHT: a value or MalformedPacket, nothing else; what is written is read back."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.dht.bencode import MAX_DEPTH, Value, decode_value, encode_value
from tunnel.dht.krpc import Question, Refusal, Reply, decode_message
from tunnel.errors import MalformedPacket

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
