"""The program itself, as real processes on loopback: serve, expose, connect, and what is asked of them while they run."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.driver.programs import PATIENCE_S, SOON, Lab, Program, echo_through, pair
from tests.driver.tls import make_certificate


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_two_pair_by_code_forward_and_meet_again_by_name(lab: Lab) -> None:
    exposing, connecting, bind = pair(lab)
    assert connecting.wait("paired", peer="home")["fingerprint"].startswith("SHA256:")
    exposing.wait("paired", peer="friend")
    assert echo_through(bind, b"hello" * 10_000) == b"hello" * 10_000
    connecting.wait("path", kind="direct")

    status = json.loads(lab.ask(lab.connector, "status", "--json").stdout)
    assert (status["event"], status["role"], status["links"][0]["peer"]) == ("status", "connect", "home")
    assert lab.ask(lab.connector, "status", "--check", "direct", "--wait", "10").returncode == 0
    pinged = lab.ask(lab.connector, "ping", "home", "--until-direct", "--json")
    assert (pinged.returncode, json.loads(pinged.stdout.splitlines()[-1])["kind"]) == (0, "direct")
    again = lab.expose()
    assert again.join() == 8
    assert again.events[-1]["code"] == "already_running"

    code, took = connecting.end(signal.SIGINT)
    assert code == 130
    assert took < SOON
    exposing.wait("closed", peer="friend")
    assert connecting.stderr() == ""

    by_name = lab.run(lab.connector, "connect", "--forward", f"0:{lab.port}")
    bind = by_name.wait("forward")["bind"]
    assert echo_through(bind, b"again") == b"again"
    talk = subprocess.run(
        [sys.executable, "-m", "tunnel", "connect", "home", "--stdio", str(lab.port)],
        env={**os.environ, "PTUNNEL_HOME": str(lab.connector)},
        input=b"over stdio",
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (talk.returncode, talk.stdout, talk.stderr) == (0, b"over stdio", b"")
    code, took = exposing.end(signal.SIGTERM)
    assert code == 0
    assert took < SOON
    by_name.wait("closed", peer="home")
    by_name.wait("warning", code="peer_ended")
    back = lab.expose()
    assert echo_through(bind, b"after its restart") == b"after its restart"
    assert by_name.end(signal.SIGINT)[0] == 130
    back.end()
    assert lab.server_program.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("words", [("--once",), ("--stdio",)])
def test_who_asked_for_one_connection_ends_with_it_and_says_so(lab: Lab, words: tuple[str, ...]) -> None:
    """A supervisor can tell that from success."""
    exposing, connecting, _ = pair(lab)
    connecting.end()
    if words == ("--once",):
        once = lab.run(lab.connector, "connect", "home", "--once", "--forward", f"0:{lab.port}")
        once.wait("forward")
        exposing.end(signal.SIGTERM)
        assert once.join() == 5
        assert "has ended the link" in once.stderr()
        return
    with subprocess.Popen(
        [sys.executable, "-m", "tunnel", "connect", "home", "--stdio", str(lab.port)],
        env={**os.environ, "PTUNNEL_HOME": str(lab.connector)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as talk:
        assert talk.stdin is not None
        assert talk.stdout is not None
        talk.stdin.write(b"x")
        talk.stdin.flush()
        assert talk.stdout.read(1) == b"x"
        exposing.end(signal.SIGTERM)
        assert talk.wait(PATIENCE_S) == 5


@pytest.mark.time_limit(240)  # seven programs, one after the other
def test_stdio_ends_as_its_standard_streams_do(lab: Lab) -> None:
    """Nothing to read, nobody who reads, and a disk that is full: each has its exit code, and the last one a sentence."""
    _exposing, connecting, _ = pair(lab)
    connecting.end()
    command = f"exec {shlex.quote(sys.executable)} -m tunnel connect home --stdio {lab.port}"
    for streams, code, said in (
        ("<&-", 0, ""),
        ("</dev/null", 0, ""),
        (">&-", 0, ""),
        (">/dev/full", 2, "Standard output takes no more: No space left on device.\n"),
        ("0>/dev/null", 2, "Standard input cannot be read: Bad file descriptor.\n"),
    ):
        done = subprocess.run(
            ["sh", "-c", f"{command} {streams}"],
            env={**os.environ, "PTUNNEL_HOME": str(lab.connector)},
            input=b"hello",
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stderr.decode()[-len(said) :] if said else done.stderr) == (code, said or b""), streams


def test_a_server_that_is_not_there_yet_is_waited_for_by_who_remembers_its_peer(lab: Lab, tmp_path: Path) -> None:
    exposing, connecting, bind = pair(lab)
    connecting.end()
    exposing.end()
    lab.server_program.end(signal.SIGTERM)
    again = lab.run(lab.connector, "connect", "home", "--forward", f"{bind.rpartition(':')[2]}:{lab.port}")
    assert "No ptunnel server answers" in again.wait("warning", code="still_trying")["message"]
    lab.server_program = lab.run(tmp_path / "server", "serve", "--listen", lab.server)
    lab.server_program.wait("listening")
    lab.expose()
    again.wait("forward")
    assert echo_through(bind, b"at last") == b"at last"
    assert again.end()[0] == 130


def test_a_control_socket_that_cannot_be_made_costs_a_sentence_and_no_tunnel(lab: Lab) -> None:
    """A home on a file system without sockets, or one that only root may write to."""
    _exposing, connecting, bind = pair(lab)
    connecting.end()
    run = lab.connector / "run"
    for left in run.iterdir():
        left.unlink()
    run.rmdir()
    run.write_text("no directory")
    again = lab.run(lab.connector, "connect", "home", "--forward", f"{bind.rpartition(':')[2]}:{lab.port}")
    again.wait("forward")
    assert echo_through(bind, b"carried") == b"carried"
    assert again.end()[0] == 130


def a_line(program: Program, word: str) -> str:
    """The next line of its log with this word."""
    assert program.process.stderr is not None
    for line in program.process.stderr:
        if word in line:
            return line
    raise AssertionError(f"it ended without a word of {word}")


def test_a_server_outlives_its_terminal(lab: Lab) -> None:
    server = lab.server_program
    for _ in range(2):
        server.process.send_signal(signal.SIGHUP)
        assert "ignored" in a_line(server, "SIGHUP")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup(1), which may run the tests, leaves it ignored to the programs
    exposing = lab.expose(str(lab.port))
    exposing.wait("code")
    exposing.process.send_signal(signal.SIGHUP)
    assert exposing.join() == 0, "which ends as ever"
    assert server.end(signal.SIGTERM)[0] == 0


def test_a_server_whose_terminal_cannot_be_written_to_goes_on(tmp_path: Path) -> None:
    primary, secondary = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "tunnel", "serve", "--listen", "127.0.0.1:0"],
        env={**os.environ, "PTUNNEL_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
    )
    try:
        os.close(secondary)
        said = b""
        while b"--server HOST" not in said:
            said += os.read(primary, 4_096)
        os.close(primary)
        for _ in range(3):
            program.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.2)
        program.send_signal(signal.SIGTERM)
        assert program.wait(PATIENCE_S) == 0
    finally:
        program.kill()
        program.wait()


def test_a_server_keeps_its_secret_and_one_that_cannot_says_so_and_serves(lab: Lab, tmp_path: Path) -> None:
    kept = (tmp_path / "server" / "server.json").read_bytes()
    again = lab.run(tmp_path / "server", "serve", "--listen", "127.0.0.1:0")
    again.wait("listening")
    assert (tmp_path / "server" / "server.json").read_bytes() == kept
    (tmp_path / "a file").touch()
    other = lab.run(tmp_path / "a file" / "home", "serve", "--listen", "127.0.0.1:0")
    other.wait("listening")
    assert "Codes will not outlive a restart" in other.wait("warning", code="not_saved")["message"]


def test_a_server_reads_its_certificate_again_on_sighup(lab: Lab, tmp_path: Path) -> None:
    old = make_certificate(tmp_path, "127.0.0.1")
    words = ("--listen", "127.0.0.1:0", "--tls-port", "0", "--tls-cert", old.certificate, "--tls-key", old.key)
    server = lab.run(tmp_path / "tls", "serve", *words)
    where = server.wait("listening", tls=old.fingerprint)["bind"]
    new = make_certificate(tmp_path, "127.0.0.1")
    server.process.send_signal(signal.SIGHUP)
    assert new.fingerprint in a_line(server, "SIGHUP")
    host, _, port = where.rpartition(":")
    shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), timeout=PATIENCE_S))
    assert sha256(shown).hexdigest() == new.fingerprint
    Path(new.key).write_text("half of it is wri", encoding="ascii")
    server.process.send_signal(signal.SIGHUP)
    assert "is not used" in a_line(server, "certificate")
    assert new.fingerprint in a_line(server, "stays as it was")
    assert server.end(signal.SIGTERM)[0] == 0


def test_forgetting_a_peer_cuts_what_is_open_within_a_second(lab: Lab) -> None:
    exposing, connecting, bind = pair(lab)
    host, _, port = bind.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        forgotten = lab.ask(lab.exposer, "peers", "forget", "friend", "--json")
        assert json.loads(forgotten.stdout)["peer"] == "friend"
        connection.settimeout(SOON)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert connecting.join() == 6
    assert "forgotten" in connecting.stderr()
    exposing.wait("closed", peer="friend")


def test_a_wrong_code_and_one_that_nobody_allocated_fail_with_their_exit_code(lab: Lab) -> None:
    exposing = lab.expose(str(lab.port))
    nameplate = exposing.wait("code")["code"].partition("-")[0]
    for code in (f"{nameplate}-zoo-zoo", "999999-zoo-zoo"):
        failed = lab.run(lab.connector, "connect", "--server", lab.server, "--forward", "0:1", PTUNNEL_CODE=code)
        assert failed.join() == 4
        assert failed.events[-1]["code"] == "pairing_failed"
        assert failed.stderr().count("\n") == 1
    exposing.wait("warning", code="wrong_code")


def test_a_server_that_does_not_answer_has_its_exit_code(lab: Lab) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        failed = lab.run(lab.connector, "connect", "--server", server, "--forward", "0:1", PTUNNEL_CODE="731-zoo-zoo")
        assert failed.join() == 3
    assert failed.events[-1]["code"] == "server_unreachable"
