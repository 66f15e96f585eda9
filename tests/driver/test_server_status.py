"""What a running server shows: `status` of it, and its addresses as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import Lab, echo_through, pair


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_status_shows_the_server_that_runs_here(lab: Lab, tmp_path: Path) -> None:
    listening = lab.server_program.wait("listening")
    assert listening["second"] != listening["bind"]
    _exposing, connecting, bind = pair(lab)
    assert echo_through(bind, b"hello") == b"hello"
    connecting.wait("path", kind="direct")
    home = tmp_path / "server"
    [status] = map(json.loads, lab.ask(home, "status", "--json").stdout.splitlines())
    assert (status["role"], status["listening"], status["links"]) == ("serve", [lab.server], [])
    assert status["clients"] == 2
    assert status["refused"] == 0
    assert status["counters"]["did_claimed"] == 1
    first, *places = lab.ask(home, "status").stdout.splitlines()
    assert first.startswith(f"serve  process {lab.server_program.process.pid}  for ")
    assert "2 clients" in first
    assert places == [f"    {lab.server}"]
    assert lab.ask(home, "ping").returncode == 5
    assert lab.server_program.events[-1]["event"] == "listening"
