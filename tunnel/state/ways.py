"""Remembered ways to peers: what led there directly, from which network.  A bounded cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tunnel.state.documents import Document, Key, Record, Time, decode_record, encode_record, require_host, require_printable

KIND: Final = "ways"
VERSION: Final = 1
MAX_WAYS: Final = 512  # ways of one home; those not used for longest go.  Some 300 bytes each
MAX_TECHNIQUE: Final = 32  # characters
MAX_KEEPALIVE: Final = 3_600  # seconds
NETWORK_SIZE: Final = 16  # bytes of a network's name, a digest


class Way(Record, frozen=True, kw_only=True):
    """One peer from one network.  `kind` is the number of a candidate's kind, `keepalive` in seconds, `used` a Unix time."""

    network: Annotated[bytes, Meta(min_length=NETWORK_SIZE, max_length=NETWORK_SIZE)]
    static: Key
    host: str
    port: Annotated[int, Meta(ge=1, le=65_535)]
    kind: Annotated[int, Meta(ge=0, le=255)]
    technique: Annotated[str, Meta(max_length=MAX_TECHNIQUE)]
    opened: bool
    keepalive: Annotated[float, Meta(ge=0, le=MAX_KEEPALIVE)]
    used: Time


class _File(msgspec.Struct):
    ways: Annotated[list[Way], Meta(max_length=MAX_WAYS)]


def encode_ways(ways: Iterable[Way]) -> Document:
    return encode_record(_File(list(ways)))


def decode_ways(content: Document) -> list[Way]:
    """Raises BadContent."""
    ways = decode_record(content, _File).ways
    for way in ways:
        require_printable(way.host, way.technique)
        require_host(way.host)
    return ways


def merge(ways: Iterable[Way], fresh: Iterable[Way], gone: Iterable[tuple[bytes, bytes]]) -> list[Way]:
    """`fresh` ones replace those of the same network and peer, `gone` (network, static) leave; the newest MAX_WAYS stay."""
    kept = {(way.network, way.static): way for way in ways}
    for key in gone:
        kept.pop(key, None)
    kept.update(((way.network, way.static), way) for way in fresh)
    return sorted(kept.values(), key=lambda way: -way.used)[:MAX_WAYS]
