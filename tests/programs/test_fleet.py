"""What fails of a fleet in a long night: redis-server in every way, under a relayed link, and all servers one by one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.netns.fleet import BROKEN, DRAIN, Fleet, Link, Outage, go_through
from tests.netns.lab import Lab
from tests.netns.programs import Sshd, checksum, random_file
from tests.programs.homes import needs

pytestmark = [pytest.mark.nightly, pytest.mark.time_limit(400), needs("redis-server")]

LASTS: dict[Outage, float] = {"stopped": 60.0, "emptied": 0.0, "slowed": BROKEN}  # seconds
SLOWEST = 10.0  # seconds, on a machine that is busy: tests.netns.fleet measures
SSH_PORT = 2222


def test_a_link_notices_nothing_of_a_store_that_is_stopped_or_empty_or_slow(lab: Lab) -> None:
    fleet = Fleet(lab)
    fleet.know_office()
    link = Link(fleet)
    for what, seconds in LASTS.items():
        assert go_through(fleet, link, what, seconds)["the link is silent"] < SLOWEST
    link.finish()


def test_servers_of_one_machine_are_restarted_one_by_one_under_a_relayed_scp(lab: Lab, tmp_path: Path) -> None:
    fleet = Fleet(lab, on_one=True)
    sshd = Sshd(lab, fleet.home.host)
    link = Link(fleet, (sshd.port, SSH_PORT))
    digest = random_file(tmp_path / "given", 3_000_000)
    words = sshd.scp_words(SSH_PORT, sshd.remote(tmp_path / "given"), str(tmp_path / "taken"))
    scp = fleet.friend.host.popen([*words[:1], "-l", "1000", *words[1:]], stdin=subprocess.DEVNULL)  # 24 s
    lab.on_close(scp.kill)
    for name in fleet.names:
        fleet.programs[name].interrupt()
        fleet.programs[name].wait(DRAIN + 5)
        fleet.start(name)
        fleet.wait_servers(3)
    assert scp.wait(60) == 0
    assert checksum(tmp_path / "taken") == digest
    link.finish()
