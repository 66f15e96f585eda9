"""What the first version says to the kinds of ends that it does not know: it refuses each, and goes on with the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import PATIENCE_S, Lab, echo_through
from tests.netns.older import ARCHIVE


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        return int(placeholder.getsockname()[1])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for program in lab._programs:  # the first version has no page of its lines
        if program.process.args[0] == "env":  # type: ignore[index]
            program.problems.clear()
    lab.close()


@pytest.fixture
def first_version(tmp_path: Path) -> tuple[str, ...]:
    """In front of `python -m tunnel`, so that it is the older one."""
    folder = tmp_path / "older"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return ("env", "PYTHONSAFEPATH=1", f"PYTHONPATH={folder}")


def test_it_refuses_what_it_does_not_know_in_a_sentence_and_serves_what_it_does(
    lab: Lab, first_version: tuple[str, ...], tmp_path: Path
) -> None:
    exposing = lab.run(lab.exposer, "expose", str(lab.port), "--server", lab.server, "--name", "home", wrapper=first_version)
    code = exposing.wait("code")["code"]
    echo, unix, door = (free_port() for _ in range(3))
    words = ["--server", lab.server, "--forward", f"{echo}:{lab.port}", "--forward", f"{unix}:unix:/run/app.sock"]
    words += ["--socks", str(door), "--remote", "24999:22"]
    heard = tmp_path / "heard"

    def wait_said(text: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while text not in heard.read_text(encoding="utf-8") and time.monotonic() < end:
            time.sleep(0.05)
        assert text in heard.read_text(encoding="utf-8")

    with heard.open("wb") as file:
        connecting = subprocess.Popen(
            [sys.executable, "-m", "tunnel", "connect", *words],
            env={**os.environ, "PTUNNEL_HOME": str(lab.connector), "PTUNNEL_CODE": code}, stdin=subprocess.DEVNULL, stderr=file,
        )  # fmt: skip
    try:
        wait_said("home does not listen at 127.0.0.1:24999 for this machine: it is an older ptunnel.")
        assert echo_through(f"127.0.0.1:{echo}", b"hello") == b"hello"
        with socket.create_connection(("127.0.0.1", unix), timeout=PATIENCE_S):
            wait_said("home refused tcp/unix:/run/app.sock: it could not serve it, or is an older ptunnel, without Unix sockets.")
        with socket.create_connection(("127.0.0.1", door), timeout=PATIENCE_S) as client:
            client.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50")
            wait_said("home does not know how to reach 10.0.0.1:80: is its ptunnel older than networks that are shared?")
        assert echo_through(f"127.0.0.1:{echo}", b"still") == b"still"
    finally:
        connecting.kill()
        connecting.wait()


def test_it_is_told_of_ports_as_ever_where_other_things_are_shared_too(lab: Lab, first_version: tuple[str, ...]) -> None:
    exposing = lab.expose(str(lab.port), "unix:/run/app.sock", "--net", "10.0.0.0/8:80", "--allow-remote", "24998")
    code = exposing.wait("code")["code"]
    options = ("--server", lab.server, "--forward", f"0:{lab.port}", "--name", "friend")
    connecting = lab.run(lab.connector, "connect", *options, wrapper=first_version, PTUNNEL_CODE=code)
    assert echo_through(connecting.wait("forward")["bind"], b"hello") == b"hello"
    exposing.wait("paired", peer="friend")


def test_what_is_saved_opens_nothing_where_somebody_goes_back_to_it(lab: Lab, first_version: tuple[str, ...]) -> None:
    """It reads the file of peers, or says that it cannot; a port to listen on is none to be reached."""
    exposing = lab.expose("--allow-remote", str(lab.port))
    code = exposing.wait("code")["code"]
    connecting = lab.run(lab.connector, "connect", "--server", lab.server, "--name", "friend", PTUNNEL_CODE=code)
    exposing.wait("paired", peer="friend")
    connecting.end()
    exposing.end()
    done = subprocess.run(
        [*first_version, f"PTUNNEL_HOME={lab.exposer}", sys.executable, "-m", "tunnel", "peers", "--json"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert f"tcp/{lab.port}" not in done.stdout
    assert "Traceback" not in done.stderr
