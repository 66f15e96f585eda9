"""Carrying for others: a member passes on the datagrams of two that it reaches directly and that do not reach each other.

As with a server's relay, every datagram has the channel of its pair in front, and what is behind it is sealed for the other of
the two.  One is taken only from where one of the two is connected to us, and leaves for where the other one is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from tunnel.core.bucket import Bucket
from tunnel.units import CHANNEL_BYTE, CHANNEL_SIZE, Address, Instant, PathKey, Seconds, SocketId, Transmit

if TYPE_CHECKING:
    from tunnel.core.trace import Drops
    from tunnel.node.fairness import FairShare
    from tunnel.node.peering import Peering

MAX_CARRIED: Final = 64  # pairs at once
CARRIED_RATE: Final = 1024 * 1024.0  # bytes a second of all pairs together, half of what leaves a common home by its line ...
CARRIED_BURST: Final = 512 * 1024  # ... and bytes at once
CARRIED_OF_A_PAIR: Final = 512 * 1024.0  # bytes a second of one pair, so that one leaves something to the others ...
CARRIED_OF_A_PAIR_BURST: Final = 256 * 1024  # ... and bytes at once
CARRIED_WAITING: Final = 1024 * 1024  # bytes that wait for a socket that would block
CARRIED_IDLE: Final = Seconds(120.0)  # without a datagram, after which a pair is over: a path in use is never silent for so long


class Carried:
    """A pair, by the static keys of the two."""

    __slots__ = ("bucket", "channel", "ends", "used_at")

    def __init__(self, channel: bytes, ends: tuple[bytes, bytes], now: Instant) -> None:
        self.used_at = now
        self.channel = channel
        self.ends = ends
        self.bucket = Bucket(CARRIED_OF_A_PAIR_BURST, CARRIED_OF_A_PAIR)

    def is_idle(self, now: Instant) -> bool:
        return now >= self.used_at + CARRIED_IDLE


class Carrying:
    """All pairs of an endpoint."""

    def __init__(self, drops: Drops, entropy: Callable[[int], bytes]) -> None:
        self.pairs: dict[bytes, Carried] = {}  # by channel
        self.names: dict[bytes, str] = {}  # who carries for us, by the channel that we were given, for people
        self.find: Callable[[bytes], Peering | None] = lambda _static: None  # the peering of that static key
        self.datagrams = 0  # passed on so far
        self.bytes = 0
        self._drops = drops
        self._entropy = entropy
        self._bucket = Bucket(CARRIED_BURST, CARRIED_RATE)
        self._out: deque[Transmit] = deque()
        self._waiting = 0  # bytes

    def open(self, now: Instant, one: bytes, other: bytes) -> Carried | None:
        """The channel of these two; None where there are as many as we carry."""
        known = self.of(one, other)
        if known is not None or len(self.pairs) >= MAX_CARRIED:
            return known
        channel = bytearray(self._entropy(CHANNEL_SIZE))
        channel[0] |= CHANNEL_BYTE
        carried = self.pairs[bytes(channel)] = Carried(bytes(channel), (one, other), now)
        return carried

    def of(self, one: bytes, other: bytes) -> Carried | None:
        return next((each for each in self.pairs.values() if each.ends in ((one, other), (other, one))), None)

    def close(self, carried: Carried) -> None:
        self.pairs.pop(carried.channel, None)

    def handle(
        self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, position: int, stride: int, ecn: int,
        share: FairShare | Literal[False],
    ) -> int:  # fmt: skip
        """Datagrams of a channel of ours; their sender pays as if they were for us (`share`).  Returns where they end."""
        carried = self.pairs[bytes(buffer[position : position + CHANNEL_SIZE])]
        end = min(position + stride, len(buffer))
        sender = self._sender(carried, socket_id, remote)
        refusal = None if sender is None or not share else share.refusal(now, sender, end - position)
        if refusal is not None:
            self._drops[refusal] += 1
        elif sender is not None:
            end = self._pass_on(now, carried, sender, buffer, position, stride, ecn)
        if share:
            share.charge(now, sender, end - position)
        return end

    def _sender(self, carried: Carried, socket_id: SocketId, remote: Address) -> Peering | None:
        """Return which of the two is connected from there; None: neither is."""
        key = PathKey(socket_id, remote)
        for static in carried.ends:
            peering = self.find(static)
            if peering is not None and peering.connection is not None and peering.connection.is_path(key):
                return peering
        self._drops["carried from elsewhere"] += 1
        return None

    def _pass_on(
        self, now: Instant, carried: Carried, sender: Peering, buffer: memoryview, position: int, stride: int, ecn: int
    ) -> int:
        """The datagrams of that channel that follow one another from `position` on; returns where they end."""
        length = len(buffer)
        end = min(position + stride, length)
        while end + CHANNEL_SIZE < length and buffer[end : end + CHANNEL_SIZE] == carried.channel:
            end = min(end + stride, length)
        size, count = end - position, -(-(end - position) // stride)
        one, other = carried.ends
        peering = self.find(other if sender.peer.static == one else one)
        key = None if peering is None or peering.connection is None else peering.connection.direct_path
        if key is None:
            self._drops["carried to whom we reach not directly"] += count
        elif self._waiting + size > CARRIED_WAITING:
            self._drops["carried while the socket would block"] += count
        elif not self._bucket.has(now, size) or not carried.bucket.take(now, size):
            self._drops["carried over the rate"] += count
        else:
            self._bucket.take(now, size)
            carried.used_at = now
            self._waiting += size
            self.datagrams += count
            self.bytes += size
            self._out.append(Transmit(key.socket_id, key.remote, stride, memoryview(bytes(buffer[position:end])), None, ecn))
        return end

    def to_dict(self) -> dict[str, int]:
        """For `status`."""
        return {"pairs": len(self.pairs), "datagrams": self.datagrams, "bytes": self.bytes}

    def poll_transmit(self) -> Transmit | None:
        """The next that leaves."""
        if not self._out:
            return None
        burst = self._out.popleft()
        self._waiting -= len(burst.buffer)
        return burst
