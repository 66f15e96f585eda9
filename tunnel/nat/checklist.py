"""The check list: pairs of a socket of ours and an address of theirs, and when each is checked next.

Source: RFC 8445 §6.1.2 (forming and pruning), §7.3.1.4 (triggered checks).  Towards addresses behind an IPv4 NAT the first checks
are openers with a low TTL: they open our own NAT and die before the peer's.  A Linux router that saw our probe before its own
host's would move that host to another port.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.nat.candidate import Candidate, CandidateKind, compute_priority
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    import random

#: When openers go out after the start of a round, and their TTL.  3 leaves a home and a carrier router and dies at the second hop
#: beyond; 5 comes last, for carriers with hops of their own.  Never more: from 10 on an opener reaches the far NAT, and on a
#: short path between neighbours 5 already may, so the peer gets a tenth of a second to open before it.
OPENERS: Final = ((Seconds(0.0), 3), (Seconds(0.05), 3), (Seconds(0.1), 5))
FIRST_INTERVAL: Final = Seconds(0.05)  # 20 checks a second ...
FAST_CHECKS: Final = 6  # ... for so many, then falling off
INTERVAL_GROWTH: Final = 1.3
MAX_INTERVAL: Final = Seconds(1.0)
JITTER: Final = 0.1  # of an interval, so that two agents do not collide for ever
MAX_PAIRS: Final = 64
MAX_PEER_REFLEXIVE: Final = 8


class Check(NamedTuple):
    """Send one check from there to there.  `ttl` is None for the system's default."""

    socket_id: SocketId
    remote: Address
    ttl: int | None = None


@dataclass(slots=True)
class Pair:
    """One socket of ours and one address of theirs.  RFC 8445 §6.1.2."""

    socket_id: SocketId
    remote: Address
    kind: CandidateKind
    priority: int
    opens: bool  # starts with openers
    next_at: Instant
    openers: int = 0  # of OPENERS that are behind us in this round
    sent: bool = False  # anything, in this round
    checks: int = 0  # sent in full in this round
    triggered: bool = False
    done: bool = False  # succeeded

    @property
    def has_opened(self) -> bool:
        return self.done or (self.sent and (not self.opens or self.openers == len(OPENERS)))


class Checklist:
    """All pairs of one agent; `selected` is the best of those that succeeded."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pairs: dict[tuple[SocketId, Address], Pair] = {}
        self._reflexive: dict[tuple[SocketId, Address], int] = {}  # peer-reflexive pairs with their priority, oldest first
        self.selected: Pair | None = None

    def __len__(self) -> int:
        return len(self._pairs)

    # --- what belongs on it

    def form(
        self,
        now: Instant,
        remotes: Iterable[Candidate],
        own: set[Address],
        plain: set[SocketId],
        sockets: MappingType[SocketId, bool],
        *,
        may_open: bool,
    ) -> None:
        """Every plain socket with every address of its family.  RFC 8445 §6.1.2.2, pruned as §6.1.2.4 says: by base."""
        for remote in sorted(remotes, key=lambda candidate: -candidate.priority):
            if remote.address in own:
                continue
            for socket_id in plain:
                key = (socket_id, remote.address)
                if sockets[socket_id] != remote.address.is_ipv6 or key in self._pairs or len(self._pairs) >= MAX_PAIRS:
                    continue
                opens = may_open and not remote.address.is_ipv6 and remote.kind is not CandidateKind.HOST
                rank = compute_priority(remote.kind, remote.address)  # what the peer claims of itself does not rank it
                self._pairs[key] = Pair(socket_id, remote.address, remote.kind, rank, opens, now)

    def begin_round(self, now: Instant) -> None:
        """Forget how far each pair was; an address seen once is worth a try, like a named one."""
        self._pairs = {key: pair for key, pair in self._pairs.items() if pair is self.selected}
        if self.selected is None:
            for (socket_id, remote), rank in self._reflexive.items():
                pair = Pair(socket_id, remote, CandidateKind.PEER_REFLEXIVE, rank, not remote.is_ipv6, now)
                self._pairs[socket_id, remote] = pair

    def keep_named(self, named: MappingType[Address, Candidate]) -> None:
        """Pairs with addresses that the peer no longer names leave, unless they were seen to work."""
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[1] in named or key in self._reflexive or pair.done}

    def drop_remotes(self, addresses: Iterable[Address]) -> None:
        """Trap: the peer's LAN address can be ours."""
        gone = set(addresses)
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[1] not in gone}

    def drop_socket(self, socket_id: SocketId) -> None:
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[0] != socket_id}
        self._reflexive = {key: rank for key, rank in self._reflexive.items() if key[0] != socket_id}
        if self.selected is not None and self.selected.socket_id == socket_id:
            self.selected = None

    # --- what happened

    def trigger(self, now: Instant, socket_id: SocketId, remote: Address) -> bool:
        """A check came from there: check back at once, in full, as the datagram has just come that way.  False if that is due."""
        key = (socket_id, remote)
        pair = self._pairs.get(key)
        if pair is None:
            rank = compute_priority(CandidateKind.PEER_REFLEXIVE, remote)
            self._reflexive[key] = rank
            while len(self._reflexive) > MAX_PEER_REFLEXIVE:
                oldest = next(iter(self._reflexive))
                del self._reflexive[oldest]
                evicted = self._pairs.get(oldest)
                if evicted is not None and evicted is not self.selected:
                    del self._pairs[oldest]
            pair = self._pairs[key] = Pair(socket_id, remote, CandidateKind.PEER_REFLEXIVE, rank, False, now)
        if pair.done or pair.triggered:
            return False
        pair.triggered = True
        pair.opens = False
        pair.next_at = now
        return True

    def succeed(
        self, now: Instant, socket_id: SocketId, remote: Address, kind: CandidateKind = CandidateKind.PEER_REFLEXIVE
    ) -> None:
        """`kind` is for an address that was on no list: peer-reflexive, unless it was remembered as something else."""
        pair = self._pairs.get((socket_id, remote))
        if pair is None:
            if len(self._pairs) >= MAX_PAIRS:  # the peer answers from ever new addresses: an old success goes
                del self._pairs[next(key for key, old in self._pairs.items() if old is not self.selected)]
            rank = 0 if kind is CandidateKind.PEER_REFLEXIVE else compute_priority(kind, remote)
            pair = Pair(socket_id, remote, kind, rank, False, now)
            self._pairs[socket_id, remote] = pair
        pair.done = True
        if self.selected is None or pair.priority > self.selected.priority:
            self.selected = pair

    def open_up(self, now: Instant) -> None:
        """The peer's NAT is open: no more openers."""
        for pair in self._pairs.values():
            if pair.opens and not pair.checks:
                pair.openers = len(OPENERS)
                pair.next_at = min(pair.next_at, now)

    def credit(self, opened: MappingType[tuple[SocketId, Address], int], now: Instant, until: Instant) -> None:
        """So many openers of these pairs are out already; the first full check of those that have all of them is `until` then."""
        for key, count in opened.items():
            pair = self._pairs.get(key)
            if pair is not None and pair.opens and not pair.sent:
                pair.sent = True
                pair.openers = min(count, len(OPENERS))
                pair.next_at = until if pair.openers == len(OPENERS) else Instant(now + OPENERS[1][0])

    def hold_back(self, until: Instant) -> None:
        """Pairs whose openers are out wait that long before the first full check."""
        for pair in self._pairs.values():
            if pair.opens and not pair.checks and pair.openers == len(OPENERS):
                pair.next_at = until

    # --- what is due

    def is_wanted(self, pair: Pair) -> bool:
        return not pair.done and (self.selected is None or pair.triggered or pair.priority > self.selected.priority)

    @property
    def has_wanted(self) -> bool:
        return any(self.is_wanted(pair) for pair in self._pairs.values())

    @property
    def has_all_opened(self) -> bool:
        return all(pair.has_opened for pair in self._pairs.values())

    def next_due(self, among: Collection[Address] | None = None) -> Instant | None:
        """`among`: of pairs with these addresses alone."""
        due: Instant | None = None
        for pair in self._pairs.values():
            if (due is None or pair.next_at < due) and self.is_wanted(pair) and (among is None or pair.remote in among):
                due = pair.next_at
        return due

    def pick(self, now: Instant, among: Collection[Address] | None = None) -> Pair | None:
        """Triggered ones first, then the longest due, then the best; `among`: of pairs with these addresses alone."""
        best: Pair | None = None
        for pair in self._pairs.values():
            if pair.next_at <= now and self.is_wanted(pair) and (among is None or pair.remote in among):
                rank = (pair.triggered, -pair.next_at, pair.priority)
                if best is None or rank > (best.triggered, -best.next_at, best.priority):
                    best = pair
        return best

    def advance(self, pair: Pair, now: Instant, opener_phase: Seconds) -> Check:
        """Count one check on this pair, plan its next one, and return this one."""
        pair.triggered = False
        pair.sent = True
        if pair.opens and pair.openers < len(OPENERS):
            begun = Instant(pair.next_at - OPENERS[pair.openers][0])
            ttl = OPENERS[pair.openers][1]
            pair.openers += 1
            pair.next_at = Instant(begun + (OPENERS[pair.openers][0] if pair.openers < len(OPENERS) else opener_phase))
            return Check(pair.socket_id, pair.remote, ttl)
        interval = FIRST_INTERVAL * INTERVAL_GROWTH ** max(0, pair.checks - FAST_CHECKS + 1)
        pair.checks += 1
        interval = min(interval, MAX_INTERVAL) * (1.0 + JITTER * (2.0 * self._rng.random() - 1.0))
        pair.next_at = Instant(now + interval)
        return Check(pair.socket_id, pair.remote)
