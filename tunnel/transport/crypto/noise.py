"""The Noise protocol framework, as far as ptunnel speaks it: NN, KK, XX and IK on X25519, each with at most one psk.

Source: The Noise Protocol Framework, revision 34.  Section numbers below are its own.  ptunnel itself uses only
XXpsk0 and IKpsk2 with ChaChaPoly and SHA256; the rest is here because the public test vectors cover it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tunnel.errors import MalformedPacket
from tunnel.units import KEY_SIZE, Buffer

Entropy = Callable[[int], bytes]  # n -> n secret random bytes; os.urandom in life

TAG_SIZE: Final = 16  # bytes that sealing adds
MAX_MESSAGE_SIZE: Final = 65_535  # bytes; §3
_MAX_NONCE: Final = 2**64 - 1  # reserved by §5.1
_CIPHERS: Final[dict[str, type[ChaCha20Poly1305] | type[AESGCM]]] = {"ChaChaPoly": ChaCha20Poly1305, "AESGCM": AESGCM}


class NoiseError(MalformedPacket):
    """A handshake message that is too short, forged, made for somebody else, or out of turn."""


class _Pattern(NamedTuple):
    """A handshake pattern: the statics known beforehand, then the tokens of each message.  §7."""

    initiator_known: bool
    responder_known: bool
    messages: tuple[tuple[str, ...], ...]


_PATTERNS: Final = {
    "NN": _Pattern(False, False, (("e",), ("e", "ee"))),
    "KK": _Pattern(True, True, (("e", "es", "ss"), ("e", "ee", "se"))),
    "XX": _Pattern(False, False, (("e",), ("e", "ee", "s", "es"), ("s", "se"))),
    "IK": _Pattern(False, True, (("e", "es", "s", "ss"), ("e", "ee", "se"))),
}


def _tokens_of(pattern: str) -> tuple[_Pattern, bool]:
    """The pattern that a name such as "XXpsk0" stands for, and whether it has a psk.  §9.4."""
    match = re.fullmatch(r"([A-Z]{2})(?:psk(\d))?", pattern)
    if match is None or match[1] not in _PATTERNS:
        raise ValueError(f"unknown Noise pattern {pattern!r}")
    base = _PATTERNS[match[1]]
    if match[2] is None:
        return base, False
    messages = [list(tokens) for tokens in base.messages]
    place = int(match[2])
    if place == 0:
        messages[0].insert(0, "psk")
    else:
        messages[place - 1].append("psk")
    return base._replace(messages=tuple(tuple(tokens) for tokens in messages)), True


class CipherState:
    """A key and its counter; without a key, it lets bytes through unsealed.  §5.1."""

    __slots__ = ("_aead", "_big_endian", "_make", "key", "nonce")

    def __init__(self, cipher: str) -> None:
        self._make = _CIPHERS[cipher]
        self._big_endian = cipher == "AESGCM"  # §12.3, §12.4
        self._aead: ChaCha20Poly1305 | AESGCM | None = None
        self.key: bytes | None = None
        self.nonce = 0

    def initialize_key(self, key: bytes | None) -> None:
        self.key = key
        self.nonce = 0
        self._aead = None if key is None else self._make(key)

    def _next_nonce(self) -> bytes:
        if self.nonce >= _MAX_NONCE:
            raise NoiseError("this key has sealed all it may")
        return bytes(4) + self.nonce.to_bytes(8, "big" if self._big_endian else "little")

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        if self._aead is None:
            return plaintext
        sealed = self._aead.encrypt(self._next_nonce(), plaintext, ad)
        self.nonce += 1
        return sealed

    def decrypt_with_ad(self, ad: bytes, sealed: bytes) -> bytes:
        """Raises NoiseError; the counter then stays."""
        if self._aead is None:
            return sealed
        try:
            plaintext = self._aead.decrypt(self._next_nonce(), sealed, ad)
        except InvalidTag:
            raise NoiseError("the message does not authenticate") from None
        self.nonce += 1
        return plaintext


class SymmetricState:
    """The running hash and the chaining key of one handshake.  §5.2."""

    __slots__ = ("_hash_name", "chaining_key", "cipher", "hash")

    def __init__(self, protocol_name: bytes, cipher: str, hash_name: str) -> None:
        self._hash_name = {"SHA256": "sha256", "BLAKE2s": "blake2s"}[hash_name]  # both 32 bytes
        self.hash = protocol_name.ljust(32, b"\0") if len(protocol_name) <= 32 else self._digest(protocol_name)
        self.chaining_key = self.hash
        self.cipher = CipherState(cipher)

    def _digest(self, data: bytes) -> bytes:
        return hashlib.new(self._hash_name, data).digest()

    def _hkdf(self, material: bytes, outputs: int) -> list[bytes]:
        """HKDF(chaining_key, material, outputs).  §4.3."""
        key = hmac.digest(self.chaining_key, material, self._hash_name)
        last = b""
        out: list[bytes] = []
        for number in range(1, outputs + 1):
            last = hmac.digest(key, last + bytes([number]), self._hash_name)
            out.append(last)
        return out

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, key = self._hkdf(material, 2)
        self.cipher.initialize_key(key)

    def mix_hash(self, data: bytes) -> None:
        self.hash = self._digest(self.hash + data)

    def mix_key_and_hash(self, material: bytes) -> None:
        self.chaining_key, data, key = self._hkdf(material, 3)
        self.mix_hash(data)
        self.cipher.initialize_key(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = self.cipher.encrypt_with_ad(self.hash, plaintext)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = self.cipher.decrypt_with_ad(self.hash, sealed)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        first, second = self._hkdf(b"", 2)
        return first, second

    def save(self) -> tuple[bytes, bytes, bytes | None, int]:
        return self.hash, self.chaining_key, self.cipher.key, self.cipher.nonce

    def restore(self, saved: tuple[bytes, bytes, bytes | None, int]) -> None:
        self.hash, self.chaining_key, key, nonce = saved
        self.cipher.initialize_key(key)
        self.cipher.nonce = nonce


def _dh(private: X25519PrivateKey | None, public: bytes | None) -> bytes:
    """X25519.  Raises NoiseError for a low-order point: its shared secret would be all zeros."""
    if private is None or public is None:
        raise ValueError("this Noise pattern needs a key that was not given")
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise NoiseError("a public key of low order") from None


class HandshakeState:
    """One side of one handshake: write_message and read_message in turn until `finished`, then `split`.  §5.3.

    `s` is our static key, `rs` the peer's where the pattern knows it beforehand.  `e` fixes the ephemeral for test
    vectors; otherwise it is made from `entropy`.  A read or write that raises NoiseError leaves the state as it was,
    so that a forged message cannot spoil a handshake that the genuine one may still complete.
    """

    __slots__ = (
        "_entropy",
        "_fixed_ephemeral",
        "_has_psk",
        "_messages",
        "_position",
        "_symmetric",
        "e",
        "is_initiator",
        "psk",
        "remote_ephemeral",
        "remote_static",
        "s",
    )

    def __init__(
        self,
        pattern: str,
        initiator: bool,
        prologue: bytes,
        s: X25519PrivateKey | None = None,
        e: X25519PrivateKey | None = None,
        rs: bytes | None = None,
        psk: bytes | None = None,
        entropy: Entropy | None = None,
        *,
        cipher: str = "ChaChaPoly",
        hash_name: str = "SHA256",
    ) -> None:
        shape, self._has_psk = _tokens_of(pattern)
        self._messages = shape.messages
        self._position = 0
        self.psk: bytes | None = None
        if psk is not None:
            self.set_psk(psk)
        self._entropy = entropy
        self._fixed_ephemeral = e
        self.e: X25519PrivateKey | None = None
        self.s = s
        self.is_initiator = initiator
        self.remote_static = rs
        self.remote_ephemeral: bytes | None = None
        self._symmetric = SymmetricState(f"Noise_{pattern}_25519_{cipher}_{hash_name}".encode(), cipher, hash_name)
        self._symmetric.mix_hash(prologue)
        for is_known, is_ours in ((shape.initiator_known, initiator), (shape.responder_known, not initiator)):
            if is_known:
                public = (None if s is None else s.public_key().public_bytes_raw()) if is_ours else rs
                if public is None or len(public) != KEY_SIZE:
                    raise ValueError(f"{pattern} needs {'our' if is_ours else 'the peer’s'} static key of 32 bytes")
                self._symmetric.mix_hash(public)

    def set_psk(self, psk: bytes) -> None:
        """Give the psk late: the responder of IKpsk2 knows whose it is only after message 1."""
        if len(psk) != KEY_SIZE:
            raise ValueError("a psk has 32 bytes")
        self.psk = psk

    @property
    def finished(self) -> bool:
        return self._position == len(self._messages)

    @property
    def handshake_hash(self) -> bytes:
        """Unique to this handshake once it is finished: a channel binding.  §11.2."""
        return self._symmetric.hash

    @property
    def chaining_key(self) -> bytes:
        """Secret; both sides hold the same once finished."""
        return self._symmetric.chaining_key

    def _is_our_turn(self) -> bool:
        return not self.finished and (self._position % 2 == 0) == self.is_initiator

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next handshake message with `payload` in it.  Raises NoiseError if the peer's key is of low order."""
        if not self._is_our_turn():
            raise NoiseError("it is not our turn in this handshake")
        saved, e = self._symmetric.save(), self.e
        try:
            message = self._write_tokens() + self._symmetric.encrypt_and_hash(payload)
        except NoiseError:
            self._symmetric.restore(saved)
            self.e = e
            raise
        if len(message) > MAX_MESSAGE_SIZE:
            raise ValueError("a Noise message has at most 65,535 bytes")
        self._position += 1
        return message

    def _write_tokens(self) -> bytes:
        out = b""
        for token in self._messages[self._position]:
            if token == "e":
                self.e = self._fixed_ephemeral or self._make_ephemeral()
                public = self.e.public_key().public_bytes_raw()
                self._mix_ephemeral(public)
                out += public
            elif token == "s":
                if self.s is None:
                    raise ValueError("this Noise pattern needs our static key")
                out += self._symmetric.encrypt_and_hash(self.s.public_key().public_bytes_raw())
            else:
                self._mix_secret(token)
        return out

    def read_message(self, message: Buffer, psks: Sequence[bytes] = ()) -> bytes:
        """The payload of the peer's next message.  Raises NoiseError for anything else, and then changes nothing.

        `psks`: those of which the peer may have used any, where the message's last token is psk; `psk` is then the one.
        """
        if self.finished or self._is_our_turn():
            raise NoiseError("it is not the peer's turn in this handshake")
        if len(message) > MAX_MESSAGE_SIZE:
            raise NoiseError("a Noise message has at most 65,535 bytes")
        saved, remote_static, remote_ephemeral = self._symmetric.save(), self.remote_static, self.remote_ephemeral
        tokens = self._messages[self._position]
        try:
            if psks:
                payload = self._open_with(psks, self._read_tokens(bytes(message), tokens[:-1]))
            else:
                payload = self._symmetric.decrypt_and_hash(self._read_tokens(bytes(message), tokens))
        except NoiseError:
            self._symmetric.restore(saved)
            self.remote_static, self.remote_ephemeral = remote_static, remote_ephemeral
            raise
        self._position += 1
        return payload

    def _open_with(self, psks: Sequence[bytes], sealed: bytes) -> bytes:
        saved = self._symmetric.save()
        for psk in psks:
            self.set_psk(psk)
            self._mix_secret("psk")
            try:
                return self._symmetric.decrypt_and_hash(sealed)
            except NoiseError:
                self._symmetric.restore(saved)
        raise NoiseError("the message does not authenticate under any psk")

    def _read_tokens(self, message: bytes, tokens: Sequence[str]) -> bytes:
        for token in tokens:
            if token == "e":
                self.remote_ephemeral, message = _cut(message, KEY_SIZE)
                self._mix_ephemeral(self.remote_ephemeral)
            elif token == "s":
                has_key = self._symmetric.cipher.key is not None
                sealed, message = _cut(message, KEY_SIZE + TAG_SIZE if has_key else KEY_SIZE)
                self.remote_static = self._symmetric.decrypt_and_hash(sealed)
            else:
                self._mix_secret(token)
        return message

    def _make_ephemeral(self) -> X25519PrivateKey:
        if self._entropy is None:
            raise ValueError("an ephemeral key needs entropy")
        return X25519PrivateKey.from_private_bytes(self._entropy(KEY_SIZE))

    def _mix_ephemeral(self, public: bytes) -> None:
        self._symmetric.mix_hash(public)
        if self._has_psk:
            self._symmetric.mix_key(public)  # §9.2

    def _mix_secret(self, token: str) -> None:
        if token == "psk":
            if self.psk is None:
                raise ValueError("this Noise pattern needs a psk")
            self._symmetric.mix_key_and_hash(self.psk)
        elif token == "ee":
            self._symmetric.mix_key(_dh(self.e, self.remote_ephemeral))
        elif token == "ss":
            self._symmetric.mix_key(_dh(self.s, self.remote_static))
        elif (token == "es") == self.is_initiator:  # our ephemeral with their static
            self._symmetric.mix_key(_dh(self.e, self.remote_static))
        else:
            self._symmetric.mix_key(_dh(self.s, self.remote_ephemeral))

    def split(self) -> tuple[bytes, bytes]:
        """The two transport keys: initiator to responder, responder to initiator."""
        if not self.finished:
            raise NoiseError("the handshake is not finished")
        return self._symmetric.split()


def _cut(message: bytes, length: int) -> tuple[bytes, bytes]:
    if len(message) < length:
        raise NoiseError("the message is too short")
    return message[:length], message[length:]
