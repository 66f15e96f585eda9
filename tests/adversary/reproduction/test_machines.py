"""One identity in two places: a process that goes on in a copy of its machine, and a home that was copied."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.adversary.reproduction.programs import PATIENCE_S, Lab, Program, echo_through

pytestmark = pytest.mark.time_limit(180)

NOTICED = 40.0  # seconds for what takes three
STANDS_STILL = 4.0  # seconds, after which a process must take itself for a copy: docs/security.md


class Tap:
    """Stands before a server for one client, and knows which keys (by their receiver index) that client seals under."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._near.bind(("127.0.0.1", 0))
        self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._far.connect((host, int(port)))
        for sock in (self._near, self._far):
            sock.settimeout(0.2)  # so that the threads end
        self._client: tuple[str, int] | None = None
        self.indices: set[int] = set()
        self.bind = f"127.0.0.1:{self._near.getsockname()[1]}"
        for each in (self._take, self._give):
            threading.Thread(target=each, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                datagram, self._client = self._near.recvfrom(65_536)
                self._far.send(datagram)
            except TimeoutError:
                continue
            except OSError:
                return
            if datagram[0] >= 0xC0 and datagram[8] in (0x80, 0x81):  # relayed; a transport datagram, docs/protocol.md
                self.indices.add(int.from_bytes(datagram[9:13], "big"))

    def _give(self) -> None:
        while True:
            try:
                datagram = self._far.recv(65_536)
                if self._client is not None:
                    self._near.sendto(datagram, self._client)
            except TimeoutError:
                continue
            except OSError:
                return

    def close(self) -> None:
        for sock in (self._near, self._far):
            sock.close()


def is_stopped(program: Program) -> bool:
    return Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_process_that_may_go_on_in_a_copy_of_its_machine_seals_nothing_more_under_its_keys(tmp_path: Path) -> None:
    """It stands still for seconds, as one that is restored from a snapshot does; its original would count on."""
    with Lab(tmp_path) as lab:
        _, server = lab.serve()
        tap = Tap(server)
        exposing = lab.run("home", "expose", str(lab.port), "--server", server, "--name", "home")
        code = str(exposing.wait("code")["code"])
        words = ("--server", tap.bind, "--forward", f"0:{lab.port}", "--name", "friend", "--path", "relay")
        connecting = lab.run("friend", "connect", *words, PTUNNEL_CODE=code)
        bind = connecting.wait("forward")["bind"]
        assert echo_through(bind, b"before") == b"before"
        connecting.process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + PATIENCE_S
        while not is_stopped(connecting) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(STANDS_STILL)
        before = set(tap.indices)
        assert before
        tap.indices.clear()
        connecting.process.send_signal(signal.SIGCONT)
        assert echo_through(bind, b"after") == b"after"
        tap.close()
        assert not tap.indices & before, "it went on under the same keys"


def test_a_home_that_was_copied_and_runs_twice_is_noticed_and_both_are_told(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        exposing, connecting = lab.pair("22", forward="0:22")
        connecting.end()
        exposing.end()
        shutil.copytree(lab.home("home"), lab.home("copy"), ignore=shutil.ignore_patterns("run", "*.sock", "*.lock"))
        _, server = lab.serve()
        programs = [lab.run(who, "expose", "22", "--server", server) for who in ("home", "copy")]
        end = time.monotonic() + NOTICED
        while not all(map(is_told_of_another, programs)) and time.monotonic() < end:
            time.sleep(0.05)
        assert [is_told_of_another(program) for program in programs] == [True, True]


def is_told_of_another(program: Program) -> bool:
    return any("identity" in str(event.get("message", "")) for event in program.events)
