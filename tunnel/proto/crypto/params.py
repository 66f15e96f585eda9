"""Params: what each side tells the other inside the sealed payloads of the handshake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunnel.errors import MalformedPacket
from tunnel.proto.wire import Reader, Writer
from tunnel.units import Buffer

VERSION: Final = 1
MAX_AEADS: Final = 8
MAX_NAME_BYTES: Final = 64  # of UTF-8
MAX_PARAMS_SIZE: Final = 33 + MAX_AEADS + MAX_NAME_BYTES

PATH_AUTO: Final = 0
PATH_DIRECT: Final = 1
PATH_RELAY: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """One side of a new connection.

    `instance` is our random 64-bit connection instance; `resume` the peer's instance that this handshake continues,
    0 for a new connection.  `aeads` are in order of preference.  `receive_buffer` is in bytes.  `record_parts` is how many
    datagrams a record to us may have; 0: we take none.
    `timestamp` stands in message 1 of IK only: nanoseconds, strictly increasing per static key.
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


def encode_params(params: Params) -> bytes:
    """Raises ValueError for what cannot be said: that is our own bug."""
    name = params.name.encode()
    if len(name) > MAX_NAME_BYTES or not 1 <= len(params.aeads) <= MAX_AEADS:
        raise ValueError("a name of at most 64 bytes and 1 to 8 ciphers, please")
    writer = Writer(MAX_PARAMS_SIZE).u8(params.version).u8(params.path_policy)
    writer.u64(params.instance).u64(params.resume).u64(params.timestamp).u32(min(params.receive_buffer, 2**32 - 1))
    writer.u8(len(params.aeads)).raw(bytes(params.aeads))
    return writer.u8(len(name)).raw(name).u8(params.record_parts).finish()


def decode_params(data: Buffer) -> Params:
    """Trailing bytes are left for later versions.  Raises MalformedPacket."""
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
    )
