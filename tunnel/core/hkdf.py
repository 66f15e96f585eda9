"""HKDF-SHA256, RFC 5869."""

from __future__ import annotations

import hmac
from typing import Final

HASH_SIZE: Final = 32  # bytes


def hkdf(material: bytes, info: bytes, *, salt: bytes = b"", size: int = HASH_SIZE) -> bytes:
    """`size` bytes from `material`, for the purpose that `info` names.  No salt is one of zeros (§2.2)."""
    key = hmac.digest(salt or bytes(HASH_SIZE), material, "sha256")
    found = block = b""
    while len(found) < size:
        block = hmac.digest(key, block + info + bytes([len(found) // HASH_SIZE + 1]), "sha256")
        found += block
    return found[:size]
