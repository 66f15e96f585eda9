"""Members' names as programs look them up: IPv4 first where the interface has it, and what goes into the room from there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.kernel import Namespace
from tests.netns.test_tun import config, shown
from tests.netns.test_tun_host import Program

BEN = {"ipv4": "10.77.1.2", "ipv6": "fd12:3456:789a::2"}
LOOK = """
import json, socket, sys
found = [each[4][0] for each in socket.getaddrinfo("ben.ptunnel", 30000, type=socket.SOCK_DGRAM)]
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as game:
    game.connect((sys.argv[1], 30000))
    source = game.getsockname()[0]
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as web:
    web.connect(("2001:db8:9::9", 443))
    outside = web.getsockname()[0]
groups = {}
for group in ("ff02::114", "ff05::114"):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as game:
        game.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("lan0"))
        game.connect((group, 30000))
        groups[group] = game.getsockname()[0]
print(json.dumps([found, source, outside, groups]))
"""


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Namespace]:
    """A machine at home with IPv4 and IPv6 of the internet."""
    space = Namespace("tun-order")
    space.be_a_machine("anna", tmp_path / "etc")
    space.ip("link set lo up\nlink add home0 type veth peer name router\nlink set home0 up\nlink set router up")
    space.ip("addr add 192.168.1.5/24 dev home0\naddr add 2001:db8:7::5/64 dev home0 nodad")
    space.ip("route add default via 192.168.1.1\nroute add default via 2001:db8:7::1")
    yield space
    space.close()


@pytest.fixture
def program(space: Namespace) -> Iterator[Program]:
    program = Program(space, Path("/etc/hosts"))
    program.ask("names", names={"ben": list(BEN.values())})
    yield program
    program.kill()


def look(space: Namespace) -> tuple[list[str], str, str, dict[str, str]]:
    """The addresses of ben.ptunnel in order; our source towards him, towards the internet, and towards groups in the room."""
    found, source, outside, groups = json.loads(space.run(sys.executable, "-c", LOOK, BEN["ipv6"]).stdout)
    return found, source, outside, groups


def lan_routes(space: Namespace) -> list[Any]:
    return [route["dst"] for route in shown(space, "-6", "route", "show", "dev", "lan0") if route["dst"].startswith("fd")]


@pytest.mark.usefixtures("program")
def test_a_name_leads_to_ipv4_first_and_packets_of_the_room_have_its_address(space: Namespace) -> None:
    found, source, outside, groups = look(space)
    assert found == [BEN["ipv4"], BEN["ipv6"]]
    assert source == "fd12:3456:789a::3", "of the room, although home has an address that is no less good"
    assert outside == "2001:db8:7::5"
    assert set(groups.values()) <= {"fd12:3456:789a::3", "fe80::7074:0:0:3"}


def test_where_the_rooms_ipv4_clashes_a_name_leads_to_ipv6_and_back_to_ipv4_when_that_has_gone(
    space: Namespace, program: Program
) -> None:
    renumber: Callable[[], list[str]] = lambda: program.ask("renumber", config=config(3).to_json())["facts"]  # noqa: E731
    names = {"ben": list(BEN.values())}
    space.ip("addr add 10.77.1.77/24 dev home0")
    assert "in use on this machine" in renumber()[0]
    program.ask("names", names=names)
    assert look(space)[:2] == ([BEN["ipv6"]], "fd12:3456:789a::3")
    space.ip("addr del 10.77.1.77/24 dev home0")
    assert renumber() == []
    program.ask("names", names=names)
    assert look(space)[:2] == ([BEN["ipv4"], BEN["ipv6"]], "fd12:3456:789a::3")
    moved = config(3, ipv6=(("fd99::3", 64), ("fe80::7074:0:0:3", 64)))
    program.ask("renumber", config=moved.to_json())
    assert set(lan_routes(space)) == {"fd99::/64"}, "nothing stays of the network that the room had before"
