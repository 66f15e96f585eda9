"""The first message each way on a forwarded stream: what the opener wants, and that it got it.

On the wire: u16 length, then a MessagePack array.  A refusal is no message but RESET with a StreamCode.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from tunnel.ends import MAX_PATH
from tunnel.errors import MalformedPacket
from tunnel.ports.link import Stream
from tunnel.units import Buffer

MAX_MESSAGE: Final = 1024  # bytes after the length; later versions may append fields, which are ignored
LENGTH_SIZE: Final = 2
MAX_BENCH_SECONDS: Final = 30.0  # that a peer may ask us to be measured for
MAX_MEASURED: Final = 1 << 35  # bytes, or datagrams, that a peer may say it has measured: twice bench.MAX_BYTES
MAX_MEASURED_SECONDS: Final = 60.0  # in which it has: those that it was asked for, and its grace
MIN_MEASURED_SECONDS: Final = 1e-6  # as they are rounded on the wire; or none

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
#: NAME, NAME:port or unix:/PATH.  No control characters: it is shown to the exposer.
TargetName = Annotated[
    str, msgspec.Meta(pattern=rf"\A([A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}}(:[0-9]{{1,5}})?|unix:/[ -9;-~]{{0,{MAX_PATH - 1}}})\Z")
]
Mark = Annotated[int, msgspec.Meta(ge=0, le=0xFF_FFFF_FFFF_FFFF)]
#: An address without a zone, or a host name.
HostName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_:.-]{1,253}\Z")]
#: A numeric address, or * for all of them.
BindHost = Annotated[str, msgspec.Meta(pattern=r"\A(\*|[0-9A-Fa-f:.]{2,45})\Z")]
FlowNumber = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Opener to exposer.  `target` is a port, an exposed NAME or NAME:port, or unix:/PATH; `flow` is used by kind "udp" only.

    `mark` tells the local program's connection (loops.mark_of), so that a forward that leads to itself is noticed.
    """

    kind: Literal["tcp", "udp"]
    target: Port | TargetName
    flow: FlowNumber = 0
    mark: Mark = 0


class Reach(msgspec.Struct, frozen=True, array_like=True, tag="reach"):
    """Opener to exposer: a machine beyond it, in a network that it shares.  `host` is an address or a name, looked up there."""

    kind: Literal["tcp", "udp"]
    host: HostName
    port: Port
    flow: FlowNumber = 0
    mark: Mark = 0

    @property
    def target(self) -> str:
        """As people read it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listen(msgspec.Struct, frozen=True, array_like=True, tag="listen"):
    """Connecting side to exposer: listen at this address of yours for me, as long as this stream lasts."""

    host: BindHost
    port: Port


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    """Exposer to connecting side: a connection to what was asked for by Listen."""

    host: BindHost
    port: Port
    mark: Mark = 0


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="opened"):
    """Exposer to opener: the local program accepted (tcp), or datagrams are awaited (udp)."""


class Bench(msgspec.Struct, frozen=True, array_like=True, tag="bench"):
    """Opener to either side: be the source or the sink of a measurement for `seconds`; see bench.py.

    Answered by Opened; a source of datagrams and both sinks end with Measured.
    """

    do: Literal["source", "sink", "datagram source", "datagram sink"]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_BENCH_SECONDS)]
    size: Annotated[int, msgspec.Meta(ge=1, le=65_507)] = 1200  # bytes of each datagram
    flow: FlowNumber = 0


class Measured(msgspec.Struct, frozen=True, array_like=True, tag="measured"):
    """The bytes that a sink received, or a source sent, and the seconds from first to last."""

    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_MEASURED)]
    datagrams: Annotated[int, msgspec.Meta(ge=0, le=MAX_MEASURED)]
    seconds: Annotated[float, msgspec.Meta(ge=0, le=MAX_MEASURED_SECONDS)]  # 0, or MIN_MEASURED_SECONDS and more


_encoder = msgspec.msgpack.Encoder()
Opening: TypeAlias = Open | Bench | Reach | Listen | Accepted
_open_decoder: Final[msgspec.msgpack.Decoder[Opening]] = msgspec.msgpack.Decoder(Opening)
_opened_decoder = msgspec.msgpack.Decoder(Opened)
_measured_decoder = msgspec.msgpack.Decoder(Measured)


def encode(message: Opening | Opened | Measured) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_SIZE, "big") + body


def decode_open(body: Buffer) -> Opening:
    """Raises MalformedPacket."""
    try:
        return _open_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"stream opening: {error}") from None


def decode_opened(body: Buffer) -> Opened:
    """Raises MalformedPacket."""
    try:
        return _opened_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"answer to a stream opening: {error}") from None


def decode_measured(body: Buffer) -> Measured:
    """Raises MalformedPacket."""
    try:
        found = _measured_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"result of a measurement: {error}") from None
    if found.seconds and not found.seconds >= MIN_MEASURED_SECONDS:
        raise MalformedPacket("result of a measurement: in no time")
    return found


async def read_message(stream: Stream) -> tuple[bytes, list[bytes]]:
    """The first message of a stream, and the chunks that came behind it.  Raises MalformedPacket."""
    head = b""
    while True:
        chunks = await stream.receive_chunks()
        if not chunks:
            raise MalformedPacket("the stream ended inside its first message")
        for index, chunk in enumerate(chunks):
            head += chunk
            if len(head) < LENGTH_SIZE:
                continue
            end = LENGTH_SIZE + int.from_bytes(head[:LENGTH_SIZE], "big")
            if end > LENGTH_SIZE + MAX_MESSAGE:
                raise MalformedPacket(f"first message of {end - LENGTH_SIZE} bytes")
            if len(head) >= end:
                rest = chunks[index + 1 :]
                if len(head) > end:
                    rest.insert(0, head[end:])
                return head[LENGTH_SIZE:end], rest
