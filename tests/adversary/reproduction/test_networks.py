"""The creator of a room and the networks of whoever joins it.  Real kernels; whoever joins runs the version under trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversary.reproduction.tree import TREE
from tests.netns.kernel import why_no_tap, why_unavailable
from tests.netns.lab import Lab, eventually
from tests.netns.programs import Ptunnel, server_address, start_server

SERVERS, ONE_OF_THEM = "192.168.77.0/24", "192.168.77.5"  # of an office; the member is in 192.168.11.0/24


@pytest.mark.netns
def test_a_room_takes_no_network_that_a_member_reaches_by_its_default_route(tmp_path: Path) -> None:
    reason = why_unavailable() or why_no_tap()
    if reason is not None:
        pytest.skip(reason)
    with Lab(tmp_path) as lab:
        start_server(lab)
        mallory, ben = lab.add_site("mallory", "open"), lab.add_site("ben", "prc")
        for site in (mallory, ben):
            site.host.be_a_machine(site.name, tmp_path / f"etc-{site.name}")
        way = ["ip", "-json", "route", "get", ONE_OF_THEM]
        before = ben.host.run(*way).stdout
        assert "eth0" in before
        at = ("--server", server_address(lab))
        creator = Ptunnel(
            lab, mallory.host, "creator", "lan", "create", *at, module="tests.netns.hostile", HOSTILE_SUBNET=SERVERS
        )
        code = str(creator.wait_event("code", 60)["code"])
        chosen = {"PYTHONPATH": str(TREE), "PYTHONSAFEPATH": "1", "PTUNNEL_CODE": code}
        member = Ptunnel(lab, ben.host, "member", "lan", "join", *at, **chosen)
        online = member.wait_event("member", 60, peer="mallory", state="online")
        assert online["address"] == "192.168.77.1"

        def is_reached() -> bool:
            return ben.host.run("ping", "-q", "-c", "1", "-W", "1", str(online["ipv6"]), check=False).returncode == 0

        eventually("the room is there by IPv6", is_reached, 60)
        after = ben.host.run(*way).stdout
        assert after == before, f"the way to {ONE_OF_THEM} was {before.strip()}, and is now {after.strip()}"
