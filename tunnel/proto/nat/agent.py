"""The agent: schedules connectivity checks towards one peer, from both sides at once, so that both NATs open.

It sends nothing and validates nothing: poll_check says where the next check goes, connection/paths seals it as PATH_CHALLENGE,
and what came of it is told back here.  Shape: RFC 8445 §6 (check list, pacing, triggered checks), without roles that decide.

A round.  Towards addresses behind an IPv4 NAT the first checks are openers with a low TTL: they open our own NAT and die before
the peer's.  A Linux router that saw our probe before its own host's would move that host to another port.  Then the checks go out
in full, fast at first and falling off; a round that finds nothing ends, and short ones follow slowly while the peer lives.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tunnel.proto.nat.behaviour import Mapping, explain_relayed
from tunnel.proto.nat.candidate import MAX_CANDIDATES, Candidate, CandidateKind, Offer, canonical, compute_priority, is_allowed
from tunnel.proto.timers import earliest
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    import random

# --- the schedule of one pair -------------------------------------------------------------------------------------------------
#: When openers go out after the start of a round, and their TTL.  3 leaves a home and a carrier router and dies at the second hop
#: beyond; 5 comes last, for carriers with hops of their own.  Never more: from 10 on an opener reaches the far NAT, and on a
#: short path between neighbours 5 already may, so the peer gets a tenth of a second to open before it.
OPENERS: Final = ((Seconds(0.0), 3), (Seconds(0.05), 3), (Seconds(0.1), 5))
#: Full TTL once the peer says that its openers are out, and without that word from here on.
OPENER_PHASE: Final = Seconds(1.0)
#: The same towards a peer that sends no offers and so no word either; it may be some 250 ms late.
BLIND_OPENER_PHASE: Final = Seconds(0.3)
#: The same while we have named no candidates ourselves, so that the peer cannot have opened towards us.
UNNAMED_OPENER_PHASE: Final = Seconds(3.0)
FIRST_INTERVAL: Final = Seconds(0.05)  # 20 checks a second ...
FAST_CHECKS: Final = 6  # ... for so many, then falling off
INTERVAL_GROWTH: Final = 1.3
MAX_INTERVAL: Final = Seconds(1.0)
JITTER: Final = 0.1  # of an interval, so that two agents do not collide for ever

# --- the schedule of rounds ---------------------------------------------------------------------------------------------------
ROUND: Final = Seconds(10.0)  # a fresh round without success ends after so long
RETRY_ROUND: Final = Seconds(2.5)  # a slow retry is a short round
RETRY_AFTER: Final = Seconds(60.0)  # from the end of a round; longer than Linux keeps an unanswered flow (30 s)
RETRY_GROWTH: Final = 1.5
MAX_RETRY_AFTER: Final = Seconds(300.0)
FOLLOWER_GRACE: Final = Seconds(15.0)  # the controlled side waits so much longer for the controlling side's call to retry
MIN_RESTART_INTERVAL: Final = Seconds(1.0)  # calls of the peer for a fresh round are heeded no more often

# --- budgets ------------------------------------------------------------------------------------------------------------------
PACE: Final = Seconds(0.005)  # between any two checks of one agent: 200 a second
CHECK_BURST: Final = 600  # checks that may go out without waiting ...
CHECK_RATE: Final = 20.0  # ... and a second after that, whatever the peer does
MAX_PAIRS: Final = 64
MAX_PEER_REFLEXIVE: Final = 8


class AgentState(Enum):
    IDLE = "idle"  # nothing to check yet
    CHECKING = "checking"
    CONNECTED = "connected"
    EXHAUSTED = "exhausted"


class Check(NamedTuple):
    """Send one check from there to there.  `ttl` is None for the system's default."""

    socket_id: SocketId
    remote: Address
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class AgentStats:
    state: AgentState
    checks_sent: int
    openers_sent: int
    rounds: int
    pairs: int
    budget: int  # checks that may go out at once


class Technique(Protocol):
    """A costlier way to meet: port prediction, the birthday technique.  Asked when the plain checks have nothing due.

    It may use sockets of its own, announced by Agent.add_socket with `plain=False`.
    """

    name: str

    def start(self, now: Instant, remotes: tuple[Candidate, ...]) -> None: ...
    def stop(self) -> None: ...
    def poll_check(self, now: Instant) -> Check | None: ...
    def poll_timeout(self) -> Instant | None: ...


@dataclass(slots=True)
class _Pair:
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


class Agent:
    """Schedules the checks of one connection.  All verbs are cheap and synchronous; `now` is handed in."""

    def __init__(
        self,
        *,
        controlling: bool,
        now: Instant,
        rng: random.Random,
        sockets: MappingType[SocketId, bool],
        allow_loopback: bool = False,
        techniques: Iterable[Technique] = (),
    ) -> None:
        self.controlling = controlling
        self.state = AgentState.IDLE
        self.mapping = Mapping.UNKNOWN  # ours, as the rendezvous client observed it
        self.remote_mapping = Mapping.UNKNOWN
        self._rng = rng
        self._sockets = dict(sockets)
        self._plain = set(sockets)
        self._allow_loopback = allow_loopback
        self._techniques = tuple(techniques)
        self._local: tuple[Candidate, ...] = ()
        self._remote: dict[Address, Candidate] = {}
        self._reflexive: dict[tuple[SocketId, Address], int] = {}  # peer-reflexive pairs with their priority, oldest first
        self._pairs: dict[tuple[SocketId, Address], _Pair] = {}
        self._selected: _Pair | None = None
        self._in_round = False
        self._round_ends = now
        self._retry_at: Instant | None = None
        self._retry_after = RETRY_AFTER
        self._next_slot = now
        self._tokens = float(CHECK_BURST)
        self._tokens_at = now
        self._last_restart: Instant | None = None
        self._generation = 0
        self._remote_generation = 0
        self._opened_told = -1
        self._peer_has_opened = False  # towards all of ours, in this round or just before it
        self._offers: list[Offer] = []
        self._checks_sent = self._openers_sent = self._rounds = 0

    # --- what we know -----------------------------------------------------------------------------------------------------

    @property
    def local_candidates(self) -> tuple[Candidate, ...]:
        return self._local

    @property
    def remote_candidates(self) -> tuple[Candidate, ...]:
        return tuple(self._remote.values())

    @property
    def stats(self) -> AgentStats:
        return AgentStats(
            self.state, self._checks_sent, self._openers_sent, self._rounds, len(self._pairs), max(0, int(self._tokens))
        )

    @property
    def why_relayed(self) -> str:
        """One sentence for a person."""
        if not any(self._usable(candidate) for candidate in self._remote.values()):
            return "the two sides have no address family in common, or named no address that may be tried"
        return explain_relayed(self.mapping, self.remote_mapping)

    # --- inputs -----------------------------------------------------------------------------------------------------------

    def add_socket(self, now: Instant, socket_id: SocketId, is_ipv6: bool, *, plain: bool = True) -> None:
        """A socket came up.  One that is not plain belongs to a technique: no check list is made for it."""
        self._sockets[socket_id] = is_ipv6
        if plain:
            self._plain.add(socket_id)
            self._form_pairs(now)

    def remove_socket(self, socket_id: SocketId) -> None:
        self._sockets.pop(socket_id, None)
        self._plain.discard(socket_id)
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[0] != socket_id}
        self._reflexive = {key: rank for key, rank in self._reflexive.items() if key[0] != socket_id}
        if self._selected is not None and self._selected.socket_id == socket_id:
            self._selected = None

    def set_local(self, now: Instant, candidates: Iterable[Candidate], mapping: Mapping | None = None) -> None:
        """Our own candidates, complete; when they differ from the last ones an offer to the peer is queued."""
        unique: dict[Address, Candidate] = {}
        for candidate in sorted(candidates, key=lambda candidate: -candidate.priority):
            unique.setdefault(candidate.address, candidate)
        chosen = tuple(unique.values())[:MAX_CANDIDATES]
        if mapping is not None:
            self.mapping = mapping
        if chosen != self._local:
            self._local = chosen
            for key in [key for key in self._pairs if key[1] in unique]:  # trap: the peer's LAN address can be ours
                del self._pairs[key]
            for pair in self._pairs.values():
                if pair.opens and not pair.checks and pair.openers == len(OPENERS) and not self._peer_has_opened:
                    pair.next_at = Instant(now + OPENER_PHASE)  # the peer hears of these only now
            self._offer()

    def add_remote(self, now: Instant, candidates: Iterable[Candidate]) -> None:
        """The peer's candidates, complete: those that may be tried join the check list, those no longer named leave it.

        A new one starts a fresh round.  So does a repeated list when the last round found nothing: the peer wants to go in step.
        """
        self._take_remote(now, candidates, together=self.state is not AgentState.CONNECTED)

    def handle_offer(self, now: Instant, offer: Offer) -> None:
        """What the peer's agent said.  Older generations are ignored."""
        if offer.opened:
            if offer.generation == self._generation:
                self.peer_has_opened(now)
            return
        if offer.generation <= self._remote_generation:
            return
        if self._remote_generation and not self._is_in_round(now):
            self._peer_has_opened = False
        self._remote_generation = offer.generation
        self.remote_mapping = offer.mapping
        if offer.searching and self.state is AgentState.CONNECTED and not self._restarted_lately(now):
            self._selected = None  # what we hold is no path for the peer
            self.state = AgentState.IDLE
        self._take_remote(now, offer.candidates, together=True)

    def poll_offer(self) -> Offer | None:
        """What to tell the peer's agent over the authenticated channel, in order."""
        return self._offers.pop(0) if self._offers else None

    def peer_has_opened(self, now: Instant) -> None:
        """The peer's openers are out: what we send now finds its NAT ready, so stop holding back, or do not begin to."""
        self._peer_has_opened = True
        for pair in self._pairs.values():
            if pair.opens and not pair.checks:
                pair.openers = len(OPENERS)
                pair.next_at = min(pair.next_at, now)

    def peer_reflexive(self, now: Instant, socket_id: SocketId, remote: Address) -> None:
        """An authenticated check came from there: answer the source you see.  RFC 8445 §7.3.1.3 and §7.3.1.4.

        The triggered check goes out at once at full TTL, since the datagram has just come the same way.
        """
        if socket_id not in self._sockets or self._sockets[socket_id] != remote.is_ipv6:
            return
        if not is_allowed(remote, self._allow_loopback):
            return
        key = (socket_id, remote)
        pair = self._pairs.get(key)
        if pair is None:
            rank = compute_priority(CandidateKind.PEER_REFLEXIVE, remote)
            self._reflexive[key] = rank
            while len(self._reflexive) > MAX_PEER_REFLEXIVE:
                oldest = next(iter(self._reflexive))
                del self._reflexive[oldest]
                evicted = self._pairs.get(oldest)
                if evicted is not None and evicted is not self._selected:
                    del self._pairs[oldest]
            pair = _Pair(socket_id, remote, CandidateKind.PEER_REFLEXIVE, rank, False, now)
            self._pairs[key] = pair
        if pair.done or pair.triggered:
            return
        pair.triggered = True
        pair.opens = False
        pair.next_at = now
        if not self._is_in_round(now):
            self._open_round(now, RETRY_ROUND)
        if self.state is not AgentState.CONNECTED:
            self.state = AgentState.CHECKING

    def check_succeeded(self, now: Instant, socket_id: SocketId, remote: Address, rtt: Seconds) -> None:
        """A check to there was answered from there.  Worse pairs are left alone, better ones go on to the end of the round."""
        key = (socket_id, remote)
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._pairs) >= MAX_PAIRS:  # the peer answers from ever new addresses: an old success goes
                del self._pairs[next(key for key, old in self._pairs.items() if old is not self._selected)]
            pair = _Pair(socket_id, remote, CandidateKind.PEER_REFLEXIVE, 0, False, now)
            self._pairs[key] = pair
        pair.done = True
        if self._selected is None or pair.priority > self._selected.priority:
            self._selected = pair
        self.state = AgentState.CONNECTED
        self._retry_after = RETRY_AFTER
        for technique in self._techniques:
            technique.stop()

    def path_lost(self, now: Instant) -> None:
        """The direct path went quiet: look for one again, at once, and call the peer to do the same."""
        self.restart(now)
        self._offer()

    def restart(self, now: Instant) -> None:
        """Forget what succeeded and begin a fresh round, for instance after a roam."""
        self._selected = None
        self._peer_has_opened = False
        self._retry_after = RETRY_AFTER
        self.state = AgentState.IDLE
        self._start_round(now, ROUND)

    # --- outputs ----------------------------------------------------------------------------------------------------------

    def poll_check(self, now: Instant) -> Check | None:
        """The next check that is due, or None; call until None.  Rounds end and begin in here too."""
        self._turn_rounds(now)
        if now < self._next_slot or not self._has_token(now):
            return None
        best: _Pair | None = None
        if self._is_in_round(now):
            for pair in self._pairs.values():
                if pair.next_at <= now and self._is_wanted(pair):
                    rank = (pair.triggered, -pair.next_at, pair.priority)
                    if best is None or rank > (best.triggered, -best.next_at, best.priority):
                        best = pair
        check: Check | None = None
        if best is not None:
            check = Check(best.socket_id, best.remote, self._advance(best, now))
            self._tell_opened()
        elif self.state is AgentState.CHECKING:
            for technique in self._techniques:
                check = technique.poll_check(now)
                if check is not None:
                    break
        if check is not None:
            self._checks_sent += 1
            self._tokens -= 1.0
            self._next_slot = Instant(now + PACE)
        return check

    def poll_timeout(self) -> Instant | None:
        """When poll_check has something to do next."""
        due: Instant | None = None
        if self._in_round:
            for pair in self._pairs.values():
                if (due is None or pair.next_at < due) and self._is_wanted(pair):
                    due = pair.next_at
            if self.state is AgentState.CHECKING:
                for technique in self._techniques:
                    due = earliest(due, technique.poll_timeout())
        if due is not None:
            due = max(due, self._next_slot)
            if self._tokens < 1.0:
                due = max(due, Instant(self._tokens_at + (1.0 - self._tokens) / CHECK_RATE))
        return earliest(due, self._retry_at, self._round_ends if self._in_round else None)

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _offer(self) -> None:
        self._generation += 1
        self._peer_has_opened = False
        self._offers = [offer for offer in self._offers if offer.opened]
        searching = self.state is not AgentState.CONNECTED
        self._offers.append(Offer(self._generation, self._local, self.mapping, searching=searching))

    def _usable(self, candidate: Candidate) -> bool:
        return any(self._sockets[socket_id] == candidate.address.is_ipv6 for socket_id in self._plain)

    def _is_in_round(self, now: Instant) -> bool:
        return self._in_round and now < self._round_ends

    @property
    def _opener_phase(self) -> Seconds:
        if not self._remote_generation:
            return BLIND_OPENER_PHASE
        return OPENER_PHASE if self._generation else UNNAMED_OPENER_PHASE

    def _restarted_lately(self, now: Instant) -> bool:
        return self._last_restart is not None and now - self._last_restart < MIN_RESTART_INTERVAL

    def _take_remote(self, now: Instant, candidates: Iterable[Candidate], *, together: bool) -> None:
        named: dict[Address, Candidate] = {}
        for candidate in tuple(candidates)[:MAX_CANDIDATES]:
            address = Address(canonical(candidate.address.host), candidate.address.port)
            if candidate.kind is not CandidateKind.RELAYED and is_allowed(address, self._allow_loopback):
                named.setdefault(address, candidate._replace(address=address))
        fresh = any(address not in self._remote for address in named)
        self._remote = named
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[1] in named or key in self._reflexive or pair.done}
        if self._restarted_lately(now):
            self._form_pairs(now)
        elif fresh:
            self._start_round(now, ROUND)
        elif together and not self._is_in_round(now):
            self._start_round(now, RETRY_ROUND)

    def _is_wanted(self, pair: _Pair) -> bool:
        return not pair.done and (self._selected is None or pair.triggered or pair.priority > self._selected.priority)

    def _open_round(self, now: Instant, length: Seconds) -> None:
        self._in_round = True
        self._round_ends = Instant(now + length)
        self._retry_at = None

    def _start_round(self, now: Instant, length: Seconds) -> None:
        self._pairs = {key: pair for key, pair in self._pairs.items() if pair is self._selected}
        for (socket_id, remote), rank in self._reflexive.items():
            if self._selected is None:  # an address seen once is worth a try, like a named one
                pair = _Pair(socket_id, remote, CandidateKind.PEER_REFLEXIVE, rank, not remote.is_ipv6, now)
                self._pairs[socket_id, remote] = pair
        self._form_pairs(now)
        self._retry_at = None
        self._in_round = False
        if not self._pairs:
            self.state = AgentState.IDLE
            return
        self._open_round(now, length)
        self._opened_told = -1
        self._rounds += 1
        self._last_restart = now
        if self.state is not AgentState.CONNECTED:
            self.state = AgentState.CHECKING
            for technique in self._techniques:
                technique.start(now, self.remote_candidates)

    def _form_pairs(self, now: Instant) -> None:
        """Every plain socket with every address of its family.  RFC 8445 §6.1.2.2, pruned as §6.1.2.4 says: by base."""
        own = {candidate.address for candidate in self._local}
        for remote in sorted(self._remote.values(), key=lambda candidate: -candidate.priority):
            if remote.address in own:
                continue
            for socket_id in self._plain:
                key = (socket_id, remote.address)
                if self._sockets[socket_id] != remote.address.is_ipv6 or key in self._pairs or len(self._pairs) >= MAX_PAIRS:
                    continue
                opens = not remote.address.is_ipv6 and remote.kind is not CandidateKind.HOST
                opens = opens and not self._peer_has_opened
                rank = compute_priority(remote.kind, remote.address)  # what the peer claims of itself does not rank it
                self._pairs[key] = _Pair(socket_id, remote.address, remote.kind, rank, opens, now)

    def _advance(self, pair: _Pair, now: Instant) -> int | None:
        """Count one check on this pair, plan its next one, and return the TTL of this one."""
        pair.triggered = False
        pair.sent = True
        if pair.opens and pair.openers < len(OPENERS):
            begun = Instant(pair.next_at - OPENERS[pair.openers][0])
            ttl = OPENERS[pair.openers][1]
            pair.openers += 1
            self._openers_sent += 1
            after = OPENERS[pair.openers][0] if pair.openers < len(OPENERS) else self._opener_phase
            pair.next_at = Instant(begun + after)
            return ttl
        interval = FIRST_INTERVAL * INTERVAL_GROWTH ** max(0, pair.checks - FAST_CHECKS + 1)
        pair.checks += 1
        interval = min(interval, MAX_INTERVAL) * (1.0 + JITTER * (2.0 * self._rng.random() - 1.0))
        pair.next_at = Instant(now + interval)
        return None

    def _tell_opened(self) -> None:
        """Once our NAT has been opened towards every address of a generation, let the peer know."""
        if self._opened_told < self._remote_generation and all(map(self._has_opened, self._pairs.values())):
            self._opened_told = self._remote_generation
            self._offers = [offer for offer in self._offers if not offer.opened]
            self._offers.append(Offer(self._remote_generation, opened=True))

    @staticmethod
    def _has_opened(pair: _Pair) -> bool:
        return pair.done or (pair.sent and (not pair.opens or pair.openers == len(OPENERS)))

    def _has_token(self, now: Instant) -> bool:
        if now > self._tokens_at:
            self._tokens = min(float(CHECK_BURST), self._tokens + (now - self._tokens_at) * CHECK_RATE)
            self._tokens_at = now
        return self._tokens >= 1.0 - 1e-6

    def _turn_rounds(self, now: Instant) -> None:
        if self._retry_at is not None and now >= self._retry_at:
            self._start_round(now, RETRY_ROUND)
            if self._in_round:
                self._offer()
        elif self._in_round and now >= self._round_ends:
            self._in_round = self._peer_has_opened = False
            for technique in self._techniques:
                technique.stop()
            if self.state is AgentState.CHECKING:
                self.state = AgentState.EXHAUSTED
            elif not any(self._is_wanted(pair) for pair in self._pairs.values()):
                return  # connected, and on the best there is
            grace = Seconds(0.0) if self.controlling else FOLLOWER_GRACE
            self._retry_at = Instant(now + self._retry_after + grace)
            self._retry_after = Seconds(min(self._retry_after * RETRY_GROWTH, MAX_RETRY_AFTER))
