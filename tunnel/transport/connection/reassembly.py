"""Records of the peer become whole: most come in one piece, as they left; of the others the parts wait for each other.

A part says nothing that is proven before its record has opened.  So what waits is bounded, by number and by bytes, and a forged
part costs at most the record it pretends to belong to, as does a lost one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag

from tunnel.core.trace import Drops
from tunnel.transport.connection.records import (
    MOST_BYTES,
    MOST_PARTS,
    RECORD,
    RECORD_HEADER,
    RECORD_HEADER_SIZE,
    Whole,
    bodies,
    copy_into,
)
from tunnel.transport.crypto.batch import Crypt, nonce_of
from tunnel.transport.crypto.replay import WINDOW, ReplayWindow
from tunnel.transport.packet.header import HEADER_SIZE, SMALLEST_PROBE, TAG_SIZE
from tunnel.transport.packet.slots import Kept

MAX_WAITING: Final = 4  # records of which some part is missing, 64 KiB each: two bursts' worth on two paths

#: Bytes of a part behind its header: a PATH_RESPONSE, which goes to where the last part came from, is no longer than that.
LEAST_BODY: Final = HEADER_SIZE + SMALLEST_PROBE + TAG_SIZE - RECORD_HEADER_SIZE

_INDICES: Final = bytes(range(MOST_PARTS))
_NONE: Final = (0, 0, 0)
NOT_AUTHENTIC: Final = "does not authenticate"
REPLAYED: Final = "replayed"


class Opened(NamedTuple):
    """A record that opened: its number, its parts (their numbers go on from there), and the size of its plaintext in bytes."""

    number: int
    parts: int
    size: int


class _Waiting:
    """A record of which parts are missing."""

    __slots__ = ("body", "header", "missing", "parts")

    def __init__(self, count: int, body: int) -> None:
        self.parts: list[bytes] = [b""] * count
        self.missing = count
        self.body = body  # bytes of every part
        self.header = b""  # of the first


class RecordOpener:
    """One for a connection."""

    __slots__ = ("_bodies", "_drops", "_replay", "_staging", "_waiting")

    def __init__(self, replay: ReplayWindow, drops: Drops) -> None:
        self._replay = replay
        self._drops = drops
        self._bodies = Kept(bodies)
        self._staging = Whole()  # joining anew had the kernel map pages each time
        self._waiting: dict[tuple[int, int], _Waiting] = {}  # by receiver index and number, the oldest first

    def take(
        self, unseal: Crypt, buffer: memoryview, position: int, stride: int, skip: int, out: memoryview
    ) -> tuple[int, Opened | None]:
        """Take the part at `position` of a batch, and those of its record behind it: how many, and the record if it opened.

        `stride` is the size of all datagrams there but the last, `skip` that of the channel before each.  The plaintext goes to
        the front of `out`.
        """
        parts, receiver, number = self._beside(buffer, position, stride, skip)
        body = stride - skip - RECORD_HEADER_SIZE
        size = parts * body - TAG_SIZE
        if 0 < size <= len(out):
            cell, head = position // stride, position + skip
            header = buffer[head : head + RECORD_HEADER_SIZE]
            copy_into(self._staging.pieces(body), self._bodies.of(buffer, stride, skip)[cell : cell + parts])
            try:
                unseal(nonce_of(number), self._staging.whole[: parts * body], header, out[:size])
            except InvalidTag:
                return 1, self._part(unseal, buffer[position + skip : position + stride], out)
            if self._waiting:
                self._waiting.pop((receiver, number), None)  # a part that came twice
            return parts, self._fresh(number, parts, size)
        return 1, self._part(unseal, buffer[position + skip : position + stride], out)

    def _beside(self, buffer: memoryview, position: int, stride: int, skip: int) -> tuple[int, int, int]:
        """How many parts there are, if all of the record seem to lie side by side from `position` on, receiver index and number.

        A look at the first, the last and all indices, not a proof: no datagram is opened as part of two such records.
        """
        if position % stride or position + stride > len(buffer) or stride < skip + RECORD_HEADER_SIZE + LEAST_BODY:
            return _NONE
        _, receiver, number, index, parts = RECORD_HEADER.unpack_from(buffer, position + skip)
        after = position + parts * stride
        if index or not 2 <= parts <= MOST_PARTS or after > len(buffer) or parts * (stride - skip) > MOST_BYTES:
            return _NONE
        last = RECORD_HEADER.unpack_from(buffer, after - stride + skip)
        if last != (RECORD, receiver, number + parts - 1, parts - 1, parts):
            return _NONE
        if bytes(buffer[position + skip + HEADER_SIZE : after : stride]) != _INDICES[:parts]:
            return _NONE
        return parts, receiver, number

    def _part(self, unseal: Crypt, datagram: memoryview, out: memoryview) -> Opened | None:
        """Keep one part, without its channel; the record, if this was the last that was missing."""
        drops = self._drops
        body = len(datagram) - RECORD_HEADER_SIZE
        if body < LEAST_BODY:
            drops["part of no record"] += 1
            return None
        _, receiver, number, index, parts = RECORD_HEADER.unpack_from(datagram)
        number -= index
        size = parts * body - TAG_SIZE
        if index >= parts or not 2 <= parts <= MOST_PARTS or number < 0 or size > min(len(out), MOST_BYTES - TAG_SIZE):
            drops["part of no record"] += 1
            return None
        if not self._replay.check(number):
            drops[REPLAYED] += 1
            return None
        if number > self._replay.highest + WINDOW:
            drops["part too far ahead"] += 1
            return None
        key = receiver, number
        waiting = self._waiting.get(key)
        if waiting is None:
            if len(self._waiting) >= MAX_WAITING:
                self._give_up(next(iter(self._waiting)))
            waiting = self._waiting[key] = _Waiting(parts, body)
        if len(waiting.parts) != parts or waiting.body != body or waiting.parts[index]:
            drops["part of no record"] += 1
            return None
        waiting.parts[index] = bytes(datagram[RECORD_HEADER_SIZE:])
        if not index:
            waiting.header = bytes(datagram[:RECORD_HEADER_SIZE])
        waiting.missing -= 1
        if waiting.missing:
            return None
        del self._waiting[key]
        try:
            unseal(nonce_of(number), memoryview(b"".join(waiting.parts)), memoryview(waiting.header), out[:size])
        except InvalidTag:
            drops[NOT_AUTHENTIC] += parts
            return None
        return self._fresh(number, parts, size)

    def _fresh(self, number: int, parts: int, size: int) -> Opened | None:
        """Return what authenticated, unless part of it was seen before."""
        check = self._replay.check
        if number > self._replay.highest or all(check(each) for each in range(number, number + parts)):
            return Opened(number, parts, size)
        self._drops[REPLAYED] += parts
        return None

    def _give_up(self, key: tuple[int, int]) -> None:
        waiting = self._waiting.pop(key)
        self._drops["record incomplete"] += len(waiting.parts) - waiting.missing
