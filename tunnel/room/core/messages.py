"""Messages between members of a room: bodies of control messages of kind 4, tagged MessagePack arrays, all bounded."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from tunnel.errors import MalformedPacket
from tunnel.room.core.addresses import LAST_HOST, MAX_MEMBERS, MEMBERS_UNSAID, Prefix
from tunnel.room.core.roster import MAX_ROSTER, Key
from tunnel.units import CHANNEL_SIZE, KEY_SIZE, Buffer

MAX_BODY: Final = MAX_ROSTER + 4096  # bytes; the largest are a State with its roster, and a Hello with all routes
MAX_PREFIXES: Final = 64  # routes that one member tells; a home has three, a company's VPN some dozens
MAX_NAME: Final = 64  # characters by which a joiner introduces itself
PREFIX_SIZE: Final = 5  # bytes: IPv4 network and length

Routes: TypeAlias = Annotated[
    tuple[Annotated[bytes, Meta(min_length=PREFIX_SIZE, max_length=PREFIX_SIZE)], ...], Meta(max_length=MAX_PREFIXES)
]
KnownVersion = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF_FFFF)]
HostNumber = Annotated[int, Meta(ge=1, le=LAST_HOST)]
Milliseconds = Annotated[int, Meta(ge=0, le=0xFFFF)]


class Reason(IntEnum):
    """Why a creator takes somebody not in."""

    FULL = 1  # as many members as a room may have
    OTHER_ROOM = 2  # the joiner remembers another room than this one
    UNKNOWN = 3  # not a member, and neither expected nor invited
    BUSY = 4  # so many come and go that nobody is taken in for a moment
    TOO_OLD = 5  # the joiner does not know the block that the room's subnet must be of
    HELD_SMALL = 6  # the ptunnel of a member knows no larger room


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """An array: tag, then the fields in order.  Further elements are ignored."""


class Hello(_Message, frozen=True, tag=1):
    """The first message of either side on a connection.

    `room` is empty while the sender knows none; `version` is that of its roster, 0 for none.  A joiner's asks to be taken in.
    `routes` are for the creator alone, and empty towards others.  `keeps`: the sender will come back after it has ended.
    `knows_spare`: it takes a roster whose subnet is of addresses.SPARE_BLOCK.  `most`: it takes one of so many members.
    `knows_detours`: it takes the three messages at the end of this list.
    """

    room: Annotated[bytes, Meta(max_length=KEY_SIZE)]
    version: KnownVersion
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    keeps: bool
    routes: Routes = ()
    knows_spare: bool = False
    most: Annotated[int, Meta(ge=1, le=0xFF)] = MEMBERS_UNSAID
    knows_detours: bool = False


class State(_Message, frozen=True, tag=2):
    """The roster, signed, and the secret of its epoch.  Only to members."""

    roster: Annotated[bytes, Meta(max_length=MAX_ROSTER)]
    secret: Key


class Have(_Message, frozen=True, tag=3):
    """The version that the sender has: whoever has a newer one sends it, whoever has an older one answers with its own Have."""

    version: KnownVersion


class Told(_Message, frozen=True, tag=4):
    """To the creator: the sender's routes have changed."""

    routes: Routes


class Refused(_Message, frozen=True, tag=5):
    """From the creator to a joiner: no.  `reason` is one of Reason."""

    reason: Annotated[int, Meta(ge=0, le=0xFF)]


class Leave(_Message, frozen=True, tag=6):
    """To the creator: the sender ends, and will not come back."""


class Reach(_Message, frozen=True, tag=7):
    """From a member that carries for others: whom it reaches directly, by host number, and the round trips in milliseconds."""

    links: Annotated[tuple[tuple[HostNumber, Milliseconds], ...], Meta(max_length=MAX_MEMBERS)]


class Carry(_Message, frozen=True, tag=8):
    """To such a member: the sender wants a channel to the member `host`, or does not need it any more."""

    host: HostNumber
    is_wanted: bool


class Carried(_Message, frozen=True, tag=9):
    """Its answer, to both: the channel between the receiver and the member `host`; empty: there is none, or no more."""

    host: HostNumber
    channel: Annotated[bytes, Meta(max_length=CHANNEL_SIZE)]


DetourMessage: TypeAlias = Reach | Carry | Carried
RoomMessage: TypeAlias = Hello | State | Have | Told | Refused | Leave | DetourMessage

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[RoomMessage]] = msgspec.msgpack.Decoder(RoomMessage)


def encode(message: RoomMessage) -> bytes:
    return _encoder.encode(message)


def decode_message(body: Buffer) -> RoomMessage:
    """Raises MalformedPacket."""
    if len(body) > MAX_BODY:
        raise MalformedPacket("room message: too long")
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"room message: {type(error).__name__}") from None


def pack_routes(routes: tuple[Prefix, ...]) -> tuple[bytes, ...]:
    """The first MAX_PREFIXES of them."""
    return tuple(route.network.to_bytes(4, "big") + bytes((route.bits,)) for route in routes[:MAX_PREFIXES])


def unpack_routes(packed: tuple[bytes, ...]) -> tuple[Prefix, ...]:
    """Raises MalformedPacket."""
    routes = []
    for item in packed:
        bits = item[4]
        if bits > 32:
            raise MalformedPacket("room message: a prefix of more than 32 bits")
        routes.append(Prefix(int.from_bytes(item[:4], "big") & (0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF, bits))
    return tuple(routes)
