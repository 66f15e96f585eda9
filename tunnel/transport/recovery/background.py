"""Loss that has nothing to do with how fast we send: radio, a bad cable.  BBRv3 takes any 2 % for a full queue; we ask first.

What is lost while round trips show no queue is *suspected* of being background.  It is *confirmed* by packets sent no
faster than what lately arrived: a policer or a very short queue loses none of those, a bad link loses its share.
Not in the draft; see docs/decisions/congestion-control.md.
"""

from __future__ import annotations

import math
from typing import Final

ENOUGH_PACKETS: Final = 64  # acknowledged or lost, before a share is computed from them
WEIGHT: Final = 0.25  # of a new share in the average
LARGEST_SHARE: Final = 0.5  # beyond, a path is not worth feeding
WORTH_ASKING: Final = 0.005  # a smaller share changes nothing
DEVIATIONS: Final = 2.0  # of a count that pass for chance; at least two packets
#: Of the packets looked at: a longer run of losses counts as several, as nothing arrives without a path.
LONGEST_RUN: Final = 0.25
TOLERANCE: Final = 0.02  # share lost above the background that is no sign of congestion (LossThresh of the draft, §2.7)


class BackgroundLoss:
    """Shares of packets, 0 to 1.  Fed once a round trip."""

    __slots__ = ("_asked_lost", "_asked_total", "_is_asking", "_lost", "_suspected", "_total", "share")

    def __init__(self) -> None:
        self.share = 0.0  # lost whatever we do: the confirmed one, or before the first check the suspected one
        self._suspected = 0.0
        self._lost = self._total = 0.0  # packets of the window being counted
        self._asked_lost = self._asked_total = 0.0
        self._is_asking = False

    @property
    def wants_check(self) -> bool:
        """Whether some rounds at the rate of delivery would tell something."""
        return self._suspected > WORTH_ASKING or self.share > WORTH_ASKING

    @property
    def is_checked(self) -> bool:
        """Whether the check under way has seen enough."""
        return not self._is_asking

    def begin_check(self) -> None:
        """From the next round on, packets go no faster than what arrived.  A check cut short is taken up again."""
        self._is_asking = True

    def on_round(self, lost: float, total: float, *, has_queue: bool, is_startup: bool, is_check: bool) -> None:
        """In a round trip `lost` of `total` packets were lost; `is_check` when they were sent during a check."""
        if not has_queue:
            self._lost += lost
            self._total += total
            if self._total >= ENOUGH_PACKETS:
                share = min(max(self._lost / self._total, 0.0), LARGEST_SHARE)
                self._lost = self._total = 0.0
                self._suspected += (share - self._suspected) * (0.5 if is_startup else WEIGHT)
                if is_startup:
                    self.share = self._suspected
        if is_check and self._is_asking:
            self._asked_lost += lost
            self._asked_total += total
            if self._asked_total >= ENOUGH_PACKETS:
                share = min(max(self._asked_lost / self._asked_total, 0.0), LARGEST_SHARE)
                self._asked_lost = self._asked_total = 0.0
                self._is_asking = False
                # Chance is averaged out; a share far from what was believed is believed at once.
                deviation = math.sqrt(max(share, self.share) / ENOUGH_PACKETS)
                self.share = share if abs(share - self.share) > 3 * deviation else self.share + (share - self.share) * WEIGHT

    def is_excess(
        self, lost: float, total: float, tolerance: float, run: float = 1.0, *, is_suspicion_enough: bool = False
    ) -> bool:
        """Whether `lost` of `total` packets is more than background and chance explain.

        `run` packets are lost in a row on average: by chance come runs, so the fewer there are the more one of them may change
        (the draft, §5.3.1.3, counts runs too).  `is_suspicion_enough`: what is suspected counts as background.
        """
        expected = total * (max(self.share, self._suspected) if is_suspicion_enough else self.share)
        run = max(1.0, min(run, total * LONGEST_RUN))
        return lost > expected + DEVIATIONS * math.sqrt(run * (expected + run)) + tolerance * total
