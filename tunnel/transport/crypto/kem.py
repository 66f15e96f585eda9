"""The post-quantum half of a pair's keys: ML-KEM-768 (FIPS 203), and what is made of its shared secret and the psk before.

    initiator                             responder
    public key                          →
                                        ←  ciphertext
    both: the next psk of the connection, and one for the pair to keep

The psk before comes from X25519, or from a step before: who breaks one of the two has not broken the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from tunnel.core.hkdf import hkdf
from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.noise import Entropy
from tunnel.units import KEY_SIZE

PUBLIC_SIZE: Final = 1184  # bytes of a public key; FIPS 203 §8
TEXT_SIZE: Final = 1088  # bytes of a ciphertext; FIPS 203 §8
PSK_ID_SIZE: Final = 8  # bytes by which two sides find out which psk both have
_SEED_SIZE: Final = 64  # bytes that a private key is made of


class NextPsks(NamedTuple):
    """The psks that a step gives both sides."""

    connection: bytes  # of the connection's handshakes from now on, in memory only
    kept: bytes  # of handshakes that begin later connections of the pair, where both can keep it


@cache
def is_available() -> bool:
    """Whether the cryptographic library of this machine has ML-KEM."""
    try:
        MLKEM768PrivateKey.from_seed_bytes(bytes(_SEED_SIZE))
    except UnsupportedAlgorithm:
        return False
    return True


class KemKey:
    """The initiator's: good for one ciphertext."""

    __slots__ = ("_private", "public")

    def __init__(self, entropy: Entropy) -> None:
        self._private = MLKEM768PrivateKey.from_seed_bytes(entropy(_SEED_SIZE))
        self.public = self._private.public_key().public_bytes_raw()

    def open(self, text: bytes) -> bytes:
        """The shared secret.  Raises MalformedPacket for a wrong length.

        A ciphertext that is none gives a secret that nobody has (FIPS 203 §6.3): the handshake under it then fails.
        """
        try:
            return self._private.decapsulate(text)
        except ValueError:
            raise MalformedPacket("a KEM ciphertext of the wrong size") from None


def answer(public: bytes) -> tuple[bytes, bytes]:
    """(ciphertext, shared secret) for the initiator's key.  Raises MalformedPacket for what is no key (FIPS 203 §7.2).

    The randomness in it is the library's own: it takes none from outside.
    """
    try:
        secret, text = MLKEM768PublicKey.from_public_bytes(public).encapsulate()
    except ValueError:
        raise MalformedPacket("not a KEM key") from None
    return text, secret


def derive(before: bytes, secret: bytes, binding: bytes, asked: bytes, answered: bytes) -> NextPsks:
    """`before` is the psk before, `binding` the hash of the connection's first handshake; then both messages as they went."""
    transcript = hashlib.sha256(binding + asked + answered).digest()
    both = hkdf(secret, b"ptunnel 1 hybrid" + transcript, salt=before, size=2 * KEY_SIZE)
    return NextPsks(both[:KEY_SIZE], both[KEY_SIZE:])


def psk_id(psk: bytes) -> bytes:
    """Names a psk to whoever has it too."""
    return hkdf(psk, b"ptunnel 1 psk id", size=PSK_ID_SIZE)


def common_psk(named: Sequence[bytes], psks: Sequence[bytes]) -> bytes | None:
    """The first of those `named` by their ids that is among `psks`."""
    ours = {psk_id(psk): psk for psk in psks}
    return next((ours[name] for name in named if name in ours), None)
