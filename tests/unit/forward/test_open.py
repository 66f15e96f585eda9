"""The messages that open a stream: any bytes are a message or MalformedPacket."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import MalformedPacket
from tunnel.forward.open import LENGTH_SIZE, MAX_MESSAGE, Open, Opened, decode_open, decode_opened, encode

NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.-]{0,63}(:[0-9]{1,5})?\Z")


@given(st.sampled_from(["tcp", "udp"]), st.one_of(st.integers(1, 65_535), NAMES), st.integers(0, 2**32 - 1))
def test_an_opening_survives_the_wire(kind: str, target: int | str, flow: int) -> None:
    opening = Open(kind, target, flow)  # type: ignore[arg-type]
    data = encode(opening)
    assert int.from_bytes(data[:LENGTH_SIZE], "big") == len(data) - LENGTH_SIZE <= MAX_MESSAGE
    assert decode_open(data[LENGTH_SIZE:]) == opening


def test_the_answer_survives_the_wire() -> None:
    assert decode_opened(encode(Opened())[LENGTH_SIZE:]) == Opened()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for decode in (decode_open, decode_opened):
        with contextlib.suppress(MalformedPacket):
            decode(data)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["open"],
        ["open", "tcp"],
        ["open", "sctp", 22],
        ["open", "tcp", 0],
        ["open", "tcp", 65_536],
        ["open", "tcp", -1],
        ["open", "tcp", 22.5],
        ["open", "tcp", ""],
        ["open", "tcp", "nas\n"],
        ["open", "tcp", "nas\x1b[2J"],
        ["open", "tcp", "n" * 65],
        ["open", "tcp", "nas:445:1"],
        ["open", "udp", 22, -1],
        ["open", "udp", 22, 2**32],
        ["opened"],
        {"kind": "tcp", "target": 22},
    ],
)
def test_what_is_out_of_bounds_is_malformed(fields: object) -> None:
    with pytest.raises(MalformedPacket):
        decode_open(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("data", [b"\xa1\xff", b"\x94\xa4open\xa3tcp\xa2\xff\xfe\x00", b"\x91" * 5_000])
def test_bad_text_and_deep_nesting_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_open(data)


def test_fields_of_a_later_version_are_ignored() -> None:
    assert decode_open(msgspec.msgpack.encode(["open", "tcp", 22, 0, "later", {"a": 1}])) == Open("tcp", 22)
