from __future__ import annotations

import itertools
import random
from typing import cast

import pytest

from tests.unit.nat.agents import FAR, FAR_LAN, HOST, POOL, REFLEXIVE, T0, V4, V6, make_agent, remotes, run
from tunnel.nat import agent as module
from tunnel.nat import checklist, state
from tunnel.nat.agent import Agent
from tunnel.nat.candidate import MAX_CANDIDATES, Candidate, CandidateKind, Offer, make_candidate
from tunnel.nat.checklist import Check
from tunnel.nat.hints import Hint
from tunnel.nat.state import AgentState
from tunnel.nat.technique import Measure, PoolSocket, Scene, TechniqueStats
from tunnel.nat.techniques import Techniques
from tunnel.units import Address, Instant, Seconds

FAR_V6 = make_candidate(HOST, Address("3fff::7", 4000), V6)


def test_openers_with_a_low_ttl_come_first_and_full_checks_after_the_phase() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR])
    checks = run(agent, T0, 0.5)
    openers = [(at, check.ttl) for at, check in checks if check.ttl is not None]
    assert [ttl for _, ttl in openers] == [3, 3, 5]
    assert [at for at, _ in openers] == pytest.approx([0.0, 0.05, 0.1], abs=1e-6)
    assert min(at for at, check in checks if check.ttl is None) == pytest.approx(module.BLIND_OPENER_PHASE, abs=1e-6)


def test_full_checks_wait_longer_for_a_peer_that_will_say_when_it_is_ready() -> None:
    agent = make_agent()
    agent.set_local(T0, [FAR_LAN._replace(address=Address("192.168.1.2", 1))])
    agent.handle_offer(T0, Offer(1, (FAR,)))
    checks = run(agent, T0, 2.0)
    assert min(at for at, check in checks if check.ttl is None) == pytest.approx(module.OPENER_PHASE, abs=1e-6)


def test_full_checks_wait_for_our_own_candidates_to_be_named() -> None:
    agent = make_agent()
    agent.handle_offer(T0, Offer(1, (FAR,)))
    assert all(check.ttl is not None for _, check in run(agent, T0, 1.5))
    agent.set_local(Instant(T0 + 1.5), [FAR_LAN._replace(address=Address("192.168.1.2", 1))])
    assert run(agent, T0 + 1.5, 0.9) == []
    assert run(agent, T0 + 2.4, 0.2)[0][1] == Check(V4, FAR.address, None)


def test_host_and_ipv6_candidates_need_no_openers() -> None:
    agent = make_agent(dual=True)
    agent._take_remote(T0, [FAR_LAN, FAR_V6])
    checks = run(agent, T0, 0.2)
    assert remotes(checks) == {FAR_LAN.address, FAR_V6.address}
    assert all(check.ttl is None for _, check in checks)
    assert all((check.socket_id == V6) == check.remote.is_ipv6 for _, check in checks)


def test_checks_are_paced_and_a_pair_falls_off_from_twenty_a_second() -> None:
    agent = make_agent()
    agent._take_remote(T0, [make_candidate(HOST, Address(f"192.168.7.{n}", 4000), V4) for n in range(1, 17)])
    checks = run(agent, T0, 60.0)
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(checks)]
    assert min(gaps) >= module.PACE - 1e-6
    one = [at for at, check in checks if check.remote.host == "192.168.7.1"]
    assert 4 <= sum(at < 0.25 for at in one) <= 6
    assert one[-1] - one[-2] > 0.85
    assert len(one) <= 30
    assert len(checks) <= module.CHECK_BURST


def test_the_first_check_to_an_open_address_goes_out_at_once() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR_LAN])
    assert agent.poll_timeout() == T0
    assert agent.poll_check(T0) == Check(V4, FAR_LAN.address, None)
    assert agent.poll_check(T0) is None


def test_what_the_peer_may_not_name_is_not_checked() -> None:
    hosts = ("127.0.0.1", "224.0.0.1", "169.254.169.254", "0.0.0.0", "::ffff:127.0.0.1")
    bad = [Candidate(HOST, Address(host, 80)) for host in hosts]
    agent = make_agent()
    agent._take_remote(
        T0, [*bad, Candidate(HOST, Address("10.0.0.1", 0)), Candidate(CandidateKind.RELAYED, Address("9.9.9.9", 9))]
    )
    assert agent.state is AgentState.IDLE
    assert run(agent, T0, 100.0) == []
    near = make_agent(allow_loopback=True)
    near._take_remote(T0, bad)
    assert remotes(run(near, T0, 1.0)) == {Address("127.0.0.1", 80)}


def test_a_peer_that_names_too_many_is_cut() -> None:
    agent = make_agent()
    agent._take_remote(T0, [Candidate(HOST, Address("10.0.0.1", port)) for port in range(5001, 6000)])
    assert len(agent.remote_candidates) == MAX_CANDIDATES


def test_our_own_address_is_not_checked_when_lans_overlap() -> None:
    agent = make_agent()
    ours = make_candidate(HOST, Address("192.168.1.2", 40_000), V4)
    agent.set_local(T0, [ours])
    agent._take_remote(T0, [ours, FAR_LAN])
    assert remotes(run(agent, T0, 1.0)) == {FAR_LAN.address}


def test_the_source_of_a_check_is_answered_at_once_at_full_ttl() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR])
    run(agent, T0, 0.04)
    now = Instant(T0 + 0.043)
    agent.peer_reflexive(now, V4, Address("45.1.1.1", 31_337))
    at = agent.poll_timeout()
    assert at is not None
    assert at - now <= module.PACE
    assert agent.poll_check(at) == Check(V4, Address("45.1.1.1", 31_337), None)


def test_a_known_pair_that_hears_the_peer_stops_opening() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR])
    assert agent.poll_check(T0) == Check(V4, FAR.address, 3)
    now = Instant(T0 + 0.02)
    agent.peer_reflexive(now, V4, FAR.address)
    assert agent.poll_check(now) == Check(V4, FAR.address, None)


def test_an_opened_notice_ends_the_opener_phase() -> None:
    agent = make_agent()
    agent.set_local(T0, [FAR_LAN._replace(address=Address("192.168.1.2", 1))])
    offer = agent.poll_offer()
    assert offer is not None
    agent.handle_offer(T0, Offer(1, (FAR,)))
    assert agent.poll_check(T0) == Check(V4, FAR.address, 3)
    now = Instant(T0 + 0.03)
    agent.handle_offer(now, Offer(offer.generation + 1, opened=True))  # for candidates we have not named
    assert agent.poll_check(now) is None
    agent.handle_offer(now, Offer(offer.generation, opened=True))
    assert agent.poll_check(now) == Check(V4, FAR.address, None)


def test_an_opened_notice_after_our_last_opener_ends_the_phase_too() -> None:
    agent = make_agent()
    agent.set_local(T0, [FAR_LAN._replace(address=Address("192.168.1.2", 1))])
    agent.handle_offer(T0, Offer(1, (FAR,)))
    assert len(run(agent, T0, 0.2)) == 3
    agent.handle_offer(Instant(T0 + 0.2), Offer(1, opened=True))
    assert agent.poll_check(Instant(T0 + 0.2)) == Check(V4, FAR.address, None)


def test_an_opened_notice_that_overtakes_the_offer_counts() -> None:
    agent = make_agent()
    agent.set_local(T0, [FAR_LAN._replace(address=Address("192.168.1.2", 1))])
    agent.handle_offer(T0, Offer(1, opened=True))
    agent.handle_offer(T0, Offer(1, (FAR,)))
    assert agent.poll_check(T0) == Check(V4, FAR.address, None)
    agent.path_lost(T0)
    assert agent.poll_check(Instant(T0 + 0.1)) == Check(V4, FAR.address, 3)


def test_we_tell_when_our_openers_are_out() -> None:
    agent = make_agent()
    agent.handle_offer(T0, Offer(4, (FAR, FAR_LAN)))
    run(agent, T0, 0.09)
    assert agent.poll_offer() is None
    run(agent, T0 + 0.09, 0.1)
    assert agent.poll_offer() == Offer(4, opened=True)
    assert agent.poll_offer() is None


def test_after_success_only_better_pairs_go_on() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR, FAR_LAN])
    run(agent, T0, 0.4)
    agent.check_succeeded(Instant(T0 + 0.4), V4, FAR.address, Seconds(0.02))
    assert agent.state is AgentState.CONNECTED
    assert remotes(run(agent, T0 + 0.4, 5.0)) == {FAR_LAN.address}
    agent.check_succeeded(Instant(T0 + 5.5), V4, FAR_LAN.address, Seconds(0.001))
    assert run(agent, T0 + 5.5, 3600.0) == []
    assert agent.poll_timeout() is None


def test_better_pairs_are_retried_slowly_while_connected() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR, FAR_LAN])
    agent.check_succeeded(Instant(T0 + 0.1), V4, FAR.address, Seconds(0.02))
    checks = [(at, check) for at, check in run(agent, T0 + 0.1, 3600.0) if at > state.ROUND]
    assert remotes(checks) == {FAR_LAN.address}
    assert 50 < len(checks) < 400


def test_a_round_ends_exhausted_and_short_ones_follow_slowly() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR])
    first = run(agent, T0, state.ROUND + 1.0)
    assert agent.state is AgentState.EXHAUSTED
    assert 15 < len(first) < 40
    hour = run(agent, T0 + 11.0, 3600.0)
    starts = [after for (before, _), (after, _) in itertools.pairwise(hour) if after - before > 10]
    assert 10 <= len(starts) <= 20
    assert hour[0][0] == pytest.approx(state.ROUND + state.RETRY_AFTER - 11.0, abs=0.1)
    assert hour[0][1].ttl == 3  # each retry opens again


def test_a_retry_calls_the_peer_so_that_both_go_in_step() -> None:
    leader, follower = make_agent(), make_agent(controlling=False)
    for agent in (leader, follower):
        agent.set_local(T0, [make_candidate(HOST, Address("192.168.1.2", 5), V4)])
        agent.handle_offer(T0, Offer(1, (FAR,)))
        run(agent, T0, 20.0)
        while agent.poll_offer():
            pass
    at, late = leader.poll_timeout(), follower.poll_timeout()
    assert at is not None
    assert late is not None
    assert late - at == pytest.approx(state.FOLLOWER_GRACE)
    assert leader.poll_check(at) is not None
    offer = leader.poll_offer()
    assert offer is not None
    assert offer.searching
    follower.handle_offer(at, offer._replace(generation=2, candidates=(FAR,)))
    assert follower.state is AgentState.CHECKING
    assert follower.poll_check(at) is not None


def test_a_lost_path_restarts_both_sides() -> None:
    agent, peer = make_agent(), make_agent(controlling=False)
    for one in (agent, peer):
        one.handle_offer(T0, Offer(1, (FAR,)))
        run(one, T0, 1.0)
        one.check_succeeded(Instant(T0 + 1.0), V4, FAR.address, Seconds(0.02))
        run(one, T0 + 1.0, 30.0)
        while one.poll_offer():
            pass
    now = Instant(T0 + 100.0)
    agent.path_lost(now)
    assert agent.state is AgentState.CHECKING
    assert agent.poll_check(now) is not None
    offer = agent.poll_offer()
    assert offer is not None
    peer.handle_offer(now, offer._replace(generation=2, candidates=(FAR,)))
    assert peer.state is AgentState.CHECKING
    assert peer.poll_check(now) is not None


def test_an_old_offer_is_ignored() -> None:
    agent = make_agent()
    agent.handle_offer(T0, Offer(5, (FAR,)))
    agent.handle_offer(T0, Offer(4, (FAR_LAN,)))
    assert [candidate.address for candidate in agent.remote_candidates] == [FAR.address]


def test_a_peer_that_calls_for_ever_stays_within_the_budget() -> None:
    agent = make_agent()
    rng = random.Random(3)
    sent = 0
    now = T0
    for generation in range(1, 1500):
        now = Instant(now + 0.03)
        named = [Candidate(REFLEXIVE, Address(f"45.9.{rng.randrange(256)}.{rng.randrange(256)}", 7000)) for _ in range(16)]
        agent.handle_offer(now, Offer(generation, tuple(named)))
        agent.peer_reflexive(now, V4, Address(f"45.8.{rng.randrange(256)}.{rng.randrange(256)}", 7000))
        for tick in range(5):
            sent += agent.poll_check(Instant(now + 0.006 * tick)) is not None
        assert len(agent._list) <= checklist.MAX_PAIRS
        while agent.poll_offer():
            pass
    assert module.CHECK_BURST < sent <= module.CHECK_BURST + module.CHECK_RATE * (now + 0.03 - T0) + 1


def test_offers_that_nobody_fetches_do_not_pile_up() -> None:
    agent = make_agent()
    for generation in range(1, 200):
        now = Instant(T0 + 2.0 * generation)
        agent.set_local(now, [make_candidate(HOST, Address("192.168.1.2", generation), V4)])
        agent.handle_offer(now, Offer(generation, (FAR_LAN._replace(address=Address("10.0.0.1", generation)),)))
        run(agent, now, 1.0)
    offers = []
    while (offer := agent.poll_offer()) is not None:
        offers.append(offer)
    assert len(offers) <= 2


def test_an_agent_without_a_common_family_says_so() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR_V6])
    assert agent.state is AgentState.IDLE
    assert "family" in agent.why_relayed


def test_a_new_socket_joins_and_a_pool_socket_does_not() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR_LAN, FAR_V6])
    agent.add_socket(T0, V6, True)
    agent.add_socket(T0, POOL, False, plain=False)
    checks = run(agent, T0, 0.3)
    assert {check.socket_id for _, check in checks} == {V4, V6}
    agent.remove_socket(V4)
    assert {check.socket_id for _, check in run(agent, T0 + 0.3, 1.0)} == {V6}
    agent.peer_reflexive(Instant(T0 + 2.0), POOL, FAR.address)  # but what arrives there is answered from there
    assert agent.poll_check(Instant(T0 + 2.0)) == Check(POOL, FAR.address, None)


def test_a_jump_of_the_clock_does_no_harm() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR, FAR_LAN])
    run(agent, T0, 0.1)
    checks = run(agent, T0 + 40_000.0, 400.0)
    assert agent.state is AgentState.EXHAUSTED
    assert 0 < len(checks) < 300


class Recorder:
    """A technique that sends one check from its own socket."""

    differs_elsewhere = None
    busy_until = None
    wanted_sockets = 1

    def __init__(self) -> None:
        self.started: list[Instant] = []
        self.stopped = 0
        self.left = 1

    def start(self, now: Instant, scene: Scene, *, fresh: bool) -> None:
        assert fresh
        assert scene.target == FAR.address
        assert scene.sockets == (V4,)
        self.started.append(now)

    def update(self, now: Instant, scene: Scene) -> None: ...
    def handle_hint(self, now: Instant, hint: Hint) -> None: ...
    def sockets_opened(self, now: Instant, sockets: tuple[PoolSocket, ...]) -> None: ...
    def measured(self, now: Instant, measure: Measure, address: Address) -> None: ...

    def poll_hint(self) -> Hint | None:
        return None

    def poll_measure(self, now: Instant) -> Measure | None:
        return None

    def stats(self, now: Instant) -> TechniqueStats:
        raise NotImplementedError

    def stop(self, now: Instant) -> None:
        self.stopped += 1

    def poll_check(self, now: Instant) -> Check | None:
        self.left -= 1
        return Check(POOL, Address("45.1.1.1", 9), None) if self.left == 0 else None

    def poll_timeout(self) -> Instant | None:
        return T0 if self.left > 0 else None


def test_a_technique_is_asked_when_nothing_plain_is_due_and_stopped_after_success() -> None:
    technique = Recorder()
    agent = Agent(controlling=True, now=T0, rng=random.Random(1), sockets={V4: False}, technique=cast(Techniques, technique))
    agent.add_socket(T0, POOL, False, plain=False)
    agent._take_remote(T0, [FAR])
    assert technique.started == [T0]
    assert POOL in {check.socket_id for _, check in run(agent, T0, 1.0)}
    agent.check_succeeded(Instant(T0 + 1.0), POOL, Address("45.1.1.1", 9), Seconds(0.01))
    assert technique.stopped == 1


def test_without_a_way_to_the_peer_no_technique_begins_until_there_is_one() -> None:
    """It needs the peer's ear: both sides would wait for a word that cannot come."""
    technique, ways = Recorder(), [False]
    agent = Agent(
        controlling=True, now=T0, rng=random.Random(1), sockets={V4: False}, technique=cast(Techniques, technique),
        has_way=lambda: ways[0],
    )  # fmt: skip
    agent.add_socket(T0, POOL, False, plain=False)
    agent._take_remote(T0, [FAR])
    assert FAR.address in remotes(run(agent, T0, 1.0))  # the plain checks cost little, and need nobody's word
    assert technique.started == []
    ways[0] = True
    assert agent.poll_check(Instant(T0 + 1.5)) is None or technique.started
    assert technique.started == [Instant(T0 + 1.5)]


def test_a_technique_does_not_begin_when_its_round_is_over() -> None:
    technique, ways = Recorder(), [False]
    agent = Agent(
        controlling=True, now=T0, rng=random.Random(1), sockets={V4: False}, technique=cast(Techniques, technique),
        has_way=lambda: ways[0],
    )  # fmt: skip
    agent._take_remote(T0, [FAR])
    run(agent, T0, state.ROUND + 1.0)
    ways[0] = True
    agent.poll_check(Instant(T0 + state.ROUND + 2.0))
    assert technique.started == []


def test_a_peer_that_answers_from_ever_new_addresses_fills_no_memory() -> None:
    agent = make_agent()
    for index in range(10_000):
        now = Instant(T0 + index / 100)
        address = Address(f"45.1.{index // 250}.{1 + index % 250}", 4000)
        agent.peer_reflexive(now, V4, address)
        agent.check_succeeded(now, V4, address, Seconds(0.05))
    assert len(agent._list) <= checklist.MAX_PAIRS + checklist.MAX_PEER_REFLEXIVE
