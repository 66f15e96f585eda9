"""Without a server: real nodes of the Mainline DHT that are not ours, and real routers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.netns.dht import JS_MODULE, NODES, Farm, OtherNodes, entry_of, leave_dead_homes
from tests.netns.dht_meetings import PATIENCE, Homes, end, meet, told
from tests.netns.lab import Kind, Lab, Site, eventually
from tests.netns.programs import Event, ptunnel
from tunnel.dht.checks import FIRST_BYTE, Keys
from tunnel.dht.stretch import HOUR, Stretch, secret_of

DIFFERENT_NETWORKS = 8


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Farm]]:
    """A laboratory and a farm for all tests that leave both as they are."""
    with Lab(tmp_path_factory.mktemp("dht")) as lab:
        yield lab, Farm(lab)


@pytest.fixture(scope="module")
def others(shared: tuple[Lab, Farm]) -> OtherNodes:
    """Nodes of bittorrent-dht among them."""
    if not JS_MODULE.exists():
        pytest.skip("bittorrent-dht is not there; scripts/test installs it")
    return OtherNodes(*shared)


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


# -------------------------------------------------------------------- meetings

#: Each kind on both sides; who begins later by name, and by how many seconds (below zero: whoever exposes).
PAIRS: list[tuple[Kind, Kind, float]] = [("prc", "uprc", 0.2), ("cgn", "prc", -0.2), ("uprc", "cgn", 0.05), ("fw", "prc", -0.05)]


@pytest.mark.time_limit(300)
@pytest.mark.usefixtures("others")
def test_homes_meet_by_a_code_and_by_name_whoever_begins(shared: tuple[Lab, Farm]) -> None:
    lab, farm = shared
    pairs = [
        (lab.add_site(f"home-{number}", one), lab.add_site(f"friend-{number}", other), lag)
        for number, (one, other, lag) in enumerate(PAIRS)
    ]
    with ThreadPoolExecutor(len(pairs)) as pool:
        found = list(pool.map(lambda pair: meet(lab, farm, *pair), pairs))
    assert [each.trouble for each in found] == [""] * len(pairs)
    print("SECONDS", *((one, other, each) for (one, other, _), each in zip(PAIRS, found, strict=True)), sep="\n")


@pytest.mark.time_limit(300)
def test_a_home_whose_ports_are_given_by_chance_is_told_what_would_help(shared: tuple[Lab, Farm]) -> None:
    lab, farm = shared
    seconds, words = told(lab, farm, lab.add_site("hard", "sym"), lab.add_site("soft", "prc"))
    assert "the other side's router uses a new port for every destination" in words
    assert "port mapping" in words
    assert seconds < PATIENCE


# -------------------------------------------------------------------- between implementations


@pytest.mark.time_limit(300)
def test_announcements_are_found_whoever_made_them(shared: tuple[Lab, Farm], others: OtherNodes) -> None:
    """Ours by lookups of libtorrent and of bittorrent-dht; theirs by ours, which then checks what they named."""
    lab, farm = shared
    site = lab.add_site("interop", "uprc")
    homes = Homes(lab, farm, site, site)
    exposer = homes.expose()
    number = int(exposer.wait_event("code", PATIENCE)["code"].partition("-")[0])
    keys = [Keys(secret_of(Stretch(number, hour)), 0) for hour in (int(time.time()) // HOUR, int(time.time()) // HOUR - 1)]
    for program in (farm, others):
        eventually(
            f"our address known to {program.name}",
            lambda program=program: any(
                peer.startswith(f"{site.wan}:") for each in keys for peer in program.peers(each.info_hash)
            ),
            PATIENCE,
        )
    for announcer, host, port in ((farm, farm.hosts[0], 7_777), (others, others.hosts[0], 8_888)):
        with farm.site.host.socket() as sock:
            sock.bind((host, port))
            sock.settimeout(PATIENCE)
            for each in keys:
                announcer.announce(each.info_hash, port)
            data = sock.recv(2_048)
        assert data[0] == FIRST_BYTE
        assert data[2:10] in [each.tag for each in keys]
    end(exposer)


# -------------------------------------------------------------------- a DHT that decays (it is no good to others afterwards)


@pytest.mark.time_limit(300)
def test_homes_meet_in_a_dht_that_decays(lab: Lab) -> None:
    """Tables full of dead homes, a third of the nodes died, and in the end nobody is left of those by which all came in."""
    farm = Farm(lab)
    assert leave_dead_homes(farm) > NODES
    homes = Homes(lab, farm, lab.add_site("home", "prc"), lab.add_site("friend", "uprc"))
    code = homes.expose().wait_event("code", PATIENCE)["code"]
    farm.ask(f"kill {NODES // 3}")
    assert homes.connect(code).wait_event("path", PATIENCE)["kind"] == "direct"
    homes.end()
    homes.bootstrap = entry_of(farm.hosts, port=9_999)
    homes.expose()
    assert homes.connect().wait_event("path", PATIENCE)["kind"] == "direct"
    homes.end()
