"""Which days a pair may meet in, and what a person is told of a calendar that is off.

Nobody's calendar is trusted: the rooms of a pair are named by the server's day, which is the same for both sides, and each look
at it may name other rooms than the last one did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.pairing.identity import DAY, meeting_days
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from tunnel.node.context import Context
    from tunnel.rendezvous.client import Client

LOOK_INTERVAL: Final = Seconds(60.0)  # how often calendars are looked at: a day begins, or somebody sets a clock
TELL_DAYS: Final = 1  # by which our calendar and a server's differ, before a person is told
TELL_BEHIND: Final = Seconds(60.0)  # that a clock went back, before a person is told; less is the network's doing, or NTP's


class Clocks:
    """One of these for each endpoint."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._is_off = False
        self._told: set[tuple[bytes, bool]] = set()  # of a peer's clock, or of ours towards a peer (by static key)

    def days(self, now: Instant, client: Client) -> tuple[int, ...]:
        """Those whose rooms at that server a pair may meet in, today first."""
        return meeting_days(self._context.unix_time(), client.unix_time(now))

    def look(self, now: Instant) -> None:
        """Compare our calendar with those of the servers; a person is told once, and again when it was right in between."""
        own, was_off = self._context.unix_time(), self._is_off
        self._is_off = False
        for name, client in self._context.clients.items():
            server = client.unix_time(now)
            if server is None or abs(own - server) < TELL_DAYS * DAY:
                continue
            self._is_off = True
            if not was_off:
                host, direction = name.partition(",")[0], "ahead of" if own > server else "behind"
                text = f"The clock of this computer is {spoken(abs(own - server))} {direction} that of the server {host}."
                self._context.emit(Troubled(problem=Problem.CLOCK_OFF, text=f"{text} Set it, if it is the wrong one."))
                return

    def went_back(self, peer: KnownPeer, behind: int) -> None:
        """A peer's clock is so many nanoseconds behind what it has shown, and the peer has proven that it is there now."""
        if self._is_news(peer, behind, is_ours=False):
            text = f"The clock of {peer.name} is {spoken(behind / 1e9)} behind what it showed before: let in all the same."
            self._context.emit(Troubled(problem=Problem.CLOCK_OFF, text=text))

    def is_behind(self, peer: KnownPeer, behind: int) -> None:
        """A peer says so of our clock."""
        if self._is_news(peer, behind, is_ours=True):
            text = f"The clock of this computer is {spoken(behind / 1e9)} behind what it showed {peer.name} before."
            self._context.emit(Troubled(problem=Problem.CLOCK_OFF, text=f"{text} Set it, if it is wrong now."))

    def _is_news(self, peer: KnownPeer, behind: int, *, is_ours: bool) -> bool:
        if behind < TELL_BEHIND * 1e9 or (peer.static, is_ours) in self._told:
            return False
        self._told.add((peer.static, is_ours))
        return True


def spoken(seconds: float) -> str:
    """`90 seconds`, `12 minutes`, `3 hours`, `400 days`."""
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (count := round(seconds / size)) >= 2:
            return f"{count} {unit}s"
    return f"{round(seconds)} seconds"
