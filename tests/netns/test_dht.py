"""Without a server: real nodes of the Mainline DHT that are not ours, and real routers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.netns.dht import NODES, Farm
from tests.netns.lab import Kind, Lab, Site
from tests.netns.programs import Event, ptunnel

DIFFERENT_NETWORKS = 8


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Farm]]:
    """A laboratory and a farm for all tests that leave both as they are."""
    with Lab(tmp_path_factory.mktemp("dht")) as lab:
        yield lab, Farm(lab)


def doctor(lab: Lab, site: Site, bootstrap: str, *, code: int = 0) -> Event:
    words = ("doctor", "--server", "dht", "--json")
    done = ptunnel(site.host, lab.folder / f"doctor-{site.name}", *words, timeout=60, PTUNNEL_DHT_BOOTSTRAP=bootstrap)
    assert done.returncode == code, done.stderr
    found: Event = json.loads(done.stdout.splitlines()[0])
    return found


MAPPINGS: dict[Kind, tuple[str, str]] = {
    "fw": ("endpoint-independent", "kept"),
    "prc": ("endpoint-independent", "kept"),
    "uprc": ("endpoint-independent", "unknown"),
    "cgn": ("endpoint-independent", "unknown"),
    "sym": ("dependent", "random"),
    "symseq": ("dependent", "sequential"),
}


@pytest.mark.parametrize("kind", MAPPINGS)
def test_the_nodes_of_the_dht_tell_how_a_router_maps(shared: tuple[Lab, Farm], kind: Kind) -> None:
    lab, farm = shared
    site = lab.add_site(f"doctor-{kind}", kind)
    found = doctor(lab, site, farm.bootstrap)
    assert (found["ipv4"]["mapping"], found["ipv4"]["ports"]) == MAPPINGS[kind], found
    assert found["ipv4"]["seen"].startswith(f"{site.address if kind == 'fw' else site.wan}:")
    assert DIFFERENT_NETWORKS <= found["views"]["ipv4"] <= NODES
    assert found["reached"]
    assert found["ipv4"]["rtt_s"] > 0


def test_without_an_answer_of_any_node_the_doctor_says_so(shared: tuple[Lab, Farm]) -> None:
    lab, farm = shared
    site = lab.add_site("doctor-silent", "prc")
    found = doctor(lab, site, f"{farm.hosts[0]}:9999,{farm.hosts[1]}:9999", code=3)
    assert not found["reached"]
    assert found["sentences"][0].startswith("No node of the DHT answers")


def test_ipv6_is_a_dht_of_its_own(lab: Lab) -> None:
    farm = Farm(lab, ipv6=True)
    site = lab.add_site("home", "prc", ipv6=True)
    found = doctor(lab, site, farm.bootstrap)
    assert found["ipv6"]["mapping"] == "endpoint-independent"
    assert found["ipv6"]["seen"].startswith(f"[{site.address6}]:")
    assert found["views"]["ipv6"] >= DIFFERENT_NETWORKS
    assert found["ipv4"]["kind"] == "unknown"
