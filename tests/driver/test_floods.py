"""A real server and the floods of the bench, for a moment each: whatever came, afterwards it serves as before.

What share the honest have meanwhile is held in tests/unit/rendezvous/test_load.py, where time is the test's own.  Here it would
be that of a machine on which the flood, the honest and the server run beside whatever else: `python -m tests.bench.floods`
measures it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.bench.floods.__main__ import flooding, serving
from tests.bench.floods.attacks import FLOODS, Flood
from tests.bench.floods.honest import live, serves

SECONDS = 1.0  # of each flood


@pytest.mark.time_limit(150)
@pytest.mark.parametrize("each", FLOODS, ids=lambda each: each.name)
def test_a_server_serves_after_a_flood(tmp_path: Path, each: Flood) -> None:
    with open(tmp_path / "log", "wb") as log, serving(each.options, tmp_path, log) as (target, _):
        with flooding(each, target, each.rate, SECONDS) as counts:
            trio.run(live, target, SECONDS)
        trio.run(serves, target)
    assert counts["sent"] > 10
    said = (tmp_path / "log").read_text(encoding="utf-8", errors="replace")
    assert len(said) < 1_000_000
    assert "Please report it" not in said
