"""Hints: what the costlier techniques of one side tell the other behind an offer: ports to try, that a pool is open, a range.

On the wire each is a type u8, a length u8 and a value; docs/protocol.md.  Unknown types and a cut tail are ignored.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from tunnel.core.wire import Reader, Writer
from tunnel.units import Address, Buffer

PREDICTED_PORTS: Final = 1
OPEN_POOL: Final = 2
PORT_RANGE: Final = 3
MAX_HINTS: Final = 4  # read from one offer; more are ignored
MAX_PREDICTED: Final = 32  # ports in one prediction: what may have been allocated by others meanwhile
MAX_STEP: Final = 8  # between two ports that a NAT allocates one after the other


class PredictedPorts(NamedTuple):
    """My NAT will send, or has just sent, from one of `ports` ports at `host`: `first`, `first` + `step`, ..."""

    host: str  # IPv4
    first: int
    step: int  # -MAX_STEP to MAX_STEP, not 0
    ports: int

    def addresses(self) -> list[Address]:
        """Those that are ports at all, in order."""
        ports = (self.first + number * self.step for number in range(min(self.ports, MAX_PREDICTED)))
        return [Address(self.host, port) for port in ports if 0 < port <= 0xFFFF]


class OpenPool(NamedTuple):
    """So many of my sockets send towards your reflexive address: try ports of mine at random."""

    sockets: int


class PortRange(NamedTuple):
    """My NAT draws its ports from `first` on, so many; I make at most `tries` tries, none at all where that is 0."""

    first: int
    ports: int  # at least 1, and none beyond 65,535
    tries: int


Hint: TypeAlias = PredictedPorts | OpenPool | PortRange


def encode_hints(hints: Iterable[Hint]) -> bytes:
    writer = Writer()
    for hint in hints:
        match hint:
            case PredictedPorts(host, first, step, count):
                packed = ipaddress.IPv4Address(host).packed
                value = Writer().raw(packed).u16(first).u8(step & 0xFF).u8(count).finish()
                writer.u8(PREDICTED_PORTS)
            case OpenPool(sockets):
                value = Writer().u16(sockets).finish()
                writer.u8(OPEN_POOL)
            case PortRange(first, ports, tries):
                value = Writer().u16(first).u16(ports).u16(tries).finish()
                writer.u8(PORT_RANGE)
        writer.u8(len(value)).raw(value)
    return writer.finish()


def decode_hints(data: Buffer) -> tuple[Hint, ...]:
    """Read what encode_hints wrote, perhaps in a later version.  Raises nothing: a hint that makes no sense is left out."""
    reader = Reader(data)
    found: list[Hint] = []
    while reader.remaining >= 2 and len(found) < MAX_HINTS:
        kind, length = reader.u8(), reader.u8()
        if length > reader.remaining:
            break
        value = Reader(reader.take(length))
        if kind == PREDICTED_PORTS and length >= 8:
            host = str(ipaddress.IPv4Address(value.take(4)))
            first, step, count = value.u16(), value.u8(), value.u8()
            step -= 256 if step >= 128 else 0
            if step and abs(step) <= MAX_STEP and 0 < count <= MAX_PREDICTED:
                found.append(PredictedPorts(host, first, step, count))
        elif kind == OPEN_POOL and length >= 2:
            found.append(OpenPool(value.u16()))
        elif kind == PORT_RANGE and length >= 6:
            drawn = PortRange(value.u16(), value.u16(), value.u16())
            if drawn.ports and drawn.first + drawn.ports <= 0x1_0000:
                found.append(drawn)
    return tuple(found)
