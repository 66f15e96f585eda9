"""Messages of peers and the rendezvous server: msgpack in four kinds of datagram, every field bounded.

Datagrams (all integers big-endian; version is 1):

    request   0x40  version, transaction u64, session 16, cookie length u8 + cookie, proof length u8 + proof,
                    body length u16 + body, zeros up to at least MIN_REQUEST bytes
    response  0x41  version, transaction u64, body
    push      0x42  version, session 16, push id u64, body
    push-ack  0x43  version, session 16, push id u64

The first ten bytes of a request and of a response never change, so that a server may refuse a version it does not speak.
"""

from __future__ import annotations

from struct import Struct
from typing import Annotated, Final, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from tunnel.errors import MalformedPacket
from tunnel.rendezvous.kinds import NOT_LISTED as NOT_LISTED
from tunnel.rendezvous.kinds import GoneKind as GoneKind
from tunnel.rendezvous.kinds import GoneReason as GoneReason
from tunnel.rendezvous.kinds import RefusalCode as RefusalCode
from tunnel.rendezvous.kinds import Role as Role
from tunnel.rendezvous.macs import MAC_SIZE as MAC_SIZE
from tunnel.rendezvous.macs import PROOF_SIZE as PROOF_SIZE
from tunnel.rendezvous.macs import access_proof as access_proof
from tunnel.rendezvous.macs import rebind_mac as rebind_mac
from tunnel.rendezvous.packing import pack_address as pack_address
from tunnel.rendezvous.packing import pack_host as pack_host
from tunnel.rendezvous.packing import unpack_address as unpack_address
from tunnel.rendezvous.packing import unpack_host as unpack_host
from tunnel.units import CHANNEL_SIZE, Buffer

VERSION: Final = 1
REQUEST: Final = 0x40
RESPONSE: Final = 0x41
PUSH: Final = 0x42
PUSH_ACK: Final = 0x43

MIN_REQUEST: Final = 512  # bytes; no response is longer, which a test holds us to, so an unproven answer never amplifies
MAX_DATAGRAM: Final = 1200  # bytes; fits the smallest path that IPv6 allows, with room to spare
MAX_BODY: Final = 512  # bytes of one PAKE message or mailbox post
MAX_ROOMS: Final = 24  # rooms in one Join or Leave: eight peers of three days each, still within MAX_DATAGRAM
MAX_COOKIE: Final = 32  # bytes; ours are 17, another server's may be longer
MAX_TICKET: Final = 32  # bytes; ours are 24, or 30 in a fleet, likewise
SESSION_SIZE: Final = 16  # bytes; unguessable, so a push that names it comes from somebody who saw our requests
TOKEN_SIZE: Final = 16  # bytes
MAILBOX_SIZE: Final = 8  # bytes
ROOM_SIZE: Final = 16  # bytes
MAX_NAMEPLATE: Final = 999_999_999
MAX_PLACES: Final = 4  # addresses of one server of a fleet: two of each family
MAX_SERVERS: Final = 64  # servers of a fleet

_REQUEST_HEAD: Final = Struct(">BBQ16s")
_REQUEST_START: Final = Struct(">BBQ16sB")  # with the length of the cookie
_COOKIE_AT: Final = _REQUEST_START.size
_SHORT_ARRAY: Final = 0x90  # msgpack's array of at most 15 elements, with its tag in the byte behind
_RESPONSE_HEAD: Final = Struct(">BBQ")
_PUSH_HEAD: Final = Struct(">BB16sQ")

U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, Meta(ge=0)]  # msgpack itself ends at 64 bits
UnixTime = Annotated[int, Meta(ge=0, lt=1 << 40)]  # seconds since 1970; its days fit in 32 bits, as rooms have it
Nameplate = Annotated[int, Meta(ge=0, le=MAX_NAMEPLATE)]
Body = Annotated[bytes, Meta(max_length=MAX_BODY)]
Cookie = Annotated[bytes, Meta(max_length=MAX_COOKIE)]
Ticket = Annotated[bytes, Meta(max_length=MAX_TICKET)]
Token = Annotated[bytes, Meta(min_length=TOKEN_SIZE, max_length=TOKEN_SIZE)]
ChannelId = Annotated[bytes, Meta(min_length=CHANNEL_SIZE, max_length=CHANNEL_SIZE)]
MailboxId = Annotated[bytes, Meta(min_length=MAILBOX_SIZE, max_length=MAILBOX_SIZE)]
Room = Annotated[bytes, Meta(min_length=ROOM_SIZE, max_length=ROOM_SIZE)]
Mac = Annotated[bytes, Meta(min_length=MAC_SIZE, max_length=MAC_SIZE)]
PackedAddress = Annotated[bytes, Meta(min_length=6, max_length=18)]
Places = Annotated[tuple[PackedAddress, ...], Meta(max_length=MAX_PLACES)]
Side = Annotated[int, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(max_length=200)]


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """An array: tag, then the fields in order.  Further elements are ignored, so that fields can be added."""


class OfNameplate(_Message, frozen=True):
    """About one nameplate."""

    nameplate: Nameplate


class OfMailbox(_Message, frozen=True):
    """About one mailbox."""

    mailbox: MailboxId


class OfRoom(_Message, frozen=True):
    """About one room."""

    room: Room


# client → server


class Hello(_Message, frozen=True, tag=1):
    """Ask for the reflexive address.  Always answered by Retry; makes no state."""


class Refresh(_Message, frozen=True, tag=2):
    """I am still here: keeps my registrations and my NAT's mapping.  Answered by Welcome."""


class Allocate(_Message, frozen=True, tag=3):
    """A nameplate for a code.  `wanted` 0 for any; after a restart of the server the one already shown to people.

    `claims`: how many may claim it.  Asking again for one's own with more than one claim renews its lifetime and its claims.
    `ticket`: what came with the wanted one.  Without it the question counts as a guess.
    """

    wanted: Nameplate = 0
    claims: Annotated[int, Meta(ge=1, le=0xFFFF)] = 1
    ticket: Ticket = b""


class Release(OfNameplate, frozen=True, tag=4):
    """The code is over."""


class Claim(OfNameplate, frozen=True, tag=5):
    """Meet the owner of a nameplate; `body` is the claimer's PAKE message.  `may_move`: the claimer knows WRONG_SERVER."""

    body: Body
    may_move: bool = False


class Post(OfMailbox, frozen=True, tag=6):
    """To the other side of a mailbox."""

    body: Body


class Join(_Message, frozen=True, tag=7):
    """Register in rooms.  Answered by Done with the mask of those granted.  One dial meets each listener once."""

    role: Annotated[int, Meta(ge=0, le=1)]
    rooms: Annotated[tuple[Room, ...], Meta(min_length=1, max_length=MAX_ROOMS)]


class Leave(_Message, frozen=True, tag=8):
    """End registrations, relay channels and mailboxes."""

    rooms: Annotated[tuple[Room, ...], Meta(max_length=MAX_ROOMS)] = ()
    channels: Annotated[tuple[ChannelId, ...], Meta(max_length=MAX_ROOMS)] = ()
    mailboxes: Annotated[tuple[MailboxId, ...], Meta(max_length=MAX_ROOMS)] = ()


class Rebind(_Message, frozen=True, tag=9):
    """Move one side of a channel to the address this comes from.  `counter` only ever grows; see rebind_mac."""

    channel: ChannelId
    side: Side
    counter: U64
    mac: Mac


class Restore(_Message, frozen=True, tag=10):
    """Make a channel again that the server forgot; it forwards once both sides have shown the same token."""

    channel: ChannelId
    side: Side
    token: Token


class Goodbye(_Message, frozen=True, tag=11):
    """Forget me.  Not answered."""


class Follow(_Message, frozen=True, tag=12):
    """I know Elsewhere, MoveOn and `at` in Refused.  `epoch`: the list of servers that I know; 0: none.  Answered by Servers."""

    epoch: U32 = 0


# server → client, responses


class Retry(_Message, frozen=True, tag=32):
    """Prove that you receive at your address: repeat the request with this cookie.  Also the answer to Hello.

    `second_port`, and `second_host` if that differs, is another socket of the server, to learn whether the mapping varies.
    `unix_time` is the server's calendar, by which the rooms of a day are named; 0: it does not tell.
    `epoch` is a number of the list of servers in this fleet as it is now: Follow asks for it; 0: there is no fleet.
    """

    cookie: Cookie
    you: PackedAddress
    second_port: U16
    second_host: Annotated[bytes, Meta(max_length=16)]
    instance: U64
    unix_time: UnixTime = 0
    epoch: U32 = 0


class Welcome(_Message, frozen=True, tag=33):
    """You are registered for `lifetime_s` more seconds.  `known` is false when the server had forgotten you."""

    cookie: Cookie
    you: PackedAddress
    lifetime_s: U16
    known: bool
    instance: U64
    software: Text
    unix_time: UnixTime = 0  # as in Retry
    epoch: U32 = 0  # as in Retry


class Allocated(_Message, frozen=True, tag=34):
    """`ticket` brings the nameplate back after a restart of the server, to the same session; in a fleet to any, at any server."""

    nameplate: Nameplate
    expires_s: U16
    ticket: Ticket = b""


class ClaimAccepted(_Message, frozen=True, tag=35):
    mailbox: MailboxId
    channel: ChannelId
    token: Token
    side: Side


class Done(_Message, frozen=True, tag=36):
    """Bit i of `granted`: element i of the request was granted."""

    granted: U32 = 0


class Refused(_Message, frozen=True, tag=37):
    """`at`, with WRONG_SERVER: where the server of the fleet is that has this nameplate."""

    code: U8
    text: Text
    retry_after_s: U16 = 0
    at: Places = ()


class FleetServer(msgspec.Struct, frozen=True, array_like=True):
    """One server of a fleet: its number there, its unicast addresses, its load in per cent, the instance that it tells."""

    index: U16
    load: U8  # DRAINS: it takes nobody any more
    instance: U64
    at: Places


class Servers(_Message, frozen=True, tag=38):
    """The servers of this fleet, as many as fit, with the one that answers, which is `index`."""

    epoch: U32
    index: U16
    servers: Annotated[tuple[FleetServer, ...], Meta(max_length=MAX_SERVERS)]


# server → client, pushes; repeated until acknowledged


class ClaimReceived(OfNameplate, frozen=True, tag=64):
    """Somebody claims our nameplate; `body` is its PAKE message.  Answered by a Post; that spends the code."""

    mailbox: MailboxId
    body: Body
    channel: ChannelId
    token: Token
    side: Side


class Posted(OfMailbox, frozen=True, tag=65):
    body: Body


class Introduced(OfRoom, frozen=True, tag=66):
    """Somebody is on the other side of a room, and this fresh channel leads there.  Side 1 dialed."""

    channel: ChannelId
    token: Token
    side: Side


class Gone(_Message, frozen=True, tag=67):
    """A channel or mailbox ended.  With an all-zero session and push id 0 it is a mere hint (reason UNKNOWN): Rebind."""

    kind: U8
    identifier: ChannelId
    reason: U8


class Bye(_Message, frozen=True, tag=68):
    """The server shuts down."""


class Unmet(OfRoom, frozen=True, tag=69):
    """Somebody dialed a room in which you listen, and could not be led to you; `code` as in a Refused.  Told once."""

    code: U8


class Elsewhere(OfRoom, frozen=True, tag=70):
    """Somebody listens in a room that you dial, at another server of the fleet: dial there too.  Only for who follows."""

    index: U16
    at: Places


class MoveOn(_Message, frozen=True, tag=71):
    """Register at another server of the fleet, here if `at` says so, then take leave.  Only for who follows."""

    within_s: U16  # after that this one may be gone
    at: Places = ()


RequestMessage: TypeAlias = (
    Hello | Refresh | Allocate | Release | Claim | Post | Join | Leave | Rebind | Restore | Goodbye | Follow
)
ResponseMessage: TypeAlias = Retry | Welcome | Allocated | ClaimAccepted | Done | Refused | Servers
PushMessage: TypeAlias = ClaimReceived | Posted | Introduced | Gone | Bye | Unmet | Elsewhere | MoveOn
ChannelMessage: TypeAlias = ClaimReceived | ClaimAccepted | Introduced  # that bring a relay channel

DRAINS: Final = 255  # load of a server that takes nobody any more
HELLO: Final = 1  # tags of the two that are not decoded when they come without a proof
GOODBYE: Final = 11

MessageT = TypeVar("MessageT")

_encoder: Final = msgspec.msgpack.Encoder()
_request_decoder: Final[msgspec.msgpack.Decoder[RequestMessage]] = msgspec.msgpack.Decoder(RequestMessage)
_response_decoder: Final[msgspec.msgpack.Decoder[ResponseMessage]] = msgspec.msgpack.Decoder(ResponseMessage)
_new: Final = tuple.__new__  # what a NamedTuple's own constructor does, without its wrapper
_push_decoder: Final[msgspec.msgpack.Decoder[PushMessage]] = msgspec.msgpack.Decoder(PushMessage)


class Request(NamedTuple):
    transaction: int
    session: bytes
    cookie: bytes
    proof: bytes
    message: RequestMessage
    proven_part: bytes  # what `proof` is the MAC of


class Peek(NamedTuple):
    """The beginning of a request, before its cookie is known to be right."""

    transaction: int
    session: bytes
    cookie: bytes
    tag: int  # of the message; 0 where it is not written as we do, so that only decode_request can tell
    body: int  # where the message begins


class Response(NamedTuple):
    transaction: int
    message: ResponseMessage


class Push(NamedTuple):
    session: bytes
    push_id: int
    message: PushMessage


def _decode_body(decoder: msgspec.msgpack.Decoder[MessageT], body: Buffer) -> MessageT:
    """The one place where msgspec's three ways of saying no become ours."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"rendezvous body: {type(error).__name__}") from None


def encode_request(
    transaction: int, session: bytes, message: RequestMessage, *, cookie: bytes = b"", access_token: bytes = b""
) -> bytes:
    """A padded request.  `access_token` is the server's shared secret, where it asks for one; only its MAC travels."""
    body = _encoder.encode(message)
    head = _REQUEST_HEAD.pack(REQUEST, VERSION, transaction, session) + bytes((len(cookie),)) + cookie
    tail = len(body).to_bytes(2, "big") + body
    proof = access_proof(access_token, head + tail) if access_token else b""
    return (head + bytes((len(proof),)) + proof + tail).ljust(MIN_REQUEST, b"\0")


def decode_request_head(datagram: Buffer) -> tuple[int, int]:
    """(version, transaction) of a request of any version.  Raises MalformedPacket."""
    if len(datagram) < MIN_REQUEST or datagram[0] != REQUEST:
        raise MalformedPacket("rendezvous request: too short or another type")
    _, version, transaction = _RESPONSE_HEAD.unpack_from(datagram)
    return version, transaction


def peek_request(datagram: Buffer) -> Peek | None:
    """Read the parts of a request that take no decoding; None: it is of another version.  Raises MalformedPacket."""
    if not MIN_REQUEST <= len(datagram) <= MAX_DATAGRAM:
        raise MalformedPacket("rendezvous request: length out of bounds")
    kind, version, transaction, session, cookie_length = _REQUEST_START.unpack_from(datagram)
    if version != VERSION:
        return None
    cookie_end = _COOKIE_AT + cookie_length
    if kind != REQUEST or cookie_length > MAX_COOKIE:
        raise MalformedPacket("rendezvous request: another type, or cookie too long")
    proof_length = datagram[cookie_end]  # all of this lies within MIN_REQUEST
    if proof_length and proof_length != PROOF_SIZE:
        raise MalformedPacket("rendezvous request: proof length")
    body = cookie_end + 3 + proof_length
    tag = datagram[body + 1] if datagram[body] & 0xF0 == _SHORT_ARRAY else 0
    return _new(Peek, (transaction, session, bytes(datagram[_COOKIE_AT:cookie_end]), tag, body))


def decode_request(datagram: Buffer, peek: Peek | None = None) -> Request:
    """`peek`: what peek_request found in it, if it was asked before.  Raises MalformedPacket."""
    peek = peek or peek_request(datagram)
    if peek is None:
        raise MalformedPacket("rendezvous request: another version")
    transaction, session, cookie, _, body = peek
    end = body + (datagram[body - 2] << 8 | datagram[body - 1])
    if end > len(datagram):
        raise MalformedPacket("rendezvous request: the body is cut off")
    message = _decode_body(_request_decoder, datagram[body:end])
    head_end = _COOKIE_AT + len(cookie)
    proof, proven_part = b"", b""
    if datagram[head_end]:
        proof = bytes(datagram[head_end + 1 : body - 2])
        proven_part = bytes(datagram[:head_end]) + bytes(datagram[body - 2 : end])
    return _new(Request, (transaction, session, cookie, proof, message, proven_part))


def encode_response(transaction: int, message: ResponseMessage) -> bytes:
    return _RESPONSE_HEAD.pack(RESPONSE, VERSION, transaction) + _encoder.encode(message)


def decode_response(datagram: Buffer) -> Response:
    """Raises MalformedPacket."""
    if not _RESPONSE_HEAD.size < len(datagram) <= MAX_DATAGRAM:
        raise MalformedPacket("rendezvous response: length out of bounds")
    kind, version, transaction = _RESPONSE_HEAD.unpack_from(datagram)
    if kind != RESPONSE or version != VERSION:
        raise MalformedPacket("rendezvous response: another type or version")
    message = _decode_body(_response_decoder, datagram[_RESPONSE_HEAD.size :])
    return Response(transaction, message)


def encode_push(session: bytes, push_id: int, message: PushMessage) -> bytes:
    return _PUSH_HEAD.pack(PUSH, VERSION, session, push_id) + _encoder.encode(message)


def decode_push(datagram: Buffer) -> Push:
    """Raises MalformedPacket."""
    if not _PUSH_HEAD.size < len(datagram) <= MAX_DATAGRAM:
        raise MalformedPacket("rendezvous push: length out of bounds")
    kind, version, session, push_id = _PUSH_HEAD.unpack_from(datagram)
    if kind != PUSH or version != VERSION:
        raise MalformedPacket("rendezvous push: another type or version")
    message = _decode_body(_push_decoder, datagram[_PUSH_HEAD.size :])
    return Push(session, push_id, message)


def encode_push_ack(session: bytes, push_id: int) -> bytes:
    return _PUSH_HEAD.pack(PUSH_ACK, VERSION, session, push_id)


def decode_push_ack(datagram: Buffer) -> tuple[bytes, int]:
    """(session, push id).  Raises MalformedPacket."""
    if len(datagram) != _PUSH_HEAD.size:
        raise MalformedPacket("rendezvous push-ack: length")
    kind, version, session, push_id = _PUSH_HEAD.unpack_from(datagram)
    if kind != PUSH_ACK or version != VERSION:
        raise MalformedPacket("rendezvous push-ack: another type or version")
    return session, push_id
