"""What is new in an ACK: a frame costs what it tells for the first time, however often and in whatever pieces it comes again."""

from __future__ import annotations

from typing import Final

from tunnel.proto.ranges import RangeSet

MAX_TOLD: Final = 1_024  # ranges that are remembered; the lowest is forgotten beyond, which costs looking it up again


class AckNews:
    """The packet numbers that ACKs have told of.  One for each path, as each remembers other packets.

    What an honest peer says nearly always, that its highest range has grown, is seen without a look at the others.
    """

    __slots__ = ("_highest", "_seen", "_told", "_top")

    def __init__(self) -> None:
        self._top = (0, -1)  # the last frame's first range, empty at first; what it has grown by is not in `_told` yet
        self._highest = -1  # of all numbers told of
        self._seen: set[tuple[int, int]] = set()  # all ranges of that frame
        self._told = RangeSet()

    def take(self, ranges: list[tuple[int, int]], lowest: int) -> list[tuple[int, int]]:
        """The parts of `ranges` (low, high inclusive, highest first) that are news, highest first; not below `lowest`.

        Numbers below `lowest` must not matter any more, and it never falls.
        """
        top, seen, told = self._top, self._seen, self._told
        fresh: list[tuple[int, int]] = []
        for pair in ranges:
            low, high = pair
            if high < lowest:
                break
            if low == top[0] and high > top[1] == self._highest:
                fresh.append((top[1] + 1, high))
                self._highest = high
            elif pair not in seen:
                told.add(top[0], top[1] + 1)
                fresh.extend((start, stop - 1) for start, stop in reversed(told.missing(max(low, lowest), high + 1)))
                told.add(max(low, lowest), high + 1)
                if high > self._highest:
                    self._highest = high
        if ranges[0][0] != top[0]:
            told.add(top[0], top[1] + 1)
        while len(told) > 1 and (told.first[1] <= lowest or len(told) > MAX_TOLD):
            told.pop_first()
        self._top = ranges[0]
        self._seen = set(ranges)
        return fresh
