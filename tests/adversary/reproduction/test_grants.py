"""What a peer may reach: only what a command that worked has granted, only as long as it is granted, and all of it is said."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

import pytest
import trio

import tunnel
from tests.adversary.reproduction.programs import PATIENCE_S, Lab

pytestmark = pytest.mark.time_limit(180)

SOON = 5.0  # seconds for what takes half a second on a machine that is not busy


def grants_of(lab: Lab, who: str) -> list[str]:
    """What `peers` says that the only remembered peer may reach."""
    return list(json.loads(lab.ask(who, "peers", "--json").stdout)["grants"])


def test_a_command_that_fails_has_granted_nothing(tmp_path: Path) -> None:
    """Beside a running expose, too, whose grants it would be."""
    with Lab(tmp_path) as lab:
        lab.pair(str(lab.port), forward=f"0:{lab.port}")
        done = lab.ask("home", "expose", "3389", "--to", "friend")
        grants = grants_of(lab, "home")
        assert (done.returncode == 0) == ("tcp/3389" in grants), f"exit code {done.returncode}, and the peer may reach {grants}"


def test_a_grant_is_taken_back_and_what_is_open_ends_within_a_second(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        _, connecting = lab.pair(str(lab.port), forward=f"0:{lab.port}")
        host, _, port = connecting.wait("forward")["bind"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            done = lab.ask("home", "revoke", "friend", str(lab.port))
            assert done.returncode == 0, done.stderr
            started = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
            assert time.monotonic() - started < SOON
        assert grants_of(lab, "home") == []


def test_expose_says_all_that_a_peer_may_reach_and_not_only_what_was_asked_for_now(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        exposing, connecting = lab.pair("22", forward="0:22")
        connecting.end()
        exposing.end()
        again = lab.run("home", "expose", "8080", "--to", "friend", "--server", "127.0.0.1:9")
        again.wait("listening")
        end = time.monotonic() + SOON
        while "tcp/22" not in json.dumps(again.events) and time.monotonic() < end:
            time.sleep(0.05)
        assert "tcp/22" in json.dumps(again.events), "a peer may reach tcp/22, and nothing says so"


async def test_the_library_goes_by_the_path_that_is_configured(tmp_path: Path) -> None:
    """`path = "relay"`: addresses are told to the server alone, and the peer learns none."""
    with Lab(tmp_path) as lab:
        lab.home("friend").mkdir(mode=0o700)
        (lab.home("friend") / "config.toml").write_text('path = "relay"\n')
        _, server = lab.serve()
        exposing = lab.run("home", "expose", "22", "--server", server, "--name", "home")
        code = str(exposing.wait("code")["code"])
        with trio.fail_after(PATIENCE_S):
            async with tunnel.connect(code, server=server, home=lab.home("friend"), name="friend") as link:
                with trio.move_on_after(3.0):
                    await link.wait_direct()
                assert not link.is_direct, "the path is direct"


@pytest.mark.parametrize(
    ("command", "code"), [("connect", "731-zoo-zoo-zoo"), ("lan", "731-zoo-zoo")], ids=["a room's", "an exposer's"]
)
def test_a_code_of_the_wrong_kind_is_refused_before_anything_is_sent(command: str, code: str, tmp_path: Path) -> None:
    if command == "lan" and os.geteuid() != 0:
        pytest.skip("a room's interface needs root")
    words = ("connect", "--forward", "0:22") if command == "connect" else ("lan", "join")
    with Lab(tmp_path) as lab, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        program = lab.run("friend", *words, "--server", f"127.0.0.1:{server.getsockname()[1]}", PTUNNEL_CODE=code)
        sent: list[bytes] = []
        end = time.monotonic() + PATIENCE_S
        while not sent and program.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                sent.append(server.recv(2_048))
        assert sent == [], f"{len(sent[0])} bytes went to the server"
        assert program.process.wait(PATIENCE_S) == 2
