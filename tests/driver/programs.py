"""The program itself, as real processes on loopback: a server, an echo behind a port, and what commands print as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.schema import schema

PATIENCE_S = 20.0
SOON = 5.0  # seconds; the second that is promised is held in test_promises.py, by the test's own clock


class Program:
    """One `ptunnel --json` process and the events that it has printed."""

    def __init__(self, home: Path, *arguments: str, wrapper: Sequence[str] = (), **environment: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.problems: list[str] = []  # lines that are not as docs/json.md says
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "tunnel", *arguments, "--json"],
            env={**os.environ, "PTUNNEL_HOME": str(home), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.problems += schema().line_problems(line)
            self.events.append(json.loads(line))

    def wait(self, event: str, **fields: Any) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for each in list(self.events):
                if each["event"] == event and fields.items() <= each.items():
                    return each
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.02)
        raise AssertionError(f"no {event} {fields}: {self.events} {self.process.poll()}")

    def end(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Exit code and seconds after the signal."""
        started = time.monotonic()
        self.process.send_signal(number)
        return self.join(), time.monotonic() - started

    def join(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65_536):
            connection.sendall(data)


class Lab:
    """A server, an echo behind a port, two homes."""

    def __init__(self, tmp_path: Path) -> None:
        self._programs: list[Program] = []
        self.exposer, self.connector = tmp_path / "exposer", tmp_path / "connector"
        self._echo = socket.create_server(("127.0.0.1", 0))
        self.port = self._echo.getsockname()[1]
        threading.Thread(target=self._serve_echo, daemon=True).start()
        self.server_program = self.run(tmp_path / "server", "serve", "--listen", "127.0.0.1:0")
        self.server = self.server_program.wait("listening")["bind"]

    def _serve_echo(self) -> None:
        while True:
            try:
                connection, _ = self._echo.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    def run(self, home: Path, *arguments: str, wrapper: Sequence[str] = (), **environment: str) -> Program:
        self._programs.append(Program(home, *arguments, wrapper=wrapper, **environment))
        return self._programs[-1]

    def expose(self, *arguments: str) -> Program:
        return self.run(self.exposer, "expose", *arguments, "--server", self.server, "--name", "home")

    def ask(self, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tunnel", *arguments],
            env={**os.environ, "PTUNNEL_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if "--json" in arguments:
            assert [problem for line in done.stdout.splitlines() for problem in schema().line_problems(line)] == []
        return done

    def close(self) -> None:
        for program in reversed(self._programs):
            program.close()
        self._echo.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._echo.close()
        assert [problem for program in self._programs for problem in program.problems] == []


def echo_through(bind: str, data: bytes) -> bytes:
    host, _, port = bind.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return answer


def pair(lab: Lab) -> tuple[Program, Program, str]:
    """expose and connect, paired by code, and where the forward listens."""
    exposing = lab.expose(str(lab.port))
    code = exposing.wait("code")
    assert list(code) == ["event", "code", "expires_s", "time"]
    options = ("--server", lab.server, "--forward", f"0:{lab.port}", "--name", "friend")
    connecting = lab.run(lab.connector, "connect", *options, PTUNNEL_CODE=code["code"])
    ready = connecting.wait("forward", target=f"tcp/{lab.port}")
    return exposing, connecting, ready["bind"]
