"""Path MTU discovery by probes of our own (RFC 8899): no ICMP is believed, none is needed.

Sizes are bytes of UDP payload.  Probes are padded PINGs outside window and loss detection: a lost one says something of the
path's MTU, nothing of its congestion (RFC 8899 §3, item 5).
"""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant, Seconds

BASE_PLPMTU: Final = 1_200  # carried by every path QUIC or we run on (RFC 9000 §14)
#: What links out there have, less 28 bytes of IPv4 and UDP (48 of IPv6): 1280, 1360, 1400, 1420 (WireGuard), 1480, 1492 (PPPoE),
#: 1500, 9000.
STEPS_IPV4: Final = (1_200, 1_252, 1_332, 1_372, 1_392, 1_452, 1_464, 1_472, 8_972)
STEPS_IPV6: Final = (1_200, 1_232, 1_312, 1_352, 1_372, 1_432, 1_444, 1_452, 8_952)
COMMON: Final = -2  # index of the Ethernet size, which is tried first
MAX_PROBES: Final = 3  # of one size, before it is taken as too large (RFC 8899 §5.1.2)
PROBE_PATIENCE: Final = Seconds(0.25)  # at least; else three round trips
RAISE_AFTER: Final = Seconds(600.0)  # before larger sizes are tried again (PMTU_RAISE_TIMER, RFC 8899 §5.1.1)


class PathMtu:
    """The search of one path: Ethernet's size first, then the next larger one, else a bisection of the smaller ones.

    `size` is what is known to pass.  Call `next_probe` when `poll_timeout` has come, `on_probe_acked` or nothing; a probe that
    stays unanswered is repeated or given up by itself.
    """

    __slots__ = ("_at", "_high", "_low", "_number", "_probing", "_steps", "_tries", "size")

    def __init__(self, now: Instant, *, is_ipv6: bool) -> None:
        self._steps = STEPS_IPV6 if is_ipv6 else STEPS_IPV4
        self.size = BASE_PLPMTU
        self._low = 0  # index of the largest step that passed
        self._high = len(self._steps)  # index of the smallest step that did not
        self._probing: int | None = None
        self._number = -1
        self._tries = 0
        self._at: Instant | None = now

    def poll_timeout(self) -> Instant | None:
        """When `next_probe` has something to say."""
        return self._at

    def next_probe(self, now: Instant, smoothed_rtt: Seconds) -> int | None:
        """The size of a probe to send now, or None."""
        if self._at is None or now < self._at:
            return None
        if self._probing is not None and self._tries >= MAX_PROBES:
            self._high = self._probing
            self._probing = None
        if self._probing is None:
            common = len(self._steps) + COMMON
            if self._high - self._low <= 1:
                # The search is over.  Much later a path below Ethernet's size may carry more; jumbo frames do not appear.
                self._high = max(common, self._low) + 1
                self._at = Instant(now + RAISE_AFTER) if self._low < common else None
                return None
            if self._low < common < self._high:
                self._probing = common
            elif self._low >= common:
                self._probing = self._low + 1
            else:
                self._probing = (self._low + self._high) // 2
            self._tries = 0
        self._tries += 1
        self._at = Instant(now + max(PROBE_PATIENCE, 3 * smoothed_rtt))
        return self._steps[self._probing]

    def on_probe_sent(self, number: int) -> None:
        """The probe left as packet `number`."""
        self._number = number

    def awaits(self, ranges: list[tuple[int, int]]) -> bool:
        """Whether these acknowledged ranges (low, high inclusive, highest first) hold the probe under way."""
        number = self._number
        if number < 0 or number < ranges[-1][0]:
            return False
        for low, high in ranges:
            if low <= number:
                return number <= high
        return False

    def on_probe_acked(self, now: Instant) -> int:
        """The probe passed; returns the new size."""
        self._number = -1
        if self._probing is not None:
            self._low = self._probing
            self._high = max(self._high, self._low + 1)
            self.size = self._steps[self._low]
            self._probing = None
            self._at = now
        return self.size

    def on_black_hole(self, now: Instant) -> bool:
        """Nothing large arrives any more (RFC 8899 §4.3): back to the base, to search below; False if there already."""
        if self._low == 0:
            return False
        self._high = self._low
        self._low = 0
        self.size = BASE_PLPMTU
        self._probing = None
        self._number = -1
        self._at = Instant(now + PROBE_PATIENCE)
        return True
