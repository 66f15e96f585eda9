"""What is said of somebody whom nothing is connected to: a member of a room that is away, or a peer that does not answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel.ports.connecting
from tests.schema import schema
from tests.unit.cli.test_doctor import examination
from tunnel.cli import doctor
from tunnel.cli.main import run
from tunnel.control.server import Process, serve_control
from tunnel.shell.events import Trouble
from tunnel.state.home import Home

Remember = Callable[..., object]
ROOM = "127.0.0.1:9"  # its server
AWAY = "ben is a member of the room 'game', and away: it has no connection just now."
CONNECTING = "cleo is a member of the room 'game', and is just being connected."


def member(name: str, *, is_online: bool = False, is_me: bool = False) -> dict[str, Any]:
    return {"peer": name, "address": "10.1.2.3", "ipv6": "fd00::3", "online": is_online, "self": is_me, "creator": is_me}


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers as a process in a room does: anna is this machine, ben is away, cleo is being connected."""
    members = [member("anna", is_online=True, is_me=True), member("ben"), member("cleo", is_online=True)]
    status = {"event": "status", "pid": 7, "role": "lan", "uptime_s": 1.0, "links": [], "room": "game", "server": ROOM,
              "members": members}  # fmt: skip

    async def ask_all(_run_dir: Path, _request: object, on_answer: Callable[[int, dict[str, Any]], None]) -> int:
        on_answer(7, status)
        return 1

    monkeypatch.setattr("tunnel.control.client.ask_all", ask_all)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The servers that were asked."""
    asked: list[str] = []

    async def examine(server: str, **_options: Any) -> Any:
        asked.append(server)
        return examination()

    monkeypatch.setattr("tunnel.shell.doctor.examine", examine)
    return asked


def meet(monkeypatch: pytest.MonkeyPatch, *troubles: Trouble) -> None:
    """Nobody is met, and this is said meanwhile."""

    @asynccontextmanager
    async def connect(**options: Any) -> AsyncIterator[None]:
        for each in troubles:
            options["on_event"](each)
        await trio.sleep_forever()
        yield None

    monkeypatch.setattr(tunnel.ports.connecting, "connect", connect)
    monkeypatch.setattr(doctor, "MEET_S", 0.01)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ben", f"{AWAY} Run 'ptunnel doctor' there."),
        ("cleo", f"{CONNECTING} Run 'ptunnel doctor' there."),
        ("anna", "anna is this machine, in the room 'game': name another member."),
    ],
)
def test_the_doctor_knows_members_of_a_running_room_that_have_no_link(
    name: str, said: str, room: None, examined: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", name, "--json"]) == 5
    shown = capsys.readouterr()
    answer, error = map(json.loads, shown.out.splitlines())
    assert [problem for line in shown.out.splitlines() for problem in schema().line_problems(line)] == []
    assert (answer["peer"]["link"], answer["peer"]["sentences"]) == (None, [said])
    assert (error["code"], error["message"]) == ("peer_unreachable", said)
    assert examined == [ROOM], "the room's own server"


def test_a_member_that_is_remembered_too_may_be_met_beside_the_room(
    room: None, examined: list[str], remember: Remember, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remember("ben")
    meet(monkeypatch)
    assert run(["doctor", "ben"]) == 5
    assert AWAY in capsys.readouterr().err


def test_of_a_peer_that_is_not_met_the_doctor_says_what_was_heard(
    examined: list[str], remember: Remember, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remember("home")
    absent = "The server has led us to home, and no answer comes from there yet. Waiting."
    clock = "The clock of this computer is 3 hours behind what it showed home before. Set it, if it is wrong now."
    meet(monkeypatch, *(Trouble(code=code, message=text) for code, text in (("peer_absent", absent), ("clock_off", clock)) * 2))
    assert run(["doctor", "home", "--json"]) == 5
    answer, error = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["peer"]["sentences"] == [absent.removesuffix(" Waiting."), clock]
    assert error["message"] == absent.removesuffix(" Waiting.")
    meet(monkeypatch)
    assert run(["doctor", "home"]) == 5
    assert "home was not reached within" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["ping"], ["bench", "--time", "0.1"], ["ping", "--until-direct"]])
def test_who_measures_hears_that_a_member_is_away(verb: list[str], home: Path) -> None:
    """Over the control socket of a process in the room."""

    async def session() -> tuple[int, int]:
        process = Process(role="lan", links=list, absent={"ben": AWAY}.get)
        async with serve_control(Home(home).run_dir(), process):
            asking = [sys.executable, "-m", "tunnel", *verb]
            environment = {**os.environ, "PTUNNEL_HOME": str(home)}
            done = [
                await trio.run_process([*asking, name], env=environment, capture_stderr=True, check=False)
                for name in ("ben", "zoe")
            ]
        said.extend(each.stderr.decode() for each in done)
        return done[0].returncode, done[1].returncode

    said: list[str] = []
    assert trio.run(session) == (5, 5)
    assert said == [f"ptunnel: {AWAY}\n", "ptunnel: No running command has a link to zoe.\n"]
