"""Credit: how much a peer may send.  RFC 9000 §4, with a window that follows the reader's pace."""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant, Seconds

INITIAL_STREAM_WINDOW: Final = 64 * 1024  # bytes; a stream nobody reads holds no more (Linux TCP's first window)
MAX_STREAM_WINDOW: Final = 8 * 1024 * 1024  # bytes; 200 Mbit/s at 300 ms
CONNECTION_WINDOW: Final = 64 * 1024 * 1024  # bytes unread on all streams of one peer: bounds what a peer can make us hold
MAX_STREAMS: Final = 2_048  # streams a peer may have open at once


class ReceiveWindow:
    """The limit we grant, moved as the application reads, doubled while it reads a window within two round trips.

    `limit` is the highest offset the peer may use.  With `largest` equal to `window` it never grows.
    """

    __slots__ = ("_largest", "_moved_at", "consumed", "limit", "window")

    def __init__(self, window: int, largest: int) -> None:
        self.window = window
        self._largest = largest
        self.limit = window
        self.consumed = 0
        self._moved_at = Instant(-1e9)

    def consume(self, count: int, now: Instant, smoothed_rtt: Seconds) -> bool:
        """The application read `count` bytes; True when the limit moved far enough to be worth a frame."""
        self.consumed += count
        if self.limit - self.consumed > self.window // 2:
            return False
        if now - self._moved_at < 4 * smoothed_rtt and self.window < self._largest:
            self.window = min(self.window * 2, self._largest)
        self._moved_at = now
        self.limit = self.consumed + self.window
        return True


class SendCredit:
    """What the peer granted us; credit never shrinks, whatever a reordered frame says (RFC 9000 §4.1)."""

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
