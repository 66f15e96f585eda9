"""Two homes behind carriers with few ports for each: they meet where the arithmetic says so, and no carrier has to refuse them.

The figures of docs/reach.md come from `python -m tests.sim.carriers`, over more seeds.
"""

from __future__ import annotations

import statistics

import pytest

from tests.sim import oracle
from tests.sim.carriers import PAIRS, Meeting, meet, share
from tests.sim.link import Bursts, Link
from tunnel.nat import hints
from tunnel.nat.quota import ASKS, UNCONFIRMED
from tunnel.units import Seconds


def times(found: list[Meeting]) -> list[float]:
    return [float("inf") if each.seconds is None else each.seconds for each in found]


@pytest.mark.time_limit(200)
@pytest.mark.parametrize(
    ("a", "b", "seeds"),
    [
        ("block512", "block512", 20),
        ("block2048", "block2048", 8),
        ("block512", "symseq", 12),
        ("pool512", "block512", 10),
        ("slow512", "slow512", 8),
    ],
)
def test_homes_with_blocks_meet_within_seconds_and_nothing_is_refused(a: str, b: str, seeds: int) -> None:
    assert oracle.can_meet(a, b)
    assert not oracle.can_meet(a, b, frozenset(oracle.Technique) - {oracle.Technique.BLOCKS})
    found = [meet(a, b, seed) for seed in range(seeds)]
    assert statistics.median(times(found)) < 6.0
    assert share(times(found), 0.9) < 15.0
    assert all(each.refused == 0 for each in found)


def test_both_orders_and_a_lossy_link_change_little() -> None:
    rough = Link(delay=Seconds(0.04), jitter=Seconds(0.02), loss=0.05, bursts=Bursts(enter=0.02, leave=0.3), reorder=0.1)
    found = [meet("block512", "block512", seed, link=rough) for seed in range(8)]
    found += [meet("symseq", "block512", seed) for seed in range(6)]
    assert sum(each.seconds is None for each in found) <= 1
    assert statistics.median(times(found)) < 6.0


def test_a_server_with_one_address_is_enough() -> None:
    found = [meet("block512", "block512", seed, second_host=False) for seed in range(6)]
    assert sum(each.seconds is None for each in found) <= 1
    assert all(each.refused == 0 for each in found)


def test_of_a_block_whose_ports_serve_one_mapping_each_half_is_left() -> None:
    for seed in range(4):
        found = meet("unique512", "unique512", seed)
        assert found.refused == 0
        assert found.mappings <= 0.5 * 600 + 40  # the estimate, and the plain checks


def test_a_carriers_limit_in_all_is_noticed_at_its_first_sign() -> None:
    found = [meet("few512", "few512", seed) for seed in range(6)]
    assert max(each.refused for each in found) <= 2 * (0.8 * UNCONFIRMED + ASKS)  # both sides


@pytest.mark.parametrize(
    ("a", "b"), [("sym", "cgnsym"), ("sym", "sym"), ("symseq", "sym"), ("quota", "symseq"), ("quota", "sym")]
)
def test_where_neither_has_a_block_it_is_said_within_three_seconds(a: str, b: str) -> None:
    found = meet(a, b, 3)
    assert found.seconds is None
    assert found.told is not None
    assert found.told < 3.0
    assert found.probes == 0 or "symseq" in (a, b)
    assert found.mappings < 64
    assert found.refused == 0


def test_a_peer_of_an_older_version_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves out what it does not know, and says nothing itself."""
    known = hints.decode_hints

    def older(data: bytes) -> tuple[hints.Hint, ...]:
        return tuple(hint for hint in known(data) if not isinstance(hint, hints.PortRange))

    monkeypatch.setattr("tunnel.nat.candidate.decode_hints", older)
    found = meet("block512", "block512", 1)
    assert found.seconds is None
    assert found.told is not None
    assert found.told < 4.0
    assert found.mappings < 100


def test_the_same_seed_gives_the_same_run() -> None:
    assert meet("block512", "block512", 5).world.trace() == meet("block512", "block512", 5).world.trace()
    assert {kind for pair in PAIRS for kind in pair} <= set(oracle.ALL)
