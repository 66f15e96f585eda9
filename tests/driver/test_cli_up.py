"""`ptunnel up` as a process, and the commands that ask it: what they print, what they change, and how they end."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.driver.programs import PATIENCE_S, Lab, Program, echo_through
from tests.driver.ups import acquaint, configure
from tests.twins.notify import Manager

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="commands ask by Unix sockets")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


class Two:
    """Two homes that know one another, ann with a forward to ben, who lets her reach the echo."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ann, self.ben = lab.connector, lab.exposer
        acquaint(lab.server, ann=self.ann, ben=self.ben)
        configure(self.ann, f'server = "{lab.server}"\n[[forward]]\npeer = "ben"\nlisten = ["0:{lab.port}"]\n')
        configure(self.ben, f'server = "{lab.server}"\n[[expose]]\nwhat = ["{lab.port}"]\nto = ["ann"]\n')

    def start(self, home: Path, **environment: str) -> Program:
        running = self.lab.run(home, "up", **environment)
        until((home / "run" / f"{running.process.pid}.sock").exists)  # it can be asked from then on
        return running

    def ask(self, home: Path, *arguments: str) -> list[dict[str, Any]]:
        done = self.lab.ask(home, *arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def answers(bind: str) -> bool:
    try:
        return echo_through(bind, b"hello") == b"hello"
    except OSError:
        return False


def is_cut(used: socket.socket) -> bool:
    try:
        return used.recv(5) == b""
    except ConnectionResetError:
        return True


def is_closed(bind: str) -> bool:
    host, _, port = bind.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    except OSError:
        return True
    return False


def test_commands_change_what_runs_and_its_file(lab: Lab) -> None:
    two = Two(lab)
    ann, _ben = two.start(two.ann), two.start(two.ben)
    bind = ann.wait("forward")["bind"]
    assert echo_through(bind, b"hello") == b"hello"

    [added] = two.ask(two.ann, "forward", "add", "ben", f"0:{lab.port}/tcp", "--save")
    assert added["bind"] == bind  # the same, which stands in the file already
    [other] = two.ask(two.ann, "forward", "add", "ben", "0:9")
    assert {each["bind"] for each in two.ask(two.ann, "forward")} == {bind, other["bind"]}
    [removed] = two.ask(two.ann, "forward", "remove", "ben", "0:9")
    assert (removed["event"], removed["again"]) == ("forward_removed", False)
    until(lambda: is_closed(other["bind"]))

    [granted] = two.ask(two.ben, "grant", "ann", "9")
    assert granted["grants"] == ["tcp/9", f"tcp/{lab.port}"]
    with socket.create_connection((bind.rpartition(":")[0], int(bind.rpartition(":")[2])), timeout=PATIENCE_S) as used:
        used.sendall(b"hello")
        assert used.recv(5) == b"hello"
        [revoked] = two.ask(two.ben, "revoke", "ann", str(lab.port))
        assert (revoked["grants"], revoked["streams"], revoked["again"]) == (["tcp/9"], 1, True)
        assert is_cut(used)
    assert two.ask(two.ben, "reload")[0]["event"] == "reloaded"
    assert echo_through(bind, b"again") == b"again"

    configure(two.ann, "[[forward]]\n")
    failed = lab.ask(two.ann, "reload")
    assert (failed.returncode, "config.toml:1:" in failed.stderr) == (2, True)
    ann.process.send_signal(signal.SIGHUP)
    assert "config.toml:1:" in ann.wait("warning", code="not_reloaded")["message"]
    assert echo_through(bind, b"still") == b"still"
    assert ann.end(signal.SIGTERM)[0] == 0


def test_nothing_running_is_told_with_what_to_do(lab: Lab) -> None:
    two = Two(lab)
    for words in (["forward", "add", "ben", "1"], ["forward"], ["invite"], ["join", "731-garden-violin"], ["reload"]):
        done = lab.ask(two.ann, *words)
        assert (done.returncode, "'ptunnel up' does not run" in done.stderr) == (5, True), done.stderr
    assert two.ask(two.ann, "grant", "ben", "22")[0]["grants"] == ["tcp/22"]
    assert two.ask(two.ann, "revoke", "ben", "22")[0]["grants"] == []


def test_a_code_of_one_running_home_is_used_by_another(lab: Lab, tmp_path: Path) -> None:
    for home in (lab.connector, lab.exposer):
        configure(home, f'server = "{lab.server}"\nname = "{home.name}"\n')
        running = lab.run(home, "up")
        until((home / "run" / f"{running.process.pid}.sock").exists)
    done = lab.ask(lab.exposer, "invite", str(lab.port), "--json")
    code = json.loads(done.stdout)
    assert code["server"] == lab.server
    joined = lab.ask(lab.connector, "join", code["code"], "--forward", f"0:{lab.port}", "--save", "--json")
    paired, forward = (json.loads(line) for line in joined.stdout.splitlines())
    assert (paired["event"], paired["peer"]) == ("paired", "exposer")
    assert echo_through(forward["bind"], b"hello") == b"hello"
    assert 'peer = "exposer"' in (lab.connector / "config.toml").read_text()
    again = lab.ask(lab.connector, "join", code["code"], "--json")
    assert again.returncode == 4


def test_foreground_connect_hands_its_wish_over_and_takes_it_back(lab: Lab) -> None:
    two = Two(lab)
    two.start(two.ann)
    two.start(two.ben)
    foreground = lab.run(two.ann, "connect", "ben", "--forward", f"0:{lab.port}")
    assert foreground.wait("forward")["bind"] in {each["bind"] for each in two.ask(two.ann, "forward")}  # the same: it was there
    foreground.wait("warning", code="forwarded_already")
    assert foreground.end()[0] == 130
    foreground = lab.run(two.ann, "connect", "ben", "--forward", f"127.0.0.1:0:{lab.port}")
    bind = foreground.wait("forward")["bind"]
    assert echo_through(bind, b"hello") == b"hello"
    foreground.wait("path", peer="ben")
    assert foreground.end()[0] == 130
    until(lambda: is_closed(bind))
    assert len(two.ask(two.ann, "forward")) == 1


def test_foreground_expose_hands_its_wish_over_and_takes_it_back(lab: Lab) -> None:
    two = Two(lab)
    two.start(two.ben)
    foreground = lab.run(two.ben, "expose", str(lab.port), "--server", lab.server)
    code = foreground.wait("code")["code"]
    cleo = lab.run(
        lab.exposer.parent / "cleo", "connect", code, "--server", lab.server, "--forward", f"0:{lab.port}", "--name", "cleo"
    )
    bind = cleo.wait("forward")["bind"]
    assert echo_through(bind, b"hello") == b"hello"
    foreground.wait("paired", peer="cleo")
    with socket.create_connection(("127.0.0.1", int(bind.rpartition(":")[2])), timeout=PATIENCE_S) as used:
        used.sendall(b"hello")
        assert used.recv(5) == b"hello"
        assert foreground.end()[0] == 130
        assert is_cut(used)  # it may reach that no more
    done = lab.ask(two.ben, "expose")
    assert (done.returncode, "serves the remembered peers already" in done.stderr) == (0, True)


def test_the_service_manager_hears_of_each_turn(lab: Lab) -> None:
    two = Two(lab)
    with Manager(watchdog_s=0.5) as manager:
        ann = two.start(two.ann, **manager.variables)
        assert manager.until("READY")["STATUS"] == "1 forwards to 1 peers"
        for _ in range(2):
            manager.until("WATCHDOG")
        ann.process.send_signal(signal.SIGHUP)
        assert int(manager.until("RELOADING")["MONOTONIC_USEC"]) > 0
        manager.until("READY")
        assert ann.end(signal.SIGTERM)[0] == 0
        manager.until("STOPPING")


def test_a_home_that_was_killed_and_started_again_carries_its_forwards_both_ways(lab: Lab) -> None:
    two = Two(lab)
    configure(two.ann, (two.ann / "config.toml").read_text() + f'[[expose]]\nwhat = ["{lab.port}"]\nto = ["ben"]\n')
    configure(two.ben, (two.ben / "config.toml").read_text() + f'[[forward]]\npeer = "ann"\nlisten = ["0:{lab.port}"]\n')
    ann, ben = two.start(two.ann), two.start(two.ben)
    ours, theirs = ann.wait("forward")["bind"], ben.wait("forward")["bind"]
    assert echo_through(ours, b"hello") == b"hello"
    assert echo_through(theirs, b"hello") == b"hello"
    ann.process.kill()
    ann.join()
    again = two.start(two.ann)
    assert echo_through(again.wait("forward")["bind"], b"hello") == b"hello"
    until(lambda: answers(theirs))  # one that was opened over the dead half of the old link is reset, the next one is not
