"""Programs whose sentences nobody takes carry on: a terminal that was stopped, a full pipe, a full disk, closed descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.driver.programs import PATIENCE_S, Lab, Program, echo_through, pair


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def start(home: Path, *words: str, **more: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PTUNNEL_HOME": str(home), "TERM": "xterm", "COLUMNS": "80", **more.pop("environment", {})}
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **more}
    return subprocess.Popen([sys.executable, "-m", "tunnel", *words], env=environment, **options)


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_voices(process: subprocess.Popen[bytes]) -> None:
    """Until the threads that speak are there, which come when signals are heeded."""
    end = time.monotonic() + 3 * PATIENCE_S
    while len(os.listdir(f"/proc/{process.pid}/task")) < 3:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)


def read_until(descriptor: int, word: bytes) -> bytes:
    said = b""
    while word not in said:
        ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
        assert ready, said
        said += os.read(descriptor, 65_536)
    return said


@pytest.mark.parametrize("which", ["connect", "expose"])
def test_a_stopped_terminal_stops_no_forward(lab: Lab, which: str) -> None:
    """Ctrl-S: the terminal takes nothing more.  The forward goes on, and the person comes back to the newest picture."""
    exposer = lab.expose(str(lab.port), "--keep")
    code = exposer.wait("code")["code"]
    first = lab.run(lab.connector, "connect", "--server", lab.server, "--forward", f"0:{lab.port}", PTUNNEL_CODE=code)
    bind = first.wait("forward")["bind"]
    (exposer if which == "expose" else first).end()
    primary, secondary = pty.openpty()
    if which == "expose":
        words = ("expose", "--server", lab.server, "--name", "home")
        home = lab.exposer
    else:
        words = ("connect", "--server", lab.server, "--forward", f"{bind.rpartition(':')[2]}:{lab.port}")
        home = lab.connector
    with running(start(home, *words, stdin=secondary, stdout=secondary, stderr=secondary)) as process:
        read_until(primary, b"Serving" if which == "expose" else b"direct")
        if which == "expose":
            first.end()  # it stays when the other side ends, and has the port
            first = lab.run(lab.connector, "connect", "--forward", f"{bind.rpartition(':')[2]}:{lab.port}")
            first.wait("forward")
        termios.tcflow(secondary, termios.TCOOFF)
        for _ in range(8):
            threading.Event().wait(0.5)  # a picture a second is drawn: the first one that is not taken would block
            assert echo_through(bind, b"still here") == b"still here"
        termios.tcflow(secondary, termios.TCOON)
        read_until(primary, b"home" if which == "connect" else b"B/s")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    os.close(primary)
    os.close(secondary)


def test_a_pipe_that_was_read_once_stops_nobody(lab: Lab) -> None:
    """The parent wants the code and reads no further: what friends cause fills the pipe, and is given up, oldest first."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    words = ("expose", str(lab.port), "--server", lab.server, "--json", "--keep")
    with running(start(lab.exposer, *words, stdout=writer)) as process:
        code = json.loads(read_until(reader, b'"code"').decode().splitlines()[-1])["code"]
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b" " * 1024)  # as good as many events
        friend = lab.run(lab.connector, "connect", "--server", lab.server, "--forward", f"0:{lab.port}", PTUNNEL_CODE=code)
        bind = friend.wait("forward")["bind"]
        for _ in range(5):
            assert echo_through(bind, b"x" * 10_000) == b"x" * 10_000
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("which", ["expose", "connect", "serve", "status"])
def test_a_full_disk_ends_nobody_who_carries_something_or_looks_again_and_again(lab: Lab, stream: str, which: str) -> None:
    if which != "expose":
        _exposing, connecting, _bind = pair(lab)
        connecting.end()
    full = os.open("/dev/full", os.O_WRONLY)
    words = {
        "expose": ("expose", str(lab.port), "--server", lab.server, "--keep"),
        "connect": ("connect", "home", "--forward", "0:1"),
        "serve": ("serve", "--listen", "127.0.0.1:0", "-vv"),
        "status": ("status", "--watch"),
    }[which]
    is_json = stream == "stdout" and which != "status"
    home = lab.exposer if which == "expose" else lab.connector
    with running(start(home, *words, *(("--json",) * is_json), **{stream: full})) as process:
        wait_voices(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    os.close(full)


def code_after(exposing: Program, pairings: int) -> str:
    """The one that follows so many."""
    end = time.monotonic() + PATIENCE_S
    while len(codes := [event["code"] for event in exposing.events if event["event"] == "code"]) <= pairings:
        assert time.monotonic() < end, exposing.events
        time.sleep(0.02)
    return str(codes[pairings])


def test_a_server_at_a_stopped_terminal_introduces_everybody(lab: Lab, tmp_path: Path) -> None:
    """Its log says a line for each who comes, and nobody takes them."""
    primary, secondary = pty.openpty()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        lab.server = f"127.0.0.1:{sock.getsockname()[1]}"
    words = ("serve", "--listen", lab.server, "-vv")
    with running(start(tmp_path / "stopped", *words, stdin=secondary, stdout=secondary, stderr=secondary)) as process:
        read_until(primary, b"--server HOST")
        termios.tcflow(secondary, termios.TCOOFF)
        exposing = lab.expose(str(lab.port), "--keep")
        for number in range(3):
            name = f"friend{number}"
            options = ("--server", lab.server, "--forward", f"0:{lab.port}", "--name", name)
            friend = lab.run(tmp_path / name, "connect", *options, PTUNNEL_CODE=code_after(exposing, number))
            assert echo_through(friend.wait("forward")["bind"], b"met") == b"met"
        assert process.poll() is None
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    os.close(primary)
    os.close(secondary)


def test_a_reader_that_leaves_is_the_end_of_a_command_that_was_asked_for_json(lab: Lab) -> None:
    reader, writer = os.pipe()
    words = ("expose", str(lab.port), "--server", lab.server, "--json", "--keep")
    with running(start(lab.exposer, *words, stdout=writer)) as process:
        os.close(writer)
        code = json.loads(read_until(reader, b'"code"').decode().splitlines()[-1])["code"]
        os.close(reader)
        friend = lab.run(lab.connector, "connect", "--server", lab.server, "--forward", f"0:{lab.port}", PTUNNEL_CODE=code)
        assert process.wait(PATIENCE_S) == 0
        friend.close()


@pytest.mark.parametrize("redirections", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_no_failure(lab: Lab, redirections: str) -> None:
    exposer = lab.expose(str(lab.port), "--keep")
    code = exposer.wait("code")["code"]
    lab.run(lab.connector, "connect", "--server", lab.server, "--forward", f"0:{lab.port}", PTUNNEL_CODE=code).wait("forward")
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m tunnel peers {redirections}', sys.executable],
        env={**os.environ, "PTUNNEL_HOME": str(lab.connector)},
        timeout=PATIENCE_S,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
