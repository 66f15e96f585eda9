"""A room's code at `connect`, an exposer's at `lan join`: the right command is said, before anything is sent or kept."""

from __future__ import annotations

from pathlib import Path

import pytest

import tunnel
from tunnel.cli import prompt
from tunnel.cli.main import run

PORTS, ROOM = "731-garden-violin", "731-garden-violin-zoo"
IS_ROOM = "ptunnel: This is the code of a room: run 'sudo ptunnel lan join --server {}'.\n"
IS_PORTS = "ptunnel: This is the code of 'ptunnel expose', and of no room: run 'ptunnel connect --server {} --forward PORT'.\n"

CASES = [
    (["connect", ROOM, "--server", "rv.example.net"], None, IS_ROOM.format("rv.example.net")),
    (["connect", "--server", "rv:1234"], ROOM, IS_ROOM.format("rv:1234")),
    (["connect", ROOM], None, IS_ROOM.format("HOST")),
    (["connect", "731gardenviolinzoo"], None, IS_ROOM.format("HOST")),
    (["connect", f"{ROOM}@rv.example.net"], None, IS_ROOM.format("rv.example.net")),
    (["lan", "join", f"{PORTS}@rv.example.net"], None, IS_PORTS.format("rv.example.net")),
    (["lan", "join", PORTS, "--server", "rv.example.net:24531"], None, IS_PORTS.format("rv.example.net")),
    (["lan", "join", "--server", "[2001:db8::1]:24531"], PORTS, IS_PORTS.format("'[2001:db8::1]:24531'")),
    (["exec", "--room", PORTS, "--server", "rv", "--", "true"], None, IS_PORTS.format("rv")),
]


@pytest.mark.parametrize(("arguments", "code", "sentence"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_the_right_command_is_said_and_nothing_else_happens(
    arguments: list[str],
    code: str | None,
    sentence: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tunnel.room.verbs.require_host_interface", lambda: None)
    monkeypatch.setattr(
        "tunnel.shell.endpoint.EndpointDriver.__init__", lambda *_args, **_more: pytest.fail("an endpoint was made")
    )
    if code is not None:
        monkeypatch.setenv("PTUNNEL_CODE", code)
    assert run(arguments) == 2
    assert capsys.readouterr().err == sentence
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "answer", "sentence"),
    [
        (["connect", "--server", "rv"], ROOM, IS_ROOM.format("rv")),
        (["lan", "join", "--server", "rv"], PORTS, IS_PORTS.format("rv")),
    ],
)
def test_who_is_asked_for_a_code_hears_it_at_once(
    arguments: list[str], answer: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tunnel.room.verbs.require_host_interface", lambda: None)
    monkeypatch.setattr(prompt, "can_ask", lambda: True)
    monkeypatch.setattr(prompt, "_read_line", lambda text, candidates: answer)
    assert run(arguments) == 2
    assert capsys.readouterr().err == sentence


async def test_the_library_says_the_same(tmp_path: Path) -> None:
    with pytest.raises(tunnel.ConfigurationError, match="'sudo ptunnel lan join --server rv'"):
        async with tunnel.connect(ROOM, server="rv", home=tmp_path / "home"):
            pass
    with pytest.raises(tunnel.ConfigurationError, match="'ptunnel connect --server rv --forward PORT'"):
        async with tunnel.lan.join(PORTS, server="rv", home=tmp_path / "home"):
            pass
    assert not (tmp_path / "home").exists()
