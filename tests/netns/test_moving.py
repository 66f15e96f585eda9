"""A server that gets another address, as those of homes do, while its name follows it: in /etc/hosts here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import Lab, Site
from tests.netns.programs import SERVER_PORT, Ptunnel, http_server

NAME = "rv.example.net"
FOUND_S = 80.0  # until Lost, and then the longest pause between two looks at a name


def machine(lab: Lab, name: str) -> Site:
    site = lab.add_site(name, "prc")
    site.host.be_a_machine(name, lab.folder / f"etc-{name}")
    return site


def leads_to(lab: Lab, site: Site, address: str) -> None:
    hosts = lab.folder / f"etc-{site.name}" / "hosts"
    kept = [line for line in hosts.read_text(encoding="utf-8").splitlines() if NAME not in line]
    hosts.write_text("\n".join([*kept, f"{address}\t{NAME}", ""]), encoding="utf-8")


def serve(lab: Lab, site: Site) -> Ptunnel:
    """Wherever it stands, it is one server, with its secret."""
    server = Ptunnel(
        lab, site.host, "serve", "serve", "--listen", f"{site.address}:{SERVER_PORT}", home=lab.folder / "home-serve"
    )
    server.wait_event("listening")
    return server


@pytest.mark.time_limit(240)
def test_a_server_that_moves_is_found_by_its_name_and_peers_meet_there(lab: Lab, tmp_path: Path) -> None:
    home, friend, elsewhere = machine(lab, "home"), machine(lab, "friend"), lab.add_site("elsewhere", "open")
    for site in (home, friend):
        leads_to(lab, site, lab.server.address)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    server = serve(lab, lab.server)
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "--keep", "--server", NAME, "--name", "home")
    code = exposer.wait_event("code")["code"]
    first = Ptunnel(
        lab, friend.host, "connect", "connect", "--forward", "8000", "--server", NAME, PTUNNEL_CODE=code,
        home=lab.folder / "home-friend",
    )  # fmt: skip
    first.wait_event("path", 20, kind="direct")
    server.kill()
    serve(lab, elsewhere)
    exposer.wait_event("warning", code="server_lost")
    for site in (home, friend):
        leads_to(lab, site, elsewhere.address)
    assert exposer.wait_event("warning", FOUND_S, code="server_back")["message"] == f"The server {NAME} answers again."
    first.wait_event("warning", FOUND_S, code="server_back")
    second = Ptunnel(lab, friend.host, "again", "connect", "home", "--forward", "8001:8000", home=lab.folder / "home-friend")
    second.wait_event("forward")
    for port in (8000, 8001):
        done = friend.host.run("curl", "-sS", "--max-time", "10", f"http://127.0.0.1:{port}/page")
        assert done.stdout == "hello"
    for program in (exposer, first):
        told = [event["code"] for event in program.collect() if event["event"] == "warning"]
        assert told == ["server_lost", "server_back"]
