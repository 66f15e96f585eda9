"""What all agents of an endpoint may spend together."""

import random

import pytest

from tests.unit.nat.agents import FAR, FAR_LAN, HOST, T0, V4, make_agent, remotes, run
from tunnel.nat import agent as module
from tunnel.nat.agent import Agent
from tunnel.nat.budget import (
    ALL_CHECKS_BURST,
    ALL_CHECKS_RATE,
    HELD_BACK,
    MAX_HOSTS,
    SILENT_CHECKS,
    SILENT_HOST,
    SILENT_PROBES,
    SILENT_PROBES_OF_FEW,
    SILENT_REFILL,
    Budget,
)
from tunnel.nat.candidate import make_candidate
from tunnel.nat.memory import Remembered
from tunnel.units import Address, Instant, Seconds

# --- what all agents share --------------------------------------------------------------------------------------------------


def crowd(count: int, budget: Budget) -> list[Agent]:
    """Agents of so many peers, each of which names addresses of two hosts of its own that never answer."""
    agents = []
    for number in range(count):
        agent = Agent(controlling=True, now=T0, rng=random.Random(number), sockets={V4: False}, budget=budget)
        agent._take_remote(
            T0, [make_candidate(HOST, Address(f"45.9.{port % 2}.{number + 1}", 5000 + port), V4) for port in range(16)]
        )
        agents.append(agent)
    return agents


def run_all(agents: list[Agent], begin: float, seconds: float) -> list[list[float]]:
    """When each of them checked; they are polled in turn, each when it asks for it."""
    found: list[list[float]] = [[] for _ in agents]
    now = begin
    for _ in range(200_000):
        for number, agent in enumerate(agents):
            while agent.poll_check(Instant(now)) is not None:
                found[number].append(now - begin)
        now = max(min(at for agent in agents if (at := agent.poll_timeout()) is not None), now + 1e-9)
        if now > begin + seconds:
            return found
    raise AssertionError("the agents are busy for ever")


def test_peers_that_are_many_may_cost_a_stranger_no_more_than_a_few() -> None:
    drops: dict[str, int] = {}
    agents = crowd(15, Budget(drops))
    checks = run_all(agents, T0, 9.0)
    sent = sum(map(len, checks))
    assert sent <= ALL_CHECKS_BURST + ALL_CHECKS_RATE * 9.0 + 1
    assert sent >= ALL_CHECKS_BURST
    assert drops[HELD_BACK] > 100
    assert sum(sum(map(len, run_all(crowd(1, Budget()), T0, 9.0))) for _ in agents) > 1.5 * sent, "each by itself"


def test_all_peers_together_send_a_silent_host_few_checks() -> None:
    """Fifteen peers name one host; it hears what one would have caused, until something authentic comes from there."""
    drops: dict[str, int] = {}
    budget = Budget(drops)
    agents = crowd(15, budget)
    for number, agent in enumerate(agents):
        agent._take_remote(T0, [make_candidate(HOST, Address("45.9.0.1", 5000 + 16 * number + port), V4) for port in range(16)])
    checks = sum(map(len, run_all(agents, T0, 9.0)))
    assert SILENT_CHECKS <= checks <= SILENT_CHECKS * (1 + 9.0 / SILENT_REFILL) + 1
    assert drops[SILENT_HOST] > 0
    agents[0].peer_reflexive(Instant(T0 + 9.0), V4, Address("45.9.0.1", 5000))
    for agent in agents:
        agent.restart(Instant(T0 + 9.0))
    assert sum(map(len, run_all(agents, T0 + 9.0, 9.0))) > SILENT_CHECKS


def test_hosts_that_are_named_fill_no_memory() -> None:
    budget = Budget()
    for number in range(3 * MAX_HOSTS):
        host = f"45.9.{number >> 8}.{number & 255}"
        budget.heard_from(host)
        budget.take_host_check(T0, f"46{host[2:]}")
        budget.take_host_probe(T0, f"46{host[2:]}")
    assert len(budget._heard) == len(budget._silent_checks) == len(budget._silent_probes) == MAX_HOSTS


def test_what_is_short_goes_to_all_of_them() -> None:
    checks = run_all(crowd(15, Budget()), T0, 9.0)
    late = [sum(at > 4.0 for at in each) for each in checks]
    assert sum(late) == pytest.approx(ALL_CHECKS_RATE * 5.0, rel=0.1)
    assert min(late) >= 0.7 * max(late)


def test_one_honest_peer_among_a_crowd_gets_its_turn() -> None:
    """It comes when all is spent, and has few addresses."""
    budget = Budget()
    agents = crowd(15, budget)
    run_all(agents, T0, 6.0)
    late = Instant(T0 + 6.0)
    agent = Agent(controlling=True, now=late, rng=random.Random(1), sockets={V4: False}, budget=budget)
    agent._take_remote(late, [FAR_LAN])
    checks = run_all([*agents, agent], late, 1.0)[-1]
    assert len(checks) >= 4
    assert checks[0] < 0.3


def test_who_has_ended_leaves_the_queue() -> None:
    budget = Budget()
    while budget.checks.take(T0):
        pass
    assert not any(budget.may_check(T0, who) for who in range(100))
    later = Instant(T0 + 0.1)
    assert not budget.may_check(later, 100), "behind the others"
    much_later = Instant(T0 + 0.3)
    assert budget.may_check(much_later, 100), "who alone has asked meanwhile"
    assert len(budget._waiting) == 1


def test_one_held_back_check_is_counted_once_and_asked_for_calmly() -> None:
    drops: dict[str, int] = {}
    budget = Budget(drops)
    while budget.checks.take(T0):
        pass
    budget.checks._rate = 0.001
    agent = Agent(controlling=True, now=T0, rng=random.Random(1), sockets={V4: False}, budget=budget)
    agent._take_remote(T0, [FAR_LAN])
    now, looks = T0, 0
    while now < T0 + 5.0:
        assert agent.poll_check(now) is None
        at = agent.poll_timeout()
        assert at is not None
        assert at > now
        now, looks = at, looks + 1
    assert drops == {HELD_BACK: 1}
    assert looks <= 5.0 / module.HELD_PACE + 2


def test_an_address_that_has_answered_is_checked_whatever_the_others_spend() -> None:
    budget = Budget()
    agent = Agent(controlling=True, now=T0, rng=random.Random(1), sockets={V4: False}, budget=budget)
    agent._take_remote(T0, [FAR_LAN, FAR])
    run(agent, T0, 0.2)
    agent.check_succeeded(Instant(T0 + 0.2), V4, FAR_LAN.address, Seconds(0.02))
    while budget.checks.take(Instant(T0 + 1.0)):
        pass
    budget.checks._rate = 0.001
    agent.path_lost(Instant(T0 + 1.0))
    checks = run(agent, T0 + 1.0, 3.0)
    assert len(checks) > 5
    assert remotes(checks) == {FAR_LAN.address}


def test_answers_from_ever_new_addresses_fill_no_memory() -> None:
    agent = make_agent()
    agent._take_remote(T0, [FAR])
    for port in range(1, 1_000):
        agent.check_succeeded(T0, V4, Address("45.1.1.1", port), Seconds(0.02))
    assert list(agent._answered) == [Address("45.1.1.1", port) for port in range(1_000 - module.MAX_ANSWERED, 1_000)]


def test_a_remembered_address_waits_for_the_budget_too() -> None:
    budget = Budget()
    while budget.checks.take(T0):
        pass
    way = Remembered(FAR_LAN.address, HOST)
    agent = Agent(controlling=True, now=T0, rng=random.Random(1), sockets={V4: False}, remembered=way, budget=budget)
    checks = run(agent, T0, 1.0)
    assert [check.remote for _, check in checks] == [FAR_LAN.address] * 3
    assert checks[0][0] >= module.HELD_PACE


def test_ports_of_a_silent_host_that_nobody_named_are_few_for_all_peers_together() -> None:
    budget, host = Budget(), "45.9.0.1"
    assert budget.host_probes_left(T0, host, few=False) == SILENT_PROBES
    assert budget.host_probes_left(T0, host, few=True) == SILENT_PROBES_OF_FEW
    assert all(budget.take_host_probe(T0, host) for _ in range(SILENT_PROBES))
    assert budget.host_probes_left(T0, host, few=False) == 0
    assert all(budget.take_host_probe(T0, host) for _ in range(SILENT_PROBES_OF_FEW - SILENT_PROBES))
    assert not budget.take_host_probe(T0, host)
    budget.heard_from(host)
    assert budget.take_host_probe(T0, host)
