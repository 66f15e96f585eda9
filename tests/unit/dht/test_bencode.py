from __future__ import annotations

import pytest

from tunnel.dht.bencode import MAX_DEPTH, MAX_DIGITS, Value, decode_value, encode_value
from tunnel.errors import MalformedPacket


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"i0e", 0),
        (b"i-12e", -12),
        (b"4:spam", b"spam"),
        (b"0:", b""),
        (b"l4:spami7ee", [b"spam", 7]),
        (b"d3:cow3:moo4:spam4:eggse", {b"cow": b"moo", b"spam": b"eggs"}),
        (b"de", {}),
    ],
)
def test_the_examples_of_bep_3_are_read_and_written(text: bytes, value: Value) -> None:
    assert decode_value(text) == value
    assert encode_value(value) == text


@pytest.mark.parametrize(
    "text",
    [
        b"", b"x", b"i", b"ie", b"i-e", b"i-0e", b"i03e", b"i1", b"5:spam", b"05:spams", b"-1:", b"l", b"li1e", b"d", b"d1:a",
        b"di1ei2ee", b"d1:ai1e1:ai2ee", b"i1ei2e", b"4:spamx", b"9999999999999999999999:", b"i1_0e",
    ],
)  # fmt: skip
def test_rubbish_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_value(text)


def test_what_is_not_sorted_is_read_all_the_same() -> None:
    assert decode_value(b"d1:bi1e1:ai2ee") == {b"a": 2, b"b": 1}


def test_lists_within_lists_have_an_end() -> None:
    assert decode_value(b"l" * MAX_DEPTH + b"e" * MAX_DEPTH)
    with pytest.raises(MalformedPacket):
        decode_value(b"l" * (MAX_DEPTH + 1) + b"e" * (MAX_DEPTH + 1))
    with pytest.raises(MalformedPacket):
        decode_value(b"l" * 60_000)


def test_numbers_have_an_end() -> None:
    assert decode_value(b"i" + b"9" * MAX_DIGITS + b"e")
    with pytest.raises(MalformedPacket):
        decode_value(b"i" + b"9" * (MAX_DIGITS + 1) + b"e")
