"""The small types that rooms exchange: durations, instants, numbers, addresses and batches of datagrams.

Units are types, so that mypy refuses a duration where a point in time is meant.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple, NewType, TypeAlias

Seconds = NewType("Seconds", float)  # a duration
Instant = NewType("Instant", float)  # a point on the driver's clock, which runs on in suspend (CLOCK_BOOTTIME)
StreamId = NewType("StreamId", int)  # 32 bits; even ones are opened by the connection's initiator
SocketId = NewType("SocketId", int)  # names one socket of an endpoint: v4, v6, a pool member, TLS

#: Whatever the buffer protocol gives us; decoders take any of them.
Buffer: TypeAlias = bytes | bytearray | memoryview

KEY_SIZE: Final = 32  # bytes of every key: static, ephemeral, a room's, public or private, a psk, a secret, a cipher's
CHANNEL_SIZE: Final = 8  # bytes of the relay channel that stands before every relayed datagram
CHANNEL_BYTE: Final = 0xC0  # the first byte of every relayed datagram has these two bits


class Hex(bytes):
    """Bytes that a file of state shows as hexadecimal digits: what a person may have to compare, and keys of a table."""

    __slots__ = ()


class Address(NamedTuple):
    """A UDP transport address in canonical form: `host` is numeric text, IPv4-mapped IPv6 is written as IPv4.

    A link-local IPv6 address carries its zone after a percent sign, as `fe80::1%eth0`.
    """

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class PathKey(NamedTuple):
    """Where a datagram goes or comes from: which socket of ours, which address of theirs, which relay channel.

    `prefix` is empty on a direct path; on a relayed one it is the 8-byte channel header that stands before every datagram.
    """

    socket_id: SocketId
    remote: Address
    prefix: bytes = b""


class Transmit(NamedTuple):
    """One burst for one address: `buffer` cut into datagrams of `segment_size` bytes, of which the last may be shorter.

    `buffer` is valid until the next poll_transmit.  `ttl` is None for the system's default.
    """

    socket_id: SocketId
    remote: Address
    segment_size: int
    buffer: memoryview
    ttl: int | None = None
    ecn: int = 0


class ReceivedBatch(NamedTuple):
    """Datagrams of one sender that came together: `buffer` cut every `stride` bytes, the last may be shorter.

    `buffer` is never empty, `stride` never 0, and both belong to the socket again at its next receive.
    All of them carried the same ECN field (`ecn`, two bits, RFC 3168).  `local` is the address of ours that they were sent to,
    where the socket was asked to tell it (open_socket); otherwise it is empty.
    """

    remote: Address
    buffer: memoryview
    stride: int
    ecn: int
    local: str = ""


class UdpCounters:
    """Plain integers, so that counting costs nothing; `errors` is by name: an errno, or a reason of our own.

    Reasons of our own: `bad_address` (not numeric, unknown zone), `family` (an address the socket cannot reach),
    `no_gso` (the kernel refused a batch and it was sent one by one), `truncated`, `empty` (received and thrown away),
    `overrun` (memory twin only: the receive buffer was full), `closed` (sent after close).
    """

    __slots__ = (
        "errors",
        "received_bytes",
        "received_datagrams",
        "sent_bytes",
        "sent_datagrams",
    )

    def __init__(self) -> None:
        self.sent_datagrams = 0
        self.sent_bytes = 0
        self.received_datagrams = 0
        self.received_bytes = 0
        self.errors: Counter[str] = Counter()
