"""The agent: schedules connectivity checks towards one peer, from both sides at once, so that both NATs open.

It sends nothing and validates nothing: poll_check says where the next check goes, connection/paths.py seals it as PATH_CHALLENGE,
and what came of it is told back here.  Shape: RFC 8445 §6 (check list, pacing, triggered checks), without roles that decide.

A round.  The check list goes out, openers first, fast at first and falling off; when nothing plain is due, the costlier technique
is asked.  A round that finds nothing ends, and short ones follow slowly while the peer lives.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from typing import TYPE_CHECKING, Final

from tunnel.core.bucket import Bucket
from tunnel.core.timers import earliest
from tunnel.nat import state as rounds
from tunnel.nat.behaviour import Mapping, explain_relayed
from tunnel.nat.budget import Budget
from tunnel.nat.candidate import NO_GENERATION, Candidate, Offer
from tunnel.nat.checklist import Check, Checklist, Pair
from tunnel.nat.memory import EarlyChecks, Remembered
from tunnel.nat.sides import Outbox, Sides
from tunnel.nat.state import AgentState, AgentStats
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tunnel.nat.techniques import Techniques

#: Full TTL once the peer says that its openers are out, and without that word from here on.
OPENER_PHASE: Final = Seconds(1.0)
#: The same towards a peer that sends no offers and so no word either; it may be some 250 ms late.
BLIND_OPENER_PHASE: Final = Seconds(0.3)
#: The same while we have named no candidates ourselves, so that the peer cannot have opened towards us.
UNNAMED_OPENER_PHASE: Final = Seconds(3.0)
# --- budgets ------------------------------------------------------------------------------------------------------------------
PACE: Final = Seconds(0.005)  # between any two checks of one agent: 200 a second
CHECK_BURST: Final = 600  # checks that may go out without waiting ...
CHECK_RATE: Final = 20.0  # ... and a second after that, whatever the peer does
HELD_PACE: Final = Seconds(0.05)  # before an agent looks again whether what all of them share has come back
HELD_HOST_PACE: Final = Seconds(1.0)  # before it looks again whether something has come from a silent host
MAX_ANSWERED: Final = 8  # addresses that have answered and are remembered for it: as many as a connection has paths


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
        technique: Techniques | None = None,
        remembered: Remembered | None = None,
        budget: Budget | None = None,
        has_way: Callable[[], bool] = lambda: True,
    ) -> None:
        """`remembered`: what worked last time between these two from this network.  `budget`: what all agents share.

        `has_way` to the peer: without one it hears no hint, so that no technique begins.
        """
        self.state = AgentState.IDLE
        self._sides = Sides(sockets, controlling=controlling, allow_loopback=allow_loopback)
        self._outbox = Outbox()
        self.technique = technique
        self._list = Checklist(rng)
        self._in_round = False
        self._round_ends = now
        self._retry_at: Instant | None = None
        self._retry_after = rounds.RETRY_AFTER
        self._next_slot = now
        self._tokens = Bucket(CHECK_BURST, CHECK_RATE)
        self._budget = budget or Budget()
        self._answered: dict[Address, None] = {}  # to check these costs others nothing; oldest first
        self._is_held = False  # a check is due that waits for what all agents share
        self._held_until = now
        self._last_restart: Instant | None = None
        self._remote_generation = 0
        self._peer_has_opened = False  # towards all of ours, in this round or just before it
        self._checks_sent = self._openers_sent = self._rounds = 0
        self._has_way = has_way
        self._technique_due: Seconds | None = None  # one waits for a way since the round of that length has begun
        self._early: EarlyChecks | None = None
        if remembered is not None and self._sides.may_try(remembered.remote):
            self._budget.heard_from(remembered.remote.host)
            self._early = EarlyChecks(now, remembered, sockets)

    # --- what we know -----------------------------------------------------------------------------------------------------

    @property
    def remote_candidates(self) -> tuple[Candidate, ...]:
        return tuple(self._sides.remote.values())

    @property
    def mapping(self) -> Mapping:
        """Ours."""
        return self._sides.mapping

    @property
    def remote_mapping(self) -> Mapping:
        return self._sides.remote_mapping

    @property
    def stats(self) -> AgentStats:
        budget = min(self._tokens.whole, self._budget.checks.whole)
        return AgentStats(self.state, self._checks_sent, self._openers_sent, self._rounds, budget)

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing is to be expected of this round any more, though it goes on."""
        return self.state is AgentState.EXHAUSTED or (
            self.state is AgentState.CHECKING and self.technique is not None and self.technique.is_hopeless
        )

    @property
    def why_relayed(self) -> str:
        """One sentence for a person."""
        if not self._sides.has_common_family:
            return "the two sides have no address family in common, or named no address that may be tried"
        return explain_relayed(self.mapping, self.remote_mapping)

    # --- inputs -----------------------------------------------------------------------------------------------------------

    def add_socket(self, now: Instant, socket_id: SocketId, is_ipv6: bool, *, plain: bool = True) -> None:
        """A socket came up.  One that is not plain belongs to a technique: no check list is made for it."""
        self._sides.sockets[socket_id] = is_ipv6
        if plain:
            self._sides.plain.add(socket_id)
            self._form_pairs(now)

    def remove_socket(self, socket_id: SocketId) -> None:
        self._sides.sockets.pop(socket_id, None)
        self._sides.plain.discard(socket_id)
        self._list.drop_socket(socket_id)

    def set_local(self, now: Instant, candidates: Iterable[Candidate], mapping: Mapping | None = None) -> None:
        """Our own candidates, complete; when they differ from the last ones an offer to the peer is queued."""
        is_news = self._sides.observe(mapping, self._differs_elsewhere)
        if self._sides.take_local(candidates):
            self._list.drop_remotes(candidate.address for candidate in self._sides.local)
            if not self._peer_has_opened:
                self._list.hold_back(Instant(now + OPENER_PHASE))  # the peer hears of these only now
            self._offer()
        elif is_news and self._outbox.generation:
            self._offer()
        self._update(now)

    def refine_mapping(self, now: Instant) -> None:
        """The technique may have found out more about our NAT: if so, the peer hears of it."""
        if self._sides.observe(None, self._differs_elsewhere):
            self._offer()
            self._update(now)

    def handle_offer(self, now: Instant, offer: Offer) -> None:
        """Take the offer of the peer's agent.  Older generations are ignored."""
        if offer.opened:
            if offer.generation == self._outbox.generation:
                self.peer_has_opened(now)
            self._take_hints(now, offer)
            return
        if offer.generation <= self._remote_generation:
            return
        is_first = not self._remote_generation
        if not is_first and not self._is_in_round(now):
            self._peer_has_opened = False
        self._remote_generation = offer.generation
        self._sides.remote_mapping = offer.mapping
        self._sides.is_remote_confirmed = offer.confirmed
        is_calling = offer.searching and not is_first  # the first offer was written before anything could be found
        if is_calling and self.state is AgentState.CONNECTED and not self._restarted_lately(now):
            self._list.selected = None  # what we hold is no path for the peer
            self.state = AgentState.IDLE
        self._take_remote(now, offer.candidates)
        self._update(now)

    def poll_offer(self) -> Offer | None:
        """Return the next offer for the peer's agent, to be sent in order over the authenticated channel."""
        offer = self._outbox.poll()
        if offer is not None:
            return offer
        hint = self.technique.poll_hint() if self.technique is not None else None
        return None if hint is None else Offer(NO_GENERATION, opened=True, hints=(hint,))

    def peer_has_opened(self, now: Instant) -> None:
        """The peer's openers are out: what we send now finds its NAT ready, so stop holding back, or do not begin to."""
        self._peer_has_opened = True
        self._list.open_up(now)

    def peer_reflexive(self, now: Instant, socket_id: SocketId, remote: Address) -> None:
        """An authenticated check came from there: answer the source you see.  RFC 8445 §7.3.1.3 and §7.3.1.4.

        The triggered check goes out at once at full TTL, since the datagram has just come the same way.
        """
        if self._sides.sockets.get(socket_id) != remote.is_ipv6 or not self._sides.may_try(remote):
            return
        self._budget.heard_from(remote.host)
        if not self._list.trigger(now, socket_id, remote):
            return
        if not self._is_in_round(now):
            self._open_round(now, rounds.RETRY_ROUND)
        if self.state is not AgentState.CONNECTED:
            self.state = AgentState.CHECKING

    def check_succeeded(self, now: Instant, socket_id: SocketId, remote: Address, rtt: Seconds) -> None:
        """A check to there was answered from there.  Worse pairs are left alone, better ones go on to the end of the round."""
        self._budget.heard_from(remote.host)
        self._answered.pop(remote, None)
        self._answered[remote] = None
        if len(self._answered) > MAX_ANSWERED:
            del self._answered[next(iter(self._answered))]
        early = self._early
        if early is not None and remote == early.remembered.remote:
            early.stop()
            self._list.succeed(now, socket_id, remote, early.remembered.kind)
        else:
            self._list.succeed(now, socket_id, remote)
        self.state = AgentState.CONNECTED
        self._retry_after = rounds.RETRY_AFTER
        if self.technique is not None:
            self.technique.stop(now)

    def path_lost(self, now: Instant) -> None:
        """The direct path went quiet: look for one again, at once, and call the peer to do the same."""
        self.restart(now)
        self._offer()

    def restart(self, now: Instant) -> None:
        """Forget what succeeded and begin a fresh round, for instance after a roam."""
        self._list.selected = None
        self._peer_has_opened = False
        self._retry_after = rounds.RETRY_AFTER
        self.state = AgentState.IDLE
        self._start_round(now, rounds.ROUND)

    # --- outputs ----------------------------------------------------------------------------------------------------------

    def poll_check(self, now: Instant) -> Check | None:
        """The next check that is due, or None; call until None.  Rounds end and begin in here too."""
        self._turn_rounds(now)
        self._begin_technique(now)
        if self._early is not None and self._early.is_due(now) and now >= self._next_slot and self._tokens.left(now):
            check = self._early.poll_check(now) if self._may_check(now) else None
            if check is not None and all(check.remote != own.address for own in self._sides.local):
                self._spend(now, check.remote)
                return self._count(check)
        if now >= self._next_slot and self._is_in_round(now) and self._tokens.left(now):
            pair = self._pick(now)
            if pair is not None:
                self._spend(now, pair.remote)
                sent = self._list.advance(pair, now, self._opener_phase)
                if self._list.has_all_opened:
                    self._outbox.tell_opened(self._remote_generation)
                return self._count(sent)
        if self._asks_technique(now):
            assert self.technique is not None
            check = self.technique.poll_check(now)
            if check is not None:
                return self._count(check)
        return None

    def poll_timeout(self) -> Instant | None:
        """When poll_check has something to do next."""
        due: Instant | None = None
        technique: Instant | None = None
        if self._in_round:
            due = self._list.next_due()
            if due is not None and self._is_held:
                due = earliest(max(due, self._held_until), self._list.next_due(self._answered))
            if self.state is AgentState.CHECKING and self.technique is not None:
                technique = self.technique.poll_timeout()
        if self._early is not None:
            early = self._early.poll_timeout()
            if early is not None and self._is_held:
                early = max(early, self._held_until)
            due = earliest(due, early)
        if due is not None:
            due = max(due, self._next_slot)
            due = max(due, self._tokens.ready_at(due))
        return earliest(due, technique, self._retry_at, self._round_ends if self._in_round else None)

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _offer(self) -> None:
        self._peer_has_opened = False
        self._outbox.offer(self._sides, searching=self.state is not AgentState.CONNECTED)

    def _pick(self, now: Instant) -> Pair | None:
        while (pair := self._list.pick(now)) is not None:
            ready_at = self._budget.check_ready_at(now, pair.remote.host)
            if ready_at <= now:
                break
            pair.next_at = min(ready_at, Instant(now + HELD_HOST_PACE))
            self._budget.hold_back_host()
        if pair is None or pair.remote in self._answered or self._may_check(now):
            return pair
        return self._list.pick(now, self._answered)

    def _may_check(self, now: Instant) -> bool:
        self._is_held = not self._budget.may_check(now, id(self))
        if self._is_held:
            self._held_until = Instant(now + HELD_PACE)
        return not self._is_held

    def _spend(self, now: Instant, remote: Address) -> None:
        self._tokens.take(now)
        self._next_slot = Instant(now + PACE)
        self._budget.take_host_check(now, remote.host)
        if remote not in self._answered:
            self._budget.take_check(now, id(self))

    def _count(self, check: Check) -> Check:
        self._checks_sent += 1
        self._openers_sent += check.ttl is not None
        return check

    @property
    def _differs_elsewhere(self) -> bool | None:
        return self.technique.differs_elsewhere if self.technique is not None else None

    def _update(self, now: Instant) -> None:
        if self.technique is not None and self.state is AgentState.CHECKING and self._technique_due is None:
            self.technique.update(now, self._sides.scene())

    def _begin_technique(self, now: Instant) -> None:
        """The one that the round of now is waiting to begin, as far as there is a way."""
        length = self._technique_due
        if self.technique is not None and length is not None and self._has_way():
            self._technique_due = None
            if self.state is AgentState.CHECKING:
                self.technique.start(now, self._sides.scene(), fresh=length > rounds.RETRY_ROUND)

    def _asks_technique(self, now: Instant) -> bool:
        return self.technique is not None and self.state is AgentState.CHECKING and self._is_in_round(now)

    def _take_hints(self, now: Instant, offer: Offer) -> None:
        if self.technique is None or not offer.hints or self.state is AgentState.CONNECTED or not self._sides.remote:
            return
        if not self._is_in_round(now):
            self._open_round(now, rounds.RETRY_ROUND)
        if self.state is not AgentState.CHECKING:
            self.state = AgentState.CHECKING
        self.technique.update(now, self._sides.scene())
        for hint in offer.hints:
            self.technique.handle_hint(now, hint)

    def _is_in_round(self, now: Instant) -> bool:
        return self._in_round and now < self._round_ends

    @property
    def _opener_phase(self) -> Seconds:
        if not self._remote_generation:
            return BLIND_OPENER_PHASE
        return OPENER_PHASE if self._outbox.generation else UNNAMED_OPENER_PHASE

    def _restarted_lately(self, now: Instant) -> bool:
        return self._last_restart is not None and now - self._last_restart < rounds.MIN_RESTART_INTERVAL

    def _take_remote(self, now: Instant, candidates: Iterable[Candidate]) -> None:
        """The peer's candidates, complete: those that may be tried join the check list, those no longer named leave it.

        A new one starts a fresh round.  So does a repeated list when the last round found nothing: the peer wants to go in step.
        """
        fresh = self._sides.take_remote(candidates)
        if self._early is not None:
            self._early.stop()
        self._list.keep_named(self._sides.remote)
        if self._restarted_lately(now):
            self._form_pairs(now)
        elif fresh:
            self._start_round(now, rounds.ROUND)
        elif not self._is_in_round(now):
            self._start_round(now, rounds.RETRY_ROUND)

    def _open_round(self, now: Instant, length: Seconds) -> None:
        self._in_round = True
        self._round_ends = Instant(now + length)
        self._retry_at = None

    def _start_round(self, now: Instant, length: Seconds) -> None:
        self._list.begin_round(now)
        self._form_pairs(now)
        self._retry_at = None
        self._in_round = False
        if not self._list:
            self.state = AgentState.IDLE
            return
        self._open_round(now, length)
        self._outbox.begin_round()
        self._rounds += 1
        self._last_restart = now
        if self._early is not None and self._early.opened:
            self._list.credit(self._early.opened, now, Instant(now + self._opener_phase))
            self._early.opened.clear()
            if self._list.has_all_opened:
                self._outbox.tell_opened(self._remote_generation)
        if self.state is not AgentState.CONNECTED:
            self.state = AgentState.CHECKING
            self._technique_due = length
            self._begin_technique(now)

    def _form_pairs(self, now: Instant) -> None:
        sides = self._sides
        own = {candidate.address for candidate in sides.local}
        self._list.form(now, sides.remote.values(), own, sides.plain, sides.sockets, may_open=not self._peer_has_opened)

    def _turn_rounds(self, now: Instant) -> None:
        if self._retry_at is not None and now >= self._retry_at:
            self._start_round(now, rounds.RETRY_ROUND)
            if self._in_round:
                self._offer()
        elif self._in_round and now >= self._round_ends:
            busy = self.technique.busy_until if self.technique is not None and self.state is AgentState.CHECKING else None
            if busy is not None and busy > now:
                self._round_ends = busy
                return
            self._in_round = self._peer_has_opened = False
            self._technique_due = None
            if self.technique is not None:
                self.technique.stop(now)
            if self.state is AgentState.CHECKING:
                self.state = AgentState.EXHAUSTED
            elif not self._list.has_wanted:
                return  # connected, and on the best there is
            grace = Seconds(0.0) if self._sides.controlling else rounds.FOLLOWER_GRACE
            self._retry_at = Instant(now + self._retry_after + grace)
            self._retry_after = Seconds(min(self._retry_after * rounds.RETRY_GROWTH, rounds.MAX_RETRY_AFTER))
