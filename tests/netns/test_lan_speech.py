"""Rooms whose members do not read what their programs say: a terminal that was stopped, a pipe that is full."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.netns.kernel import python_module
from tests.netns.lab import Lab
from tests.netns.programs import environment, ptunnel, server_address, start_server
from tests.netns.test_lan_rooms import machine

START_S = 40.0
CODE = re.compile(rb"\b\d+(?:-[a-z]+){3}\b")


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    primary, secondary = pty.openpty()
    yield primary, secondary
    for descriptor in (primary, secondary):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def read_until(descriptor: int, wanted: re.Pattern[bytes]) -> bytes:
    said, end = b"", time.monotonic() + START_S
    while wanted.search(said) is None:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, said
        said += os.read(descriptor, 65_536)
    found = wanted.search(said)
    assert found is not None
    return found[0]


def test_a_room_goes_on_while_the_terminal_of_its_creator_takes_nothing(lab: Lab, terminal: tuple[int, int]) -> None:
    """Ctrl-S: whoever comes meanwhile is let in, and packets go through."""
    primary, secondary = terminal
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    words = python_module("tunnel", "lan", "create", "--server", server_address(lab))
    settings = {**environment(lab.folder / "home-anna"), "TERM": "xterm", "COLUMNS": "120"}
    creator = anna.host.popen(words, env=settings, stdin=secondary, stdout=secondary, stderr=secondary)
    try:
        code = read_until(primary, CODE).decode()
        termios.tcflow(secondary, termios.TCOOFF)
        command = ["ping", "-q", "-c", "8", "-i", "0.5", "-W", "5", "anna.ptunnel"]  # for longer than a picture is shown
        done = ptunnel(
            ben.host, lab.folder / "home-ben", "exec", "--server", server_address(lab), "--as", "ben", "--", *command,
            timeout=90, PTUNNEL_CODE=code,
        )  # fmt: skip
        assert done.returncode == 0, done
        assert creator.poll() is None
        termios.tcflow(secondary, termios.TCOON)
        creator.terminate()
        assert creator.wait(20) == 0
    finally:
        creator.kill()
        creator.wait()


def test_a_command_in_a_room_runs_though_nobody_reads_its_events(lab: Lab) -> None:
    """`exec --json` into a pipe that is full from the beginning."""
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    primary, secondary = os.pipe()
    words = python_module("tunnel", "lan", "create", "--server", server_address(lab))
    creator = anna.host.popen(words, env=environment(lab.folder / "home-anna"), stderr=secondary, stdin=subprocess.DEVNULL)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b" " * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b" ")
    os.set_blocking(writer, True)
    command = ["sh", "-c", "ping -q -c 2 -W 5 anna.ptunnel 2>&1"]
    runs = None
    try:
        code = read_until(primary, CODE).decode()
        words = ["exec", "--json", "--server", server_address(lab), "--as", "ben", "--", *command]
        runs = ben.host.popen(
            python_module("tunnel", *words), env=environment(lab.folder / "home-ben", PTUNNEL_CODE=code),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer,
        )  # fmt: skip
        said, _ = runs.communicate(timeout=90)
        assert runs.returncode == 0, said
        assert "0% packet loss" in str(said)
    finally:
        for process in (creator, runs):
            if process is not None:
                process.kill()
                process.communicate()
        for descriptor in (primary, secondary, reader, writer):
            os.close(descriptor)
