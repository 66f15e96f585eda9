"""What real commands say without a terminal, in its background and with -v: who came, what was opened, who left."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.driver.programs import PATIENCE_S, Lab, echo_through
from tests.schema import schema

WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


class Log:
    """The standard error of one process, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.text += line

    def wait(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := re.search(pattern, self.text, re.MULTILINE):
                return found
            time.sleep(0.02)
        raise AssertionError(f"no {pattern} in:\n{self.text}")

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)


def meet_once(lab: Lab, folder: Path, server: str, number: int) -> None:
    """Two homes meet by a code, and both leave."""
    exposing = lab.run(folder / f"e{number}", "expose", str(lab.port), "--server", server)
    code = exposing.wait("code")["code"]
    way = ("connect", "--server", server, "--forward", f"0:{lab.port}")
    connecting = lab.run(folder / f"c{number}", *way, PTUNNEL_CODE=code)
    connecting.wait("forward")
    connecting.end()
    exposing.end()


@contextmanager
def logged(home: Path, *words: str, **environment: str) -> Iterator[Log]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tunnel", *words],
        env={**os.environ, "PTUNNEL_HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Log(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_the_log_of_a_service_tells_who_came_what_was_opened_and_who_left(lab: Lab) -> None:
    with logged(lab.exposer, "expose", str(lab.port), "--server", lab.server, "--name", "home") as exposing:
        code = exposing.wait(r"^and type the code: +(\S+)$")[1]
        words = ("connect", "--server", lab.server, "--forward", f"0:{lab.port}", "--name", "friend")
        with logged(lab.connector, *words, PTUNNEL_CODE=code) as connecting:
            bind = connecting.wait(rf"^(\S+) -> home tcp/{lab.port}$")[1]
            connecting.wait(rf"^{WHEN}home is connected \((direct|relay) over IPv[46], \S+?[,):]")
            exposing.wait(rf"^{WHEN}friend is connected \((direct|relay) over IPv[46], \S+?[,):]")
            assert echo_through(bind, b"x" * 5_000) == b"x" * 5_000
            carried = r"after \d\S* s: 5\.0 kB sent, 5\.0 kB received\.$"
            for log, opened, closed in (
                (exposing, f"friend opened tcp/{lab.port}.", f"tcp/{lab.port} for friend closed "),
                (connecting, f"tcp/{lab.port} of home opened.", f"tcp/{lab.port} of home closed "),
            ):
                log.wait(rf"^{WHEN}{re.escape(opened)}$")
                log.wait(rf"^{WHEN}{re.escape(closed)}{carried}")
            connecting.end()
            exposing.wait(rf"^{WHEN}friend has left\.$")
        exposing.end()


def test_json_tells_the_same_of_connections_as_the_page_says(lab: Lab) -> None:
    exposing = lab.expose(str(lab.port))
    code = exposing.wait("code")["code"]
    words = ("connect", "--server", lab.server, "--forward", f"0:{lab.port}", "--name", "friend")
    connecting = lab.run(lab.connector, *words, PTUNNEL_CODE=code)
    assert echo_through(connecting.wait("forward")["bind"], b"hello") == b"hello"
    for program, peer in ((exposing, "friend"), (connecting, "home")):
        program.wait("connection", state="open", peer=peer, target=f"tcp/{lab.port}", number=1)
        program.wait("connection", state="closed", peer=peer, number=1, sent_bytes=5, received_bytes=5)


def test_in_the_background_of_a_terminal_plain_lines_say_what_happens_and_nothing_is_drawn(lab: Lab) -> None:
    """`ptunnel connect ... &` in an interactive shell: job control gives it a process group that is not in front."""
    code = lab.expose(str(lab.port)).wait("code")["code"]
    words = [sys.executable, "-m", "tunnel", "connect", "--server", lab.server, "--forward", f"0:{lab.port}"]
    primary, secondary = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "-m", "-c", f"{shlex.join(words)} & echo job $!; wait"],
        env={**os.environ, "PTUNNEL_HOME": str(lab.connector), "TERM": "xterm", "PTUNNEL_CODE": code},
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(secondary)
    said = b""
    job = 0
    try:
        while not (found := re.search(rb"(\S+) -> home tcp/", said)) or b"home is connected" not in said:
            said += read(primary, said)
        job = int(re.search(rb"job (\d+)", said)[1])  # type: ignore[index]
        bind = found[1].decode()
        assert echo_through(bind, b"hello") == b"hello"
        while b"closed after" not in said:
            said += read(primary, said)
    finally:
        if job:
            os.kill(job, signal.SIGTERM)
        try:
            shell.wait(PATIENCE_S)
        finally:
            shell.kill()
            shell.wait()
            os.close(primary)
    assert b"\x1b" not in said, said
    assert re.search(rb"^\d\d:\d\d:\d\d  home is connected \(", said, re.MULTILINE), said


def read(descriptor: int, so_far: bytes) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
    assert ready, so_far
    return os.read(descriptor, 65_536)


def test_a_server_with_v_tells_of_clients_and_pairs_with_the_time_and_nothing_of_them_without(lab: Lab, tmp_path: Path) -> None:
    somebody = r"127\.0\.0\.1:\d+"
    with (
        logged(tmp_path / "told", "serve", "-v", "--listen", "127.0.0.1:0") as told,
        logged(tmp_path / "silent", "serve", "--listen", "127.0.0.1:0") as silent,
    ):
        servers = [each.wait(r"^Serving on udp (\S+) ")[1] for each in (told, silent)]
        for number, server in enumerate(servers):
            meet_once(lab, tmp_path, server, number)
        told.wait(rf"^{WHEN}{somebody} came \(1 client now\)\.$")
        told.wait(rf"^{WHEN}Pair 1: {somebody} met {somebody} by a code; the relay is open to them\.$")
        told.wait(rf"^{WHEN}Pair 1 ended after \d+ s, [\d,]+ bytes relayed: they have left\.$")
        told.wait(rf"^{WHEN}{somebody} left \(0 clients now\)\.$")
        silent.end()
        assert len(silent.text.splitlines()) == 2, silent.text


def test_every_line_of_a_busy_server_with_log_json_is_an_object_that_the_page_knows(lab: Lab, tmp_path: Path) -> None:
    access = tmp_path / "access"
    access.write_text("127.0.0.0/8\n", encoding="utf-8")
    words = ("serve", "--log-json", "--listen", "127.0.0.1:0", "--access", str(access), "--metrics", "127.0.0.1:0")
    with logged(tmp_path / "json", *words) as told:
        server = told.wait(r"Serving on udp (\S+) ")[1]
        for number in range(3):
            meet_once(lab, tmp_path, server, number)
        told.wait(r'"what": "pair_ended"[^\n]*"pair": 3,')
        access.write_text("192.0.2.1\n", encoding="utf-8")
        told.process.send_signal(signal.SIGHUP)
        told.wait(r'"what": "reload_access"')
        lab.run(tmp_path / "late", "expose", str(lab.port), "--server", server)
        told.wait(r'"what": "refused", "who": "127[^\n]*"why": "denied"')
        access.write_text("nonsense\n", encoding="utf-8")
        told.process.send_signal(signal.SIGHUP)
        told.wait(r'"what": "reload_access", "why": "unusable"')
        told.end()
    found = [json.loads(line) for line in told.text.splitlines()]
    assert [problem for each in found for problem in schema()._compare(each, schema().objects["log line"])] == []
    whats = [each["what"] for each in found]
    assert whats.count("claimed") == 3
    assert {"listening", "registered", "claimed", "left", "pair_ended", "reload_access", "refused"} <= set(whats)
    assert all(each["time"].endswith("Z") for each in found)
