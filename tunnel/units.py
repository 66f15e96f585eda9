"""The small types that rooms exchange: durations, instants, numbers, addresses and batches of datagrams.

Units are types, so that mypy refuses a duration where a point in time is meant.
"""

from __future__ import annotations

from typing import NamedTuple, NewType, TypeAlias

Seconds = NewType("Seconds", float)  # a duration
Instant = NewType("Instant", float)  # a point on the driver's clock, which runs on in suspend (CLOCK_BOOTTIME)
PacketNumber = NewType("PacketNumber", int)  # the 64-bit sequence number of a transport datagram
StreamId = NewType("StreamId", int)  # 32 bits; even ones are opened by the connection's initiator
SocketId = NewType("SocketId", int)  # names one socket of an endpoint: v4, v6, a pool member, TLS

#: Whatever the buffer protocol gives us; decoders take any of them.
Buffer: TypeAlias = bytes | bytearray | memoryview


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
