"""The first version and this one meet: as the two ends of a forward, as members of a room, as client and server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import Lab, Site, eventually
from tests.netns.older import OlderPtunnel
from tests.netns.programs import SERVER_PORT, Ptunnel, http_server, server_address

VERSIONS = {"older": OlderPtunnel, "today": Ptunnel}
MIXED = [("older", "older", "today"), ("older", "today", "older"), ("today", "older", "today"), ("today", "today", "older"),
         ("older", "today", "today"), ("today", "older", "older")]  # fmt: skip


def serve(lab: Lab, version: str) -> None:
    server = VERSIONS[version](lab, lab.server.host, "serve", "serve", "--listen", f"{lab.server.address}:{SERVER_PORT}")
    server.wait_event("listening")


def machine(lab: Lab, name: str) -> Site:
    site = lab.add_site(name, "prc")
    site.host.be_a_machine(name, lab.folder / f"etc-{name}")
    return site


def fetches(site: Site, port: int) -> bool:
    done = site.host.run("curl", "-s", "-m", "5", f"http://127.0.0.1:{port}/page", check=False)
    return done.stdout == "hello"


@pytest.mark.parametrize(("server", "exposer", "connector"), MIXED, ids=lambda word: word)
@pytest.mark.time_limit(180)
def test_a_forward_of_two_versions_works_by_code_and_by_name_and_goes_direct(
    lab: Lab, tmp_path: Path, server: str, exposer: str, connector: str
) -> None:
    serve(lab, server)
    home, friend = machine(lab, "home"), machine(lab, "friend")
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    exposing = VERSIONS[exposer](
        lab, home.host, "expose", "expose", "8000", "--keep", "--server", server_address(lab), "--name", "home"
    )
    code = exposing.wait_event("code")["code"]
    first = VERSIONS[connector](
        lab, friend.host, "connect", "connect", "--forward", "8000", "--server", server_address(lab), PTUNNEL_CODE=code,
        home=lab.folder / "home-friend",
    )  # fmt: skip
    first.wait_event("path", 40, kind="direct")
    eventually("a page by the code's link", lambda: fetches(friend, 8000), 20)
    first.interrupt()
    first.wait(30)
    second = VERSIONS[connector](
        lab, friend.host, "again", "connect", "home", "--forward", "8001:8000", home=lab.folder / "home-friend"
    )
    second.wait_event("path", 40, kind="direct")
    eventually("a page by the remembered peer's link", lambda: fetches(friend, 8001), 20)


@pytest.mark.parametrize(("server", "creator", "member"), MIXED[:4], ids=lambda word: word)
@pytest.mark.time_limit(180)
def test_a_room_of_two_versions_is_one_subnet(lab: Lab, server: str, creator: str, member: str) -> None:
    serve(lab, server)
    sites = [machine(lab, "anna"), machine(lab, "ben")]
    creating = VERSIONS[creator](
        lab, sites[0].host, "lan-anna", "lan", "create", "--name", "game", "--server", server_address(lab),
        home=lab.folder / "home-anna",
    )  # fmt: skip
    code = creating.wait_event("code")["code"]
    joining = VERSIONS[member](
        lab, sites[1].host, "lan-ben", "lan", "join", "--server", server_address(lab), PTUNNEL_CODE=code,
        home=lab.folder / "home-ben",
    )  # fmt: skip
    for program, other in ((creating, "ben"), (joining, "anna")):
        found = program.wait_event("member", 40, peer=other, state="online")
        space = sites[0].host if program is creating else sites[1].host
        for address in (found["address"], found["ipv6"]):
            words = ("ping", "-q", "-c", "1", "-W", "1", address)
            eventually(f"{other} answers at {address}", lambda s=space, w=words: s.run(*w, check=False).returncode == 0, 20)
