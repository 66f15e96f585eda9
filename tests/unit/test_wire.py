"""The bounded reader and writer: what is written is read again, and running out of bytes has one name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.core.wire import Reader, Writer
from tunnel.errors import MalformedPacket

fields = st.lists(
    st.one_of(
        *(st.tuples(st.just(f"u{bits}"), st.integers(0, 2**bits - 1)) for bits in (8, 16, 32, 64)),
        st.tuples(st.just("raw"), st.binary(max_size=20)),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(fields)
def test_what_was_written_is_read_again(fields: list[tuple[str, int | bytes]]) -> None:
    writer = Writer()
    for name, value in fields:
        getattr(writer, name)(value)
    data = writer.finish()
    assert len(writer) == len(data)
    reader = Reader(data)
    for name, value in fields:
        read = reader.take(len(value)) if isinstance(value, bytes) else getattr(reader, name)()
        assert read == value
    assert reader.remaining == 0
    with pytest.raises(MalformedPacket):
        reader.u8()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30), st.lists(st.sampled_from(["u8", "u16", "u32", "u64", "rest", 3, -1]), max_size=8))
def test_any_bytes_give_a_value_or_malformed_packet(data: bytes, verbs: list[str | int]) -> None:
    reader = Reader(data)
    for verb in verbs:
        before = reader.position
        try:
            value = reader.take(verb) if isinstance(verb, int) else getattr(reader, verb)()
        except MalformedPacket:
            assert reader.position == before
        else:
            assert isinstance(value, int | bytes)
    assert 0 <= reader.remaining <= len(data)


def test_a_reader_stays_inside_its_part_of_the_buffer() -> None:
    reader = Reader(b"abcdef", 2, 4)
    assert reader.rest() == b"cd"
    with pytest.raises(MalformedPacket, match="1 bytes wanted, 0 left"):
        reader.u8()


def test_a_writer_refuses_more_than_its_limit() -> None:
    with pytest.raises(ValueError, match="more than 3 bytes"):
        Writer(limit=3).u16(1).u16(2)
