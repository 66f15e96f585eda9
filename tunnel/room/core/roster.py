"""The roster of a room: who is in it, signed by the room's key, so that any member may pass it on and nobody can change it.

    signature 64 | body: a MessagePack array

The signature is Ed25519 over "ptunnel 1 roster" and the body.  Versions only rise; whoever has seen one refuses what is older.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from hashlib import sha256
from typing import Annotated, Final, TypeAlias

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta
from msgspec.structs import force_setattr

from tunnel.core.hkdf import hkdf
from tunnel.errors import MalformedPacket
from tunnel.room.core import addresses
from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.units import KEY_SIZE, Buffer, Hex

MAX_ROSTER: Final = 2048 + 128 * MAX_MEMBERS  # bytes; a member with the longest name is 102 of them
SIGNATURE_SIZE: Final = 64  # bytes
MAX_LABEL: Final = 63  # characters of a name: it is a DNS label too (RFC 1035 §2.3.4)

OLDER: Final = "roster older"
KNOWN: Final = "roster known"
NO_NEWS: Final = frozenset({OLDER, KNOWN})  # reasons of why_refused for a roster that is genuine

_CONTEXT: Final = b"ptunnel 1 roster"
_LABEL: Final = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z"
_LOOKS_LIKE_A_NUMBER: Final = re.compile(r"[0-9]{3}")

Key = Annotated[bytes, Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]
Label: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_LABEL, pattern=_LABEL)]
Host = Annotated[int, Meta(ge=addresses.CREATOR_HOST, le=addresses.LAST_HOST)]
Version = Annotated[int, Meta(ge=1, le=0xFFFF_FFFF_FFFF)]
Epoch = Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]
Subnet = Annotated[bytes, Meta(min_length=4, max_length=4)]
Ula = Annotated[bytes, Meta(min_length=8, max_length=8)]


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One member.  `name` is a DNS label, unique in its roster; `host` is what its addresses are made of."""

    static: Key
    name: Label
    host: Host


class Roster(msgspec.Struct, frozen=True, array_like=True):
    """A room at one version.  The member with host 1 is the creator.

    `room` is the public key that signs; `commitment` is commit(secret) of the epoch's secret; `subnet` the network address of an
    IPv4 /24; `ula` an IPv6 /64.  Further elements of the array are ignored, so that fields can be added.
    """

    room: Key
    version: Version
    epoch: Epoch
    name: Label
    subnet: Subnet
    ula: Ula
    commitment: Key
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]

    @property
    def creator(self) -> Member:
        return self.members[0]

    def member(self, static: bytes) -> Member | None:
        return next((member for member in self.members if member.static == static), None)

    def named(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def ipv4(self, member: Member) -> str:
        return addresses.ipv4_text(self.subnet, member.host)

    def ipv6(self, member: Member) -> str:
        return addresses.ipv6_text(self.ula, member.host)


class RoomState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A remembered room, as its file has it: a later field has a default, and is left out while it has that.

    `member_name` is how we introduce ourselves; `private_key` is the creator's alone; `roster` is signed; `psks` are by static
    key, the creator's with all members, a member's with the creator; `former` and `highest` are the creator's HostNumbers, and
    `sizes` says how many members each of them can know.
    """

    member_name: str
    room: Key
    private_key: Key | None
    secret: Key
    epoch: Epoch
    roster: Annotated[bytes, Meta(max_length=MAX_ROSTER)]
    psks: Annotated[dict[Hex, Key], Meta(max_length=addresses.LAST_HOST)]
    former: Annotated[tuple[tuple[Hex, Host], ...], Meta(max_length=addresses.LAST_HOST)]
    highest: Host
    sizes: Annotated[dict[Hex, Host], Meta(max_length=addresses.LAST_HOST)] = {}

    def __post_init__(self) -> None:
        force_setattr(self, "psks", {Hex(static): psk for static, psk in self.psks.items()})
        force_setattr(self, "former", tuple((Hex(static), host) for static, host in self.former))
        force_setattr(self, "sizes", {Hex(static): size for static, size in self.sizes.items()})
        if any(len(static) != KEY_SIZE for static in (*self.psks, *dict(self.former), *self.sizes)):
            raise ValueError("a static key")

    def __repr__(self) -> str:
        """Without the keys."""
        return f"{type(self).__name__}(room={self.room.hex()}, epoch={self.epoch})"


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Roster]] = msgspec.msgpack.Decoder(Roster)


def sign_roster(roster: Roster, private_key: bytes) -> bytes:
    """The bytes that travel.  Ed25519 needs no chance (RFC 8032 §5.1.6)."""
    body = _encoder.encode(roster)
    return Ed25519PrivateKey.from_private_bytes(private_key).sign(_CONTEXT + body) + body


def public_key(private_key: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def decode_roster(data: Buffer) -> Roster:
    """Its content, whoever signed it: see is_signed.  Raises MalformedPacket."""
    if not SIGNATURE_SIZE < len(data) <= MAX_ROSTER:
        raise MalformedPacket("roster: length out of bounds")
    try:
        roster = _decoder.decode(data[SIGNATURE_SIZE:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"roster: {type(error).__name__}") from None
    members = roster.members
    if members[0].host != addresses.CREATOR_HOST:
        raise MalformedPacket("roster: the creator is not the first")
    for values in ({m.static for m in members}, {m.name for m in members}, {m.host for m in members}):
        if len(values) != len(members):
            raise MalformedPacket("roster: two members of one key, name or number")
    if not addresses.is_possible(roster.subnet) or roster.ula[0] != 0xFD:
        raise MalformedPacket("roster: addresses that are not private")
    return roster


def is_signed(data: Buffer, room: bytes) -> bool:
    """Whether the roster in `data` was signed by the holder of the room's key."""
    if len(data) <= SIGNATURE_SIZE:
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(room)
        key.verify(bytes(data[:SIGNATURE_SIZE]), _CONTEXT + bytes(data[SIGNATURE_SIZE:]))
    except (InvalidSignature, ValueError):
        return False
    return True


def why_refused(
    roster: Roster, blob: Buffer, secret: bytes, *, ours: Roster | None, sender: bytes, creator: bytes | None, me: bytes
) -> str | None:
    """Why a roster that `sender` gave us counts for nothing, as a counter's name; None: it is the newest, and genuine.

    `ours` is the newest so far, None if this would be our first; `creator` whom the code or an invitation led to.
    """
    if ours is None and (sender != creator or roster.creator.static != sender):
        return "roster from a stranger"
    if ours is not None and roster.room != ours.room:
        return "roster of another room"
    if not is_signed(blob, roster.room):
        return "roster forged"
    if ours is not None and roster.version <= ours.version:
        return OLDER if roster.version < ours.version else KNOWN
    if commit(secret) != roster.commitment or (ours is not None and roster.epoch < ours.epoch):
        return "roster with a wrong secret"
    if roster.member(me) is None or roster.creator.static != creator:
        return "roster without us"
    return None


def commit(secret: bytes) -> bytes:
    """Return the roster's commitment to its epoch's secret, by which the right one is known (the secret is random)."""
    return sha256(b"ptunnel 1 room secret" + secret).digest()


def pair_psk(secret: bytes, one: bytes, other: bytes) -> bytes:
    """The psk between two members in the epoch of `secret`, neither of them the creator: HKDF-SHA256 (RFC 5869), no salt."""
    smaller, larger = sorted((one, other))
    return hkdf(secret, b"ptunnel 1 members" + smaller + larger)


def invited_psk(psk: bytes) -> bytes:
    """Between the creator and a remembered peer that joins without a code: not the psk by which they forward ports, so that
    whoever waits for the one is never met by the other.  HKDF-SHA256, no salt."""
    return hkdf(psk, b"ptunnel 1 invited")


def make_label(text: str, fallback: str = "member") -> str:
    """A DNS label from what somebody calls himself: "Anna's PC" becomes anna-s-pc.  Never looks like a pairing code."""
    plain = unicodedata.normalize("NFKD", text[:1024]).encode("ascii", "ignore").decode().lower()
    label = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if _LOOKS_LIKE_A_NUMBER.match(label):
        label = f"m{label}"
    return label[:MAX_LABEL].strip("-") or fallback


def free_label(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or with a number behind it when it is taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        ending = f"-{number}"
        name = wanted[: MAX_LABEL - len(ending)].rstrip("-") + ending
    return name
