"""The creator of a room and the networks of whoever joins it.  Real kernels; whoever joins runs the version under trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.adversary.reproduction.tree import TREE
from tests.netns.kernel import Namespace, why_no_tap, why_unavailable
from tests.netns.lab import Lab, eventually
from tests.netns.programs import Ptunnel, server_address, start_server


class Office(NamedTuple):
    """`subnet` and `ula` are what the room is given; `server` is in that one of them which is another network of the office.

    `other`: the field with the creator's address in the one that is not.
    """

    subnet: str
    ula: str
    server: str
    other: str


IPV4 = Office("192.168.77.0/24", "fd99:1:2:3::/64", "192.168.77.5", "ipv6")  # the member is in 192.168.11.0/24
IPV6 = Office("10.77.1.0/24", "fd12:3456:789a:77::/64", "fd12:3456:789a:77::5", "address")


def settle_in(space: Namespace) -> None:
    """The member has an address in fd12:3456:789a:1::/64, one of the networks of its office, and a default route."""
    space.ip("addr add fd12:3456:789a:1::2/64 dev eth0 nodad")
    space.ip("route add default via fd12:3456:789a:1::1 dev eth0")


@pytest.mark.netns
@pytest.mark.parametrize("office", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_a_room_takes_no_network_that_a_member_reaches_by_its_default_route(tmp_path: Path, office: Office) -> None:
    reason = why_unavailable() or why_no_tap()
    if reason is not None:
        pytest.skip(reason)
    with Lab(tmp_path) as lab:
        start_server(lab)
        mallory, ben = lab.add_site("mallory", "open"), lab.add_site("ben", "prc")
        for site in (mallory, ben):
            site.host.be_a_machine(site.name, tmp_path / f"etc-{site.name}")
        settle_in(ben.host)

        def way() -> str:
            return ben.host.run("ip", "route", "get", office.server).stdout.splitlines()[0].strip()

        before = way()
        assert "dev eth0" in before
        at = ("--server", server_address(lab))
        rooms: dict[str, Any] = {"HOSTILE_SUBNET": office.subnet, "HOSTILE_ULA": office.ula}
        creator = Ptunnel(lab, mallory.host, "creator", "lan", "create", *at, module="tests.netns.hostile", **rooms)
        code = str(creator.wait_event("code", 60)["code"])
        chosen: dict[str, Any] = {"PYTHONPATH": str(TREE), "PYTHONSAFEPATH": "1", "PTUNNEL_CODE": code}
        member = Ptunnel(lab, ben.host, "member", "lan", "join", *at, **chosen)
        there = str(member.wait_event("member", 60, peer="mallory", state="online")[office.other])

        def is_reached() -> bool:
            return ben.host.run("ping", "-q", "-c", "1", "-W", "1", there, check=False).returncode == 0

        eventually("the room is there by its other network", is_reached, 60)
        after = way()
        assert after == before, f"the way was {before}, and is now {after}"
