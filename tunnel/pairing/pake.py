"""SPAKE2: from a short code that both people typed to a strong psk.  The only file that knows the package `spake2`.

A wrong code raises nothing: the two sides just end with different keys.  The confirmation, or the handshake that uses the
psk, tells.  One Pake per code and attempt: the exposer answers once, and the code is spent.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final, Literal

from tunnel.core.hkdf import hkdf
from tunnel.errors import MalformedPacket
from tunnel.pairing.code import Code
from tunnel.units import Buffer

Side = Literal["A", "B"]

EXPOSER: Final = "A"
CONNECTOR: Final = "B"

SUITE_SPAKE2_ED25519: Final = 1  # spake2 0.9: Ed25519, M and N of python-spake2, SHA-256; not RFC 9382
MESSAGE_SIZE: Final = 34  # bytes: suite, side, element
CONFIRMATION_SIZE: Final = 16  # bytes


class Pake:
    """One side of one attempt: `message` goes to the peer, `finish` takes the peer's.  Some 8 ms of computing in all."""

    def __init__(self, side: Side, code: Code, entropy: Callable[[int], bytes]) -> None:
        self.side: Side = side
        identities = [f"ptunnel 1 {role} {code.nameplate}".encode() for role in ("exposer", "connector")]
        from spake2 import SPAKE2_A, SPAKE2_B  # here, as it builds tables when it is imported, and remembered peers need none

        make = SPAKE2_A if side == EXPOSER else SPAKE2_B
        self._spake: Any = make(code.password.encode(), idA=identities[0], idB=identities[1], entropy_f=entropy)
        self.message = bytes([SUITE_SPAKE2_ED25519]) + bytes(self._spake.start())
        self._key = b""
        self._is_finished = False

    def finish(self, their_message: Buffer) -> bytes:
        """The psk of 32 bytes.  Raises MalformedPacket; this attempt is over then too."""
        if self._is_finished:
            raise MalformedPacket("a second PAKE message for one attempt")
        self._is_finished = True
        message = bytes(their_message)
        if len(message) != MESSAGE_SIZE or message[0] != SUITE_SPAKE2_ED25519:
            raise MalformedPacket("a PAKE message of the wrong length or suite")
        if message[1] != ord(CONNECTOR if self.side == EXPOSER else EXPOSER):
            raise MalformedPacket("a PAKE message from our own side")
        if int.from_bytes(message[2:], "little") & (2**255 - 1) >= 2**255 - 19:
            raise MalformedPacket("a PAKE element that is not in canonical form")
        from spake2 import SPAKEError
        from spake2.ed25519_basic import NotOnCurve

        try:
            self._key = bytes(self._spake.finish(message[1:]))
        except (SPAKEError, NotOnCurve, ValueError, AssertionError):
            raise MalformedPacket("a PAKE message that is no element of the group") from None
        return self._derive("psk", 32)

    def _derive(self, label: str, length: int) -> bytes:
        """From the PAKE's key; the salt is "ptunnel 1 pake" and the suite."""
        return hkdf(self._key, label.encode(), salt=b"ptunnel 1 pake" + bytes([SUITE_SPAKE2_ED25519]), size=length)

    def _confirmation_of(self, side: Side) -> bytes:
        if not self._key:
            raise ValueError("finish() comes first")
        return self._derive(f"confirmation {side}", CONFIRMATION_SIZE)

    @property
    def confirmation(self) -> bytes:
        """16 bytes that show the peer, after finish(), that we typed the same code, without telling anybody what it is."""
        return self._confirmation_of(self.side)

    def verify_confirmation(self, theirs: Buffer) -> bool:
        """Did the peer use the same code?"""
        return hmac.compare_digest(bytes(theirs), self._confirmation_of(CONNECTOR if self.side == EXPOSER else EXPOSER))
