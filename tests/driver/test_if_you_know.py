"""The main rows of docs/if-you-know.md and README's script, walked: real processes on loopback, with other ports."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import PATIENCE_S, Lab, Program, echo_through, pair
from tests.style.source import ROOT
from tests.style.test_if_you_know import rows

DATA = b"hello " * 1000


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Near the root, as the path of a Unix socket is short."""
    with tempfile.TemporaryDirectory(prefix="know", dir="/tmp") as name:
        yield Path(name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        return int(placeholder.getsockname()[1])


class Walk:
    """Two computers that remember each other, as the page has it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._exposing, first, _ = pair(lab)
        first.end()

    def share(self, known: str, **places: object) -> str:
        """What the row does there, beside the one that serves; returns what it does here."""
        [row] = [row for row in rows() if row.known == known]
        [there], [here] = row.there, row.here
        done = self._lab.ask(self._lab.exposer, *put(there, places), "--to", "friend")
        assert done.returncode == 0, done
        return shlex.join(put(here, places))

    def here(self, command: str) -> Program:
        return self._lab.run(self._lab.connector, *shlex.split(command))

    def reached(self, known: str, **places: object) -> bytes:
        """What comes back of DATA by way of the row's forward."""
        return echo_through(self.here(self.share(known, **places)).wait("forward")["bind"], DATA)


def put(words: list[str], places: dict[str, object]) -> list[str]:
    """The words with other ports and paths: `port_80=1234` stands for 80 wherever it is a whole part."""
    found = []
    for word in words:
        for name, value in sorted(places.items(), key=lambda item: -len(item[0])):
            old = name.removeprefix("port_")
            parts = word.split(":")
            word = ":".join(str(value) if part == old else part for part in parts)
        found.append(word)
    return found


def echo_on(listener: socket.socket) -> None:
    """Answer one connection with what it sends."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65_536):
                    connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()


def test_whoever_knows_ssh_finds_local_forwards(lab: Lab) -> None:
    walk = Walk(lab)
    assert walk.reached("`ssh -L 8080:localhost:80 me@home`", port_80=lab.port, port_8080=0) == DATA


def test_whoever_knows_ssh_finds_remote_forwards_and_its_standard_input(lab: Lab) -> None:
    walk = Walk(lab)
    with socket.create_server(("127.0.0.1", 0)) as program:
        echo_on(program)
        there = free_port()
        command = walk.share("`ssh -R 8080:localhost:3000 me@home`", port_8080=there, port_3000=program.getsockname()[1])
        bind = walk.here(command).wait("remote")["bind"]
        assert bind == f"127.0.0.1:{there}"
        assert echo_through(bind, DATA) == DATA
    command = walk.share("`ssh -W localhost:22 me@home`", port_22=lab.port)
    done = subprocess.run(
        [sys.executable, "-m", "tunnel", *shlex.split(command)],
        input=DATA, capture_output=True, timeout=3 * PATIENCE_S, check=False,
        env={"PTUNNEL_HOME": str(lab.connector), "PTUNNEL_PORTMAP": "off"},
    )  # fmt: skip
    assert done.stdout == DATA


def test_whoever_knows_frp_and_ngrok_finds_their_ports(lab: Lab) -> None:
    walk = Walk(lab)
    known = '`type = "xtcp"`, `localPort = 22`, `bindPort = 6000`'
    assert walk.reached(known, port_22=lab.port, port_6000=0) == DATA
    assert walk.reached("`ngrok tcp 22`", port_22=lab.port, port_2222=0) == DATA


def test_whoever_knows_socat_finds_unix_sockets_on_either_side(lab: Lab, folder: Path) -> None:
    walk = Walk(lab)
    here = folder / "here.sock"
    command = walk.share("`socat UNIX-LISTEN:/tmp/pg.sock,fork TCP:home:5432`", port_5432=lab.port).replace(
        "/tmp/pg.sock", str(here)
    )
    walk.here(command).wait("forward", bind=f"unix:{here}")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(str(here))
        client.sendall(DATA)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := client.recv(65_536):
            answer += part
    assert answer == DATA
    with socket.socket(socket.AF_UNIX) as program:
        program.bind(str(folder / "app.sock"))
        program.listen()
        echo_on(program)
        known = "`dumbpipe listen-unix --socket-path /run/app.sock`"
        assert walk.reached(known, port_8080=0, **{"/run/app.sock": folder / "app.sock"}) == DATA


def script() -> str:
    """README's script that fetches a file."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("### A script\n")[1]
    return text.split("```sh\n")[1].split("```")[0]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[int]:
    """The port of a web server that has report.csv."""
    (tmp_path / "report.csv").write_bytes(DATA)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def run_script(lab: Lab, folder: Path, local: int, remote: int, timeout: str = "60") -> subprocess.CompletedProcess[str]:
    program = folder / "ptunnel"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tunnel "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    text = script().replace("18080", str(local)).replace(":8080", f":{remote}").replace("--timeout 60", f"--timeout {timeout}")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PTUNNEL_HOME": str(lab.connector)}
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing; scripts/test says how to install it")
def test_the_script_of_the_readme_fetches_its_file_and_tells_that_the_peer_is_away(lab: Lab, folder: Path, page: int) -> None:
    exposing, connecting, _ = pair(lab)
    connecting.end()
    assert lab.ask(lab.exposer, "expose", str(page), "--to", "friend").returncode == 0
    done = run_script(lab, folder, free_port(), page)
    assert (done.returncode, (folder / "report.csv").read_bytes()) == (0, DATA), done
    exposing.end()
    assert run_script(lab, folder, free_port(), page, timeout="1").returncode == 5
