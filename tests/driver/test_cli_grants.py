"""Grants from the command line, as real processes: added to a running expose, taken back from it, told in full."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import SOON, Lab, Program, echo_through, pair


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def streams() -> Iterator[contextlib.ExitStack]:
    """Connections that are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def udp_echo() -> Iterator[int]:
    """Its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.1)
        is_over = threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                with contextlib.suppress(OSError):
                    data, client = sock.recvfrom(65_535)
                    sock.sendto(data, client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(sock.getsockname()[1])
        is_over.set()
        thread.join(1.0)


def open_stream(stack: contextlib.ExitStack, bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20.0))
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    return connection


def still_echoes(connection: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        connection.sendall(b"y")
        return connection.recv(1) == b"y"
    return False


def answered(client: socket.socket) -> bool:
    with contextlib.suppress(TimeoutError):
        client.send(b"2")
        return bool(client.recv(10))
    return False


def end_of(connection: socket.socket, started: float) -> float:
    """Seconds from `started` until the connection has ended."""
    connection.settimeout(20.0)
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""
    return time.monotonic() - started


def answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [{key: value for key, value in event.items() if key != "time"} for event in events]


def test_what_is_added_beside_a_running_expose_is_served_by_it_and_taken_back_within_a_second(
    lab: Lab, streams: contextlib.ExitStack, udp_echo: int
) -> None:
    exposing, connecting, _bind = pair(lab)
    exposing.wait("serving", peer="friend", grants=[f"tcp/{lab.port}"])
    connecting.end()
    failed = lab.ask(lab.exposer, "expose", "9090", "--to", "friend", "--to", "nobody")
    assert failed.returncode == 2
    assert json.loads(lab.ask(lab.exposer, "peers", "--json").stdout)["grants"] == [f"tcp/{lab.port}"]

    added = answers(lab.ask(lab.exposer, "expose", f"{udp_echo}/udp", "9090", "--to", "friend", "--json"))
    everything = [f"tcp/{lab.port}", f"udp/{udp_echo}", "tcp/9090"]
    assert added == [{"event": "granted", "peer": "friend", "grants": everything, "pid": exposing.process.pid}]
    again = lab.ask(lab.exposer, "expose", "9090", "--to", "friend")
    assert again.returncode == 0
    assert again.stderr == (
        f"friend may reach tcp/{lab.port}, udp/{udp_echo} and tcp/9090 of this machine from now on "
        f"(the running expose, process {exposing.process.pid}, serves it).\n"
    )
    exposing.wait("serving", peer="friend", grants=everything)

    connecting = lab.run(lab.connector, "connect", "--forward", f"0:{lab.port}", "--forward", f"0:{udp_echo}/udp")
    opened = [open_stream(streams, connecting.wait("forward", target=f"tcp/{lab.port}")["bind"]) for _ in range(2)]
    host, _, port = connecting.wait("forward", target=f"udp/{udp_echo}")["bind"].rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10.0)
        client.connect((host, int(port)))
        client.send(b"1")
        assert client.recv(10) == b"1"

        started = time.monotonic()
        taken = answers(lab.ask(lab.exposer, "revoke", "friend", f"udp/{udp_echo}", "--json"))
        assert taken == [
            {
                "event": "revoked",
                "peer": "friend",
                "revoked": [f"udp/{udp_echo}"],
                "grants": [f"tcp/{lab.port}", "tcp/9090"],
                "streams": 1,
            }
        ]
        client.settimeout(0.2)
        assert not all(answered(client) for _ in range(50))
        assert all(map(still_echoes, opened)), "TCP was not taken back"

    started = time.monotonic()
    done = lab.ask(lab.exposer, "revoke", "friend")
    took = max(end_of(stream, started) for stream in opened)
    assert (done.returncode, done.stderr) == (0, "friend may reach nothing of this machine any more; 2 open connections ended.\n")
    assert took < SOON
    assert json.loads(lab.ask(lab.exposer, "peers", "--json").stdout)["grants"] == []
    exposing.wait("serving", peer="friend", grants=[])
    exposing.end()

    alone = lab.ask(lab.exposer, "expose")
    assert (alone.returncode, "To reach it: 'ptunnel connect friend --forward PORT'" in alone.stderr) == (2, True)
    assert lab.ask(lab.exposer, "revoke", "friend").returncode == 0, "with nothing running, and nothing to take"
    assert lab.ask(lab.exposer, "revoke", "friend", "22").returncode == 2


def test_another_process_that_serves_the_home_is_seen_without_its_control_socket(lab: Lab, streams: contextlib.ExitStack) -> None:
    exposing, connecting, bind = pair(lab)
    exposing.wait("serving", peer="friend")
    for path in (lab.exposer / "run").glob("*.sock"):
        path.unlink()
    stream = open_stream(streams, bind)
    done = lab.ask(lab.exposer, "revoke", "friend", str(lab.port))
    assert end_of(stream, time.monotonic()) < SOON
    assert (done.returncode, done.stderr) == (0, "friend may reach nothing of this machine any more.\n")
    assert connecting.process.poll() is None


def test_only_replaces_and_a_start_says_all_that_everybody_may_reach(lab: Lab, streams: contextlib.ExitStack) -> None:
    exposing, connecting, bind = pair(lab)
    exposing.wait("serving", peer="friend")
    stream = open_stream(streams, bind)
    replaced = answers(lab.ask(lab.exposer, "expose", "22", "--to", "friend", "--only", "--json"))
    assert [each["grants"] for each in replaced] == [["tcp/22"]]
    assert end_of(stream, time.monotonic()) < SOON
    with contextlib.suppress(ConnectionResetError):
        assert echo_through(bind, b"x") == b"", "it is not granted any more"
    exposing.end()
    connecting.end()
    starting = Program(lab.exposer, "expose", "8080", "--to", "friend", "--server", lab.server)
    try:
        starting.wait("serving", peer="friend", grants=["tcp/22", "tcp/8080"])
    finally:
        starting.close()


def remembered(home: Path) -> dict[str, bytes]:
    """What a home holds besides its identity, its locks, and the sockets of whoever runs."""
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.name not in ("identity.json", "lock") and path.suffix != ".lock"
    }


def test_ctrl_c_and_a_wrong_code_leave_nobody_remembered(lab: Lab) -> None:
    exposing = lab.expose(str(lab.port))
    nameplate = exposing.wait("code")["code"].partition("-")[0]
    wrong = lab.run(lab.connector, "connect", "--server", lab.server, "--forward", "0:1", PTUNNEL_CODE=f"{nameplate}-zoo-zoo")
    assert wrong.join() == 4
    assert remembered(lab.connector) == {}
    assert exposing.end()[0] == 130
    assert remembered(lab.exposer) == {}

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        for home, words in ((lab.connector, ("connect", "--forward", "0:1")), (lab.exposer, ("expose", "22"))):
            program = lab.run(home, *words, "--server", server, PTUNNEL_CODE="731-zoo-zoo")
            silent.settimeout(10.0)
            silent.recvfrom(2_048)  # it asks, and nobody answers
            assert program.end()[0] == 130
            assert remembered(home) == {}
