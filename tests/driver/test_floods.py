"""Honest clients of a real server while it is flooded, for a moment each: `python -m tests.bench.floods` measures at length."""

from __future__ import annotations

import pytest

from tests.bench.floods.__main__ import run
from tests.bench.floods.attacks import FLOODS, Flood


@pytest.mark.parametrize("each", FLOODS, ids=lambda each: each.name)
def test_honest_clients_are_served_beside_a_flood(each: Flood) -> None:
    report, counts, _, log = run(each, 1.5)
    assert counts["sent"] > 100
    assert report.pairing.took, "nobody paired"
    for tally in (report.mapping, report.hints, report.relay):
        assert len(tally.took) > tally.asked / 2
    assert report.codes
    assert log < 1_000_000
