"""The page of a real `ptunnel up`: found by `ptunnel page`, shown, and used to change what runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from tests.driver.programs import PATIENCE_S, Lab, Program, echo_through
from tests.driver.ups import acquaint, configure
from tunnel.cli import page as cli
from tunnel.cli.main import run
from tunnel.control.messages import FindPage
from tunnel.page.gate import token_of
from tunnel.state.home import Home as StateHome

pytestmark = pytest.mark.time_limit(180)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(lab: Lab, folder: Path, page: str) -> Program:
    """A home `ann` whose page is there; it remembers `ben`, who shares the echo with it."""
    if not (folder / "ann").exists():
        acquaint(lab.server, ann=folder / "ann", ben=folder / "ben")
        configure(folder / "ann", f'# mine\npage = "{page}"\n')
        configure(folder / "ben", f'[[expose]]\nwhat = ["{lab.port}"]\nto = ["ann"]\n')
        lab.run(folder / "ben", "up")
    return lab.run(folder / "ann", "up")


def find(lab: Lab, folder: Path) -> dict[str, Any]:
    """What `ptunnel page` says, once it says something."""
    end = time.monotonic() + 3 * PATIENCE_S
    while True:
        done = lab.ask(folder / "ann", "page", "--json")
        if not done.returncode or time.monotonic() > end:
            assert done.returncode == 0, done.stdout + done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        time.sleep(0.1)


class Tab:
    """What the page's script does, with the token of an address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.where = parts.hostname, parts.port
        self.fields = {"Authorization": f"Bearer {parts.fragment}", "Content-Type": "application/json"}

    def do(self, **action: Any) -> dict[str, Any]:
        with contextlib.closing(http.client.HTTPConnection(*self.where, timeout=PATIENCE_S)) as connection:
            connection.request("POST", "/do", json.dumps(action), self.fields)
            found: dict[str, Any] = json.load(connection.getresponse())
            return found

    def state(self) -> dict[str, Any]:
        with contextlib.closing(http.client.HTTPConnection(*self.where, timeout=PATIENCE_S)) as connection:
            connection.request("GET", "/events", headers=self.fields)
            answer = connection.getresponse()
            assert answer.status == 200
            found: dict[str, Any] = json.loads(answer.readline().removeprefix(b"data: "))
            return found


def test_the_page_shows_and_changes_a_running_home(lab: Lab, tmp_path: Path) -> None:
    port = free_port()
    up = start(lab, tmp_path, f"127.0.0.1:{port}")
    page = find(lab, tmp_path)
    token = token_of(StateHome(tmp_path / "ann").page_secret())
    assert (page["url"], page["socket"]) == (f"http://127.0.0.1:{port}/#{token}", None)
    tab = Tab(page["url"])
    assert [each["peer"] for each in tab.state()["peers"]] == ["ben"]
    spec = f"{free_port()}:{lab.port}"
    assert tab.do(do="add_forward", peer="ben", spec=spec)["event"] == "done"
    [forward] = tab.state()["forwards"]
    assert (forward["peer"], forward["spec"]) == ("ben", spec)
    assert echo_through(forward["bind"], b"through") == b"through"
    assert tab.state()["links"][0]["peer"] == "ben"
    written = (tmp_path / "ann" / "config.toml").read_text()
    assert written.startswith("# mine\n")
    assert spec in written
    assert tab.do(do="grant", peer="ben", what=["7001", "7002"])["event"] == "done"
    assert tab.do(do="revoke", peer="ben", what=["7001"])["event"] == "done"
    assert tab.state()["peers"][0]["grants"] == ["tcp/7002"]
    assert "7001" in tab.do(do="revoke", peer="ben", what=["7001"])["message"]
    assert tab.do(do="grant", peer="zoe", what=["1"])["event"] == "error"
    offered = tab.do(do="invite", what=["7003"])
    assert offered["command"].startswith(f"ptunnel connect {offered['code']}@")
    assert offered["command"].endswith("--forward 7003")
    assert tab.do(do="remove_forward", peer="ben", spec=spec)["event"] == "done"
    assert tab.state()["forwards"] == []
    assert spec not in (tmp_path / "ann" / "config.toml").read_text()
    assert up.end()[0] == 130


def test_an_open_page_works_after_a_restart(lab: Lab, tmp_path: Path) -> None:
    up = start(lab, tmp_path, f"127.0.0.1:{free_port()}")
    page = find(lab, tmp_path)
    before = Tab(page["url"]).state()
    up.end()
    start(lab, tmp_path, "")
    assert find(lab, tmp_path)["url"] == page["url"]
    after = Tab(page["url"]).state()
    assert after["pid"] != before["pid"]
    assert after["peers"] == before["peers"]


def test_a_place_that_is_taken_costs_the_page_alone(lab: Lab, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        up = start(lab, tmp_path, f"127.0.0.1:{other.getsockname()[1]}")
        assert "choose another port" in up.wait("warning", code="no_page")["message"]
        done = lab.ask(tmp_path / "ann", "page")
        assert (done.returncode, "ptunnel config page" in done.stderr) == (2, True)


def test_a_page_at_a_unix_socket_is_its_owners_alone(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    start(lab, tmp_path, f"unix:{path}")
    page = find(lab, tmp_path)
    assert page["socket"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"ssh -L 24580:{path}" in lab.ask(tmp_path / "ann", "page").stderr


def test_a_page_that_others_could_reach_is_refused_before_anything_runs(tmp_path: Path) -> None:
    configure(tmp_path / "ann", 'page = "0.0.0.0:24580"\n')
    program = Program(tmp_path / "ann", "up")
    try:
        assert program.join() == 2
        assert "config.toml:1: page: 0.0.0.0 can be reached from other machines" in program.events[-1]["message"]
    finally:
        program.close()


def test_without_a_running_home_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PTUNNEL_HOME", str(tmp_path / "ann"))
    assert run(["page"]) == 5
    assert "'ptunnel up' does not run" in capsys.readouterr().err


def test_the_token_is_not_among_the_words_that_a_browser_is_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def answer(_home: object, request: object, on_answer: Any) -> None:
        assert request == FindPage()
        on_answer({"event": "page", "url": "http://127.0.0.1:24580/#TOKEN", "socket": None})

    (tmp_path / "ann").mkdir(mode=0o700)
    monkeypatch.setenv("PTUNNEL_HOME", str(tmp_path / "ann"))
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setattr(cli, "require_up", answer)
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    shown = CliRunner().invoke(cli.command, [])
    assert shown.output == "http://127.0.0.1:24580/#TOKEN\n"
    leader = tmp_path / "ann" / cli.LEADER
    assert opened == [leader.as_uri()]
    assert stat.S_IMODE(leader.stat().st_mode) == 0o600
    assert "url=http://127.0.0.1:24580/#TOKEN" in leader.read_text()
    CliRunner().invoke(cli.command, ["--print"])
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    CliRunner().invoke(cli.command, [])
    assert len(opened) == 1
