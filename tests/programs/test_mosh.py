"""Mosh: it starts over a forwarded ssh, goes on over forwarded UDP, and lives through a change of path and of the server."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import termios
import time
from collections.abc import Callable

import pytest

from tests.netns.programs import Sshd
from tests.programs.homes import SLOW_S, Homes, needs

pytestmark = [pytest.mark.nightly, needs("mosh", "mosh-server", "ssh")]

PORT = 60_001


class Terminal:
    """What a person has who types: keys to the program, and what it has written so far."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait(self, pattern: str) -> None:
        end = time.monotonic() + SLOW_S
        while not re.search(pattern.encode(), self.seen):
            left = end - time.monotonic()
            assert left > 0, f"{pattern!r} was not seen in {self.seen[-2000:]!r}"
            if select.select([self._fd], [], [], left)[0]:
                try:
                    self.seen += os.read(self._fd, 65_536)
                except OSError:  # nobody has the other side any more
                    raise AssertionError(f"it ended without {pattern!r}: {self.seen[-2000:]!r}") from None


def test_a_shell_lives_on(homes: Homes) -> None:
    sshd = Sshd(homes.lab, homes.home)
    homes.link(str(sshd.port), f"{PORT}/udp", forward=[f"2222:{sshd.port}", f"{PORT}/udp"])
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    terminal = Terminal(master)
    words = ["mosh", f"--ssh={shlex.join(['ssh', *sshd.options(), '-p', '2222'])}", "--experimental-remote-ip=local"]
    words += ["--server=env LC_ALL=C.UTF-8 mosh-server", f"--port={PORT}", "--bind-server=any", f"{sshd.user}@127.0.0.1"]
    shell = homes.friend.popen(
        words, stdin=slave, stdout=slave, stderr=slave, env={**homes.env, "TERM": "xterm"}, start_new_session=True
    )
    homes.lab.on_close(shell.kill)
    os.close(slave)
    try:
        terminal.wait(r"[$#] ")
        happenings: tuple[Callable[[], object], ...] = (homes.rebind, homes.restart_server, lambda: None)
        for number, happening in enumerate(happenings):
            terminal.type(f"echo $(({number} + 4100))\r")
            terminal.wait(str(number + 4100))
            happening()
        terminal.type("exit\r")
        terminal.wait("mosh is exiting")
        shell.wait(SLOW_S)
    finally:
        os.close(master)
