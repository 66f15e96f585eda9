"""A token bucket that spreads a window over its round trip, in quanta that a sleeping task can keep.  RFC 9002 §7.7."""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant, Seconds

QUANTUM: Final = Seconds(0.002)  # a sleep under a millisecond takes 1-2 ms, so finer pacing is not to be had
CATCH_UP: Final = 2  # quanta that may be saved up, so that waking late does not cost rate
LATEST: Final = Seconds(0.016)  # ... by who had more to send and was woken late: the path was idle meanwhile and can take it
FIRST_BURST_PACKETS: Final = 10  # RFC 9002 §7.7: a burst up to the initial window is harmless, once
MIN_BURST_PACKETS: Final = 2  # at any rate; ten would fill 59 ms of a queue at 2 Mbit/s
MAX_BURST_BYTES: Final = 512 * 1024  # at one instant, whatever the rate


class Pacer:
    """How many bytes may leave now, and when more may.

    `budget` may be overdrawn by `consume`; the debt is paid before anything further may leave.
    """

    __slots__ = ("_capacity", "_floor", "_is_awaited", "_last", "_quantum", "_rate", "_tokens")

    def __init__(self, rate: float, datagram_size: int, now: Instant) -> None:
        """`rate` in bytes a second; a fresh pacer lets FIRST_BURST_PACKETS go at once."""
        self._floor = MIN_BURST_PACKETS * datagram_size
        self._rate = -1.0
        self._quantum = self._capacity = float(self._floor)
        self._tokens = 0.0
        self._last = now
        self._is_awaited = False  # who has more to send was told to wait
        self.set_rate(rate, now)
        self._tokens = max(self._capacity, float(FIRST_BURST_PACKETS * datagram_size))

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self._rate

    @property
    def quantum(self) -> int:
        """The bytes that `next_at` waits for at most: about 2 ms of rate, never under MIN_BURST_PACKETS."""
        return int(self._quantum)

    def set_rate(self, rate: float, now: Instant) -> None:
        """Pace at `rate` bytes a second from now on.  Cheap enough for every ACK."""
        if rate == self._rate:
            return
        self._refill(now)
        self._rate = rate if rate > 1.0 else 1.0
        quantum = self._rate * QUANTUM
        floor = self._floor
        if quantum < floor:
            quantum = float(floor)
        elif quantum > MAX_BURST_BYTES:
            quantum = float(MAX_BURST_BYTES)
        self._quantum = quantum
        capacity = self._rate * (QUANTUM * CATCH_UP)
        if capacity > MAX_BURST_BYTES:
            capacity = float(MAX_BURST_BYTES)
        self._capacity = capacity if capacity > quantum else quantum

    def set_datagram_size(self, size: int, now: Instant) -> None:
        """The path carries datagrams of another size now."""
        self._floor = MIN_BURST_PACKETS * size
        rate, self._rate = self._rate, -1.0
        self._refill(now)
        self.set_rate(rate, now)

    def _refill(self, now: Instant) -> None:
        elapsed = now - self._last
        if elapsed > 0:
            self._last = now
            tokens = self._tokens
            capacity = self._capacity
            if self._is_awaited:
                capacity = max(capacity, min(self._rate * LATEST, MAX_BURST_BYTES))
            if tokens < capacity:  # the first burst may be more than it holds
                tokens += elapsed * self._rate
                self._tokens = tokens if tokens < capacity else capacity

    def budget(self, now: Instant) -> int:
        """Bytes that may leave now; 0 while in debt."""
        self._refill(now)
        tokens = self._tokens
        return int(tokens) if tokens > 0 else 0

    def consume(self, size: int) -> None:
        """`size` bytes left."""
        self._tokens -= size
        self._is_awaited = False

    def next_at(self, now: Instant, want: int) -> Instant:
        """When `want` bytes (at most a quantum, so as not to wait for what never fits) may leave; `now` if at once."""
        self._refill(now)
        self._is_awaited = True
        missing = (want if want < self._quantum else self._quantum) - self._tokens
        return now if missing <= 0 else Instant(now + missing / self._rate)
