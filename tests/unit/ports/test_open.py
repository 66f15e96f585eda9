"""The messages that open a stream: any bytes are a message or MalformedPacket."""

from __future__ import annotations

import contextlib
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import MalformedPacket
from tunnel.ports.bench import GRACE, MAX_BYTES, _mbit
from tunnel.ports.open import (
    LENGTH_SIZE,
    MAX_BENCH_SECONDS,
    MAX_MEASURED,
    MAX_MEASURED_SECONDS,
    MAX_MESSAGE,
    MIN_MEASURED_SECONDS,
    Measured,
    Open,
    Opened,
    decode_measured,
    decode_open,
    decode_opened,
    encode,
)

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
    assert decode_open(msgspec.msgpack.encode(["open", "tcp", 22, 0, 0, "later", {"a": 1}])) == Open("tcp", 22)


@pytest.mark.parametrize(
    "fields",
    [
        (1, 1, 5e-324),
        (1, 1, 1e-7),
        (1, 1, 60.1),
        (1, 1, float("inf")),
        (1, 1, float("nan")),
        (1, 1, -0.5),
        (2**35 + 1, 1, 1.0),
        (1, 2**35 + 1, 1.0),
        (2**63, 2**63, 1.0),
        (-1, 1, 1.0),
        (1, -1, 1.0),
        (None, 1, 1.0),
        (1, 1, None),
        (1.5, 1, 1.0),
    ],
)
def test_what_nobody_can_have_measured_is_malformed(fields: tuple[object, ...]) -> None:
    """Else a peer's numbers would overflow where they are divided by one another."""
    with pytest.raises(MalformedPacket):
        decode_measured(msgspec.msgpack.encode(("measured", *fields)))


@given(
    st.integers(0, MAX_MEASURED),
    st.integers(0, MAX_MEASURED),
    st.just(0.0) | st.floats(MIN_MEASURED_SECONDS, MAX_MEASURED_SECONDS),
)
def test_whatever_may_have_been_measured_can_be_calculated_with(size: int, datagrams: int, seconds: float) -> None:
    found = decode_measured(encode(Measured(size, datagrams, seconds))[LENGTH_SIZE:])
    assert math.isfinite(_mbit(found))
    assert round(found.datagrams / (found.seconds or 1)) >= 0


def test_all_that_we_measure_is_within_those_bounds() -> None:
    assert 2 * MAX_BYTES <= MAX_MEASURED
    assert MAX_BENCH_SECONDS + GRACE <= MAX_MEASURED_SECONDS
    assert round(MIN_MEASURED_SECONDS, 6) == MIN_MEASURED_SECONDS
