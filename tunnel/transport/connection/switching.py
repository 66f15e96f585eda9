"""Where data goes, and whether any may go: the choice among the paths, what follows when one fails, and the time without keys.

`paths.py` finds out which paths work; here is what a connection makes of it.
"""

from __future__ import annotations

from typing import Final

from tunnel.transport.connection import tracing
from tunnel.transport.connection.events import AllPathsLost, PathChanged, PathInDoubt, PathKind, PathLost
from tunnel.transport.connection.paths import Path
from tunnel.transport.connection.shared import Shared
from tunnel.units import Instant, Seconds

BLACK_HOLE_PTOS: Final = 2  # probe timeouts in a row, before large datagrams are suspected (RFC 8899 §4.3)
LEFT_PATIENCE: Final = 1.25  # round trips, in which a path that is about to end tells what it has delivered
BACK_AFTER: Final = Seconds(1.0)  # of silence, a peer that is heard again is asked at once what it missed
DEMOTED: Final = "the direct path fell silent"
HEARD_LATELY: Final = Seconds(30.0)  # a live peer is silent for shorter: longer than any keepalive and what follows it
NO_KEYS_AFTER: Final = Seconds(4.0)  # without keys that may seal, before the owner should meet the peer anew


class Switching:
    """Tells PathChanged, PathLost and AllPathsLost."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._is_announced = False  # the first PathChanged waits for the first round trip, so that it has one to tell
        self.is_mute = False  # no keypair may seal: everything waits for new keys
        self.lost_at: Instant | None = None  # when that costs the paths

    # keys

    def may_seal(self, now: Instant) -> bool:
        """Whether there are keys to seal with; if not, everything but the wish for new ones waits."""
        keys = self._shared.keys
        if keys.may_seal(now):
            return True
        if not self.is_mute:
            self.is_mute = True
            self._shared.paths.probes.clear()
            self.lost_at = Instant(now + NO_KEYS_AFTER)
            if keys.is_over(now):
                self._lose_all(now)
        return False

    def _lose_all(self, now: Instant) -> None:
        """Without keys no path can prove itself."""
        shared = self._shared
        self.lost_at = None
        if any(path.validated for path in shared.paths.known.values()):
            for path in shared.paths.known.values():
                path.validated = False
                if path is not shared.paths.current:
                    self._requeue(now, path)
            shared.events.append(AllPathsLost(no_keys=now - shared.last_heard < HEARD_LATELY))

    def on_keys(self, now: Instant) -> None:
        """There are keys to seal with.  After a while without, every path has to prove itself."""
        if not self.is_mute or not self._shared.keys.may_seal(now):
            return
        self.is_mute = False
        self._shared.paths.probes.clear()  # what waited meanwhile is late
        was_lost, self.lost_at = self.lost_at is None, None
        for path in self._shared.paths.known.values():
            path.recovery.on_heard_again()
            if was_lost:
                path.trust()
                path.verify(now)
        self._is_announced = self._is_announced and not was_lost

    # choice

    def announce_again(self) -> None:
        """Tell PathChanged with the next choice, though the path may be the same."""
        self._is_announced = False

    def _announce(self, now: Instant) -> None:
        path, why = self._shared.paths.current, self._shared.paths.why
        rtt = path.recovery.rtt
        self._is_announced = rtt.samples > 0
        if not self._is_announced:
            return
        if self._shared.trace is not None:
            tracing.path_changed(self._shared.trace, now, path, why)
        self._shared.events.append(PathChanged(path.key, path.kind, path.key.remote, rtt.smoothed_rtt, path.mtu, why))

    def choose(self, now: Instant, why: str = "") -> None:
        """Change to a better path if there is one; what was under way on the old one is sent again if that one failed."""
        paths = self._shared.paths
        while paths.evicted:
            self._requeue(now, paths.evicted.pop())
        better = paths.better()
        if better is None:
            if self._shared.mtu_changed or not self._is_announced:
                self._shared.mtu_changed = False
                self._announce(now)
            return
        previous, paths.current = paths.current, better
        self._shared.losses.restart(self._shared.next_number)
        if not why:
            if previous.is_replaced:
                previous.validated = False  # nothing gets through there any more
                why = "the server ends" if previous.is_left else "the server is reached another way"
            elif not previous.validated:
                why = DEMOTED if previous.kind is PathKind.DIRECT else "the relay fell silent"
            elif better.kind is PathKind.DIRECT:
                why = "a direct path was found" if previous.kind is PathKind.RELAY else "a faster direct path was found"
        paths.why = why
        self._shared.mtu_changed = False
        if not previous.validated:
            if previous.is_left:
                previous.requeue_at = Instant(now + LEFT_PATIENCE * previous.recovery.rtt.smoothed_rtt)
            else:
                self._requeue(now, previous)
        self._announce(now)

    def on_heard_again(self) -> None:
        """The peer was silent for BACK_AFTER, and is heard again."""
        for path in self._shared.paths.known.values():
            path.recovery.on_heard_again()

    def drop(self, now: Instant, path: Path) -> None:
        """The path is gone for certain."""
        was_working, path.validated = path.validated, False
        if was_working:
            self._failed(now, path)
        elif path.requeue_at is not None:
            self._requeue(now, path)
        self.choose(now)
        self._shared.paths.remove(path.key)

    def _requeue(self, now: Instant, path: Path) -> None:
        path.probes_owed = 0
        path.requeue_at = None
        for burst, mask in path.recovery.discard(now):
            self._shared.content_lost(burst.content, mask, burst.count)

    def _failed(self, now: Instant, path: Path) -> None:
        self._shared.events.append(PathLost(path.key, path.kind))
        paths = self._shared.paths
        if path is paths.current and not any(p.validated for p in paths.known.values()):
            self._shared.events.append(AllPathsLost())
        elif path is not paths.current:
            self._requeue(now, path)

    # time

    def handle_timeout(self, now: Instant) -> None:
        """Call when the deadline of keys, of a path, or of what is under way on it has come; earlier is harmless."""
        if not self.may_seal(now):
            if self.lost_at is not None and now >= self.lost_at:
                self._lose_all(now)
            return
        paths = self._shared.paths
        for path in list(paths.known.values()):
            if path.requeue_at is not None and path.requeue_at <= now:
                self._requeue(now, path)
            at = path.recovery.poll_timeout()
            if at is not None and at <= now:
                self._recovery_timeout(now, path)
        for path in paths.handle_timeout(now):
            self._failed(now, path)
        if paths.is_doubt_fresh:
            paths.is_doubt_fresh = False
            self._shared.events.append(PathInDoubt())
        self.choose(now)

    def _repeat_oldest(self, path: Path, count: int) -> None:
        """Probes repeat it; that it is declared lost here costs a copy, not a congestion event."""
        shared = self._shared
        for burst, mask in path.recovery.oldest_outstanding(count):
            lost = shared.stats.packets_lost
            shared.content_lost(burst.content, mask & -mask, burst.count)  # the oldest packet only
            shared.stats.packets_lost = lost

    def relieve(self) -> None:
        """Another path has just answered while the current one is in doubt: it carries a probe before that one is given up."""
        paths = self._shared.paths
        relief, paths.relief = paths.relief, None
        if relief is not None and relief is not paths.current and paths.current.recovery.bytes_in_flight:
            self._repeat_oldest(paths.current, 1)
            relief.probes_owed = max(relief.probes_owed, 1)

    def _recovery_timeout(self, now: Instant, path: Path) -> None:
        shared = self._shared
        result = path.recovery.on_timeout(now)
        if shared.trace is not None:
            tracing.timed_out(shared.trace, now, path, result.probes)
            tracing.settled(shared.trace, now, path, result.lost)
        for burst, mask in result.lost:
            shared.content_lost(burst.content, mask, burst.count)
        path.pacer.set_rate(path.recovery.pacing_rate(), now)
        if result.lost and path.weigh([], result.lost, now):
            shared.mtu_changed |= path is shared.paths.current
        if not result.probes:
            return
        if path.recovery.pto_count >= BLACK_HOLE_PTOS and path.pmtu.on_black_hole(now):
            path.set_mtu(path.pmtu.size, now)
            shared.mtu_changed |= path is shared.paths.current
            self._requeue(now, path)
        self._repeat_oldest(path, result.probes)
        path.probes_owed = result.probes
        path.verify(now)
        if path is shared.paths.current:
            for other in shared.paths.known.values():
                if other is not path and other.validated:
                    other.probes_owed = max(other.probes_owed, 1)  # the other path may be the one that still works
