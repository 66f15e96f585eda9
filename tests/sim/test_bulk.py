"""A TCP flow inside a LAN on lines that lose: the tunnel repairs what it can, and leaves congestion to the flow."""

from __future__ import annotations

import pytest

from tests.sim.bulk import MBIT, Bulk
from tests.sim.games import none, single


@pytest.mark.parametrize(("share", "times"), [(0.01, 4), (0.05, 8)])  # of seven seconds; it grows on: docs/performance.md
def test_a_flow_gets_many_times_what_the_line_gives_it_bare_where_that_is_known_to_lose(share: float, times: float) -> None:
    bare = Bulk(single(share), repairs=False, rate=40 * MBIT).measure(5.0, 15.0)
    bulk = Bulk(single(share), rate=40 * MBIT)
    bulk.notice(share)
    ours = bulk.measure(3.0, 4.0)
    assert ours > times * bare


def test_a_line_that_loses_nothing_repairs_nothing_and_is_no_slower() -> None:
    bare = Bulk(none, repairs=False).measure(3.0, 6.0)
    bulk = Bulk(none)
    assert bulk.measure(3.0, 6.0) > 0.98 * bare
    assert bulk.pair.a.stats().resent < 0.001 * bulk.pair.a.stats().packets_sent
