"""ssh beyond a login: several sessions in one connection, exit codes, sftp, and many commands by `connect --stdio`."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.netns.kernel import python_module
from tests.netns.lab import eventually
from tests.netns.programs import Sshd, checksum, environment, random_file
from tests.programs.homes import SLOW_S, Homes, needs

pytestmark = needs("ssh", "sftp")

SIZE = 3_000_000
AT_ONCE = 24
STOPPED_S = 35.0


def test_sessions_share_a_connection_whose_friends_router_forgets(homes: Homes) -> None:
    sshd = Sshd(homes.lab, homes.home)
    homes.link(str(sshd.port), forward=[f"2222:{sshd.port}"])
    place = Path(tempfile.mkdtemp(prefix="ptunnel-ssh-", dir="/tmp"))  # short, for the path of a socket
    homes.lab.on_close(lambda: shutil.rmtree(place, ignore_errors=True))
    shared = ["-S", str(place / "control"), "-p", "2222"]
    who = f"{sshd.user}@127.0.0.1"
    master = homes.start("master", "ssh", *sshd.options(), *shared, "-M", "-N", who)

    def is_up() -> bool:
        assert master.process.poll() is None, master.said()
        return homes.use("ssh", *shared, "-O", "check", who, check=False).returncode == 0

    eventually("the shared connection", is_up, SLOW_S)
    script = "read line; echo $line %d; exit 4%d"
    sessions = [
        homes.start(f"session{number}", "ssh", *shared, who, script % (number, number), stdin=subprocess.PIPE)
        for number in range(3)
    ]
    homes.rebind()
    for number, session in enumerate(sessions):
        assert session.process.stdin is not None
        session.process.stdin.write("hello\n")
        session.process.stdin.flush()
        assert session.wait(SLOW_S) == 40 + number, session.said()
        assert session.said() == f"hello {number}\n"
    given, taken = homes.folder / "given", homes.folder / "taken"
    digest = random_file(given, SIZE)
    words = ["sftp", *sshd.options(), "-o", f"ControlPath={place / 'control'}", "-P", "2222", "-b", "-", who]
    homes.use(*words, stdin=f"put {given} {homes.folder}/there\nget {homes.folder}/there {taken}\n")
    assert checksum(taken) == digest
    assert homes.use("ssh", *sshd.options(), "-p", "2222", who, "exit 3", check=False).returncode == 3


@pytest.mark.nightly
@pytest.mark.time_limit(240)
def test_many_commands_at_once_each_by_a_process_of_its_own(homes: Homes) -> None:
    sshd = Sshd(homes.lab, homes.home)
    pair = homes.link(str(sshd.port), forward=[f"2222:{sshd.port}"])
    proxy = shlex.join(python_module("tunnel", "connect", "home", "--stdio", str(sshd.port)))
    homes.env = environment(pair.connector.home)
    words = ["ssh", "-o", f"ConnectTimeout={SLOW_S:.0f}", *sshd.options(), "-o", f"ProxyCommand={proxy}", f"{sshd.user}@home"]
    logins = [homes.start(f"login{number}", *words, f"echo through {number}") for number in range(AT_ONCE)]
    for number, login in enumerate(logins):
        assert login.wait(2 * SLOW_S) == 0, login.said()
        assert f"through {number}\n" in login.said()


@pytest.mark.nightly
@pytest.mark.time_limit(240)
def test_a_session_goes_on_after_either_sides_program_was_stopped(homes: Homes) -> None:
    sshd = Sshd(homes.lab, homes.home)
    pair = homes.link(str(sshd.port), forward=[f"2222:{sshd.port}"])
    session = homes.start("session", "ssh", *sshd.options(), "-p", "2222", f"{sshd.user}@127.0.0.1", "cat", stdin=subprocess.PIPE)

    def say(line: str) -> None:
        assert session.process.stdin is not None
        session.process.stdin.write(f"{line}\n")
        session.process.stdin.flush()
        session.wait_said(f"{line}\n", SLOW_S)

    say("before")
    for program in (pair.connector, pair.exposer):
        program.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(STOPPED_S)
        finally:
            program.process.send_signal(signal.SIGCONT)
        say(f"after {program.name}")
