"""The MACs that requests carry: of the access token, and of whoever moves a side of a channel."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Final

PROOF_SIZE: Final = 16  # bytes, of the access token's MAC
MAC_SIZE: Final = 16  # bytes, of a Rebind


def access_proof(access_token: bytes, proven_part: bytes) -> bytes:
    """The MAC of a request without its proof field.  The cookie inside it ties it to one address and a few minutes."""
    return hmac.digest(access_token, b"ptunnel access" + proven_part, sha256)[:PROOF_SIZE]


def rebind_mac(token: bytes, channel: bytes, side: int, counter: int, cookie: bytes) -> bytes:
    """Ties a move to the token, to one use (the counter) and, through the cookie, to the address it comes from."""
    text = b"ptunnel rebind" + channel + bytes((side,)) + counter.to_bytes(8, "big") + cookie
    return hmac.digest(token, text, sha256)[:MAC_SIZE]
