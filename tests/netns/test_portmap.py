"""Port mapping against a real miniupnpd: each protocol, together, renewed, made again, removed; and what it is good for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.netns.kernel import python_module
from tests.netns.lab import Kind, Lab, Site, eventually
from tests.netns.programs import Pair, Program, Ptunnel, environment, http_server, start_server

PORT = 40_000
KEEPER = """
import json, sys, time, trio
from tunnel.shell.portmap import PortMapKeeper
from tunnel.units import Seconds

started = time.monotonic()
def changed(port, external):
    mapping = keeper.mappings.get(port)
    print(json.dumps({
        "protocol": mapping.protocol.name if mapping else None, "external": str(external) if external else None,
        "after": time.monotonic() - started,
    }), flush=True)
keeper = PortMapKeeper(on_change=changed, lifetime=Seconds(float(sys.argv[2])))
async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, [int(sys.argv[1])])
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()
trio.run(main)
"""


class Keeper(Program):
    """Keeps one port mapped, in a process of its own, until it is told to end."""

    def __init__(self, lab: Lab, site: Site, lifetime: float = 3600, number: int = 0) -> None:
        """On the site's host of that `number`."""
        words = [sys.executable, "-c", KEEPER, str(PORT), str(lifetime)]
        super().__init__(lab, site.hosts[number], "keeper", words, env=environment(lab.folder / "keeper"), stdin=subprocess.PIPE)

    def told(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def wait_told(self, count: int = 1, timeout: float = 10) -> dict[str, object]:
        return eventually(f"{count} reports", lambda: self.told()[count - 1 :], timeout)[0]

    def leave(self) -> float:
        """Seconds that it took to end."""
        started = time.monotonic()
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.wait(20) == 0, self.said()
        return time.monotonic() - started


def refuse(site: Site, version: int) -> None:
    """The router does not answer requests of this version on its port 5351: 0 is NAT-PMP, 2 is PCP."""
    assert site.gateway is not None
    site.gateway.nft(f"insert rule inet firewall input udp dport 5351 @th,64,8 {version} drop")


@pytest.mark.parametrize("protocol", ["PCP", "NAT_PMP", "UPNP", "all"])
def test_each_protocol_maps_a_port_and_takes_it_back(lab: Lab, protocol: str) -> None:
    """How soon is held in tests/unit/nat/test_portmap.py and tests/driver/test_portmap.py."""
    home = lab.add_site("home", "upnp")
    home.start_miniupnpd(upnp=protocol in ("UPNP", "all"), natpmp=protocol != "UPNP")
    if protocol == "PCP":
        refuse(home, 0)
    if protocol == "NAT_PMP":
        refuse(home, 2)
    keeper = Keeper(lab, home)
    told = keeper.wait_told()
    assert told["protocol"] == ("PCP" if protocol == "all" else protocol)
    assert told["external"] == f"{home.wan}:{PORT}"
    assert float(str(told["after"])) < 5
    assert home.mapped_ports() == {PORT: f"{home.address}:{PORT}"}
    assert keeper.leave() < 5
    assert home.mapped_ports() == {}


def test_a_mapped_port_is_reached_from_anywhere(lab: Lab) -> None:
    home, far = lab.add_site("home", "upnp"), lab.add_site("far", "open")
    Keeper(lab, home).wait_told()
    inside, outside = home.host.socket(), far.host.socket()
    inside.bind(("0.0.0.0", PORT))
    inside.settimeout(10)
    outside.settimeout(10)
    outside.sendto(b"hello", (home.wan, PORT))
    data, remote = inside.recvfrom(100)
    assert data == b"hello"
    inside.sendto(b"and back", remote)
    assert outside.recvfrom(100) == (b"and back", (home.wan, PORT))
    inside.close()
    outside.close()


@pytest.mark.parametrize("protocol", ["PCP", "NAT_PMP", "UPNP"])
def test_a_short_lease_is_renewed(lab: Lab, protocol: str) -> None:
    home = lab.add_site("home", "upnp")
    home.start_miniupnpd(upnp=protocol == "UPNP", natpmp=protocol != "UPNP")
    if protocol == "NAT_PMP":
        refuse(home, 2)
    keeper = Keeper(lab, home, lifetime=8)
    keeper.wait_told()
    time.sleep(13)
    assert home.mapped_ports() == {PORT: f"{home.address}:{PORT}"}
    assert len(keeper.told()) == 1
    keeper.kill()
    eventually("the lease of a crashed process lapses", lambda: not home.mapped_ports(), 12, 0.2)


def test_a_port_that_a_neighbour_has_mapped_by_upnp_is_left_to_it(lab: Lab) -> None:
    """The router says that the port is taken, and by whom."""
    home = lab.add_site("home", "upnp", hosts=2)
    home.start_miniupnpd(natpmp=False)
    first = Keeper(lab, home)
    first.wait_told()
    second = Keeper(lab, home, number=1)
    told = second.wait_told()
    assert told["protocol"] == "UPNP"
    other = int(str(told["external"]).rpartition(":")[2])
    assert other != PORT
    assert home.mapped_ports() == {PORT: f"{home.addresses[0]}:{PORT}", other: f"{home.addresses[1]}:{PORT}"}
    assert second.leave() < 5
    assert home.mapped_ports() == {PORT: f"{home.addresses[0]}:{PORT}"}


def test_a_router_that_answers_the_upnp_search_from_another_address_than_the_gateways_maps_too(lab: Lab) -> None:
    """One of a pair that share the gateway's address (VRRP, CARP): its daemon speaks from the router's own."""
    home = lab.add_site("home", "upnp")
    home.start_miniupnpd(natpmp=False)
    assert home.gateway is not None
    shared = home.address.rpartition(".")[0] + ".253"
    home.gateway.ip(f"addr add {shared}/32 dev lan")
    home.host.ip(f"route replace default via {shared}")
    home.gateway.nft(
        f"insert rule inet firewall input ip daddr {shared} udp dport 1900 drop"
    )  # nothing is said by the shared one
    keeper = Keeper(lab, home)
    assert keeper.wait_told(timeout=20)["external"] == f"{home.wan}:{PORT}"
    assert home.mapped_ports() == {PORT: f"{home.address}:{PORT}"}
    assert keeper.leave() < 5
    assert home.mapped_ports() == {}


def test_a_router_that_restarts_is_asked_again(lab: Lab) -> None:
    home = lab.add_site("home", "upnp")
    keeper = Keeper(lab, home)
    keeper.wait_told()
    time.sleep(4)  # its epoch has to fall behind
    home.start_miniupnpd()
    started = time.monotonic()
    eventually("the mapping is there again", home.mapped_ports, 20)
    assert time.monotonic() - started < 10
    assert keeper.leave() < 5
    assert home.mapped_ports() == {}


def test_a_router_that_maps_nothing_is_let_alone(lab: Lab) -> None:
    home = lab.add_site("home", "sym")
    keeper = Keeper(lab, home)
    time.sleep(2)
    assert keeper.told() == []
    assert keeper.leave() < 5


def test_with_a_global_address_nothing_is_asked(lab: Lab) -> None:
    home = lab.add_site("home", "fw")
    assert home.gateway is not None
    home.gateway.nft("add counter inet firewall asked\ninsert rule inet firewall input meta l4proto udp counter name asked")
    keeper = Keeper(lab, home)
    time.sleep(1.5)
    assert home.gateway.counter("firewall", "asked") == (0, 0)
    assert keeper.leave() < 5


@pytest.mark.parametrize("kind", ["sym", "prc", "prcrace", "upnp"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_home_whose_router_maps_ports_is_met_directly(lab: Lab, tmp_path: Path, kind: Kind, swapped: bool) -> None:
    home, friend = lab.add_site("home", "upnp"), lab.add_site("friend", kind)
    if swapped:
        home, friend = friend, home
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    pair.wait_direct()
    before = pair.went_direct()
    assert friend.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8000/page").stdout == "hello"
    assert pair.went_direct() > before
    sites = [site for site in (home, friend) if site.kind == "upnp"]
    assert all(site.mapped_ports() for site in sites)
    pair.connector.interrupt()
    assert pair.connector.wait(20) == 130
    pair.exposer.interrupt()
    assert pair.exposer.wait(20) == 130
    assert [site.mapped_ports() for site in sites] == [{}] * len(sites)


@pytest.mark.parametrize("words", [["--no-portmap"], ["--path", "relay"]])
def test_it_can_be_turned_off(lab: Lab, words: list[str]) -> None:
    home = lab.add_site("home", "upnp")
    start_server(lab)
    exposer = Ptunnel(lab, home.host, "expose", "expose", "22", "--server", lab.server.address, *words)
    code = exposer.wait_event("code")["code"]
    connector = Ptunnel(
        lab, home.host, "connect", "connect", "--server", lab.server.address, "--forward", "2222:22", *words, PTUNNEL_CODE=code
    )
    connector.wait_event("forward")
    time.sleep(0.7)
    assert home.mapped_ports() == {}


def test_an_embedded_server_says_who_reaches_it_and_is_reached(lab: Lab, tmp_path: Path) -> None:
    home, friend = lab.add_site("home", "upnp"), lab.add_site("friend", "sym")
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000")
    listening = exposer.wait_event("listening")
    assert listening["bind"] == f"{home.address}:24531"
    assert listening["public"] == f"{home.wan}:24531"
    code = exposer.wait_event("code")["code"]
    connector = Ptunnel(
        lab, friend.host, "connect", "connect", "--server", listening["public"], "--forward", "8000", PTUNNEL_CODE=code
    )  # fmt: skip
    connector.wait_event("forward")
    assert friend.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8000/page").stdout == "hello"
    connector.wait_event("path", 20, kind="direct")
    exposer.interrupt()
    assert exposer.wait(20) == 130
    assert home.mapped_ports() == {}


@pytest.mark.parametrize(
    ("kind", "saying"),
    [
        ("upnp", "and all others at 44.128.0.9:24531, where the router lets them in"),
        ("prc", "only computers in the same network"),
    ],
)
def test_who_reaches_an_embedded_server_is_said_in_a_sentence(lab: Lab, kind: Kind, saying: str) -> None:
    home = lab.add_site("home", kind)
    words = python_module("tunnel", "expose", "8000")
    exposer = Program(lab, home.host, "expose", words, env=environment(lab.folder / "home"))
    exposer.wait_said("type the code")
    assert saying in exposer.said()
    assert ("ptunnel connect --server 44.128.0.9 --forward 8000" in exposer.said()) is (kind == "upnp")
