"""Credit: how much a peer may send.  RFC 9000 §4, with a window that follows the reader's pace."""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant, Seconds

INITIAL_STREAM_WINDOW: Final = 32 * 1024  # bytes; a stream nobody reads holds no more (twice TCP's first flight of RFC 6928)
MAX_STREAM_WINDOW: Final = 8 * 1024 * 1024  # bytes; 200 Mbit/s at 300 ms
MAX_STREAMS: Final = 2_048  # streams a peer may have open at once
GROWTH_FACTOR: Final = 4  # of a window whose reader keeps up
GROWTH_ROUNDS: Final = 3  # round trips within which such a reader takes a quarter of its window
GROWTH_IN_ALL: Final = 32 * 1024 * 1024  # bytes by which the windows of all streams together may exceed their first size
#: Bytes unread on all streams of one peer: what it can make us hold.  All windows fit in, so a slow reader blocks no other.
CONNECTION_WINDOW: Final = MAX_STREAMS * INITIAL_STREAM_WINDOW + GROWTH_IN_ALL


class Growth:
    """The rest of GROWTH_IN_ALL.  A window may take at most half of it, so that there is always some for the next one.

    Source: Choudhury and Hahne, dynamic queue length thresholds (1998): the share follows how many ask.
    """

    __slots__ = ("grown", "left")

    def __init__(self) -> None:
        self.left = GROWTH_IN_ALL
        self.grown = 0  # windows that have taken some

    def take(self, window: int, count: int, *, is_first: bool) -> bool:
        """Whether a window may take `count` bytes more; one that has taken some already at most up to twice its part."""
        if count > self.left // 2 or (not is_first and (window + count) * self.grown > 2 * GROWTH_IN_ALL):
            return False
        self.left -= count
        self.grown += is_first
        return True

    def give_back(self, count: int) -> None:
        """A window that has taken `count` bytes ends."""
        self.left += count
        self.grown -= count > 0


class ReceiveWindow:
    """The limit we grant, moved at every quarter that the application reads; made GROWTH_FACTOR times as large while that
    takes fewer than GROWTH_ROUNDS round trips: a sender doubles every round trip, and what it may send must not lag behind.
    The same where half of it comes at once and is taken at once: of many streams each has its turn rarely, and a small window
    would cut its turns into small ones.

    `limit` is the highest offset the peer may use.  Without a `growth` to take from it never grows.
    """

    __slots__ = ("_first", "_growth", "_moved_at", "consumed", "limit", "window")

    def __init__(self, window: int, growth: Growth | None = None) -> None:
        self.window = self._first = window
        self._growth = growth
        self.limit = window
        self.consumed = 0
        self._moved_at: Instant | None = None  # before that, when the first byte was read

    def consume(self, count: int, now: Instant, smoothed_rtt: Seconds, *, at_once: bool = False) -> bool:
        """The application read `count` bytes, `at_once` on arrival; True when the limit moved far enough to be worth a frame."""
        self.consumed += count
        moved_at = self._moved_at
        if moved_at is None:
            moved_at = self._moved_at = now
        if self.limit - self.consumed > self.window - self.window // 4:
            return False
        keeps_up = now - moved_at < GROWTH_ROUNDS * smoothed_rtt or (at_once and 2 * count > self.window)
        if keeps_up and self._growth is not None and self.window < MAX_STREAM_WINDOW:
            more = min((GROWTH_FACTOR - 1) * self.window, MAX_STREAM_WINDOW - self.window)
            if self._growth.take(self.window, more, is_first=self.window == self._first):
                self.window += more
        self._moved_at = now
        self.limit = self.consumed + self.window
        return True

    def release(self) -> None:
        """The stream is over: its growth is free for others."""
        if self._growth is not None:
            self._growth.give_back(self.window - self._first)
            self._growth = None


class SendCredit:
    """The credit that the peer granted us; it never shrinks, whatever a reordered frame says (RFC 9000 §4.1)."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def available(self) -> int:
        return self.limit - self.used

    def raise_to(self, limit: int) -> bool:
        """True when this unblocks anything."""
        if limit <= self.limit:
            return False
        self.limit = limit
        return True
