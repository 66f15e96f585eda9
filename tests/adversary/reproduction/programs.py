"""`python -m tunnel` of the version under trial, as processes on loopback, and what they print with --json."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from tests.adversary.reproduction.tree import TREE, environment

PATIENCE_S: Final = 60.0


class Program:
    """One process; `script` is a file to run in the place of the command."""

    def __init__(self, home: Path, *arguments: str, script: Path | None = None, **more: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        what = [str(script)] if script is not None else ["-m", "tunnel"]
        self.process = subprocess.Popen(
            [sys.executable, *what, *arguments, "--json"],
            cwd=TREE,
            env=environment(PTUNNEL_HOME=str(home), **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._is_read = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "text": line.rstrip()}
            with self._news:
                self.events.append(event)
                self._news.notify_all()
        with self._news:
            self._is_read = True
            self._news.notify_all()

    def wait(self, event: str, *has: str, **fields: Any) -> dict[str, Any]:
        """The first event that has such fields, these with these values.

        AssertionError when the process has ended without, or PATIENCE_S are over.
        """
        end = time.monotonic() + PATIENCE_S
        with self._news:
            while True:
                for each in self.events:
                    if each["event"] == event and fields.items() <= each.items() and each.keys() >= set(has):
                        return each
                left = end - time.monotonic()
                if left <= 0 or self._is_read:
                    raise AssertionError(f"no {event} {has} {fields}: {self.events}, exit code {self.process.poll()}")
                self._news.wait(left)

    def end(self, number: int = signal.SIGINT) -> int:
        """Its exit code after that signal, with all that it said read."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def last_words(self) -> str:
        """What it said last, once it has ended."""
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return str(self.events[-1:])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Lab:
    """A server, the homes of some people, and whatever they run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs: list[Program] = []
        self._echo = socket.create_server(("127.0.0.1", 0))
        self.port = self._echo.getsockname()[1]
        threading.Thread(target=self._serve_echo, daemon=True).start()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *error: object) -> None:
        for program in reversed(self._programs):
            program.close()
        self._echo.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._echo.close()

    def _serve_echo(self) -> None:
        while True:
            try:
                connection, _ = self._echo.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    def home(self, who: str) -> Path:
        return self.folder / who

    def run(self, who: str, *arguments: str, script: Path | None = None, **more: str) -> Program:
        self._programs.append(Program(self.home(who), *arguments, script=script, **more))
        return self._programs[-1]

    def serve(self, *arguments: str) -> tuple[Program, str]:
        """A server, and where it is."""
        program = self.run("server", "serve", "--listen", "127.0.0.1:0", *arguments)
        return program, str(program.wait("listening")["bind"])

    def pair(self, *grants: str, forward: str) -> tuple[Program, Program]:
        """ "home" exposes that and "friend" forwards a port to it, both connected."""
        _, server = self.serve()
        exposing = self.run("home", "expose", *grants, "--server", server, "--name", "home")
        words = ("--server", server, "--forward", forward, "--name", "friend")
        connecting = self.run("friend", "connect", *words, PTUNNEL_CODE=str(exposing.wait("code")["code"]))
        connecting.wait("forward")
        exposing.wait("paired")
        return exposing, connecting

    def ask(self, who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        return subprocess.run(
            [sys.executable, "-m", "tunnel", *arguments],
            cwd=TREE,
            env=environment(PTUNNEL_HOME=str(self.home(who))),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65_536):
            connection.sendall(data)


def echo_through(bind: str, data: bytes) -> bytes:
    """What comes back by a forward that listens there; empty when nothing listens."""
    host, _, port = bind.rpartition(":")
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65_536):
            answer += part
    return answer
