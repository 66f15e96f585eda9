"""A remembered address: checked early and seldom, never where no check may go, and credited when the peer names it."""

from __future__ import annotations

import random

import pytest

from tunnel.nat.agent import Agent
from tunnel.nat.behaviour import Mapping
from tunnel.nat.candidate import CandidateKind, Offer, make_candidate
from tunnel.nat.checklist import Check
from tunnel.nat.memory import Remembered
from tunnel.nat.state import AgentState
from tunnel.nat.technique import Scene
from tunnel.transport.connection.paths import KEEPALIVE, MIN_KEEPALIVE, Keepalive
from tunnel.units import Address, Instant, Seconds, SocketId

V4, V6 = SocketId(0), SocketId(1)
THEIRS = Address("192.88.99.9", 5000)


def agent(way: Remembered | None, *, loopback: bool = False) -> Agent:
    made = Agent(
        controlling=True, now=Instant(0.0), rng=random.Random(1), sockets={V4: False, V6: True}, allow_loopback=loopback,
        remembered=way,
    )  # fmt: skip
    made.set_local(Instant(0.0), [make_candidate(CandidateKind.HOST, Address("192.168.1.2", 4000), V4)], Mapping.UNKNOWN)
    return made


def run(made: Agent, begin: float, end: float) -> list[tuple[float, Check]]:
    """Every check that goes out from `begin` to `end`, by its own deadlines."""
    found, now = [], begin
    while now <= end:
        while (check := made.poll_check(Instant(now))) is not None:
            found.append((round(now, 3), check))
        due = made.poll_timeout()
        now = end + 1 if due is None else max(due, now + 0.001)
    return found


def test_an_address_that_needs_no_opening_is_checked_in_full_three_times() -> None:
    for kind in (CandidateKind.HOST, CandidateKind.PORT_MAPPED):
        checks = run(agent(Remembered(THEIRS, kind)), 0.0, 30.0)
        assert [(at, check) for at, check in checks] == [(at, Check(V4, THEIRS)) for at in (0.0, 0.1, 0.3)]
    remote = Address("3fff::9", 5000)
    assert [check for _, check in run(agent(Remembered(remote, CandidateKind.SERVER_REFLEXIVE)), 0.0, 30.0)] == 3 * [
        Check(V6, remote)
    ]


def test_an_address_behind_a_nat_gets_openers_only() -> None:
    for kind in (CandidateKind.SERVER_REFLEXIVE, CandidateKind.PEER_REFLEXIVE):
        checks = run(agent(Remembered(THEIRS, kind)), 0.0, 30.0)
        assert [(at, check.ttl) for at, check in checks] == [(0.0, 3), (0.05, 3), (0.1, 5)]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.169.254", "100.100.100.200", "::1", "ff02::1", "fe80::1"],
)
def test_no_check_goes_where_none_may_go_whatever_was_remembered(host: str) -> None:
    for kind in CandidateKind:
        assert run(agent(Remembered(Address(host, 5000), kind)), 0.0, 30.0) == []
    assert run(agent(Remembered(Address("192.88.99.9", 0), CandidateKind.HOST)), 0.0, 30.0) == []


def test_our_own_address_is_not_checked() -> None:
    assert run(agent(Remembered(Address("192.168.1.2", 4000), CandidateKind.HOST)), 0.0, 30.0) == []


def test_openers_that_are_out_are_not_sent_again_and_the_peer_is_told_at_once() -> None:
    made = agent(Remembered(THEIRS, CandidateKind.SERVER_REFLEXIVE))
    assert made.poll_offer() is not None
    run(made, 0.0, 0.1)
    named = make_candidate(CandidateKind.SERVER_REFLEXIVE, THEIRS, V4)
    made.handle_offer(Instant(0.15), Offer(1, (named,), Mapping.ENDPOINT_INDEPENDENT))
    notice = made.poll_offer()
    assert notice is not None
    assert notice.opened
    assert run(made, 0.15, 0.5) == []  # its NAT may not be open yet
    made.peer_has_opened(Instant(0.5))
    assert run(made, 0.5, 0.5) == [(0.5, Check(V4, THEIRS))]


def test_an_early_success_is_a_path_of_the_kind_that_was_remembered() -> None:
    made = agent(Remembered(THEIRS, CandidateKind.HOST))
    run(made, 0.0, 0.0)
    made.check_succeeded(Instant(0.02), V4, THEIRS, Seconds(0.02))
    assert made.state is AgentState.CONNECTED
    assert run(made, 0.02, 30.0) == []
    worse = make_candidate(CandidateKind.SERVER_REFLEXIVE, Address("192.88.99.10", 5001), V4)
    made.handle_offer(Instant(31.0), Offer(1, (worse,), Mapping.ENDPOINT_INDEPENDENT))
    assert run(made, 31.0, 60.0) == []
    made.handle_offer(Instant(61.0), Offer(2, (worse,), Mapping.ENDPOINT_INDEPENDENT))
    assert run(made, 61.0, 70.0)  # now it says that it still searches


def test_a_technique_is_remembered_only_for_a_peer_at_the_same_place() -> None:
    way = Remembered(THEIRS, CandidateKind.PEER_REFLEXIVE, "birthday", True)

    def scene(host: str, *own: str) -> Scene:
        remote = make_candidate(CandidateKind.SERVER_REFLEXIVE, Address(host, 1), V4)
        return Scene(True, Mapping.UNKNOWN, False, Mapping.UNKNOWN, False, (V4,), frozenset(own), (remote,))

    assert way.fits(scene(THEIRS.host))
    assert not way.fits(scene("192.88.99.10"))
    assert not way.fits(scene(THEIRS.host, THEIRS.host))  # one NAT for both: there is no target


def test_only_a_shorter_mapping_life_is_believed_unseen() -> None:
    for said, used in ((8.0, 8.0), (25.0, KEEPALIVE), (0.0, KEEPALIVE), (1.0, KEEPALIVE), (MIN_KEEPALIVE, MIN_KEEPALIVE)):
        keepalive = Keepalive(random.Random(1))
        keepalive.remember(Instant(0.0), Seconds(said))
        assert keepalive.interval == used
        assert keepalive.next_after <= used
    keepalive = Keepalive(random.Random(1))
    keepalive.remember(Instant(0.0), Seconds(8.0))
    for second in range(1, 100):
        keepalive.survived(Instant(float(second)), Seconds(8.0))
    assert keepalive.interval == 8.0  # not tried again for an hour
    for second in range(3_700, 3_710):
        keepalive.survived(Instant(float(second)), Seconds(8.0))
    assert keepalive.interval > 8.0
