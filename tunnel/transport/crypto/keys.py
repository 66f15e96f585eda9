"""Keypairs: the two transport keys of one handshake, and the choice of the AEAD they are used with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tunnel.errors import MalformedPacket
from tunnel.units import Instant, Seconds

Aead: TypeAlias = AESGCM | ChaCha20Poly1305

AES_256_GCM: Final = 1
CHACHA20_POLY1305: Final = 2
_MAKERS: Final[dict[int, type[AESGCM] | type[ChaCha20Poly1305]]] = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}

REKEY_AFTER: Final = Seconds(120.0)  # WireGuard §6.1
REKEY_AFTER_PACKETS: Final = 2**26  # packets; RFC 9001 §B.1.1 allows 2^28 of at most 2^11 bytes under one AES-GCM key
REJECT_AFTER: Final = Seconds(180.0)  # a keypair that could not be replaced is dead; WireGuard §6.1
REJECT_AFTER_PACKETS: Final = 2**27  # packets, in either direction: room for a rekey that is slow


def preferred_aeads(has_aes: bool) -> tuple[int, ...]:
    """Our list for Params: AES-256-GCM first where the CPU computes it."""
    return (AES_256_GCM, CHACHA20_POLY1305) if has_aes else (CHACHA20_POLY1305, AES_256_GCM)


def choose_aead(initiator: Sequence[int], responder: Sequence[int]) -> int:
    """The AEAD that both know and that stands first in both lists taken together; on a tie ChaCha20-Poly1305.

    A tie is one side with AES in its CPU and one without: the second one would suffer far more.  Raises MalformedPacket
    when the lists have nothing in common.
    """
    common = [aead for aead in _MAKERS if aead in initiator and aead in responder]
    if not common:
        raise MalformedPacket("the peer knows none of our ciphers")
    return min(common, key=lambda aead: (initiator.index(aead) + responder.index(aead), -aead))


class Keypair:
    """The keys of one handshake in use.  Mutable and without methods on the hot path: sealing calls `send.encrypt_into`.

    `local_index` stands in the header of what we receive, `remote_index` in the header of what we send.
    The owner sets `created_at` when it installs the keypair and counts `sent_packets` and `received_packets`.
    """

    __slots__ = (
        "aead",
        "created_at",
        "is_initiator",
        "local_index",
        "receive",
        "received_packets",
        "remote_index",
        "send",
        "sent_packets",
    )

    def __init__(
        self, *, aead: int, send_key: bytes, receive_key: bytes, local_index: int, remote_index: int, is_initiator: bool
    ) -> None:
        self.aead = aead
        self.send: Aead = _MAKERS[aead](send_key)
        self.receive: Aead = _MAKERS[aead](receive_key)
        self.local_index = local_index
        self.remote_index = remote_index
        self.is_initiator = is_initiator
        self.created_at: Instant | None = None
        self.sent_packets = 0
        self.received_packets = 0

    def __repr__(self) -> str:
        return f"Keypair(local_index={self.local_index:#010x}, remote_index={self.remote_index:#010x}, aead={self.aead})"
