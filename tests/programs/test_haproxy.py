"""haproxy: ptunnel's TLS shares TCP port 443 with a web server, told apart by the name that is asked for."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.driver.tls import make_certificate
from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Program, Ptunnel, checksum, environment, http_server, random_file, start_server
from tests.netns.test_tls import block_udp, fetch
from tests.programs.homes import SLOW_S, needs

pytestmark = [pytest.mark.nightly, pytest.mark.time_limit(240), needs("haproxy", "openssl", "curl")]

NAME, WEB = "rv.example.net", "www.example.net"
PATIENCE_S = 15  # after which haproxy ends a connection on which nothing happens
FILE_BYTES = 3_000_000
SETTINGS = """
defaults
    mode tcp
    timeout connect 10s
    timeout client %(patience)ds
    timeout server %(patience)ds
frontend everybody
    bind %(address)s:443
    tcp-request inspect-delay 10s
    tcp-request content accept if { req_ssl_hello_type 1 }
    use_backend ptunnel if { req_ssl_sni -i %(name)s }
    default_backend web
backend ptunnel
    server one %(address)s:8443
backend web
    server one 127.0.0.1:9443
"""


def machine(lab: Lab, name: str) -> Site:
    """A home whose network blocks UDP, and which knows the names."""
    site = lab.add_site(name, "prc")
    folder = lab.folder / f"etc-{name}"
    site.host.be_a_machine(name, folder)
    with (folder / "hosts").open("a", encoding="ascii") as hosts:
        hosts.write(f"{lab.server.address}\t{NAME} {WEB}\n")
    block_udp(site)
    return site


def test_both_sides_without_udp_meet_behind_it_and_stay_connected_in_silence(lab: Lab) -> None:
    home, friend = machine(lab, "home"), machine(lab, "friend")
    ours, other = make_certificate(lab.folder, NAME, authority=True), make_certificate(lab.folder, WEB, stem="web")
    server = start_server(lab, "--tls-cert", ours.certificate, "--tls-key", ours.key, "--tls-port", "8443")
    server.wait_event("listening", tls=ours.fingerprint)
    settings = lab.folder / "haproxy.cfg"
    settings.write_text(SETTINGS % {"address": lab.server.address, "name": NAME, "patience": PATIENCE_S}, encoding="ascii")
    env = environment(lab.folder / "front")
    words = ["openssl", "s_server", "-accept", "127.0.0.1:9443", "-cert", other.certificate, "-key", other.key, "-www"]
    Program(lab, lab.server.host, "web", words, env=env)
    front = Program(lab, lab.server.host, "haproxy", ["haproxy", "-db", "-f", settings], env=env)

    def listens() -> bool:
        assert front.process.poll() is None, front.said()
        listed = lab.server.host.run("ss", "-Hlnt").stdout
        return ":443 " in listed and ":9443 " in listed

    eventually("haproxy and what is behind it", listens, SLOW_S)
    served = lab.folder / "served"
    served.mkdir()
    digest = random_file(served / "file", FILE_BYTES)
    http_server(lab, home.host, served)
    trusted: dict[str, Any] = {"SSL_CERT_FILE": ours.certificate}
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "--server", NAME, **trusted)
    code = exposer.wait_event("code", SLOW_S)["code"]
    words = ["connect", "--server", NAME, "--forward", "8000"]
    connector = Ptunnel(lab, friend.host, "connect", *words, PTUNNEL_CODE=code, **trusted)
    connector.wait_event("forward", SLOW_S)
    assert "over TLS" in connector.wait_event("path", SLOW_S, kind="relay")["why"]
    assert fetch(friend, lab.folder / "taken") == digest
    assert "s_server" in friend.host.run("curl", "-sSk", "--max-time", "30", f"https://{WEB}/").stdout
    time.sleep(2.5 * PATIENCE_S)
    assert fetch(friend, lab.folder / "again") == digest == checksum(lab.folder / "taken")
    for program in (exposer, connector):
        assert "warning" not in program.kinds(), program.events
