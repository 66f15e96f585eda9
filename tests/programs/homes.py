"""A program at home, behind a NAT, whose owner exposes it; and a friend behind another, who forwards it and uses it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns.lab import Lab, eventually
from tests.netns.programs import START_S, Pair, Program, environment, start_server
from tests.netns.rooms import Member

SLOW_S = 60.0
"""Seconds that one step of a program may take on a busy machine; each takes a few at most where there is room."""


def find(program: str) -> str | None:
    """Where a program is, also in the folders that are in root's PATH alone, or in nobody's."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/games"]))


def needs(*programs: str) -> pytest.MarkDecorator:
    """For `pytestmark`: these programs must be there; the path of a file stands for itself."""
    missing = [name for name in programs if find(name) is None and not Path(name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is missing; scripts/test says how to install it")


class Homes:
    """Two homes and a server.  The friend's router is our own NAT, which takes another port after it forgot its mappings."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder
        self.home_site, self.friend_site = lab.add_site("home", "prc"), lab.add_site("friend", "uprc")
        self.home, self.friend = self.home_site.host, self.friend_site.host
        self.server = start_server(lab)
        self.env = environment(lab.folder / "friend", LC_ALL="C.UTF-8")

    # ------------------------------------------------------------ at home

    def serve(self, name: str, words: Sequence[str | Path], port: int, *, kind: str = "tcp") -> Program:
        """Start a program at home and wait until it listens on this port."""
        program = Program(self.lab, self.home, name, words, env=environment(self.folder / f"{name}-home", LC_ALL="C.UTF-8"))
        listing = ["ss", "-Hlnt" if kind == "tcp" else "-Hlnu"]
        eventually(
            f"{name} on port {port}",
            lambda: program.process.poll() is not None or f":{port} " in self.home.run(*listing).stdout,
            START_S,
        )
        if program.process.poll() is not None:
            raise program.trouble(f"{name} did not start")
        return program

    def link(self, *expose: str, forward: Sequence[str]) -> Pair:
        """Expose and forward; the path is direct when this returns."""
        pair = Pair(self.lab, self.home_site, self.friend_site, expose=expose, forward=forward)
        pair.wait_direct(START_S)
        return pair

    # ------------------------------------------------------------ at the friend's

    def use(self, *words: str | Path, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program at the friend's to its end."""
        return self.friend.run(*words, stdin=stdin, env=self.env, timeout=SLOW_S, check=check)

    def start(self, name: str, *words: str | Path, stdin: int = subprocess.DEVNULL) -> Program:
        """Start a program at the friend's that runs on beside the test."""
        return Program(self.lab, self.friend, name, words, env=self.env, stdin=stdin)

    # ------------------------------------------------------------ what happens meanwhile

    def rebind(self) -> None:
        """The friend's router forgets all its mappings: from now on the world sees the friend at another port."""
        self.friend_site.forget_mappings()

    def restart_server(self) -> None:
        """ptunnel's server crashes and comes back."""
        self.server.kill()
        self.server = start_server(self.lab)

    def wait_bytes(self, pair: Pair, count: int) -> None:
        """Until so many bytes more have crossed the core between the homes."""
        before = pair.went_direct()
        eventually(f"{count} bytes more", lambda: pair.went_direct() - before >= count, SLOW_S, 0.01)


def wait_traffic(member: Member, count: int) -> None:
    """Until a member of a room has sent and received so many bytes more by the room's interface."""
    received, sent = member.space.device_bytes(member.interface)

    def enough() -> bool:
        now_received, now_sent = member.space.device_bytes(member.interface)
        return min(now_received - received, now_sent - sent) >= count

    eventually(f"{count} bytes each way at {member.name}", enough, SLOW_S, 0.2)


def ask(sock: socket.socket, question: bytes, everybody: tuple[str, int], server: Program) -> tuple[bytes, str]:
    """Send a game's search to everybody, once a second as its page does, and return the first answer and whose it is."""
    sock.settimeout(1)
    end = time.monotonic() + 2 * SLOW_S
    while time.monotonic() < end:
        sock.sendto(question, everybody)
        try:
            data, remote = sock.recvfrom(1500)
        except TimeoutError:
            continue
        return data, str(remote[0])
    raise server.trouble("nobody answers the search")
