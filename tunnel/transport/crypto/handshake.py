"""The handshake datagrams around Noise: init, response, finish.  No timers, no sockets: bytes in, bytes and keys out.

    initiator                                  responder
    init      IK: s, ss, Params, timestamp  →  mac1? mac2 under load? then open
              IK: Params, keys             ←   response
    init      XX: e under the psk           →
              XX: e, s, Params             ←   response, the same again for the same init
    finish    XX: s, Params                 →  keys

Every init has INIT_SIZE bytes and every answer fewer, so that nobody can use us to amplify; padding is sealed.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tunnel.core.hkdf import hkdf
from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.challenge import Challenge, seal, unseal
from tunnel.transport.crypto.cookie import MAC_SIZE, append_macs, consume_reply, mac1_key, mac1_of, verify_mac1
from tunnel.transport.crypto.kem import psk_id
from tunnel.transport.crypto.keys import Keypair, choose_aead
from tunnel.transport.crypto.noise import TAG_SIZE, Entropy, HandshakeState, NoiseError
from tunnel.transport.crypto.params import (
    MAX_INIT_PARAMS_SIZE,
    MAX_PARAMS_SIZE,
    MAX_PSKS,
    Params,
    decode_params,
    encode_params,
)
from tunnel.units import KEY_SIZE, Buffer

INIT: Final = 0x70
RESPONSE: Final = 0x71
FINISH: Final = 0x72

INIT_SIZE: Final = 320  # bytes of every init
ANSWER_SIZE: Final = 256  # bytes of every response and finish; a constant length tells nothing about the name inside
MAX_SIZE: Final = 1200  # bytes of any handshake datagram, whatever later versions put in
MAX_PENDING: Final = 4  # inits of one Initiator whose response is still welcome: a round trip may outlast a retry

_INIT_HEADER: Final = struct.Struct(">BBHI")  # type, pattern, 0, sender index
_ANSWER_HEADER: Final = struct.Struct(">BBHII")  # type, pattern, 0, sender index, receiver index
_MACS: Final = 2 * MAC_SIZE


class Pattern(IntEnum):
    """The second byte of an init."""

    XX = 1  # Noise_XXpsk0: first meeting, the psk comes from the PAKE
    IK = 2  # Noise_IKpsk2: the initiator knows the responder's static key and their psk


_NOISE_NAMES: Final = {Pattern.XX: "XXpsk0", Pattern.IK: "IKpsk2"}


class InitHeader(NamedTuple):
    pattern: Pattern
    sender_index: int


class ResponseHeader(NamedTuple):
    """Of a response or a finish."""

    pattern: Pattern
    sender_index: int
    receiver_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A finished handshake.  `finish` is what the initiator of XX still has to send, until a transport datagram arrives."""

    keypair: Keypair
    remote_static: bytes
    params: Params  # the peer's
    pair_psk: bytes = field(repr=False)  # keep it after pairing; both sides hold the same
    psk: bytes | None = field(default=None, repr=False)  # that an IK handshake ran under
    handshake_hash: bytes
    finish: bytes | None = None


def ik_prologue() -> bytes:
    """The prologue of IKpsk2."""
    return b"ptunnel 1 IK"


def xx_prologue(nameplate: int, exposer_message: bytes, connector_message: bytes) -> bytes:
    """The prologue of XXpsk0: nameplate, roles and both PAKE messages.  The connector is the initiator."""
    return b"".join(
        (
            b"ptunnel 1 XX initiator=connector",
            nameplate.to_bytes(8, "big"),
            len(exposer_message).to_bytes(2, "big"),
            exposer_message,
            len(connector_message).to_bytes(2, "big"),
            connector_message,
        )
    )


def pair_psk(chaining_key: bytes) -> bytes:
    """The psk that two peers keep for later handshakes, from the final chaining key of the first one."""
    return hkdf(chaining_key, b"ptunnel 1 pair psk")


def parse_init(datagram: Buffer) -> InitHeader:
    """Raises MalformedPacket."""
    if not INIT_SIZE <= len(datagram) <= MAX_SIZE:
        raise MalformedPacket("a handshake init of the wrong size")
    kind, pattern, _, sender_index = _INIT_HEADER.unpack_from(datagram)
    if kind != INIT:
        raise MalformedPacket("not a handshake init")
    return InitHeader(_pattern(pattern), sender_index)


def parse_response(datagram: Buffer, kind: int = RESPONSE) -> ResponseHeader:
    """The header of a response, or of a finish with `kind=FINISH`.  Raises MalformedPacket."""
    if not _ANSWER_HEADER.size + KEY_SIZE + TAG_SIZE + _MACS <= len(datagram) <= MAX_SIZE:
        raise MalformedPacket("a handshake answer of the wrong size")
    actual, pattern, _, sender_index, receiver_index = _ANSWER_HEADER.unpack_from(datagram)
    if actual != kind:
        raise MalformedPacket("not the handshake datagram it should be")
    return ResponseHeader(_pattern(pattern), sender_index, receiver_index)


def _pattern(value: int) -> Pattern:
    try:
        return Pattern(value)
    except ValueError:
        raise MalformedPacket("an unknown handshake pattern") from None


class Initiator:
    """Our side of one handshake that we begin.  `index` is the receiver index we will answer to."""

    def __init__(
        self,
        pattern: Pattern,
        *,
        static: X25519PrivateKey,
        remote_static: bytes | None,
        psk: bytes,
        prologue: bytes,
        index: int,
        params: Params,
        entropy: Entropy,
        newer: Sequence[bytes] = (),
    ) -> None:
        """`psk` is that of the pairing.  `newer`: those that came after it; the responder takes the first that it has."""
        self.pattern = Pattern(pattern)
        self.index = index
        self.cookie: bytes | None = None  # from the last cookie reply; a stale one only earns a fresh reply
        self.challenge = b""  # the last one that we got; likewise
        self._static = static
        self._remote_static = remote_static if self.pattern is Pattern.IK else None
        self._psk = psk
        self._psks = (*newer[:MAX_PSKS], psk)
        self._params = replace(params, psks=tuple(map(psk_id, newer[:MAX_PSKS])))
        self._entropy = entropy
        self._material = psk if self._remote_static is None else self._remote_static
        self._mac1_key = mac1_key(self._material)
        self._header = _INIT_HEADER.pack(INIT, self.pattern, 0, index)
        self._prologue = prologue + self._header
        self._pending: deque[HandshakeState] = deque(maxlen=MAX_PENDING)  # newest first
        self._sent_mac1s: deque[bytes] = deque(maxlen=MAX_PENDING)
        self._message = b""  # noise message 1 of XX, which is repeated

    def first_datagram(self, timestamp: int = 0, cookie: bytes | None = None) -> bytes:
        """The init to send now.

        IK: a fresh one at each call; `timestamp` (nanoseconds) must be larger than in any earlier init of our static key.
        XX: the same noise message again.  `cookie` stands in for the one of the last cookie reply.
        """
        if self.pattern is Pattern.IK or not self._pending:
            noise = HandshakeState(
                _NOISE_NAMES[self.pattern],
                True,
                self._prologue,
                s=self._static,
                rs=self._remote_static,
                psk=self._psk if self.pattern is Pattern.XX else None,
                entropy=self._entropy,
            )
            if self.pattern is Pattern.IK:
                payload = encode_params(replace(self._params, timestamp=timestamp, challenge=self.challenge))
                overhead = 2 * KEY_SIZE + 2 * TAG_SIZE
            else:
                payload = b""
                overhead = KEY_SIZE + TAG_SIZE
            room = INIT_SIZE - len(self._header) - overhead - _MACS
            self._message = noise.write_message(payload.ljust(room, b"\0"))
            self._pending.appendleft(noise)
        datagram = append_macs(self._header + self._message, self._mac1_key, cookie or self.cookie)
        self._sent_mac1s.appendleft(mac1_of(datagram))
        return datagram

    def handle_cookie_reply(self, datagram: Buffer) -> None:
        """Keep the cookie for the inits to come.  Raises MalformedPacket."""
        for mac1 in self._sent_mac1s:
            try:
                self.cookie = consume_reply(datagram, self._material, mac1)
            except NoiseError:
                continue
            return
        raise NoiseError("a cookie reply to nothing we sent")

    def handle_challenge(self, datagram: Buffer) -> Challenge:
        """Keep the challenge for the inits to come.  Raises MalformedPacket."""
        for noise in self._pending if self.pattern is Pattern.IK else ():
            try:
                challenge = unseal(datagram, noise.chaining_key)
            except NoiseError:
                continue
            self.challenge = challenge.value
            return challenge
        raise NoiseError("a challenge to nothing we sent")

    def handle_response(self, datagram: Buffer) -> Completed:
        """Finish the handshake.  Raises MalformedPacket; the handshake then goes on as before."""
        header = parse_response(datagram)
        if header.receiver_index != self.index or header.pattern is not self.pattern:
            raise NoiseError("a response to somebody else's init")
        if not verify_mac1(datagram, self._mac1_key):
            raise NoiseError("a response with a wrong mac1")
        message = datagram[_ANSWER_HEADER.size : -_MACS]
        for noise in self._pending:
            try:
                payload = noise.read_message(message, self._psks if self.pattern is Pattern.IK else ())
            except NoiseError:
                continue
            return self._complete(noise, header, decode_params(payload))
        raise NoiseError("the response does not authenticate")

    def _complete(self, noise: HandshakeState, header: ResponseHeader, remote: Params) -> Completed:
        aead = choose_aead(self._params.aeads, remote.aeads)
        finish = None
        if self.pattern is Pattern.XX:
            answer_header = _ANSWER_HEADER.pack(FINISH, self.pattern, 0, self.index, header.sender_index)
            room = ANSWER_SIZE - len(answer_header) - KEY_SIZE - 2 * TAG_SIZE - _MACS
            message = noise.write_message(encode_params(self._params).ljust(room, b"\0"))
            finish = append_macs(answer_header + message, self._mac1_key)
        self._pending.clear()
        completed = _completed(noise, _keypair(noise, aead, self.index, header.sender_index), remote, finish)
        return replace(completed, psk=noise.psk) if self.pattern is Pattern.IK else completed


def _keypair(noise: HandshakeState, aead: int, local_index: int, remote_index: int) -> Keypair:
    to_responder, to_initiator = noise.split()
    send, receive = (to_responder, to_initiator) if noise.is_initiator else (to_initiator, to_responder)
    return Keypair(
        aead=aead,
        send_key=send,
        receive_key=receive,
        local_index=local_index,
        remote_index=remote_index,
        is_initiator=noise.is_initiator,
    )


def _completed(noise: HandshakeState, keypair: Keypair, params: Params, finish: bytes | None = None) -> Completed:
    assert noise.remote_static is not None
    return Completed(
        keypair=keypair,
        remote_static=noise.remote_static,
        params=params,
        pair_psk=pair_psk(noise.chaining_key),
        handshake_hash=noise.handshake_hash,
        finish=finish,
    )


def _response(noise: HandshakeState, pattern: Pattern, index: int, remote_index: int, params: Params, key: bytes) -> bytes:
    header = _ANSWER_HEADER.pack(RESPONSE, pattern, 0, index, remote_index)
    # XX carries our static key besides, and both seal their payload
    overhead = KEY_SIZE + TAG_SIZE + (KEY_SIZE + TAG_SIZE if pattern is Pattern.XX else 0)
    room = ANSWER_SIZE - len(header) - overhead - _MACS
    return append_macs(header + noise.write_message(encode_params(params).ljust(room, b"\0")), key)


class IkOpened:
    """An IK init that was made for us, and by whom.  Nothing proves yet that it is fresh: look at `timestamp`."""

    __slots__ = ("_mac1_key", "_noise", "_sender_index", "params", "remote_static", "timestamp")

    def __init__(self, noise: HandshakeState, sender_index: int, params: Params, key: bytes) -> None:
        assert noise.remote_static is not None
        self._noise = noise
        self._sender_index = sender_index
        self._mac1_key = key
        self.remote_static: bytes = noise.remote_static
        self.params = params
        self.timestamp = params.timestamp

    def respond(self, psk: bytes, index: int, params: Params) -> tuple[bytes, Completed]:
        """Answer it.  Send nothing under the keypair until one packet under it has authenticated.

        `psk` is the one kept for `remote_static`.  Call it once.  Raises MalformedPacket.
        """
        aead = choose_aead(self.params.aeads, params.aeads)
        self._noise.set_psk(psk)
        datagram = _response(self._noise, Pattern.IK, index, self._sender_index, params, self._mac1_key)
        keypair = _keypair(self._noise, aead, index, self._sender_index)
        return datagram, replace(_completed(self._noise, keypair, self.params), psk=psk)

    def challenge(self, challenge: Challenge, entropy: Entropy) -> bytes:
        """Ask its sender to show that it is there now.  Not after respond()."""
        return seal(challenge, self._noise.chaining_key, self._sender_index, entropy)


def open_ik_init(datagram: Buffer, static: X25519PrivateKey, prologue: bytes, entropy: Entropy) -> IkOpened:
    """Open an IK init.  Raises MalformedPacket.  Costs two X25519 exchanges unless mac1 is wrong."""
    header = parse_init(datagram)
    if header.pattern is not Pattern.IK:
        raise MalformedPacket("not an IK init")
    key = mac1_key(static.public_key().public_bytes_raw())
    if not verify_mac1(datagram, key):
        raise NoiseError("an init with a wrong mac1")
    bound = prologue + bytes(datagram[: _INIT_HEADER.size])
    noise = HandshakeState(_NOISE_NAMES[Pattern.IK], False, bound, s=static, entropy=entropy)
    payload = noise.read_message(datagram[_INIT_HEADER.size : -_MACS])
    return IkOpened(noise, header.sender_index, decode_params(payload), key)


class XxResponder:
    """The exposer's side of a pairing, between the init and the finish."""

    def __init__(
        self, *, static: X25519PrivateKey, psk: bytes, prologue: bytes, index: int, params: Params, entropy: Entropy
    ) -> None:
        self.index = index
        self._static = static
        self._psk = psk
        self._prologue = prologue
        self._params = params
        self._entropy = entropy
        self._mac1_key = mac1_key(psk)
        self._noise: HandshakeState | None = None
        self._init = b""  # what we answered, without its macs
        self._response = b""
        self._finish = b""
        self._completed: Completed | None = None

    def handle_init(self, datagram: Buffer) -> bytes:
        """The response; the same one again for the same init.

        Raises MalformedPacket: for the first init of a pairing that means a wrong code, or a forgery.
        """
        header = parse_init(datagram)
        if header.pattern is not Pattern.XX:
            raise MalformedPacket("not an XX init")
        if not verify_mac1(datagram, self._mac1_key):
            raise NoiseError("an init with a wrong mac1: the codes differ")
        init = bytes(datagram[:-_MACS])
        if self._noise is not None:
            if init != self._init:
                raise NoiseError("a second init for one pairing")
            return self._response
        bound = self._prologue + init[: _INIT_HEADER.size]
        noise = HandshakeState(_NOISE_NAMES[Pattern.XX], False, bound, s=self._static, psk=self._psk, entropy=self._entropy)
        noise.read_message(init[_INIT_HEADER.size :])
        response = _response(noise, Pattern.XX, self.index, header.sender_index, self._params, self._mac1_key)
        self._noise, self._init, self._response = noise, init, response
        return response

    def handle_finish(self, datagram: Buffer) -> Completed:
        """The keys; the very same object again when the finish is repeated.  Raises MalformedPacket."""
        header = parse_response(datagram, FINISH)
        noise = self._noise
        if noise is None or header.receiver_index != self.index or header.pattern is not Pattern.XX:
            raise NoiseError("a finish without an init")
        if self._completed is not None:
            if bytes(datagram) != self._finish:
                raise NoiseError("a second finish for one pairing")
            return self._completed
        if header.sender_index != int.from_bytes(self._init[4:8], "big") or not verify_mac1(datagram, self._mac1_key):
            raise NoiseError("a finish with a wrong mac1 or index")
        params = decode_params(noise.read_message(datagram[_ANSWER_HEADER.size : -_MACS]))
        aead = choose_aead(params.aeads, self._params.aeads)
        self._finish = bytes(datagram)
        self._completed = _completed(noise, _keypair(noise, aead, self.index, header.sender_index), params)
        return self._completed


assert MAX_INIT_PARAMS_SIZE + 2 * KEY_SIZE + 2 * TAG_SIZE + _INIT_HEADER.size + _MACS <= INIT_SIZE
assert MAX_PARAMS_SIZE + 2 * KEY_SIZE + 2 * TAG_SIZE + _ANSWER_HEADER.size + _MACS <= ANSWER_SIZE < INIT_SIZE
