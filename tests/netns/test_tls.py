"""Networks that block UDP: meeting and relaying go over TLS on TCP port 443, and leave it as soon as UDP works."""

from __future__ import annotations

import socket
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.driver.tls import Certificate, make_certificate
from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Ptunnel, checksum, http_server, ptunnel, random_file, server_address, start_server
from tests.netns.test_doctor import doctor

FILE_BYTES = 3_000_000


def block_udp(site: Site) -> None:
    """The router lets no UDP through, either way."""
    assert site.gateway is not None
    chain = "type filter hook forward priority -20; policy accept; meta l4proto udp drop;"
    site.gateway.nft(f"table inet noudp {{ chain forward {{ {chain} }}; }}")


def unblock_udp(site: Site) -> None:
    assert site.gateway is not None
    site.gateway.nft("delete table inet noudp")


def start_tls_server(lab: Lab) -> tuple[Ptunnel, Certificate]:
    certificate = make_certificate(lab.folder, lab.server.address, lab.server.address6, authority=True)
    server = start_server(lab, "--tls-cert", certificate.certificate, "--tls-key", certificate.key)
    told = server.wait_event("listening", tls=certificate.fingerprint)
    assert told["bind"] == f"{lab.server.address}:443"
    return server, certificate


def meet(lab: Lab, home: Site, friend: Site, *, forward: str, home_env: dict[str, Any], friend_env: dict[str, Any]) -> Ptunnel:
    """Expose at home and connect from the friend's; the connecting one."""
    words = ("--server", server_address(lab))
    exposer = Ptunnel(lab, home.host, "expose", "expose", forward.partition(":")[2] or forward, *words, **home_env)
    code = exposer.wait_event("code")["code"]
    connector = Ptunnel(
        lab, friend.host, "connect", "connect", "--forward", forward, *words, PTUNNEL_CODE=code, **friend_env
    )  # fmt: skip
    connector.wait_event("forward")
    return connector


def fetch(site: Site, target: Path, port: int = 8000, seconds: int = 40) -> str:
    site.host.run("curl", "-sS", "--max-time", str(seconds), "-o", target, f"http://127.0.0.1:{port}/file", timeout=seconds + 5)
    return checksum(target)


def test_one_side_without_udp_fetches_a_file_over_tls_and_goes_direct_when_udp_works(lab: Lab, tmp_path: Path) -> None:
    home, friend = lab.add_site("home", "prc"), lab.add_site("friend", "prc")
    block_udp(friend)
    _, certificate = start_tls_server(lab)
    folder = tmp_path / "www"
    folder.mkdir()
    digest = random_file(folder / "file", FILE_BYTES)
    http_server(lab, home.host, folder)
    connector = meet(
        lab, home, friend, forward="8000", home_env={}, friend_env={"PTUNNEL_TLS_FINGERPRINT": certificate.fingerprint}
    )
    path = connector.wait_event("path", kind="relay")
    assert path["remote"] == f"{lab.server.address}:443"
    assert "over TLS" in path["why"]
    assert fetch(friend, tmp_path / "got") == digest
    assert lab.udp_bytes_both_ways(friend, lab.server) == 0
    assert lab.udp_bytes(home, lab.server) > FILE_BYTES
    unblock_udp(friend)
    connector.wait_event("path", 20, kind="direct")
    assert fetch(friend, tmp_path / "again") == digest
    assert lab.udp_bytes_both_ways(home, friend) > FILE_BYTES


def test_both_sides_without_udp_trust_a_public_authority_and_nobody_else(lab: Lab, tmp_path: Path) -> None:
    home, friend = lab.add_site("home", "prc"), lab.add_site("friend", "fw")
    block_udp(home)
    block_udp(friend)
    _, certificate = start_tls_server(lab)
    words = ("expose", "8000", "--server", server_address(lab))
    refused = ptunnel(home.host, lab.folder / "stranger", *words, timeout=40)
    assert refused.returncode == 3
    assert "not trusted" in refused.stderr
    assert "--tls-fingerprint" in refused.stderr
    folder = tmp_path / "www"
    folder.mkdir()
    digest = random_file(folder / "file", FILE_BYTES)
    http_server(lab, home.host, folder)
    trusted = {"SSL_CERT_FILE": certificate.certificate}
    connector = meet(lab, home, friend, forward="8000", home_env=trusted, friend_env=trusted)
    assert fetch(friend, tmp_path / "got") == digest
    assert connector.wait_event("path", kind="relay")["remote"] == f"{lab.server.address}:443"
    found = doctor(lab, friend, "--server", server_address(lab), "--tls-fingerprint", certificate.fingerprint)
    assert found["udp_blocked"]
    assert found["tls"] == {"port": 443, "works": True, "trouble": "", "pinned": True, "valid_until": None}
    assert "over TLS" in found["summary"]


def test_a_stream_goes_on_over_tls_when_udp_is_blocked_under_it(lab: Lab) -> None:
    """The two seconds of silence that are promised are held in tests/sim/test_tls.py."""
    home, friend = lab.add_site("home", "prc"), lab.add_site("friend", "prc")
    _, certificate = start_tls_server(lab)
    listener = home.host.inside(lambda: socket.create_server(("127.0.0.1", 7000)))
    listener.settimeout(30)
    pinned = {"PTUNNEL_TLS_FINGERPRINT": certificate.fingerprint}
    connector = meet(lab, home, friend, forward="7000", home_env=pinned, friend_env=pinned)
    connector.wait_event("path", 15, kind="direct")

    arrivals: list[float] = []
    received = bytearray()

    def count() -> None:
        served, _ = listener.accept()
        served.settimeout(30)
        with served:
            while data := served.recv(65_536):
                arrivals.append(time.monotonic())
                received.extend(data)

    reader = threading.Thread(target=count, daemon=True)
    reader.start()
    client = friend.host.inside(lambda: socket.create_connection(("127.0.0.1", 7000), timeout=10))
    sent = bytearray()

    def tick(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            word = b"%d " % len(sent)
            client.sendall(word)
            sent.extend(word)
            time.sleep(0.02)

    with listener, client:
        tick(1)
        block_udp(friend)
        blocked = time.monotonic()
        tick(12)
        client.shutdown(socket.SHUT_WR)
        eventually("all bytes", lambda: len(received) == len(sent), 20)
        reader.join(5)
    assert received == sent
    after = [blocked, *(at for at in arrivals if at > blocked)]
    silence = max(later - earlier for earlier, later in pairwise(after))
    assert silence < 8, silence
    path = connector.collect()[-1]
    assert [event["remote"] for event in connector.collect() if event["event"] == "path"][-1] == f"{lab.server.address}:443", path
