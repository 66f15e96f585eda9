"""Deterministic keys and entropy for the tests of this room."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


class Entropy:
    """Bytes that look random and are the same in every run."""

    def __init__(self, seed: int) -> None:
        self._state = hashlib.sha256(b"entropy%d" % seed)

    def __call__(self, length: int) -> bytes:
        out = b""
        while len(out) < length:
            self._state.update(b".")
            out += self._state.digest()
        return out[:length]


def private(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(seed).digest())


def public(seed: bytes) -> bytes:
    return private(seed).public_key().public_bytes_raw()
