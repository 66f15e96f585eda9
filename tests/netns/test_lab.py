"""The laboratory itself: each kind of site is what it says, as seen by tools that are not ours."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import Kind, Lab, Site, eventually
from tests.netns.programs import Capture, Program, Sshd, UdpEcho, checksum, http_server, random_file

# What Debian's stun-client (RFC 3489) says of each kind.
SAYINGS: list[tuple[Kind, str]] = [
    ("open", "Open"),
    ("fw", "Firewall"),
    ("prc", "Independent Mapping, Port Dependent Filter, preserves ports, no hairpin"),
    ("prcrace", "Independent Mapping, Port Dependent Filter, preserves ports, no hairpin"),
    ("sym", "Dependent Mapping, random port, no hairpin"),
    ("upnp", "Dependent Mapping, random port, no hairpin"),
    ("short", "Independent Mapping, Port Dependent Filter, preserves ports, no hairpin"),
    ("tcp443", "Blocked or could not reach STUN server"),
    ("full", "Independent Mapping, Independent Filter, random port, no hairpin"),
    ("restricted", "Independent Mapping, Address Dependent Filter, random port, no hairpin"),
    ("uprc", "Independent Mapping, Port Dependent Filter, random port, no hairpin"),
    ("symseq", "Dependent Mapping, random port, no hairpin"),
    ("symad", "Dependent Mapping, random port, no hairpin"),
    ("cgn", "Independent Mapping, Port Dependent Filter, random port, no hairpin"),
    ("cgnsym", "Dependent Mapping, random port, no hairpin"),
    ("quota", "Dependent Mapping, random port, no hairpin"),
]

# What coturn's turnutils_natdiscovery (RFC 5780) says of each kind's mapping and filtering.
E, A, AP = "Endpoint Independent", "Address Dependent", "Address and Port Dependent"
DISCOVERIES: list[tuple[Kind, str, str]] = [
    ("prc", E, AP),
    ("sym", AP, AP),
    ("upnp", AP, AP),
    ("short", E, AP),
    ("full", E, E),
    ("restricted", E, A),
    ("uprc", E, AP),
    ("symseq", AP, AP),
    ("symad", A, A),
    ("cgn", E, AP),
    ("cgnsym", AP, AP),
    ("quota", AP, AP),
]


def start_coturn(lab: Lab) -> Program:
    server = Program(
        lab,
        lab.server.host,
        "turnserver",
        [
            *("turnserver", "-n", "-z", "-L", lab.server.address, "-L", lab.second_address, "-E", lab.server.address),
            *("--no-tls", "--no-dtls", "--no-cli", "--no-tcp", "--log-file", "stdout"),
            *("--pidfile", lab.folder / "turnserver.pid", "--userdb", lab.folder / "turndb"),
        ],
    )
    eventually("turnserver listens", lambda: ":3478" in lab.server.host.run("ss", "-lnu").stdout)
    return server


def test_stun_client_names_every_kind(lab: Lab) -> None:
    start_coturn(lab)
    sites = [lab.add_site(kind, kind) for kind, _ in SAYINGS]
    clients = [site.host.popen(["stun", lab.server.address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for site in sites]
    for client, (kind, saying) in zip(clients, SAYINGS, strict=True):
        said, _ = client.communicate(timeout=40)
        assert f"Primary: {saying}" in said, f"{kind}: {said}"


def discover(site: Site, *options: str) -> subprocess.Popen[str]:
    words = ["turnutils_natdiscovery", *options, site.lab.server.address]
    return site.host.popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_coturn_names_the_mapping_and_the_filtering_of_every_kind_of_nat(lab: Lab) -> None:
    start_coturn(lab)
    clients = [discover(lab.add_site(kind, kind), "-m", "-f") for kind, _, _ in DISCOVERIES]
    for client, (kind, mapping, filtering) in zip(clients, DISCOVERIES, strict=True):
        said, _ = client.communicate(timeout=60)
        assert f"NAT with {mapping} Mapping!" in said, f"{kind}: {said}"
        assert f"NAT with {filtering} Filtering!" in said, f"{kind}: {said}"


def test_both_tools_see_which_nats_hairpin_and_how_long_a_mapping_lives(lab: Lab) -> None:
    start_coturn(lab)
    hairpins = lab.add_site("hairpins", "full", rules={"hairpin": True})
    plain = lab.add_site("plain", "full")
    forgets = lab.add_site("forgets", "full", rules={"life": 2.0})
    old = [site.host.popen(["stun", lab.server.address], stdout=subprocess.PIPE) for site in (hairpins, plain)]
    wait = ("-t", "-T", "4")  # seconds of silence, then the server answers to where it saw the socket before
    clients = [discover(hairpins, "-H"), discover(plain, "-H"), discover(plain, *wait), discover(forgets, *wait)]
    saying = [client.communicate(timeout=60)[0] for client in clients]
    assert ["successful hairpinning" in each for each in saying[:2]] == [True, False], saying[:2]
    assert ["RFC 5780 response 2" in each for each in saying[2:]] == [True, False], saying[2:]
    assert ["will hairpin" in client.communicate(timeout=40)[0] for client in old] == [True, False]


def test_turnutils_stunclient_sees_the_wan_address(lab: Lab) -> None:
    start_coturn(lab)
    site = lab.add_site("home", "prc")
    # It goes on with RFC 5780 for ever, which this NAT lets through as little as it should.
    said = site.host.run("timeout", "2", "stdbuf", "-oL", "turnutils_stunclient", lab.server.address, check=False).stdout
    assert f"UDP reflexive addr: {site.wan}:" in said


def probe(space: Namespace, port: int, target: tuple[str, int], data: bytes = b"probe", ttl: int | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    sock = space.socket(family)
    sock.settimeout(10)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    if ttl is not None:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    sock.sendto(data, target)
    if ttl is not None:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
    return sock


def test_the_first_probe_is_thrown_away_and_the_second_let_in(lab: Lab) -> None:
    one, two = lab.add_site("one", "prc"), lab.add_site("two", "prc")
    first = probe(one.host, 5000, (two.wan, 5000))
    eventually("two throws the probe away", lambda: two.thrown_away() == 1)
    assert two.let_in() == 0
    second = probe(two.host, 5000, (one.wan, 5000), b"hello")
    assert first.recvfrom(100) == (b"hello", (two.wan, 5000))
    assert one.thrown_away() == 0
    assert one.let_in() == 1
    first.sendto(b"again", (two.wan, 5000))
    assert second.recvfrom(100) == (b"again", (one.wan, 5000))
    assert two.let_in() == 1
    mapping = one.mappings()[0]
    assert (mapping["src"], mapping["sport"], mapping["rdport"]) == (one.address, "5000", "5000")
    assert lab.udp_bytes(one, two) == 2 * (20 + 8 + 5)
    assert lab.udp_bytes_both_ways(one, lab.server) == 0
    for sock in (first, second):
        sock.close()


@pytest.mark.parametrize(("kind", "moved"), [("prc", False), ("prcrace", True)])
def test_only_prcrace_moves_the_mapping_when_the_far_probe_is_first(lab: Lab, kind: Kind, moved: bool) -> None:
    racer, other = lab.add_site("racer", kind), lab.add_site("other", "open")
    early = probe(other.host, 6000, (racer.wan, 6000))
    time.sleep(0.5)
    late = probe(racer.host, 6000, (other.wan, 6000))
    seen = early.recvfrom(100)[1]
    assert (seen[1] != 6000) is moved
    early.close()
    late.close()


def test_a_low_ttl_opener_dies_in_the_core(lab: Lab) -> None:
    one, two = lab.add_site("one", "prcrace"), lab.add_site("two", "prcrace")
    opener = probe(one.host, 5000, (two.wan, 5000), ttl=5)
    time.sleep(0.5)
    assert two.mappings() == []
    assert len(one.mappings()) == 1
    answer = probe(two.host, 5000, (one.wan, 5000), b"open")
    assert opener.recvfrom(100)[0] == b"open"
    opener.close()
    answer.close()


def test_sym_gives_each_destination_another_port(lab: Lab) -> None:
    site = lab.add_site("home", "sym")
    UdpEcho(lab, lab.server.host, 7000, "0.0.0.0")
    echo = UdpEcho(lab, lab.server.host, 7001, "0.0.0.0")
    sock = probe(site.host, 5000, (lab.server.address, 7000))
    sock.recvfrom(100)
    sock.sendto(b"probe", (lab.server.address, 7001))
    sock.recvfrom(100)
    ports = {mapping["rdport"] for mapping in site.mappings()}
    assert len(ports) == 2
    assert echo.heard[0][0] == site.wan
    sock.close()


def test_ipv6_passes_a_stateful_firewall_only_when_asked(lab: Lab) -> None:
    one, two = lab.add_site("one", "prc", ipv6=True), lab.add_site("two", "fw", ipv6=True)
    first = probe(one.host, 5000, (two.address6, 5000))
    eventually("the firewall throws the probe away", lambda: two.thrown_away() == 1)
    second = probe(two.host, 5000, (one.address6, 5000), b"hello")
    assert first.recvfrom(100)[0] == b"hello"
    assert lab.udp_bytes(two, one) > 0
    first.close()
    second.close()


def test_a_short_mapping_life_ends(lab: Lab) -> None:
    site = lab.add_site("home", "prc", mapping_life=1)
    probe(site.host, 5000, (lab.server.address, 7000)).close()
    assert len(site.mappings()) == 1
    eventually("the mapping is gone", lambda: site.mappings() == [], timeout=5)


def test_hosts_of_one_lan_reach_each_other(lab: Lab) -> None:
    site = lab.add_site("home", "prc", hosts=2)
    UdpEcho(lab, site.hosts[1], 7000, "0.0.0.0")
    sock = probe(site.hosts[0], 5000, (site.addresses[1], 7000))
    assert sock.recvfrom(100)[0] == b"probe"
    sock.close()


def test_the_links_delay_and_loss_are_what_was_asked_for(lab: Lab) -> None:
    site = lab.add_site("far", "prc", delay=0.02, hops=0)
    lossy = lab.add_site("lossy", "open", loss=0.5, hops=0)
    echo = UdpEcho(lab, lab.server.host, 7000, "0.0.0.0")
    sock = probe(site.host, 5000, (lab.server.address, 7000))
    sock.recvfrom(100)
    times = []
    for _ in range(10):
        start = time.monotonic()
        sock.sendto(b"x", (lab.server.address, 7000))
        sock.recvfrom(100)
        times.append(time.monotonic() - start)
    assert 0.040 <= min(times) < 0.080
    sock.close()
    sock = lossy.host.socket()
    sock.connect((lab.server.address, 7000))
    sock.settimeout(2)
    back = 0
    for _ in range(200):
        sock.send(b"x")
    try:
        while True:
            sock.recv(100)
            back += 1
    except TimeoutError:
        pass
    sock.close()
    assert 10 < back < 100  # a quarter of 200 is to be expected
    assert len(echo.heard) == 2


def test_only_the_servers_news_come_late(lab: Lab) -> None:
    site, other = lab.add_site("home", "prc", delay=0.005, news=1.0, hops=0), lab.add_site("other", "open", hops=0)
    times = []
    for host, address in ((lab.server.host, lab.server.address), (lab.server.host, lab.second_address), (other.host, other.wan)):
        UdpEcho(lab, host, 7000, address)
        probe(site.host, 5000, (address, 7000)).close()  # ARP is done with
        start = time.monotonic()
        sock = probe(site.host, 5001, (address, 7000))
        sock.recv(100)
        times.append(time.monotonic() - start)
        sock.close()
    assert times[2] < 1.0
    assert all(1.0 <= took < 3.0 for took in times[:2])


def test_a_black_hole_is_one_way(lab: Lab) -> None:
    site = lab.add_site("home", "open")
    echo = UdpEcho(lab, lab.server.host, 7000, "0.0.0.0")
    lab.black_hole(lab.server, site)
    sock = probe(site.host, 5000, (lab.server.address, 7000))
    eventually("the echo heard it", lambda: echo.heard)
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(100)
    lab.heal()
    sock.sendto(b"again", (lab.server.address, 7000))
    assert sock.recv(100) == b"again"
    sock.close()


def test_a_super_packet_crosses_the_core_whole(lab: Lab) -> None:
    """UDP_SEGMENT works through all the routers: 40 datagrams by one call arrive as 40."""
    one, two = lab.add_site("one", "open"), lab.add_site("two", "open")
    receiver = two.host.socket()
    receiver.bind(("0.0.0.0", 7000))
    receiver.settimeout(10)
    sender = one.host.socket()
    sender.sendmsg([bytes(40 * 1200)], [(17, 103, (1200).to_bytes(2, "little"))], 0, (two.wan, 7000))
    assert [len(receiver.recv(65_536)) for _ in range(40)] == [1200] * 40
    sender.close()
    receiver.close()


def test_real_programs_run_in_here(lab: Lab, tmp_path: Path) -> None:
    """sshd, scp, curl and tcpdump, without a tunnel: what the product tests stand on."""
    site = lab.add_site("home", "prc")
    sshd = Sshd(lab, site.host)
    done = sshd.ssh(site.host, sshd.port, "echo through; id -un")
    assert (done.stdout, done.stderr) == ("through\nvisitor\n", "")
    digest = random_file(tmp_path / "given", 3_000_000)
    site.host.run(*sshd.scp_words(sshd.port, str(tmp_path / "given"), sshd.remote(tmp_path / "taken")))
    assert checksum(tmp_path / "taken") == digest
    capture = Capture(lab, lab.server.host, "eth0")
    http_server(lab, lab.server.host, tmp_path, bind="0.0.0.0")
    site.host.run("curl", "-sS", "-o", tmp_path / "fetched", f"http://{lab.server.address}:8000/given")
    assert checksum(tmp_path / "fetched") == digest
    assert b"GET /given" in capture.bytes()
