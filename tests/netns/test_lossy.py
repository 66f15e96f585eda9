"""A LAN over a link that loses, between real kernels: what a game in it misses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.lossy import LINKS, LossyLan, play, wait_lossy
from tests.bench.whole import Desk


@pytest.mark.time_limit(200)
def test_a_game_in_a_lan_misses_little_of_a_twentieth_that_is_lost(tmp_path: Path) -> None:
    with Desk(tmp_path, LINKS["5 % lost"]) as desk:
        lan = LossyLan(desk)
        wait_lossy(lan)
        sent, came = play(desk.b, desk.a, lan.address, 8.0)
        assert came >= 0.98 * sent
        ours, theirs = lan.figures(lan.joiner), lan.figures(lan.creator)
        assert theirs["repaired"] > 0
        assert theirs["duplicates"] > theirs["repaired"]
        assert ours["repeated"] >= theirs["duplicates"] + theirs["repaired"]
