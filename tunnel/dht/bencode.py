"""Bencoding (BEP 3), bounded: the only form in which the DHT speaks.  Rubbish raises MalformedPacket, nothing else."""

from __future__ import annotations

from typing import Final, TypeAlias

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer

MAX_DEPTH: Final = 6  # lists and dictionaries within one another; KRPC needs three, and an unknown key may hold some more
MAX_DIGITS: Final = 19  # of a number or a length: all that fits 63 bits

Value: TypeAlias = "int | bytes | list[Value] | dict[bytes, Value]"


def decode_value(data: Buffer) -> Value:
    """One value that fills `data` to its end.  Dictionaries need not be sorted, as not all implementations do so."""
    text = bytes(data)
    value, end = _decode(text, 0, MAX_DEPTH)
    if end != len(text):
        raise MalformedPacket("bencode: bytes behind the value")
    return value


def _decode(text: bytes, at: int, depth: int) -> tuple[Value, int]:
    kind = text[at : at + 1]
    if kind.isdigit():
        return _decode_bytes(text, at)
    if kind == b"i":
        return _decode_number(text, at + 1, b"e")
    if kind not in (b"l", b"d"):
        raise MalformedPacket("bencode: no value begins like that")
    if not depth:
        raise MalformedPacket("bencode: nested too deep")
    at += 1
    items: list[Value] = []
    table: dict[bytes, Value] = {}
    while text[at : at + 1] != b"e":
        if kind == b"l":
            value, at = _decode(text, at, depth - 1)
            items.append(value)
            continue
        key, at = _decode_bytes(text, at)
        if key in table:
            raise MalformedPacket("bencode: a key stands twice")
        table[key], at = _decode(text, at, depth - 1)
    return (items if kind == b"l" else table), at + 1


def _decode_number(text: bytes, at: int, end: bytes) -> tuple[int, int]:
    stop = text.find(end, at, at + MAX_DIGITS + 2)
    digits = text[at:stop] if stop > at else b""
    bare = digits.removeprefix(b"-")
    if not bare.isdigit() or len(bare) > MAX_DIGITS or (bare[:1] == b"0" and digits != b"0"):
        raise MalformedPacket("bencode: not a number")
    return int(digits), stop + 1


def _decode_bytes(text: bytes, at: int) -> tuple[bytes, int]:
    length, start = _decode_number(text, at, b":")
    if length < 0 or length > len(text) - start:
        raise MalformedPacket("bencode: a string is longer than what is left")
    return text[start : start + length], start + length


def encode_value(value: Value) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(encode_value, value)) + b"e"
    return b"d" + b"".join(encode_value(key) + encode_value(value[key]) for key in sorted(value)) + b"e"
