"""Our own NAT: what the tools that are not ours cannot see of it, with real packets; mapping and filtering are in test_lab.py."""

from __future__ import annotations

import errno
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from tests.netns.lab import Kind, Lab, Site, eventually
from tests.netns.programs import UdpEcho, checksum, http_server, random_file
from tests.netns.test_lab import probe


def ports_seen(lab: Lab, site: Site, sources: list[int], *, alike: bool = True) -> list[int]:
    """The ports outside, in order, of datagrams from these ports inside; not `alike`: each to another port of the server."""
    echoes = [UdpEcho(lab, lab.server.host, 7000 + number, "0.0.0.0") for number in range(1 if alike else len(sources))]
    seen = []
    for number, port in enumerate(sources):
        echo = echoes[0 if alike else number]
        before = len(echo.heard)
        probe(site.host, port, (lab.server.address, 7000 + (0 if alike else number))).close()
        seen.append(eventually("the echo heard it", lambda echo=echo, before=before: echo.heard[before:])[0][1])
    return seen


@pytest.mark.parametrize("step", [1, 5, -2])
def test_sequential_ports_go_in_steps(lab: Lab, step: int) -> None:
    ports = ports_seen(lab, lab.add_site("home", "symseq", rules={"step": step}), [5000] * 5, alike=False)
    assert [after - before for before, after in pairwise(ports)] == [step] * 4


def test_preserved_ports_are_kept_until_somebody_has_them(lab: Lab) -> None:
    site = lab.add_site("home", "user", rules={"ports": "preserving"}, hosts=2)
    echo = UdpEcho(lab, lab.server.host, 7000, "0.0.0.0")
    for host in site.hosts:
        probe(host, 5000, (lab.server.address, 7000)).close()
    eventually("both are heard", lambda: len(echo.heard) == 2)
    assert echo.heard[0] == (site.wan, 5000)
    assert echo.heard[1][1] != 5000


def test_parity_is_kept(lab: Lab) -> None:
    sources = list(range(5000, 5012))
    ports = ports_seen(lab, lab.add_site("home", "uprc", rules={"parity": True}), sources)
    assert [port % 2 for port in ports] == [port % 2 for port in sources]
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("paired", [True, False])
def test_a_pool_of_addresses_is_paired_or_not(lab: Lab, paired: bool) -> None:
    site = lab.add_site("home", "user", rules={"addresses": 3, "paired": paired})
    echo = UdpEcho(lab, lab.server.host, 7000, "0.0.0.0")
    for port in range(5000, 5016):
        sock = probe(site.host, port, (lab.server.address, 7000))
        assert sock.recv(100) == b"probe"  # all of them lead back
        sock.close()
    hosts = {host for host, _ in echo.heard}
    assert hosts <= set(site.pool)
    assert len(hosts) == (1 if paired else 3)


@pytest.mark.parametrize(("kind", "quota"), [("cgn", 128), ("quota", 64)])
def test_a_carriers_quota_ends_new_mappings_and_keeps_the_old_ones(lab: Lab, kind: Kind, quota: int) -> None:
    site = lab.add_site("home", kind)
    carrier = site.behind
    assert carrier is not None
    echo = UdpEcho(lab, lab.server.host, 7000, "0.0.0.0")
    socks = [probe(site.host, 5000 + number, (lab.server.address, 7000)) for number in range(quota + 20)]
    eventually("the rest is thrown away", lambda: carrier.ask_nat("drops").get("quota") == 20)
    eventually("those in the quota are heard", lambda: len(echo.heard) == quota)
    assert {host for host, _ in echo.heard} == {carrier.wan}
    socks[0].sendto(b"again", (lab.server.address, 7000))
    assert [socks[0].recv(100) for _ in range(2)] == [b"probe", b"again"]
    for sock in socks:
        sock.close()


def test_a_block_of_ports_is_a_homes_own_and_serves_several_remotes_if_it_may(lab: Lab) -> None:
    carrier = lab.add_site("carrier", "user", hosts=0, rules={"mapping": "AP", "block": 16, "reuses": True})
    homes = [lab.add_site(name, "prc", behind=carrier) for name in ("one", "two")]
    echoes = [UdpEcho(lab, lab.server.host, 7000 + number, "0.0.0.0") for number in range(2)]
    for number in range(2):
        for home in homes:
            for port in range(5000, 5016):
                sock = probe(home.host, port, (lab.server.address, 7000 + number))
                assert sock.recv(100) == b"probe"  # also where another remote has the same port
                sock.close()
    for echo in echoes:
        ports = [port for _, port in echo.heard]
        first, second = sorted(ports[:16]), sorted(ports[16:])
        assert first == list(range(first[0], first[0] + 16))
        assert second == list(range(second[0], second[0] + 16))
        assert first[0] != second[0]
    probe(homes[0].host, 5016, (lab.server.address, 7000)).close()
    eventually("the seventeenth is thrown away", lambda: carrier.ask_nat("drops").get("no port left") == 1)


@pytest.mark.parametrize("from_outside", [True, False])
def test_a_mapping_lives_by_what_refreshes_it(lab: Lab, from_outside: bool) -> None:
    site = lab.add_site("home", "uprc", rules={"life": 1.0, "refreshed_from_outside": from_outside})
    server = lab.server.host.socket()
    server.bind((lab.server.address, 7000))
    server.settimeout(5)
    sock = probe(site.host, 5000, (lab.server.address, 7000))
    seen = server.recvfrom(100)[1]
    sock.settimeout(0.4)
    heard = 0
    for _ in range(5):
        server.sendto(b"refresh", seen)
        try:
            sock.recv(100)
            heard += 1
            sock.recv(100)
        except TimeoutError:
            pass
    assert heard == 5 if from_outside else heard <= 3
    assert bool(site.mappings()) is from_outside
    sock.close()
    server.close()


@pytest.mark.parametrize("kind", ["uprc", "symseq"])
def test_an_opener_dies_beyond_our_nat_as_beyond_a_real_router(lab: Lab, kind: Kind) -> None:
    """TTL 1 dies before there is a mapping; 2 to 5 leave one, and never reach the other router; the default does."""
    one, two = lab.add_site("one", kind), lab.add_site("two", kind)
    probe(one.host, 4999, (two.wan, 5000), ttl=1).close()
    assert one.mappings() == []
    for number, ttl in enumerate((2, 3, 5)):
        probe(one.host, 5000 + number, (two.wan, 5000), ttl=ttl).close()
    eventually("three mappings", lambda: len(one.mappings()) == 3)
    probe(one.host, 5003, (two.wan, 5000)).close()
    eventually("the last one came", lambda: two.thrown_away() == 1)
    assert two.mappings() == []


def test_the_hops_are_counted_as_by_a_real_router(lab: Lab) -> None:
    """tracepath-like: the sender of the error for each TTL is another router, in order, and our NAT is one of them."""
    senders: dict[str, list[str]] = {}
    for kind in ("prc", "uprc"):
        site = lab.add_site(kind, kind)
        said = site.host.run("ping", "-n", "-c", "1", "-W", "1", "-t", "9", lab.server.address, check=False).stdout
        senders[kind] = [said.rpartition("ttl=")[2].split()[0]] if "ttl=" in said else []
        for ttl in range(1, 4):
            said = site.host.run("ping", "-n", "-c", "1", "-W", "1", "-t", str(ttl), lab.server.address, check=False).stdout
            senders[kind].append("exceeded" if "exceeded" in said else "nothing")
    assert senders["prc"] == senders["uprc"]
    assert senders["uprc"][0].isdigit()
    assert senders["uprc"][1:] == ["exceeded"] * 3


def test_icmp_errors_reach_the_socket_they_are_about(lab: Lab) -> None:
    site = lab.add_site("home", "uprc")
    sock = site.host.socket()
    sock.settimeout(3)
    sock.connect((lab.server.address, 7999))  # nobody listens
    sock.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError) as refused:
        sock.recv(100)
    assert refused.value.errno == errno.ECONNREFUSED
    sock.close()


def test_tcp_goes_through_with_equal_checksums(lab: Lab, tmp_path: Path) -> None:
    site = lab.add_site("home", "symad")
    digest = random_file(tmp_path / "given", 3_000_000)
    http_server(lab, lab.server.host, tmp_path, bind="0.0.0.0")
    site.host.run("curl", "-sS", "-o", tmp_path / "fetched", f"http://{lab.server.address}:8000/given")
    assert checksum(tmp_path / "fetched") == digest


def meets(one: Site, other: Site, first: int, second: int) -> bool:
    """Do two hosts hear each other when each sends to where the world sees the other?"""
    server = one.lab.server.host.socket()
    server.bind((one.lab.server.address, 0))
    server.settimeout(3)
    socks, seen = [], []
    for site, number in ((one, first), (other, second)):
        sock = site.hosts[number].socket()
        sock.sendto(b"where?", server.getsockname())
        socks.append(sock)
        seen.append(server.recvfrom(100)[1])
    heard = []
    for _ in range(2):  # the first opens the way for the second
        for sock, remote in zip(socks, reversed(seen), strict=True):
            sock.sendto(b"hello", remote)
    for sock in socks:
        sock.settimeout(2)
        try:
            heard.append(sock.recv(100) == b"hello")
        except TimeoutError:
            heard.append(False)
        sock.close()
    server.close()
    assert len(set(heard)) == 1
    return heard[0]


@pytest.mark.parametrize("hairpin", [True, False])
def test_hosts_that_share_a_nat_meet_there_when_it_hairpins(lab: Lab, hairpin: bool) -> None:
    carrier = lab.add_site("carrier", "user", hosts=0, rules={"hairpin": hairpin})
    one, two = (lab.add_site(name, "prc", behind=carrier) for name in ("one", "two"))
    assert one.wan == two.wan == carrier.wan
    assert meets(one, two, 0, 0) is hairpin
    home = lab.add_site("home", "uprc", hosts=2, isolated=True, rules={"hairpin": hairpin})
    assert meets(home, home, 0, 1) is hairpin
    echo = UdpEcho(lab, home.hosts[1], 7000, "0.0.0.0")
    sock = probe(home.hosts[0], 5000, (home.addresses[1], 7000))
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(100)
    assert not echo.heard  # isolated
    sock.close()


def test_overlapping_lans_lead_to_oneself(lab: Lab) -> None:
    one, two = (lab.add_site(name, "prc", lan="192.168.1") for name in ("one", "two"))
    assert one.address == two.address
    assert meets(one, two, 0, 0)


def test_nothing_of_udp_leaves_tcp443_but_tcp_does(lab: Lab, tmp_path: Path) -> None:
    site = lab.add_site("home", "tcp443")
    echo = UdpEcho(lab, lab.server.host, 7000, "0.0.0.0")
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, lab.server.host, tmp_path, bind="0.0.0.0")
    sock = site.host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(b"probe", (lab.server.address, 7000))
    assert site.host.run("curl", "-sS", f"http://{lab.server.address}:8000/page").stdout == "hello"
    assert not echo.heard
    sock.close()


def test_dual_sites_pass_ipv6_through_a_firewall(lab: Lab) -> None:
    one, two = lab.add_site("one", "symseq", ipv6=True), lab.add_site("two", "sym", ipv6=True)
    first = probe(one.host, 5000, (two.address6, 5000))
    eventually("the firewall throws the probe away", lambda: two.thrown_away() == 1)
    second = probe(two.host, 5000, (one.address6, 5000), b"hello")
    assert first.recvfrom(100)[0] == b"hello"
    first.close()
    second.close()


def test_a_flush_forgets_home_and_carrier(lab: Lab) -> None:
    site = lab.add_site("home", "cgn")
    assert site.behind is not None
    probe(site.host, 5000, (lab.server.address, 7000)).close()
    eventually("mapped twice", lambda: len(site.mappings()) == len(site.behind.mappings()) == 1 if site.behind else None)
    site.forget_mappings()
    assert site.mappings() == site.behind.mappings() == []
