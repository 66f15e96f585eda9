"""Ten thousand nodes, of which many are gone and some lie: do two homes meet, how soon, and what does it cost?"""

from __future__ import annotations

from statistics import median

import pytest

from tests.sim.dht_reach import meet

PAIRS = 3


@pytest.mark.parametrize(
    ("dead", "loss", "liars", "most"),
    [(0.0, 0.0, 0.0, 6.0), (1 / 3, 0.03, 0.0, 12.0), (1 / 2, 0.03, 0.0, 15.0), (0.0, 0.0, 0.5, 12.0), (1 / 3, 0.03, 0.25, 15.0)],
)
def test_homes_meet_among_nodes_that_are_gone_and_nodes_that_lie(dead: float, loss: float, liars: float, most: float) -> None:
    found = [meet(dead, loss, liars, seed) for seed in range(1, PAIRS + 1)]
    seconds = [each for each, _ in found if each is not None]
    assert len(seconds) == PAIRS, found
    assert median(seconds) < most
