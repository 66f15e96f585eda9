"""`ptunnel doctor` behind real routers: each is named rightly, and a pair is explained."""

from __future__ import annotations

import json

import pytest

from tests.netns.lab import Kind, Lab, Site
from tests.netns.programs import SERVER_PORT, Event, Pair, ptunnel, server_address, start_server

KINDS: dict[Kind, tuple[str, str]] = {
    "open": ("open", ""),
    "fw": ("firewall", ""),
    "prc": ("nat", ""),
    "prcrace": ("nat-race", ""),
    "sym": ("nat-hard", ""),
    "upnp": ("nat-hard", "PCP"),
    "full": ("nat-open", ""),
    "restricted": ("nat-restricted", ""),
    "uprc": ("nat", ""),
    "symseq": ("nat-hard-sequential", ""),
    "symad": ("nat-hard-address", ""),
    "cgn": ("nat", ""),
    "cgnsym": ("nat-hard", ""),
}


def doctor(lab: Lab, site: Site, *words: str, home: str = "h", code: int = 0) -> Event:
    done = ptunnel(site.host, lab.folder / home, "doctor", *words, "--json")
    assert done.returncode == code, done.stderr
    found: Event = json.loads(done.stdout.splitlines()[0])
    assert found["event"] == "doctor"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_router_is_named(lab: Lab, kind: Kind) -> None:
    site = lab.add_site("home", kind)
    start_server(lab, "--listen", f"{lab.second_address}:{SERVER_PORT}")
    found = doctor(lab, site, "--server", server_address(lab))
    name, portmap = KINDS[kind]
    assert found["ipv4"]["kind"] == name, found
    assert found["ipv4"]["own"] == site.address
    assert found["ipv4"]["seen"].startswith(f"{site.address if kind in ('open', 'fw') else site.wan}:")
    assert found["ipv4"]["mtu"] == 1500
    assert ((found["portmap"] or {}).get("protocol") or "") == portmap
    assert found["reached"]


def test_ipv6_behind_a_firewall_is_examined_too(lab: Lab) -> None:
    site = lab.add_site("home", "prc", ipv6=True)
    start_server(lab)
    found = doctor(lab, site, "--server", f"[{lab.server.address6}]:{SERVER_PORT}")
    assert found["ipv6"]["kind"] == "firewall"
    assert found["ipv6"]["own"] == site.address6
    assert found["ipv4"]["kind"] == "unknown"


def test_blocked_udp_is_told_from_a_server_that_does_not_run(lab: Lab) -> None:
    site = lab.add_site("home", "prc")
    found = doctor(lab, site, "--server", server_address(lab), code=3)
    assert not found["reached"]
    assert not found["udp_blocked"]  # its machine says that nobody listens
    start_server(lab)
    assert site.gateway is not None
    site.gateway.nft("insert rule inet firewall forward meta l4proto udp drop")
    found = doctor(lab, site, "--server", server_address(lab), code=3)
    assert found["udp_blocked"]
    assert any("drops UDP" in sentence for sentence in found["sentences"])


@pytest.mark.parametrize(("kind", "path"), [("prc", "direct"), ("sym", "relay")])
def test_a_pair_is_explained(lab: Lab, kind: Kind, path: str) -> None:
    home, friend = lab.add_site("home", kind), lab.add_site("friend", kind)
    start_server(lab)
    pair = Pair(lab, home, friend, expose=["22", "--keep"], forward=["2222:22"])
    if path == "direct":
        pair.wait_direct()
    word = pair.connector.home.name
    running = doctor(lab, friend, "home", home=word)["peer"]
    assert running["link"]["kind"] == path
    pair.connector.interrupt()
    pair.connector.wait(20)
    alone = doctor(lab, friend, "home", home=word)["peer"]
    assert alone["link"]["kind"] == path
    assert alone["sentences"][0].startswith(f"The path is {path}")
    if path == "relay":
        assert "Port mapping" in alone["sentences"][1]
        assert "both routers" in alone["sentences"][0]
    pair.exposer.interrupt()
    pair.exposer.wait(20)
    assert doctor(lab, friend, "home", home=word, code=5)["peer"]["link"] is None
