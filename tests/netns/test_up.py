"""`ptunnel up` of a home with peers behind NATs: what it forwards, changes under load, and a crash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab import Lab
from tests.netns.ups import Homes, change_under_load, restart, revoke, start_with

PEERS = 4  # one for each kind of NAT
KILLS = 4  # one more than there is room for former selves beside both of a pair, did the server keep them


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homes]:
    folder: Path = tmp_path_factory.mktemp("ups")
    with Lab(folder) as lab:
        homes = Homes(lab, PEERS)
        start_with(homes, PEERS)
        yield homes


@pytest.mark.time_limit(300)
def test_what_changes_while_a_home_runs_takes_no_byte_from_what_goes_on(homes: Homes) -> None:
    change_under_load(homes)


@pytest.mark.time_limit(300)
def test_a_revoked_grant_cuts_what_is_open_of_it_and_nothing_else(homes: Homes) -> None:
    revoke(homes)


@pytest.mark.time_limit(300)
def test_each_forward_of_a_home_that_was_killed_and_started_anew_leads_where_it_did(homes: Homes) -> None:
    """As often as one likes: the server does not count its former selves, for which it is said goodbye."""
    for _ in range(KILLS):
        restart(homes)
    assert homes.supervisor is not None
    assert "server_refused" not in homes.supervisor.said()
