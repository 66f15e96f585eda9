"""Programs that start before their machine has a network: each waits, says so once, and does what it was started for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.netns.lab import Lab, Site
from tests.netns.programs import Ptunnel, ptunnel, server_address, start_server
from tests.netns.test_lan_rooms import code_of, machine
from tests.twins.notify import Manager

UP_S = 40.0  # seconds for a program to begin once there is a network


def unplug(site: Site) -> None:
    site.host.ip("addr flush dev eth0\nlink set eth0 down")


def plug_in(site: Site) -> None:
    inner = site.address.rpartition(".")[0]
    site.host.ip(f"link set eth0 up\naddr add {site.address}/24 dev eth0\nroute add default via {inner}.1")


def run(lab: Lab, site: Site, name: str, *words: str, code: str = "") -> Ptunnel:
    environment = {"PTUNNEL_CODE": code} if code else {}
    home = lab.folder / f"home-{name}"
    return Ptunnel(lab, site.host, name, *words, "--server", server_address(lab), home=home, **environment)


def warned(program: Ptunnel) -> list[str]:
    return [event["code"] for event in program.collect() if event["event"] == "warning" and event["code"] != "nothing_listens"]


@pytest.mark.time_limit(240)
def test_whoever_starts_without_a_network_waits_for_it(lab: Lab) -> None:
    start_server(lab)
    home, friend = machine(lab, "home"), machine(lab, "friend")
    unplug(home)
    exposing = run(lab, home, "exposing", "expose", "8000")
    creating = run(lab, home, "creating", "lan", "create", "game")
    for program in (exposing, creating):
        assert "not connected to a network" in program.wait_event("warning", UP_S, code="no_network")["message"]
    for words in (["expose", "8000"], ["lan", "create"], ["connect", "731-garden-violin", "--forward", "0:1"]):
        done = ptunnel(home.host, lab.folder / "once", *words, "--once", "--json", "--server", server_address(lab), timeout=60)
        assert done.returncode == (5 if words[0] == "connect" else 3), done
        assert "not connected to a network" in json.loads(done.stdout.splitlines()[-1])["message"]
    unplug(friend)
    plug_in(home)
    code, room_code = (str(program.wait_event("code", UP_S)["code"]) for program in (exposing, creating))
    connecting = run(lab, friend, "connecting", "connect", "--forward", "0:8000", code=code)
    joining = run(lab, friend, "joining", "lan", "join", code=room_code)
    for program in (connecting, joining):
        assert "not connected to a network" in program.wait_event("warning", UP_S, code="no_network")["message"]
    plug_in(friend)
    connecting.wait_event("forward", UP_S)
    joining.wait_event("member", UP_S, peer="home", state="online")
    for program in (exposing, creating, connecting, joining):
        assert warned(program).count("no_network") == 1, program.said()
        assert program.process.poll() is None


def exec_words(lab: Lab, *words: str) -> list[str]:
    return ["exec", "--json", "--server", server_address(lab), "--as", "ben", "--", *words]


def test_what_exec_says_as_json_is_as_the_page_says_and_a_command_that_is_none_an_error(lab: Lab, tmp_path: Path) -> None:
    from tests.schema import schema

    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    creator = Ptunnel(
        lab, anna.host, "creator", "lan", "create", "--server", server_address(lab), home=lab.folder / "home-anna"
    )  # fmt: skip
    code = code_of(creator)
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    for command, exit_code, last in (
        ("true", 0, None),
        (str(script), 127, "command_not_found"),
        ("no-such-command", 127, "command_not_found"),
        ("/etc/passwd", 126, "command_not_run"),
    ):
        done = ptunnel(ben.host, lab.folder / "home-ben", *exec_words(lab, command), timeout=60, PTUNNEL_CODE=code)
        assert (done.returncode, done.stdout) == (exit_code, ""), done
        lines = done.stderr.splitlines()
        assert [problem for line in lines for problem in schema().line_problems(line)] == []
        events = [json.loads(line) for line in lines]
        assert [event["code"] for event in events if event["event"] == "error"] == ([last] if last else [])
        if last is not None:
            assert events[-1]["event"] == "error"
        if command in ("true", str(script)):
            assert {"listening", "member"} <= {event["event"] for event in events}


def test_a_server_that_is_a_service_listens_as_soon_as_its_address_is_there(lab: Lab) -> None:
    home = machine(lab, "home")
    unplug(home)
    with Manager() as manager:
        server = Ptunnel(
            lab, home.host, "server", "serve", "--listen", home.address, home=lab.folder / "home-server", **manager.variables
        )
        server.wait_event("warning", UP_S, code="address_absent")
        assert "Waiting" in manager.until("READY")["STATUS"]
        plug_in(home)
        server.wait_event("listening", UP_S, bind=f"{home.address}:24531")
        assert manager.until("READY")["STATUS"] == f"Serving on udp {home.address}:24531"
