"""RangeSet: a sorted set of integers kept as half-open ranges.  What was received, what was acknowledged, what is missing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """Half-open ranges [start, stop), sorted, disjoint and never adjacent.

    Adding at the end (the usual case: the next packet number, the next stream byte) is O(1).
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __len__(self) -> int:
        """The number of ranges, not of integers."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __reversed__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(reversed(self._starts), reversed(self._stops), strict=True))

    def overlapping(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges that share something with [start, stop); the set must not change meanwhile."""
        starts, stops = self._starts, self._stops
        for index in range(bisect_right(stops, start), bisect_left(starts, stop)):
            yield starts[index], stops[index]

    def __contains__(self, value: int) -> bool:
        index = bisect_right(self._starts, value) - 1
        return index >= 0 and value < self._stops[index]

    def __repr__(self) -> str:
        return "RangeSet(" + ", ".join(f"{a}..{b}" for a, b in self) + ")"

    @property
    def first(self) -> tuple[int, int]:
        """The lowest range.  Raises IndexError when empty."""
        return self._starts[0], self._stops[0]

    @property
    def last(self) -> tuple[int, int]:
        """The highest range.  Raises IndexError when empty."""
        return self._starts[-1], self._stops[-1]

    def add(self, start: int, stop: int) -> int:
        """Add [start, stop) and return how many integers were new."""
        if stop <= start:
            return 0
        starts, stops = self._starts, self._stops
        if not starts or start > stops[-1]:
            starts.append(start)
            stops.append(stop)
            return stop - start
        if start == stops[-1]:
            stops[-1] = stop
            return stop - start
        low = bisect_left(stops, start)  # first range that touches or follows `start`
        high = bisect_right(starts, stop)  # first range wholly after `stop`
        if low == high:
            starts.insert(low, start)
            stops.insert(low, stop)
            return stop - start
        overlap = 0
        for index in range(low, high):
            overlap += max(0, min(stops[index], stop) - max(starts[index], start))
        new_start, new_stop = min(start, starts[low]), max(stop, stops[high - 1])
        starts[low:high] = [new_start]
        stops[low:high] = [new_stop]
        return stop - start - overlap

    def remove(self, start: int, stop: int) -> None:
        """Take [start, stop) out."""
        starts, stops = self._starts, self._stops
        if stop <= start or not starts:
            return
        low = bisect_right(stops, start)  # first range that ends after `start`
        high = bisect_left(starts, stop)  # first range that begins at or after `stop`
        if low >= high:
            return
        keep: list[tuple[int, int]] = []
        if starts[low] < start:
            keep.append((starts[low], start))
        if stops[high - 1] > stop:
            keep.append((stop, stops[high - 1]))
        starts[low:high] = [a for a, _ in keep]
        stops[low:high] = [b for _, b in keep]

    def pop_first(self) -> tuple[int, int]:
        """Remove and return the lowest range.  Raises IndexError when empty."""
        return self._starts.pop(0), self._stops.pop(0)

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are not in the set, in order."""
        gaps: list[tuple[int, int]] = []
        for have_start, have_stop in self.overlapping(start, stop):
            if have_start > start:
                gaps.append((start, have_start))
            start = have_stop
        if start < stop:
            gaps.append((start, stop))
        return gaps
