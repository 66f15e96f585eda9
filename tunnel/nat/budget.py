"""The budget of checks and costlier techniques, over all peers of a process, whatever the peers say."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

from tunnel.core.bucket import Bucket
from tunnel.nat.quota import Limits
from tunnel.units import Instant, Seconds

#: Checks of addresses that have not answered yet, in one go.  A stranger's address can be named by as many peers as somebody
#: cares to invent (the creator of a room invents members), so they share this: four times what one of them may spend
#: (agent.CHECK_BURST), and for each of fifteen honest ones still some ten pairs in their first round.
ALL_CHECKS_BURST: Final = 2_400
ALL_CHECKS_RATE: Final = 80.0  # a second after that, likewise four times what one may
HELD_BACK: Final = "checks held back"  # counts those that had to wait for it
LEAVES_QUEUE: Final = Seconds(0.25)  # who has not asked for so long, while others wait, has ended or found a path
#: Probes to ports that nobody named, in one go: with 256 sockets on the other side 1,159 find one in 99 of 100 cases, and a
#: carrier's quota of 64 mappings, not all of which are free, makes it five times as many.
PROBE_BURST: Final = 8_500
PROBE_RATE: Final = 15.0  # a second after that: enough for another attempt where there is no quota in 80 s
#: Openers with a low TTL: four passes of the pool.
OPENER_BURST: Final = 1_200
OPENER_RATE: Final = 10.0
POOL_SOCKETS: Final = 256


#: What leaves for one host that has never sent anything authentic to this process, over all peers and sockets.  An honest peer
#: behind one needs 26 checks a round for each address it names, and sixteen friends of one school share a host.
SILENT_CHECKS: Final = 300
#: Random ports of such a host: one attempt towards 256 sockets, or one towards what a carrier's quota leaves of them.  Nothing
#: can come from the host before an attempt succeeds, since its NAT and ours drop what the other has not asked for.
SILENT_PROBES: Final = 2_400
SILENT_PROBES_OF_FEW: Final = 8_000
SILENT_REFILL: Final = Seconds(3600.0)  # until a host's budget is whole again
MAX_HOSTS: Final = 1_024  # hosts remembered, silent ones and others; the one longest unused goes
SILENT_HOST: Final = "checks of silent hosts held back"


class Budget:
    """Share one among all agents of a process."""

    def __init__(self, drops: MutableMapping[str, int] | None = None) -> None:
        """`drops` counts what was held back, by reason."""
        self._drops: MutableMapping[str, int] = {} if drops is None else drops
        self._waiting: dict[int, Instant] = {}  # who waits for a check, in the order in which they came, and when they last asked
        self.limits = Limits()
        self.checks = Bucket(ALL_CHECKS_BURST, ALL_CHECKS_RATE)
        self.probes = Bucket(PROBE_BURST, PROBE_RATE)
        self.openers = Bucket(OPENER_BURST, OPENER_RATE)
        self._heard: dict[str, None] = {}
        self._silent_checks: dict[str, Bucket] = {}
        self._silent_probes: dict[str, Bucket] = {}

    def heard_from(self, host: str) -> None:
        """Something authentic came from this host: what goes there is limited by the other budgets alone."""
        self._heard.pop(host, None)
        self._heard[host] = None
        if len(self._heard) > MAX_HOSTS:
            del self._heard[next(iter(self._heard))]

    def check_ready_at(self, now: Instant, host: str) -> Instant:
        """When a check may go to this host; `now` if it may at once."""
        if host in self._heard:
            return now
        bucket = self._bucket(self._silent_checks, host, SILENT_CHECKS)
        bucket.left(now)
        return bucket.ready_at(now)

    def take_host_check(self, now: Instant, host: str) -> None:
        """A check to this host is sent."""
        if host not in self._heard:
            self._bucket(self._silent_checks, host, SILENT_CHECKS).take(now)

    def hold_back_host(self) -> None:
        """Count a check that waits because its host is silent."""
        self._drops[SILENT_HOST] = self._drops.get(SILENT_HOST, 0) + 1

    def take_host_probe(self, now: Instant, host: str) -> bool:
        """Whether a probe to a port that nobody named may go to this host, besides `probes`."""
        return host in self._heard or self._bucket(self._silent_probes, host, SILENT_PROBES_OF_FEW).take(now)

    def host_probes_left(self, now: Instant, host: str, *, few: bool) -> int:
        """Probes that an attempt towards this host may use; `few`: the peer could open few sockets."""
        if host in self._heard:
            return PROBE_BURST
        left = self._bucket(self._silent_probes, host, SILENT_PROBES_OF_FEW).left(now)
        return left if few else left - (SILENT_PROBES_OF_FEW - SILENT_PROBES)

    @staticmethod
    def _bucket(buckets: dict[str, Bucket], host: str, burst: int) -> Bucket:
        bucket = buckets.pop(host, None)
        if bucket is None:
            bucket = Bucket(burst, burst / SILENT_REFILL)
            if len(buckets) >= MAX_HOSTS:
                del buckets[next(iter(buckets))]
        buckets[host] = bucket
        return bucket

    def may_check(self, now: Instant, who: int) -> bool:
        """Whether it is the turn of `who`, a number of the caller's own, with a check that is due.

        Who has to wait should ask again soon.  When tokens are short those that wait get them in turn, however many checks any
        one of them has: a crowd of invented peers slows an honest one down and does not shut it out.
        """
        left, waiting = self.checks.left(now), self._waiting
        while waiting and now - waiting[next(iter(waiting))] > LEAVES_QUEUE:
            del waiting[next(iter(waiting))]
        before = len(waiting)
        if who in waiting:
            waiting[who] = now
            before = next(number for number, each in enumerate(waiting) if each == who)
        if before < left:
            return True
        if who not in waiting:
            waiting[who] = now
            self._drops[HELD_BACK] = self._drops.get(HELD_BACK, 0) + 1
        return False

    def take_check(self, now: Instant, who: int) -> None:
        """It is sent."""
        self.checks.take(now)
        self._waiting.pop(who, None)
