"""Honest clients of a real server while it is flooded, for a moment each: `python -m tests.bench.floods` measures at length."""

from __future__ import annotations

import pytest

from tests.bench.floods.__main__ import run
from tests.bench.floods.attacks import FLOODS, Flood


@pytest.mark.parametrize("each", FLOODS, ids=lambda each: each.name)
def test_honest_clients_are_served_beside_a_flood(each: Flood) -> None:
    for tries_left in (2, 1, 0):  # the honest, the flood and the server share the processor with whatever else runs
        report, counts, _, log = run(each, 1.5)
        tallies = (report.mapping, report.hints, report.relay)
        are_served = report.pairing.took and report.codes and all(len(tally.took) > tally.asked / 2 for tally in tallies)
        assert counts["sent"] > 100
        assert log < 1_000_000
        if are_served:
            return
        assert tries_left, report
