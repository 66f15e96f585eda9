"""Two agents behind every pair of NATs, in both orders, in step and late: direct exactly where the oracle says it can be."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from tests.sim import oracle
from tests.sim.link import Bursts, Link
from tests.sim.nat import APD, HOME, SITES, Behaviour, Ports
from tests.sim.punching import V4, V6, PunchNode, make_pair
from tests.sim.world import World
from tunnel.nat import checklist
from tunnel.nat.behaviour import Mapping
from tunnel.nat.candidate import CandidateKind
from tunnel.nat.state import AgentState
from tunnel.units import Seconds

KINDS = tuple(SITES)
EASY = tuple(kind for kind in KINDS if not oracle.is_hard(kind))
HARD = tuple(kind for kind in KINDS if oracle.is_hard(kind))
SKEWS = ((0.02, 0.02), (0.27, 0.02), (0.02, 0.27))  # relay delay a -> b, b -> a: so the second and third begin 250 ms apart


def meet(
    a: str, b: str, seed: int, *, skew: tuple[float, float] = SKEWS[0], link: Link | None = None, limit: float = 2.0
) -> tuple[PunchNode, PunchNode, World]:
    """Run until both are direct, or for `limit` seconds.  `link` lies between the two; the server is on a better one."""
    with World(seed) as world:
        pair = make_pair(world, world.host("a", world.site("left", a)), world.host("b", world.site("right", b)))
        for node, delay in zip(pair, skew, strict=True):
            node.signal_delay = delay
        if link is not None:
            world.set_link(pair[0].host, pair[1].host, link)
            world.set_link(pair[1].host, pair[0].host, link)
        end = world.now + limit
        while not are_direct(pair) and world.step(end):  # type: ignore[arg-type]
            pass
        return *pair, world


def are_direct(pair: tuple[PunchNode, PunchNode]) -> bool:
    return all(node.direct_at is not None for node in pair)


def run_until_direct(world: World, pair: tuple[PunchNode, PunchNode], limit: float) -> Seconds:
    return world.run_until(lambda: are_direct(pair), limit)


def time_to_direct(pair: tuple[PunchNode, PunchNode]) -> float:
    """From the moment both could begin until both are direct."""
    begun = max(node.started_at or node.direct_at or 0.0 for node in pair)
    return max(max(node.direct_at or 0.0 for node in pair) - begun, 0.0)


@pytest.mark.parametrize("a", KINDS)
def test_every_pair_in_both_orders_is_direct_exactly_where_it_can_be(a: str) -> None:
    """Those that need the birthday technique are in test_techniques.py."""
    for b, skew, seed in itertools.product(KINDS, SKEWS, range(2)):
        if oracle.is_birthday(a, b) or oracle.is_luck(a, b):
            continue
        first, second, world = meet(a, b, seed, skew=skew)
        possible = oracle.can_meet(a, b)
        assert are_direct((first, second)) == possible, f"{a} x {b}, skew {skew}, possible {possible}\n{world.trace()}"


@pytest.mark.parametrize(("a", "b"), [(a, b) for a in EASY for b in EASY if oracle.races(a) or oracle.races(b)])
def test_the_conntrack_race_is_won_however_late_one_side_is(a: str, b: str) -> None:
    for seed in range(24):
        late = random.Random(seed).uniform(0.0, 0.9)
        for skew in ((0.01 + late, 0.01), (0.01, 0.01 + late)):
            first, second, world = meet(a, b, seed, skew=skew)
            assert are_direct((first, second)), f"{a} x {b}, skew {skew}\n{world.trace()}"


def test_without_openers_the_race_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated race is a real one: openers that reach the far NAT (TTL above 10) do not help, as measured."""
    monkeypatch.setattr(checklist, "OPENERS", tuple((at, 12) for at, _ in checklist.OPENERS))
    lost = {(a, b) for a, b in itertools.product(EASY, EASY) if not are_direct(meet(a, b, 0, skew=SKEWS[1])[:2])}
    assert lost == {(a, b) for a, b in itertools.product(EASY, EASY) if oracle.races(b) and oracle.filters_ports(a)}


def test_easy_pairs_are_direct_within_half_a_second_also_over_a_lossy_link() -> None:
    rough = Link(delay=Seconds(0.02), jitter=Seconds(0.01), loss=0.05, bursts=Bursts(enter=0.02, leave=0.3), reorder=0.1)
    times: list[float] = []
    for seed in range(600):
        a, b = random.Random(seed).choices([kind for kind in KINDS if kind not in HARD], k=2)
        first, second, world = meet(a, b, seed, link=rough, limit=9.0)
        assert are_direct((first, second)), f"{a} x {b} seed {seed}\n{world.trace()}"
        times.append(time_to_direct((first, second)))
    assert statistics.median(times) < 0.3
    assert sorted(times)[int(0.99 * len(times))] < 1.0


def test_easy_pairs_meet_with_few_checks() -> None:
    for a, b in itertools.product(EASY, EASY):
        first, second, _ = meet(a, b, 1)
        assert first.agent.stats.checks_sent <= 16
        assert second.agent.stats.checks_sent <= 16


def test_the_mapping_is_seen_as_it_is() -> None:
    for kind in KINDS:
        first, _, world = meet(kind, "open", 5)
        world.run(0.5)
        assert first.agent.mapping.is_hard == (oracle.is_hard(kind) and kind != "symad")  # one server address cannot tell symad


@pytest.mark.parametrize(("a", "b"), [("sym", "sym"), ("sym", "cgnsym"), ("symseq", "sym"), ("quota", "symseq")])
def test_an_impossible_pair_is_reported_exhausted_and_retries_slowly(a: str, b: str) -> None:
    first, second, world = meet(a, b, 3, limit=12.0)
    assert first.agent.state is second.agent.state is AgentState.EXHAUSTED
    assert first.agent.stats.checks_sent < 140
    assert "port for every destination" in first.agent.why_relayed
    before = first.agent.stats.checks_sent
    world.run(3600.0)
    assert not are_direct((first, second))
    assert 50 < first.agent.stats.checks_sent - before < 1200
    assert 10 <= first.agent.stats.rounds <= 30
    assert first.agent.remote_mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT


def test_a_retry_goes_in_step_and_wins_a_race_that_the_first_round_lost() -> None:
    """One side comes 2 s late, so its router has given its port away; a minute later the entry is gone and both begin at once."""
    first, second, world = meet("prcrace", "prc", 4, skew=(0.02, 2.0), limit=15.0)
    assert not are_direct((first, second))
    first.signal_delay = second.signal_delay = 0.03
    run_until_direct(world, (first, second), 120.0)


def test_a_pair_on_one_lan_meets_on_the_lan_address_at_once() -> None:
    with World(1) as world:
        home = world.site("home", "sym")
        pair = make_pair(world, world.host("a", home), world.host("b", home))
        run_until_direct(world, pair, 2.0)
        assert time_to_direct(pair) < 0.05
        world.run(2.0)
        assert any(remote.host.startswith("192.168.") for _, remote in pair[0].succeeded)


@pytest.mark.parametrize("hairpins", [True, False])
@pytest.mark.parametrize("carrier", [Behaviour(ports=Ports.RANDOM), Behaviour(mapping=APD, ports=Ports.RANDOM)])
def test_two_homes_of_one_carrier_meet_when_it_hairpins(hairpins: bool, carrier: Behaviour) -> None:
    with World(2) as world:
        behaviour = Behaviour(mapping=carrier.mapping, ports=carrier.ports, hairpins=hairpins)
        network = world.realm("carrier", world.internet, behaviour)
        hosts = [world.host(name, world.realm(f"home-{name}", network, HOME)) for name in ("a", "b")]
        pair = make_pair(world, hosts[0], hosts[1])
        world.run(4.0)
        assert are_direct(pair) == (hairpins and not carrier.mapping.is_hard)


def test_overlapping_lans_never_take_themselves_for_the_peer() -> None:
    """Both hosts have the same private address, and so has a third one in each LAN: only what authenticates counts."""
    first, second, world = meet("prc", "uprc", 8)
    assert first.host.addresses == second.host.addresses
    world.run(5.0)
    for node, other in ((first, second), (second, first)):
        assert all(not remote.host.startswith("192.168.") for _, remote in node.succeeded)
        assert node.checks_received > 0
        assert other.agent.state is AgentState.CONNECTED


@pytest.mark.parametrize(("a", "b"), list(itertools.product(HARD, HARD)))
def test_dual_stack_sites_meet_over_ipv6_whatever_their_ipv4_does(a: str, b: str) -> None:
    with World(3) as world:
        hosts = [world.host(name, world.site(f"s{name}", kind, ipv6=True), ipv6=True) for name, kind in (("a", a), ("b", b))]
        pair = make_pair(world, hosts[0], hosts[1], ipv6=True)
        run_until_direct(world, pair, 2.0)
        assert time_to_direct(pair) < 0.2
        assert oracle.can_meet(a, b, ipv6=True)
        assert pair[0].succeeded[0][0] == V6


def test_both_sides_choose_ipv6_where_both_families_work() -> None:
    with World(3) as world:
        hosts = [world.host(name, world.site(f"s{name}", "prc", ipv6=True), ipv6=True) for name in ("a", "b")]
        pair = make_pair(world, hosts[0], hosts[1], ipv6=True)
        run_until_direct(world, pair, 2.0)
        world.run(5.0)
        for node in pair:
            assert {socket_id for socket_id, _ in node.succeeded} >= {V6}


@pytest.mark.parametrize("kind", ["prc", "uprc", "cgn", "short"])
def test_a_flushed_mapping_is_punched_again_within_two_seconds(kind: str) -> None:
    for loser in (0, 1):
        first, second, world = meet(kind, kind, 9)
        assert are_direct((first, second))
        world.run(15.0)
        node = (first, second)[loser]
        world.flush_mappings(node.host.realm)
        for one in (first, second):
            one.direct_at = None
        # the side that notices asks the servers again, since its reflexive address may have changed, and calls the peer
        node.agent.path_lost(world.now)
        node.gather(world.now)
        took = run_until_direct(world, (first, second), 3.0)
        assert took < 2.0, kind


def test_an_address_change_is_followed_within_two_seconds() -> None:
    for loser in (0, 1):
        first, second, world = meet("prc", "prc", 10)
        world.run(15.0)
        node = (first, second)[loser]
        world.renumber(node.host.realm)
        for one in (first, second):
            one.direct_at = None
        node.agent.path_lost(world.now)
        node.gather(world.now)
        assert run_until_direct(world, (first, second), 3.0) < 2.0


def test_a_side_that_slept_for_an_hour_meets_again_after_waking() -> None:
    first, second, world = meet("prc", "prcrace", 11, limit=0.03)  # asleep in the midst of it
    world.suspend(first.host, Seconds(3600.0))
    world.run(3599.0)
    run_until_direct(world, (first, second), 400.0)


def test_candidates_are_ranked_by_what_they_are_not_by_what_the_peer_claims() -> None:
    first, second, world = meet("prc", "prc", 12)
    world.run(5.0)
    assert {candidate.kind for candidate in first.agent.remote_candidates} == {CandidateKind.HOST, CandidateKind.SERVER_REFLEXIVE}
    assert first.sockets[V4] == second.sockets[V4]


def test_the_same_seed_gives_the_same_run() -> None:
    rough = Link(loss=0.2, jitter=Seconds(0.01), duplicate=0.1)
    traces = [meet("prcrace", "uprc", 77, link=rough)[2].trace() for _ in range(2)]
    assert traces[0] == traces[1]
    assert meet("prcrace", "uprc", 78, link=rough)[2].trace() != traces[0]
