"""What `expose` and `revoke` say of grants, without a network."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tunnel.cli.expose import MOST_SHOWN, Exposing
from tunnel.cli.main import run
from tunnel.cli.render import Output
from tunnel.control.sockets import short_path
from tunnel.pairing.grants import GrantSet
from tunnel.settings import Settings
from tunnel.shell.events import CodeReady, Paired, Serving
from tunnel.state.home import Home

Remember = Callable[..., object]


def exposing(home: Path, *texts: str, to: tuple[str, ...] = ()) -> Exposing:
    grants = list(GrantSet.parse(*texts))
    return Exposing(Home(home), Settings(server="rv"), texts, grants, to, False, Output())


def test_with_a_code_it_is_said_who_else_may_reach_what(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = exposing(home, "22")
    one._handle(Serving(peer="cleo", grants=("tcp/8080", "udp/53")))
    assert capsys.readouterr().err == "", "the code comes first"
    one._handle(CodeReady(code="731-garden-violin", expires_s=600))
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Sharing tcp/22 of this machine with one new peer.")
    assert shown[-1] == "Also serving cleo: tcp/8080 and udp/53."


def test_with_to_everything_is_said_that_they_may_reach(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = exposing(home, "9090", to=("FRIEND",))
    one._handle(Serving(peer="cleo", grants=("tcp/8080",)))
    one._handle(Serving(peer="friend", grants=("tcp/22", "tcp/8080", "tcp/9090")))
    one._introduce_remembered()
    assert capsys.readouterr().err.splitlines() == [
        "friend may reach tcp/22, tcp/8080 and tcp/9090 of this machine. No code is needed.",
        "Also serving cleo: tcp/8080.",
    ]


def test_a_start_that_serves_thousands_fills_no_screen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = exposing(home)
    for number in range(MOST_SHOWN + 30):
        one._handle(Serving(peer=f"p{number}", grants=("tcp/22",)))
    one._introduce_remembered()
    shown = capsys.readouterr().err.splitlines()
    assert (shown[0], shown[-1]) == ("Serving p0: tcp/22.", "And 30 other peers: 'ptunnel peers' lists them.")
    assert len(shown) == MOST_SHOWN + 1


def test_a_change_while_it_runs_is_said_and_what_a_new_peer_got_is_not_said_twice(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = exposing(home, "22")
    one._exposure = object()  # type: ignore[assignment]  # it stands
    one._handle(Paired(peer="ben", fingerprint="SHA256:x"))
    one._handle(Serving(peer="ben", grants=("tcp/22",)))
    one._handle(Serving(peer="cleo", grants=("tcp/22",)))
    one._handle(Serving(peer="ben", grants=()))
    one._handle(Paired(peer="dan", fingerprint="SHA256:y"))
    one._handle(Serving(peer="dan", grants=("tcp/22", "tcp/80")))
    assert capsys.readouterr().err.splitlines() == [
        "Paired with 'ben'.",
        "cleo may reach tcp/22 of this machine now.",
        "ben may reach nothing of this machine any more.",
        "Paired with 'dan'.",
        "dan may reach tcp/22 and tcp/80 of this machine now.",
    ]


@pytest.fixture
def older(home: Path) -> Iterator[int]:
    """A process of this home that knows neither `grant` nor `look`."""
    run_dir = Home(home).run_dir()
    answer = json.dumps({"event": "error", "code": "bad_request", "message": "control request: Invalid value 'look'"}).encode()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        with short_path(run_dir / "4242.sock") as spelling:
            listener.bind(spelling)
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(4096):
                        connection.sendall(answer + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield 4242
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(1.0)


@pytest.mark.usefixtures("older")
def test_a_grant_is_taken_back_beside_an_older_version_and_that_is_said(
    remember: Remember, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remember("ben")
    assert run(["revoke", "ben", "tcp/22"]) == 0
    shown = capsys.readouterr().err
    assert "Process 4242 is an older ptunnel" in shown
    assert shown.endswith("ben may reach nothing of this machine any more.\n")
    assert Home(home).peer("ben").grants == []


@pytest.mark.usefixtures("older")
def test_an_older_running_expose_is_not_believed_to_serve_what_it_did_not_understand(
    remember: Remember, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remember("ben")
    before = (home / "peers.json").read_bytes()
    with Home(home).lock_expose():
        assert run(["expose", "3389", "--to", "ben"]) == 8
    assert "serves this home already" in capsys.readouterr().err
    assert (home / "peers.json").read_bytes() == before


def test_what_is_left_is_said(remember: Remember, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember("ben")
    record = Home(home).peer("ben")
    Home(home).update_peer(record.static, grants=GrantSet.parse("22", "53/udp", "8080").to_dicts())
    assert run(["revoke", "ben", "8080", "53"]) == 0
    assert capsys.readouterr().err == ("ben may not reach tcp/8080 and udp/53 of this machine any more. What is left: tcp/22.\n")


def test_alone_with_nothing_shared_it_says_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tunnel.state.peers import Peer

    Home(home).save_peer(Peer(name="my home", static=bytes(32), psk=bytes(32)))
    assert run(["expose"]) == 2
    assert capsys.readouterr().err == (
        "ptunnel: You share nothing with my home. To share: 'ptunnel expose PORT --to \"my home\"'. "
        "To reach it: 'ptunnel connect \"my home\" --forward PORT'.\n"
    )


def test_whoever_shares_more_beside_a_running_expose_is_told_how(
    remember: Remember, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remember("ben")
    with Home(home).lock_expose():
        assert run(["expose", "3389", "8080", "--server", "none"]) == 8
        shown = capsys.readouterr().err
        assert "stop it first" in shown
        assert "'ptunnel expose 3389 8080 --to NAME' has that process share it." in shown
        assert run(["expose"]) == 8  # nothing more to share: no such advice
        assert "--to NAME" not in capsys.readouterr().err
