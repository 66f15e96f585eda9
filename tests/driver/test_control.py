"""The control socket: a process answers on a real UNIX socket, and the asking side speaks to all of them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tunnel.control import server as control_server
from tunnel.control.client import ask_all, processes
from tunnel.control.messages import MAX_REQUEST, Answer, Check, Close, Forget, Ping, Remove, Request, Status
from tunnel.control.server import MAX_CLIENTS, Process, serve_control
from tunnel.control.sockets import connect, leave, short_path, socket_path
from tunnel.errors import ConfigurationError, UnreachableError


class FakeLink:
    def __init__(self, name: str = "home") -> None:
        self.peer_name = name
        self.fingerprint = f"SHA256:{name}"
        self.is_direct = False
        self.pings = 0
        self.became_direct = trio.Event()
        self.closed_with: tuple[str, int] | None = None

    def status(self) -> Any:
        kind = "direct" if self.is_direct else "relay"
        values = {"peer": self.peer_name, "kind": kind, "remote": "192.0.2.1:4500", "why": "both NATs vary their ports"}
        return SimpleNamespace(**values, to_dict=lambda: values)

    def go_direct(self) -> None:
        self.is_direct = True
        self.became_direct.set()

    async def wait_direct(self) -> None:
        await self.became_direct.wait()

    async def ping(self) -> float:
        await trio.lowlevel.checkpoint()
        self.pings += 1
        return 0.023

    def close(self, reason: str, code: int) -> None:
        self.closed_with = (reason, code)


async def asked(run_dir: Path, request: Request) -> list[Answer]:
    answers: list[Answer] = []
    with trio.fail_after(10):
        await ask_all(run_dir, request, lambda _pid, answer: answers.append(answer))
    return answers


async def test_status_tells_the_links_and_the_details(tmp_path: Path) -> None:
    link: Any = FakeLink()
    process = Process(role="connect", links=lambda: [link], details=lambda: {"forwards": ["127.0.0.1:2222"]})
    async with serve_control(tmp_path / "run", process):
        [status] = await asked(tmp_path / "run", Status())
    assert status["event"] == "status"
    assert (status["pid"], status["role"], status["forwards"]) == (os.getpid(), "connect", ["127.0.0.1:2222"])
    assert status["links"] == [link.status().to_dict()]
    assert processes(tmp_path / "run") == []


async def test_the_socket_is_for_its_user_alone_and_goes_with_the_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    async with serve_control(run_dir, Process(role="expose", links=list)):
        mode = os.stat(socket_path(run_dir, os.getpid())).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(os.stat(run_dir).st_mode) == 0o700
    assert os.listdir(run_dir) == []


async def test_another_user_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_control(tmp_path, Process(role="expose", links=list)):
        monkeypatch.setattr(control_server, "is_ours", lambda _sock: False)
        assert await asked(tmp_path, Status()) == []


SERVICE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{sys.argv[1]}/{os.getpid()}.sock")
os.setuid(int(sys.argv[2]))
listener.listen()
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    if client.recv(4096):
        client.sendall(b'{"event": "status", "role": "serve"}\\n{"event": "done"}\\n')
"""


@contextmanager
def service(run_dir: Path, uid: int) -> Iterator[None]:
    """A process that answers there as another user."""
    with subprocess.Popen([sys.executable, "-c", SERVICE, str(run_dir), str(uid)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(("owner", "heard"), [(65_534, "status"), (65_533, "error")])
async def test_root_may_ask_a_service_that_runs_as_the_user_whose_directory_it_is(tmp_path: Path, owner: int, heard: str) -> None:
    try:
        os.chown(tmp_path, owner, -1)
    except OSError:
        pytest.skip("only root of a whole system can give files away")
    with service(tmp_path, 65_534):
        answers = await asked(tmp_path, Status())
    assert [each["event"] for each in answers] == [heard]
    os.chown(tmp_path, os.getuid(), -1)


async def test_pings_are_counted_and_timed(tmp_path: Path) -> None:
    async with serve_control(tmp_path, Process(role="connect", links=lambda: [link])):
        link: Any = FakeLink()
        answers = await asked(tmp_path, Ping(count=3, interval_s=0.01))
    assert [(answer["event"], answer["n"], answer["rtt_s"]) for answer in answers] == [
        ("ping", 1, 0.023),
        ("ping", 2, 0.023),
        ("ping", 3, 0.023),
    ]


async def test_ping_until_direct_ends_when_the_path_becomes_direct(tmp_path: Path) -> None:
    class Punching(FakeLink):
        async def ping(self) -> float:
            if self.pings == 2:
                self.go_direct()
            return await super().ping()

    link: Any = Punching()
    async with serve_control(tmp_path, Process(role="connect", links=lambda: [link])):
        answers = await asked(tmp_path, Ping(until_direct=True, interval_s=0.01))
    assert [answer["kind"] for answer in answers] == ["relay", "relay", "direct"]


async def test_ping_until_direct_gives_up_and_says_why(tmp_path: Path) -> None:
    async with serve_control(tmp_path, Process(role="connect", links=lambda: [link])):
        link: Any = FakeLink()
        answers = await asked(tmp_path, Ping(until_direct=True, interval_s=10, limit_s=0.05))
    assert answers[-1]["code"] == "not_direct"
    assert "both NATs vary their ports" in answers[-1]["message"]


async def test_a_ping_needs_one_peer(tmp_path: Path) -> None:
    links: list[Any] = [FakeLink("home"), FakeLink("office")]
    async with serve_control(tmp_path, Process(role="expose", links=lambda: links)):
        assert [answer["code"] for answer in await asked(tmp_path, Ping())] == ["several_peers"]
        assert [answer["code"] for answer in await asked(tmp_path, Ping(peer="nobody"))] == ["no_link"]
        assert [answer["peer"] for answer in await asked(tmp_path, Ping(peer="SHA256:office", count=1))] == ["office"]


async def test_a_link_that_closes_under_a_ping_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(_self: FakeLink) -> float:
        raise UnreachableError("The link is closed.")

    monkeypatch.setattr(FakeLink, "ping", lost)
    async with serve_control(tmp_path, Process(role="connect", links=lambda: [link])):
        link: Any = FakeLink()
        assert [answer["code"] for answer in await asked(tmp_path, Ping())] == ["link_lost"]


async def test_check_direct_tells_each_link(tmp_path: Path) -> None:
    links: list[Any] = [FakeLink("home"), FakeLink("office")]
    links[1].go_direct()
    async with serve_control(tmp_path, Process(role="expose", links=lambda: links)):
        answers = await asked(tmp_path, Check(wait_s=0.05))
    assert [(answer["peer"], answer["direct"]) for answer in answers] == [("home", False), ("office", True)]


async def test_forget_cuts_the_links_of_that_peer_alone(tmp_path: Path) -> None:
    links: list[Any] = [FakeLink("home"), FakeLink("office")]
    forgotten: list[str] = []
    async with serve_control(tmp_path, Process(role="expose", links=lambda: links, forget=forgotten.append)):
        assert await asked(tmp_path, Forget(peer="home")) == [{"event": "forgotten", "peer": "home", "links": 1}]
    assert forgotten == ["home"]
    assert links[0].closed_with is not None
    assert links[1].closed_with is None


async def test_close_ends_the_process_as_ctrl_c_would(tmp_path: Path) -> None:
    closed = trio.Event()
    async with serve_control(tmp_path, Process(role="connect", links=list, close=closed.set)):
        assert [answer["event"] for answer in await asked(tmp_path, Close())] == ["closing"]
        assert closed.is_set()


async def test_sockets_of_dead_processes_are_swept_and_the_living_answer(tmp_path: Path) -> None:
    for pid in (99_999_998, 99_999_999):
        with socket.socket(socket.AF_UNIX) as dead:
            with short_path(socket_path(tmp_path, pid)) as spelling:
                dead.bind(spelling)
            dead.listen()
    (tmp_path / "notes.txt").touch()
    async with serve_control(tmp_path, Process(role="connect", links=list)):
        assert sorted(os.listdir(tmp_path)) == sorted([f"{os.getpid()}.sock", "notes.txt"])
        with socket.socket(socket.AF_UNIX) as dead, short_path(socket_path(tmp_path, 99_999_999)) as spelling:
            dead.bind(spelling)
        assert processes(tmp_path) == [os.getpid()]


async def test_a_process_that_says_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.control.client.SILENCE_LIMIT", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        with short_path(socket_path(tmp_path, 77)) as spelling:
            silent.bind(spelling)
        silent.listen()
        assert await asked(tmp_path, Status()) == [
            {"event": "error", "code": "process_silent", "message": "Process 77 does not answer."}
        ]


async def test_rubbish_gets_an_error_and_the_next_request_its_answer(tmp_path: Path) -> None:
    async with serve_control(tmp_path, Process(role="connect", links=list)):
        with trio.fail_after(5):
            sock = connect(socket_path(tmp_path, os.getpid()))
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                await stream.send_all(b'rubbish\n{"do":"status"}\n')
                await stream.send_eof()
                said = b"".join([chunk async for chunk in stream])
    assert [line[:17] for line in said.splitlines()] == [b'{"event":"error",', b'{"event":"status"', b'{"event":"done"}']


async def test_a_request_of_more_bytes_than_may_be_is_not_answered(tmp_path: Path) -> None:
    async with serve_control(tmp_path, Process(role="connect", links=list)):
        with trio.fail_after(5):
            for size, kinds in ((MAX_REQUEST, [b'{"event":"status"', b'{"event":"done"}']), (MAX_REQUEST + 1, [])):
                sock = connect(socket_path(tmp_path, os.getpid()))
                async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                    await stream.send_all(b'{"do":"status"}'.ljust(size) + b"\n")
                    await stream.send_eof()
                    said = b""
                    with suppress(trio.BrokenResourceError):
                        async for chunk in stream:
                            said += chunk
                    assert [line[:17] for line in said.splitlines()] == kinds


async def test_so_many_clients_are_heard_at_once_and_the_next_is_told_to_come_again(tmp_path: Path) -> None:
    async with serve_control(tmp_path, Process(role="connect", links=list)):
        with trio.fail_after(5):
            streams = []
            for _ in range(MAX_CLIENTS):
                sock = connect(socket_path(tmp_path, os.getpid()))
                streams.append(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
                await streams[-1].send_all(b'{"do":"status"}\n')
                assert (await streams[-1].receive_some()).startswith(b'{"event":"status"')
            [busy] = await asked(tmp_path, Status())
            assert (busy["event"], busy["code"]) == ("error", "busy")
            for stream in streams:
                await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert [answer["event"] for answer in await asked(tmp_path, Status())] == ["status"]


async def test_a_line_without_end_is_cut_off(tmp_path: Path) -> None:
    async with serve_control(tmp_path, Process(role="connect", links=list)):
        with trio.fail_after(5):
            sock = connect(socket_path(tmp_path, os.getpid()))
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.send_all(bytes(16 << 20))


async def test_a_very_long_home_works_too(tmp_path: Path) -> None:
    run_dir = tmp_path / ("d" * 100) / ("e" * 100)
    async with serve_control(run_dir, Process(role="connect", links=list)):
        assert [answer["event"] for answer in await asked(run_dir, Status())] == ["status"]


async def test_a_directory_among_the_temporary_files_goes_with_the_last_socket_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_dir = tmp_path / "ptunnel-1000-1234"
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as dead, short_path(socket_path(run_dir, 99_999_999)) as spelling:
        dead.bind(spelling)  # left by a process that was killed
    async with serve_control(run_dir, Process(role="connect", links=list)):
        (run_dir / "of-another").touch()
        assert [answer["event"] for answer in await asked(run_dir, Status())] == ["status"]
    assert os.listdir(run_dir) == ["of-another"]
    (run_dir / "of-another").unlink()
    run_dir.rmdir()
    tries: list[Path] = []

    def made() -> Path:
        """And at first taken away at once by one that ends."""
        run_dir.mkdir(exist_ok=True)
        tries.append(run_dir)
        return run_dir

    def taken_away(folder: Path) -> list[int]:
        if len(tries) == 1:
            leave(folder)
        return []

    monkeypatch.setattr(control_server, "sweep", taken_away)
    async with serve_control(made, Process(role="connect", links=list)):
        assert [answer["event"] for answer in await asked(run_dir, Status())] == ["status"]
    assert len(tries) == 2
    assert not run_dir.exists()
    made()
    assert await asked(run_dir, Status()) == []
    assert not run_dir.exists(), "who only asks leaves none either"


async def test_what_the_block_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        async with serve_control(tmp_path, Process(role="connect", links=list)):
            raise UnreachableError("as it is")


async def test_only_the_room_that_is_meant_sends_a_member_away(tmp_path: Path) -> None:
    def remove(member: str, room: str | None) -> tuple[str, str] | None:
        if room not in (None, "game"):
            return None
        if member != "ben":
            raise ConfigurationError(f"No member is called {member!r}: there are ben.")
        return "game", member

    async with serve_control(tmp_path / "run", Process(role="lan", links=list, remove=remove)):
        assert await asked(tmp_path / "run", Remove(member="ben")) == [{"event": "removed", "room": "game", "peer": "ben"}]
        assert await asked(tmp_path / "run", Remove(member="ben", room="other")) == []
        [refusal] = await asked(tmp_path / "run", Remove(member="zoe"))
        assert (refusal["event"], refusal["code"]) == ("error", "not_removed")
    async with serve_control(tmp_path / "run", Process(role="expose", links=list)):
        assert await asked(tmp_path / "run", Remove(member="ben")) == []
