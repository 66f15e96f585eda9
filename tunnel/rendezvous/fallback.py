"""When a client should speak with its server by another route than UDP: where UDP gets no answer, and no longer than that."""

from __future__ import annotations

from typing import Final

from tunnel.rendezvous.addresses import ServerAddress
from tunnel.rendezvous.events import FallbackUnwanted, FallbackWanted
from tunnel.units import Instant, Seconds

FALLBACK_AFTER: Final = Seconds(0.5)  # without a UDP answer; a server on the other side of the world takes 0.3 s
FALLBACK_AFTER_ANSWERS: Final = 2.5  # times the last answer took, where that is longer: satellites ...
FALLBACK_AFTER_AT_MOST: Final = Seconds(2.0)  # ... but an answer that was late for once says little
FALLBACK_LINGER: Final = Seconds(10.0)  # that it is kept once UDP carries: the peer's last datagrams still come that way
MAX_FALLBACKS: Final = 4  # of one server that are remembered; the driver connects to one at a time


class FallbackWish:
    """Follows the primary address: a UDP one that is silent, or none that ever answered, wants another route beside it."""

    __slots__ = ("_release_at", "_started_at", "is_wanted")

    def __init__(self, now: Instant) -> None:
        self._started_at = now
        self._release_at: Instant | None = None
        self.is_wanted = False

    def restart(self, now: Instant) -> None:
        """Another network: where nothing has ever answered, UDP gets its time again."""
        self._started_at = now

    def is_silent(self, now: Instant, primary: ServerAddress | None) -> bool:
        """Whether UDP has had its time.  With a fallback for primary it has."""
        at = self._silent_at(primary)
        return at is None or now >= at

    def _silent_at(self, primary: ServerAddress | None) -> Instant | None:
        """When UDP's time is up; None with a fallback for primary; for ever away while nothing is asked."""
        if primary is None:
            return Instant(self._started_at + FALLBACK_AFTER)
        if primary.is_fallback:
            return None
        if primary.asked_at is None:
            return Instant(float("inf"))
        patience = min(FALLBACK_AFTER_AT_MOST, FALLBACK_AFTER_ANSWERS * primary.answered_after)
        return Instant(primary.asked_at + max(FALLBACK_AFTER, patience))

    def look(self, now: Instant, primary: ServerAddress | None) -> FallbackWanted | FallbackUnwanted | None:
        """Return the change since the last look.  Call after every input."""
        if self.is_silent(now, primary):
            self._release_at = None
            if not self.is_wanted:
                self.is_wanted = True
                return FallbackWanted()
        elif self.is_wanted and primary is not None and primary.asked_at is None:
            if self._release_at is None:
                self._release_at = Instant(now + FALLBACK_LINGER)
            elif now >= self._release_at:
                self._release_at = None
                self.is_wanted = False
                return FallbackUnwanted()
        return None

    def poll_timeout(self, primary: ServerAddress | None) -> Instant | None:
        """When to look again without an input."""
        if self.is_wanted:
            return self._release_at
        at = self._silent_at(primary)
        return at if at is not None and at < float("inf") else None
