"""The news in an ACK: a frame costs only what it tells for the first time, however it is repeated."""

from __future__ import annotations

from typing import Final

from tunnel.core.ranges import RangeSet

MAX_TOLD: Final = 1_024  # ranges that are remembered; the lowest is forgotten beyond, which costs looking it up again


class AckNews:
    """The packet numbers that ACKs have told of.  One for each path, as each remembers other packets.

    What an honest peer says nearly always, that its highest range has grown, is seen without a look at the others.
    """

    __slots__ = ("_highest", "_others", "_told", "_top")

    def __init__(self) -> None:
        self._top = (0, -1)  # the last frame's first range, empty at first; what it has grown by is not in `_told` yet
        self._others: list[tuple[int, int]] = []  # the rest of that frame
        self._highest = -1  # of all numbers told of
        self._told = RangeSet()

    def take(self, ranges: list[tuple[int, int]], lowest: int) -> list[tuple[int, int]]:
        """The parts of `ranges` (low, high inclusive, highest first) that are news, highest first; not below `lowest`.

        Numbers below `lowest` must not matter any more, and it never falls.
        """
        before, top, others = self._top, ranges[0], ranges[1:]
        self._top = top
        if top[0] == before[0] and top[1] >= before[1] == self._highest and others == self._others:
            self._highest = top[1]
            return [(before[1] + 1, top[1])] if top[1] > before[1] else []
        told, seen = self._told, set(self._others)
        told.add(before[0], before[1] + 1)
        fresh: list[tuple[int, int]] = []
        for pair in ranges:
            low, high = pair
            if high < lowest:
                break
            if pair not in seen:
                low = max(low, lowest)
                fresh.extend((start, stop - 1) for start, stop in reversed(told.missing(low, high + 1)))
                told.add(low, high + 1)
        while len(told) > 1 and (told.first[1] <= lowest or len(told) > MAX_TOLD):
            told.pop_first()
        self._others = others
        self._highest = max(self._highest, top[1])
        return fresh
