"""Agents that are run in virtual time."""

import random
from collections.abc import Iterable

from tunnel.nat.agent import Agent
from tunnel.nat.candidate import CandidateKind, make_candidate
from tunnel.nat.checklist import Check
from tunnel.units import Address, Instant, SocketId

V4, V6, POOL = SocketId(0), SocketId(1), SocketId(9)
T0 = Instant(500.0)
HOST, REFLEXIVE = CandidateKind.HOST, CandidateKind.SERVER_REFLEXIVE
FAR = make_candidate(REFLEXIVE, Address("45.1.1.1", 4000), V4)
FAR_LAN = make_candidate(HOST, Address("192.168.7.7", 4000), V4)


def make_agent(*, controlling: bool = True, dual: bool = False, allow_loopback: bool = False) -> Agent:
    sockets = {V4: False, V6: True} if dual else {V4: False}
    return Agent(controlling=controlling, now=T0, rng=random.Random(1), sockets=sockets, allow_loopback=allow_loopback)


def run(agent: Agent, begin: float, seconds: float) -> list[tuple[float, Check]]:
    """Every check of so many seconds, with its time since `begin`; polled exactly when the agent asks for it."""
    now = begin
    checks: list[tuple[float, Check]] = []
    for _ in range(100_000):
        while (check := agent.poll_check(Instant(now))) is not None:
            checks.append((now - begin, check))
        at = agent.poll_timeout()
        if at is None:
            return checks
        if at > begin + seconds:
            return checks
        assert at > now - 1e-9
        now = max(at, now + 1e-9)
    raise AssertionError("the agent is busy for ever")


def remotes(checks: Iterable[tuple[float, Check]]) -> set[Address]:
    return {check.remote for _, check in checks}
