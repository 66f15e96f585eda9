"""Broadcast and multicast in a room, and their limits: games, mDNS and SSDP find each other by them.

Whoever sends such a packet sends one copy to each member.  Nothing that came from a member is ever sent on to another one, so
nothing can loop, whatever it says.
"""

from __future__ import annotations

from typing import Final

from tunnel.core.bucket import Bucket
from tunnel.units import Instant

EVERYBODY_RATE: Final = 200.0  # packets a second from one member to everybody; a server browser asks some ten times a second
EVERYBODY_BURST: Final = 400  # packets; a program that starts announces itself on every service at once
EVERYBODY_BYTES: Final = 256 * 1024.0  # bytes a second from one member to everybody: no video is multicast to all
EVERYBODY_BYTES_BURST: Final = 512 * 1024  # bytes
#: Members up to which those hold.  In a larger room each packet counts for more, as it costs more copies and more may send: so
# what leaves one member, and what all together send to one, stay what they are in a room of so many.
EVERYBODY_MEMBERS: Final = 16

_LIMITED_BROADCAST: Final = b"\xff\xff\xff\xff"


def is_for_everybody(destination: bytes, subnet: bytes) -> bool:
    """Whether a packet to this address (4 or 16 bytes) goes to all members of the room with `subnet`.

    255.255.255.255, the subnet's own broadcast address, 224.0.0.0/4 and ff00::/8.
    """
    if len(destination) == 4:
        return (
            0xE0 <= destination[0] <= 0xEF
            or destination == _LIMITED_BROADCAST
            or (destination[3] == 0xFF and destination[:3] == subnet[:3])
        )
    return len(destination) == 16 and destination[0] == 0xFF


class Allowance:
    """How much one member may still send to everybody: a token bucket of packets and one of bytes.

    One for what we send ourselves, and one for each member that sends to us, so that a flood from one starves no other.
    """

    __slots__ = ("_bytes", "_packets")

    def __init__(self) -> None:
        self._packets = Bucket(EVERYBODY_BURST, EVERYBODY_RATE)
        self._bytes = Bucket(EVERYBODY_BYTES_BURST, EVERYBODY_BYTES)

    def take(self, now: Instant, packets: int, size: int, weight: float = 1.0) -> bool:
        """Whether so many packets, of `size` bytes in all, may pass.  `weight`: see weight_in."""
        if not self._packets.has(now, packets * weight) or not self._bytes.take(now, size * weight):
            return False
        return self._packets.take(now, packets * weight)


def weight_in(members: int) -> float:
    """How many times a packet to everybody counts in a room of so many."""
    return max(1.0, members / EVERYBODY_MEMBERS)
