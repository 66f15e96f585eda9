"""The two checksums that every handshake init ends with, and the cookie reply of a busy responder.  As WireGuard §5.3, §5.4.7.

`mac1` shows that the sender knows whom it addresses; it costs a stranger nothing to fail and us one hash to find out.
`mac2` shows that the sender receives what we send to its address; it is asked for under load only.

The `material` of the keys is what only a legitimate sender knows beforehand: the responder's static key (IK) or the psk (XX).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.noise import Entropy, NoiseError
from tunnel.units import Address, Buffer, Instant, Seconds

MAC_SIZE: Final = 16  # bytes of mac1, mac2 and a cookie
COOKIE_REPLY: Final = 0x73
SECRET_LIFETIME: Final = Seconds(120.0)  # WireGuard §5.4.7; a cookie lives once to twice as long

_NONCE_SIZE: Final = 12
_HEADER: Final = struct.Struct(">BBHI")  # type, 0, 0, receiver index
REPLY_SIZE: Final = _HEADER.size + _NONCE_SIZE + MAC_SIZE + 16


def mac1_key(material: bytes) -> bytes:
    """The key of mac1.  `material` is the responder's static key for IK, the psk for XX."""
    return hashlib.sha256(b"ptunnel 1 mac1" + material).digest()


def _mac(key: bytes, data: Buffer) -> bytes:
    return hmac.digest(key, bytes(data), "sha256")[:MAC_SIZE]


def append_macs(message: bytes, key: bytes, cookie: bytes | None = None) -> bytes:
    """`message` with mac1 and mac2 behind it; mac2 is zeros without a cookie."""
    message += _mac(key, message)
    return message + (bytes(MAC_SIZE) if cookie is None else _mac(cookie, message))


def mac1_of(datagram: Buffer) -> bytes:
    return bytes(datagram[-2 * MAC_SIZE : -MAC_SIZE])


def verify_mac1(datagram: Buffer, key: bytes) -> bool:
    """Does the handshake datagram end with the right mac1?  `key` comes from mac1_key()."""
    if len(datagram) < 2 * MAC_SIZE:
        return False
    return hmac.compare_digest(mac1_of(datagram), _mac(key, datagram[: -2 * MAC_SIZE]))


class CookieChecker:
    """The cookie check of a responder under load.  Holds two secrets and nothing about any sender."""

    __slots__ = ("_changed_at", "_entropy", "_previous", "_secret")

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._secret: bytes | None = None
        self._previous: bytes | None = None
        self._changed_at: Instant | None = None

    def _rotate(self, now: Instant) -> None:
        if self._changed_at is None or now - self._changed_at >= SECRET_LIFETIME:
            stale = self._changed_at is None or now - self._changed_at >= 2 * SECRET_LIFETIME
            self._previous = None if stale else self._secret
            self._secret = self._entropy(32)
            self._changed_at = now

    def make_reply(self, now: Instant, datagram: Buffer, remote: Address, material: bytes) -> bytes:
        """The cookie reply to an init whose mac1 was right: always shorter than the init.  Raises MalformedPacket."""
        if len(datagram) < REPLY_SIZE:
            raise MalformedPacket("an init that short gets no cookie")
        self._rotate(now)
        assert self._secret is not None
        sender_index = int.from_bytes(datagram[4:8], "big")
        mac1 = mac1_of(datagram)
        nonce = self._entropy(_NONCE_SIZE)
        sealed = ChaCha20Poly1305(_reply_key(material, mac1)).encrypt(nonce, _cookie(self._secret, remote), mac1)
        return _HEADER.pack(COOKIE_REPLY, 0, 0, sender_index) + nonce + sealed

    def verify_mac2(self, now: Instant, datagram: Buffer, remote: Address) -> bool:
        """Does the init carry a cookie that we gave to this address lately?"""
        if len(datagram) < 2 * MAC_SIZE:
            return False
        self._rotate(now)
        mac2 = bytes(datagram[-MAC_SIZE:])
        covered = datagram[:-MAC_SIZE]
        return any(
            hmac.compare_digest(mac2, _mac(_cookie(secret, remote), covered))
            for secret in (self._secret, self._previous)
            if secret is not None
        )


def reply_index(datagram: Buffer) -> int:
    """The receiver index of a cookie reply.  Raises MalformedPacket."""
    if len(datagram) != REPLY_SIZE or datagram[0] != COOKIE_REPLY:
        raise MalformedPacket("not a cookie reply")
    return int.from_bytes(datagram[4:8], "big")


def consume_reply(datagram: Buffer, material: bytes, sent_mac1: bytes) -> bytes:
    """The cookie in a reply to the init that ended with `sent_mac1`.  Raises MalformedPacket."""
    reply_index(datagram)
    nonce, sealed = bytes(datagram[8:20]), bytes(datagram[20:])
    try:
        return ChaCha20Poly1305(_reply_key(material, sent_mac1)).decrypt(nonce, sealed, sent_mac1)
    except InvalidTag:
        raise NoiseError("the cookie reply does not authenticate") from None


def _reply_key(material: bytes, mac1: bytes) -> bytes:
    """A key for each init, so that random 96-bit nonces never run out.  (WireGuard has XChaCha20 instead.)"""
    key = hashlib.sha256(b"ptunnel 1 cookie" + material).digest()
    return hmac.digest(key, mac1, "sha256")


def _cookie(secret: bytes, remote: Address) -> bytes:
    return _mac(secret, f"{remote.host} {remote.port}".encode())
