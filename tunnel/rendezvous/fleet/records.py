"""Records that servers of a fleet write for each other: msgpack arrays, every field bounded, under the fleet's seal."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from tunnel.rendezvous.fleet.seal import MARK_SIZE, NAME_SIZE
from tunnel.rendezvous.messages import U16, U32, U64, Places, UnixTime

FULL: Final = 1000  # per mille: a load that leaves no room

PerMille = Annotated[int, Meta(ge=0, le=FULL)]


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """An array of the fields in order.  Further elements are ignored, so that fields can be added."""


class ServerRecord(_Record, frozen=True):
    """A server, as it is now.  `beat` grows with each that it writes: one that does not grow is of a server that is gone."""

    index: U16
    instance: U64
    beat: U32
    written_at: UnixTime
    at: Places
    drains: bool
    load: PerMille  # of what it can take: sessions, channels or processor time, whichever is nearest to its limit
    sessions: U32
    capacity: U32  # sessions that it can have
    channels: U32
    codes: U32
    relayed_bytes: U64  # since it started
    software: Annotated[str, Meta(max_length=40)] = ""


class RoomRecord(_Record, frozen=True):
    """That somebody waits in a room at a server: one that listens, one that dials and can be sent elsewhere, or both."""

    listens: bool
    dials: bool
    written_at: UnixTime


class NumberRecord(_Record, frozen=True):
    """That a server has a number.  Of several the one with most `moves` has it, of these the one that was written last."""

    mark: Annotated[bytes, Meta(min_length=MARK_SIZE, max_length=MARK_SIZE)]
    moves: U16
    written_at: UnixTime


class Kind(IntEnum):
    """The subject of a note."""

    ACK = 0
    LISTENS = 1  # `what`: the name of a room in which somebody began to listen, where the receiver has somebody that dials
    MOVED = 2  # `what`: the name of a number that the sender took over, `mark`: which one
    GUESS = 3  # `keys`: the address, and prefixes around it, from which somebody guessed a number wrong
    LOOK = 4  # the sender has come, takes nobody any more, or leaves: its record in the store says so


class Note(_Record, frozen=True):
    """Told by one server to another, or to all."""

    kind: Annotated[int, Meta(ge=0, le=255)]
    sender: U64  # its instance
    number: U32  # of this sender; its ACK has the same one
    what: Annotated[bytes, Meta(max_length=NAME_SIZE + 16)] = b""
    mark: Annotated[bytes, Meta(max_length=MARK_SIZE)] = b""
    keys: Annotated[tuple[Annotated[str, Meta(max_length=50)], ...], Meta(max_length=8)] = ()


RecordT = TypeVar("RecordT", bound=_Record)

_encoder: Final = msgspec.msgpack.Encoder()


def encode(record: _Record) -> bytes:
    return _encoder.encode(record)


def decode(kind: type[RecordT], body: bytes | None) -> RecordT | None:
    """None for no such record: of a version that we do not know, as the seal was right."""
    if body is None:
        return None
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
