"""Params: what each side tells the other inside the sealed payloads of the handshake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunnel.core.wire import Reader, Writer
from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.kem import PSK_ID_SIZE
from tunnel.units import Buffer

VERSION: Final = 1
MAX_AEADS: Final = 8
MAX_NAME_BYTES: Final = 64  # of UTF-8
CHALLENGE_SIZE: Final = 16  # bytes
MACHINE_SIZE: Final = 3  # bytes; a response of XX has no room for more
PURPOSE_SIZE: Final = 1  # byte
HYBRID_SIZE: Final = 1  # byte
MAX_PSKS: Final = 6  # that an initiator names; an init has no room for more
FIELD_CHALLENGE: Final = 1
FIELD_HYBRID: Final = 2
FIELD_PSKS: Final = 3
FIELD_MACHINE: Final = 4
FIELD_PURPOSE: Final = 8
#: Without challenge and psks, which only an IK init has.
MAX_PARAMS_SIZE: Final = 33 + MAX_AEADS + MAX_NAME_BYTES + (2 + PURPOSE_SIZE) + (2 + MACHINE_SIZE) + (2 + HYBRID_SIZE)
MAX_INIT_PARAMS_SIZE: Final = MAX_PARAMS_SIZE + 2 + CHALLENGE_SIZE + 2 + MAX_PSKS * PSK_ID_SIZE

ML_KEM_768: Final = 1  # a hybrid step with it

PATH_AUTO: Final = 0
PATH_DIRECT: Final = 1
PATH_RELAY: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """One side of a new connection.

    `instance` is our random 64-bit connection instance; `resume` the peer's instance that this handshake continues,
    0 for a new connection.  `aeads` are in order of preference.  `receive_buffer` is in bytes.  `record_parts` is how many
    datagrams a record to us may have; 0: we take none.
    `timestamp` stands in message 1 of IK only: nanoseconds, strictly increasing per static key.  So does `challenge`, what a
    responder asked to have back because the timestamps did not increase; empty where it did not; and `psks`, the ids of those
    that its sender has besides the one of the pairing, which needs no name; the likeliest first.
    `purpose` stands in XX by a code only: what the code is for, of which both sides have to be of one mind; 0: not said.
    `machine` is a number of the machine that the sender runs on, one and the same for a static key; empty if it does not tell.
    `hybrid` is the step after handshakes that its sender does; 0: none.
    """

    instance: int
    name: str
    aeads: tuple[int, ...]
    receive_buffer: int
    path_policy: int = PATH_AUTO
    version: int = VERSION
    timestamp: int = 0
    resume: int = 0
    record_parts: int = 0
    challenge: bytes = b""
    purpose: int = 0
    machine: bytes = b""
    hybrid: int = 0
    psks: tuple[bytes, ...] = ()


def encode_params(params: Params) -> bytes:
    """Raises ValueError for what cannot be said: that is our own bug."""
    name = params.name.encode()
    if len(name) > MAX_NAME_BYTES or not 1 <= len(params.aeads) <= MAX_AEADS or len(params.psks) > MAX_PSKS:
        raise ValueError("a name of at most 64 bytes, 1 to 8 ciphers and at most 6 psks, please")
    writer = Writer(MAX_INIT_PARAMS_SIZE).u8(params.version).u8(params.path_policy)
    writer.u64(params.instance).u64(params.resume).u64(params.timestamp).u32(min(params.receive_buffer, 2**32 - 1))
    writer.u8(len(params.aeads)).raw(bytes(params.aeads))
    writer.u8(len(name)).raw(name).u8(params.record_parts)
    if params.challenge:
        writer.u8(FIELD_CHALLENGE).u8(len(params.challenge)).raw(params.challenge)
    if params.purpose:
        writer.u8(FIELD_PURPOSE).u8(PURPOSE_SIZE).u8(params.purpose)
    if params.machine:
        writer.u8(FIELD_MACHINE).u8(len(params.machine)).raw(params.machine)
    if params.hybrid:
        writer.u8(FIELD_HYBRID).u8(1).u8(params.hybrid)
    if params.psks:
        writer.u8(FIELD_PSKS).u8(len(params.psks) * PSK_ID_SIZE).raw(b"".join(params.psks))
    return writer.finish()


def decode_params(data: Buffer) -> Params:
    """Fields of later versions are skipped.  Raises MalformedPacket."""
    reader = Reader(data)
    version, path_policy = reader.u8(), reader.u8()
    instance, resume, timestamp, receive_buffer = reader.u64(), reader.u64(), reader.u64(), reader.u32()
    count = reader.u8()
    if version < 1 or path_policy > PATH_RELAY or not 1 <= count <= MAX_AEADS:
        raise MalformedPacket("Params: version, path policy or number of ciphers out of bounds")
    aeads = tuple(reader.take(count))
    length = reader.u8()
    if length > MAX_NAME_BYTES:
        raise MalformedPacket("Params: the name is too long")
    try:
        name = reader.take(length).decode()
    except UnicodeDecodeError:
        raise MalformedPacket("Params: the name is not UTF-8") from None
    record_parts = reader.u8() if reader.remaining else 0
    fields = _decode_fields(reader)
    return Params(
        version=version,
        instance=instance,
        name=name,
        aeads=aeads,
        receive_buffer=receive_buffer,
        path_policy=path_policy,
        timestamp=timestamp,
        resume=resume,
        record_parts=record_parts,
        challenge=_exactly(fields, FIELD_CHALLENGE, CHALLENGE_SIZE),
        purpose=int.from_bytes(_exactly(fields, FIELD_PURPOSE, PURPOSE_SIZE), "big"),
        machine=_exactly(fields, FIELD_MACHINE, MACHINE_SIZE),
        hybrid=int.from_bytes(_exactly(fields, FIELD_HYBRID, 1), "big"),
        psks=_psks(fields.get(FIELD_PSKS, b"")),
    )


def _decode_fields(reader: Reader) -> dict[int, bytes]:
    """Whatever may be left out: type, length and value of each, up to the padding, or to what is no field."""
    fields: dict[int, bytes] = {}
    while reader.remaining > 1 and (kind := reader.u8()):
        length = reader.u8()
        if length > reader.remaining:
            break
        fields[kind] = reader.take(length)
    return fields


def _exactly(fields: dict[int, bytes], kind: int, size: int) -> bytes:
    value = fields.get(kind, b"")
    if len(value) not in (0, size):
        raise MalformedPacket(f"Params: field {kind} has {len(value)} bytes")
    return value


def _psks(value: bytes) -> tuple[bytes, ...]:
    if len(value) % PSK_ID_SIZE:
        raise MalformedPacket(f"Params: names of psks with {len(value)} bytes")
    return tuple(value[at : at + PSK_ID_SIZE] for at in range(0, len(value), PSK_ID_SIZE))[:MAX_PSKS]
