"""Bad input gets one sentence and its exit code: no traceback, nothing left hanging."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tunnel.cli.main import run

ONE_PEER = ("home",)
TWO_PEERS = ("home", "office")

#: arguments, names of remembered peers, exit code, a part of the sentence
CASES = [
    (["bogus"], (), 2, "There is no command 'bogus'"),
    (["conect"], (), 2, "did you mean 'ptunnel connect'"),
    (["connect", "--bogus"], (), 2, "--bogus"),
    (["connect"], (), 2, "no peer is remembered yet"),
    (["connect", "--new"], ONE_PEER, 2, "needs a code"),
    (["connect"], TWO_PEERS, 2, "name one, as in 'ptunnel connect home'"),
    (["connect", "stranger"], TWO_PEERS, 2, "known are home, office"),
    (["connect", "731-garden"], (), 2, "No peer called '731-garden'"),
    (["connect", "731-garden-violinn", "--server", "x"], (), 2, "did you mean 'violin'?"),
    (["connect", "731-garden-violin"], (), 2, "add --server HOST"),
    (["connect", "--forward", "0"], ONE_PEER, 2, "0:PORT"),
    (["connect", "--forward", "70000"], ONE_PEER, 2, "ports go from 1 to 65535"),
    (["connect", "--forward", "5000-5010:1-2"], ONE_PEER, 2, "differ in length"),
    (["connect", "--forward", "80/sctp"], ONE_PEER, 2, "stands tcp, udp or tcp+udp"),
    (["connect", "--forward", "8080", "--forward", "8080"], ONE_PEER, 2, "has already"),
    (["connect", "--stdio", "99999"], ONE_PEER, 2, "ports go from 1 to 65535"),
    (["connect", "--stdio", "22", "--json"], ONE_PEER, 2, "both want standard output"),
    (["connect", "--path", "fast"], ONE_PEER, 2, "'auto', 'direct', 'relay'"),
    (["connect", "--server", "300.1.1.1"], ONE_PEER, 2, "neither a host name nor an address"),
    (["connect", "--server", "rv:99999"], ONE_PEER, 2, "is no port"),
    (["connect", "--server", "[::1"], ONE_PEER, 2, "closing bracket"),
    (["connect", "--name", "a\nb"], ONE_PEER, 2, "printable"),
    (["expose"], (), 2, "ptunnel expose 22"),
    (["expose", "99999"], (), 2, "ports go from 1 to 65535"),
    (["expose", "22/icmp"], (), 2, "tcp, udp or tcp+udp"),
    (["expose", "192.168.1.5:445"], (), 2, "nas=192.168.1.5:445"),
    (["expose", "22", "--to", "stranger"], ONE_PEER, 2, "known are home"),
    (["expose", "--to", "home"], ONE_PEER, 2, "needs something to share"),
    (["expose", "--keep"], ONE_PEER, 2, "--keep"),
    (["serve", "--listen", "rv example"], (), 2, "neither a host name nor an address"),
    (["serve", "--listen", "127.0.0.1:99999"], (), 2, "is no port"),
    (["serve", "--access", "/nonexistent/access"], (), 2, "cannot be read"),
    (["peers", "forget", "stranger"], ONE_PEER, 2, "known are home"),
    (["peers", "rename", "home", "731-garden-violin"], ONE_PEER, 2, "looks like a code"),
    (["peers", "rename", "home", "office"], TWO_PEERS, 2, "Another peer is called"),
    (["status", "--check", "direct"], (), 5, "No ptunnel command of this home runs"),
    (["status", "--check", "direct", "--watch"], (), 2, "leave one of them out"),
    (["ping"], (), 5, "No ptunnel command of this home runs"),
    (["ping", "-c", "0"], (), 2, "range"),
]


@pytest.mark.parametrize(("arguments", "names", "code", "part"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_bad_input_gets_one_sentence(
    arguments: list[str], names: tuple[str, ...], code: int, part: str, remember: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(remember)
    for name in names:
        remember(name)
    assert run(arguments) == code
    shown = capsys.readouterr()
    if "--json" in arguments:
        assert json.loads(shown.out)["event"] == "error"
    else:
        assert shown.out == ""
    assert part in shown.err
    assert shown.err.startswith("ptunnel: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    assert "bug" not in shown.err


def test_json_errors_are_one_object_with_event_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["connect", "--json"]) == 2
    line = capsys.readouterr().out
    assert line.startswith('{"event": "error", "code": "usage", "message": ')
    assert json.loads(line)["message"].startswith("This needs a code")


@pytest.mark.parametrize("command", [["peers"], ["connect", "x"], ["expose"]])
def test_a_damaged_peers_file_is_named_and_left_alone(command: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir(mode=0o700)
    (home / "peers.json").write_text("{damaged")
    assert run(command) == 7
    assert "peers.json" in capsys.readouterr().err
    assert (home / "peers.json").read_text() == "{damaged"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("server = 5", "in quotes"),
        ('sever = "x"', "unknown setting"),
        ("server = ", "TOML"),
        ('path = "fast"', "auto, direct or relay"),
    ],
)
def test_a_bad_config_file_is_named(text: str, part: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(text)
    assert run(["connect", "somebody"]) in (2, 7)
    shown = capsys.readouterr().err
    assert "config.toml" in shown
    assert part in shown


def test_a_home_that_is_a_file_has_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTUNNEL_HOME", str(tmp_path / "file"))
    assert run(["status"]) == 7
    assert "not a directory" in capsys.readouterr().err


def test_a_port_in_use_is_said_before_anybody_is_asked(remember: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(remember)
    remember("home")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["connect", "home", "--forward", str(port)]) == 2
    assert str(port) in capsys.readouterr().err


def test_a_server_port_in_use_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        assert run(["serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}"]) == 2
    assert "in use" in capsys.readouterr().err
