"""When a client should speak with its server over TLS on TCP: where UDP gets no answer, and no longer than that."""

from __future__ import annotations

from typing import Final

from tunnel.rendezvous.events import TlsUnwanted, TlsWanted
from tunnel.rendezvous.requests import ServerAddress
from tunnel.units import Instant, Seconds

TLS_AFTER: Final = Seconds(0.5)  # without a UDP answer; a server on the other side of the world takes 0.3 s
TLS_AFTER_ANSWERS: Final = 2.5  # times the last answer took, where that is longer: satellites ...
TLS_AFTER_AT_MOST: Final = Seconds(2.0)  # ... but an answer that was late for once says little
TLS_LINGER: Final = Seconds(10.0)  # that the connection is kept once UDP carries: the peer's last datagrams still come that way
MAX_TLS_ADDRESSES: Final = 4  # of one server that are remembered; the driver connects to one at a time


class TlsWish:
    """Follows the primary address: a UDP one that is silent, or none that ever answered, wants TLS beside it."""

    __slots__ = ("_release_at", "_started_at", "is_wanted")

    def __init__(self, now: Instant) -> None:
        self._started_at = now
        self._release_at: Instant | None = None
        self.is_wanted = False

    def restart(self, now: Instant) -> None:
        """Another network: where nothing has ever answered, UDP gets its time again."""
        self._started_at = now

    def is_silent(self, now: Instant, primary: ServerAddress | None) -> bool:
        """Whether UDP has had its time.  With a TLS primary it has."""
        at = self._silent_at(primary)
        return at is None or now >= at

    def _silent_at(self, primary: ServerAddress | None) -> Instant | None:
        """When UDP's time is up; None with a TLS primary; for ever away while nothing is asked."""
        if primary is None:
            return Instant(self._started_at + TLS_AFTER)
        if primary.is_tls:
            return None
        if primary.asked_at is None:
            return Instant(float("inf"))
        patience = min(TLS_AFTER_AT_MOST, TLS_AFTER_ANSWERS * primary.answered_after)
        return Instant(primary.asked_at + max(TLS_AFTER, patience))

    def look(self, now: Instant, primary: ServerAddress | None) -> TlsWanted | TlsUnwanted | None:
        """What has changed.  Call after every input."""
        if self.is_silent(now, primary):
            self._release_at = None
            if not self.is_wanted:
                self.is_wanted = True
                return TlsWanted()
        elif self.is_wanted and primary is not None and primary.asked_at is None:
            if self._release_at is None:
                self._release_at = Instant(now + TLS_LINGER)
            elif now >= self._release_at:
                self._release_at = None
                self.is_wanted = False
                return TlsUnwanted()
        return None

    def poll_timeout(self, primary: ServerAddress | None) -> Instant | None:
        """When to look again without an input."""
        if self.is_wanted:
            return self._release_at
        at = self._silent_at(primary)
        return at if at is not None and at < float("inf") else None
