"""The challenge: how the initiator of IK shows that it is there now, when the timestamps of its inits say otherwise.

A responder that gets an init no newer than the newest makes nothing of it, and sends this.  The next init carries the challenge
in its sealed Params, which no recorded one can.  It is sealed under what both static keys make of the init, so that nobody else
can say such things of a clock.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.noise import TAG_SIZE, Entropy, NoiseError
from tunnel.transport.crypto.params import CHALLENGE_SIZE
from tunnel.units import Buffer

CHALLENGE: Final = 0x74

_NONCE_SIZE: Final = 12
_HEADER: Final = struct.Struct(">BBHI")  # type, 0, 0, receiver index
_BODY: Final = struct.Struct(f">{CHALLENGE_SIZE}sQ")
SIZE: Final = _HEADER.size + _NONCE_SIZE + _BODY.size + TAG_SIZE  # shorter than any init


class Challenge(NamedTuple):
    """`behind`: by how many nanoseconds the init's timestamp was older than what the responder had reason to expect."""

    value: bytes
    behind: int


def seal(challenge: Challenge, chaining_key: bytes, sender_index: int, entropy: Entropy) -> bytes:
    """The answer to an init of `sender_index`; `chaining_key` is that of Noise after its message."""
    header, nonce = _HEADER.pack(CHALLENGE, 0, 0, sender_index), entropy(_NONCE_SIZE)
    body = _BODY.pack(challenge.value, min(challenge.behind, 2**64 - 1))
    return header + nonce + ChaCha20Poly1305(_key(chaining_key)).encrypt(nonce, body, header)


def receiver_of(datagram: Buffer) -> int:
    """The receiver index.  Raises MalformedPacket."""
    if len(datagram) != SIZE or datagram[0] != CHALLENGE:
        raise MalformedPacket("not a challenge")
    return int.from_bytes(datagram[4:8], "big")


def unseal(datagram: Buffer, chaining_key: bytes) -> Challenge:
    """Open the answer to our init; `chaining_key` as in seal().  Raises MalformedPacket."""
    receiver_of(datagram)
    data, start = bytes(datagram), _HEADER.size + _NONCE_SIZE
    try:
        body = ChaCha20Poly1305(_key(chaining_key)).decrypt(data[_HEADER.size : start], data[start:], data[: _HEADER.size])
    except InvalidTag:
        raise NoiseError("the challenge does not authenticate") from None
    return Challenge(*_BODY.unpack(body))


def _key(chaining_key: bytes) -> bytes:
    """For one init.  Both static keys are in it, so only the two of this pair can have it."""
    return hmac.digest(chaining_key, b"ptunnel 1 challenge", "sha256")
