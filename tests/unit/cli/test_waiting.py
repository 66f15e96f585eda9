"""Nothing waits without a word: a link that carries nothing, an attempt that takes long, a command in the background."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.unit.cli.test_screen import STATUS
from tunnel.cli import render
from tunnel.cli.connect import ABSENT_PATIENCE, Connecting, patience
from tunnel.cli.expose import Exposing
from tunnel.cli.lan import Playing
from tunnel.cli.render import LONG_WAIT, Output, path_line, short_path
from tunnel.cli.status import process_page
from tunnel.errors import PairingError
from tunnel.ports.serve import Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.settings import Settings
from tunnel.state.home import Home

SILENT = {**STATUS, "peer": "home", "reachable": False, "why": "home is silent, and is waited for"}


def test_a_link_that_carries_nothing_is_shown_as_waiting_and_not_by_its_last_path() -> None:
    for status in (SILENT, {**SILENT, "kind": "relay"}):
        assert short_path(status) == path_line(status) == "waiting for home"
    assert short_path({**SILENT, "reachable": True}) == "direct, 22 ms  up 113 B/s  down 0 B/s"
    older = {key: value for key, value in SILENT.items() if key != "reachable"}
    assert path_line(older).startswith("direct"), "an older process does not say"


def test_status_shows_a_silent_peer_as_waited_for() -> None:
    links = [{**SILENT, "kind": kind, "streams": 0} for kind in ("direct", "relay")]
    lines = process_page({"event": "status", "pid": 7, "role": "connect", "uptime_s": 5, "links": links})
    assert [line.split("  loss")[0] for line in lines[1:]] == ["  waiting for home"] * 2


def test_status_of_who_waits_names_the_server_in_use_and_those_that_stand_by_and_what_peers_listen_for() -> None:
    servers = [
        {"server": "203.0.113.1:24531", "role": "in_use", "rtt_s": 0.01, "why": "the first that answered"},
        {"server": "203.0.113.2:24531", "role": "stands_by", "rtt_s": 0.02, "why": "peers are awaited there, too"},
        {"server": "203.0.113.3:24531", "role": "idle", "rtt_s": 0.02, "why": "nothing is asked of it now"},
    ]
    remotes = [
        {"bind": "127.0.0.1:8080", "target": "127.0.0.1:3000", "peer": "ben", "listening": True, "rate": 10e6},
        {"bind": "127.0.0.1:8081", "target": "127.0.0.1:3001", "peer": "ben", "listening": False},
    ]
    home: dict[str, Any] = {"event": "status", "pid": 7, "role": "up", "uptime_s": 5, "links": []}
    assert process_page({**home, "servers": servers, "remotes": remotes})[1:] == [
        "    server 203.0.113.1:24531 in use: the first that answered",
        "    server 203.0.113.2:24531 stands by: peers are awaited there, too",
        "    127.0.0.1:8080 of ben -> 127.0.0.1:3000 here  at most 10.0 MB/s each way",
        "    127.0.0.1:8081 of ben -> 127.0.0.1:3001 here  not yet",
    ]
    assert len(process_page({**home, "servers": servers[:1]})) == 2
    assert len(process_page({**home, "servers": servers[:1], "links": [SILENT]})) == 2


@pytest.mark.parametrize("kind", ["direct", "relay"])
def test_the_live_lines_of_both_sides_say_whom_they_wait_for(home: Path, kind: str) -> None:
    link: Any = SimpleNamespace(peer_name="home", status=lambda: SimpleNamespace(to_dict=lambda: {**SILENT, "kind": kind}))
    settings = Settings(server="rv.example.net")
    with Listeners(parse_forwards(["0:22"])) as listeners:
        connecting = Connecting(Home(home), settings, "home", None, listeners, Output(), 1.0, None)
        connecting._link = link
        *forwards, path = connecting._lines()
        assert "-> home tcp/22" in forwards[0][0]
        assert path == ("waiting for home ... (Ctrl-C ends it)", True)
    exposing = Exposing(Home(home), settings, ["22"], [], [], False, Output())
    exposing._exposure = SimpleNamespace(links=[link])  # type: ignore[assignment]
    assert exposing._lines() == [("waiting for home", False)]


@pytest.mark.parametrize("is_json", [False, True])
async def test_a_long_attempt_is_spoken_of_once(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, is_json: bool
) -> None:
    output = Output(is_json=is_json)
    async with output.live(list):
        output.wait_for("Connecting to 'home'")
        await trio.sleep(LONG_WAIT - 0.1)
        assert capsys.readouterr() == ("", "")
        await trio.sleep(10 * LONG_WAIT)
        output.wait_for("Connecting to 'home'")  # the next attempt at the same
        await trio.sleep(10 * LONG_WAIT)
        output.wait_for("")
        await trio.sleep(10 * LONG_WAIT)
    shown = capsys.readouterr()
    text = "Connecting to 'home': still trying (Ctrl-C ends it)."
    if is_json:
        assert [{**json.loads(line), "time": ""} for line in shown.out.splitlines()] == [
            {"event": "warning", "code": "takes_long", "message": text, "time": ""}
        ]
    else:
        assert [line[21:] for line in shown.err.splitlines()] == [text]


async def test_a_room_that_does_not_answer_for_long_is_spoken_of_to_who_has_no_table(
    home: Path, capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    """`exec` and `lan` without a terminal."""

    @asynccontextmanager
    async def enter(_handle: object) -> AsyncIterator[None]:
        await trio.sleep(32)
        raise PairingError("not let in")
        yield

    playing = Playing(Home(home), Settings(server="rv.example.net"), Output(may_be_live=False), enter)
    with pytest.raises(PairingError):
        async with playing.room(lambda: None):
            pass
    assert [line[21:] for line in capsys.readouterr().err.splitlines()] == [
        "Entering the room: still trying (Ctrl-C ends it)."
    ]  # fmt: skip


async def test_who_waits_long_is_told_what_can_be_looked_at_on_a_terminal_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    Terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")
    output = Output()
    output.is_live = True
    async with output.live(lambda: [output.waiting_line()]):
        for advice in ("", "Is it switched on?"):
            output.wait_for("Connecting to 'home'", advice)
            await trio.sleep(10 * LONG_WAIT)
            shown = capsys.readouterr().err
            assert ("Connecting to 'home': still trying (Ctrl-C ends it). Is it switched on?" in shown) == bool(advice)
            assert "... 30 s (Ctrl-C ends it)" in shown
            output.wait_for("")


async def test_where_something_was_said_meanwhile_and_where_it_did_not_take_long_nothing_is_added(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    output = Output()
    async with output.live(list):
        output.wait_for("Meeting the server")
        await trio.sleep(1)
        output.wait_for("")
        await trio.sleep(10 * LONG_WAIT)
        output.wait_for("Connecting to 'home'")
        output.warn("home does not answer. Waiting.")
        await trio.sleep(10 * LONG_WAIT)
    assert [line[21:] for line in capsys.readouterr().err.splitlines()] == ["home does not answer. Waiting."]


async def test_the_live_line_says_for_how_long_it_tries(autojump_clock: MockClock) -> None:
    output = Output()
    assert output.waiting_line("Waiting for a peer") == ("Waiting for a peer ... (Ctrl-C ends it)", True)
    output.wait_for("Connecting to 'home'")
    assert output.waiting_line() == ("Connecting to 'home' ... (Ctrl-C ends it)", True)
    await trio.sleep(42)
    assert output.waiting_line() == ("Connecting to 'home' ... 42 s (Ctrl-C ends it)", True)


class Terminal:
    """Of which this process is in front, or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_in_front = True
        self.drawn: list[str] = []
        monkeypatch.setattr(render, "is_in_front", lambda: self.is_in_front)
        draw = render._picture

        def note(lines: Sequence[render.Line]) -> Any:
            self.drawn += [text for text, _spins in lines]
            return draw(lines)

        monkeypatch.setattr(render, "_picture", note)
        monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes the captured stream for a terminal
        monkeypatch.setenv("TERM", "xterm")


async def test_in_the_background_nothing_is_drawn_and_lines_are_plain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    terminal = Terminal(monkeypatch)
    terminal.is_in_front = False
    output = Output()
    output.is_live = True
    async with output.live(lambda: [("the path", False)]):
        assert not output.shows_live
        output.wait_for("Connecting to 'home'")
        await trio.sleep(2 * LONG_WAIT)
        output.log("home is connected")
        assert terminal.drawn == []
        said = capsys.readouterr().err
        assert "\x1b" not in said
        assert [line[21:] for line in said.splitlines()] == [
            "Connecting to 'home': still trying (Ctrl-C ends it).", "home is connected"
        ]  # fmt: skip
        terminal.is_in_front = True  # fg
        await trio.sleep(5)
        assert "the path" in capsys.readouterr().err
        terminal.is_in_front = False  # Ctrl-Z, bg
        terminal.drawn.clear()
        output.log("home is away")
        await trio.sleep(5)
        said = capsys.readouterr().err
        assert said.splitlines()[0].endswith("  home is away")
        assert len(said.splitlines()) == 1
        terminal.is_in_front = True  # the picture stands below what was said meanwhile, and above nothing of it
        await trio.sleep(5)
        assert set(terminal.drawn) == {"the path"}
        assert "\x1b[1A" not in capsys.readouterr().err.partition("the path")[0]
        terminal.is_in_front = False
        terminal.drawn.clear()
    assert terminal.drawn == []
    assert "the path" not in capsys.readouterr().err


def test_a_peer_that_is_away_is_waited_for_but_not_for_ever_by_who_asked_for_one_connection() -> None:
    """`--once` and `--stdio`, as the help says."""
    assert patience(None, stays=True, has_code=False) == math.inf
    assert patience(None, stays=False, has_code=False) == ABSENT_PATIENCE
    assert patience(None, stays=False, has_code=True) == math.inf, "pairing has limits of its own"
    assert patience(5.0, stays=False, has_code=False) == patience(5.0, stays=True, has_code=False) == 5.0
