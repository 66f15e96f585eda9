"""`ptunnel up` of a home with many peers behind NATs, on real kernels.  As root, or where namespaces may be made:

`python -m tests.netns.ups [PART ...] [--peers 20] [--seconds 30]` prints the figures of docs/always-on.md.  Parts: `changes`
(the longest silence of a stream while forwards come and go, the file is reloaded and grants change, beside an scp and an
iperf3), `revoke` (until an open stream is cut), `restart` (until every forward answers after a kill -9), `rest` (memory and
wakes of an idle home, with one peer, with all, and with as many that are away).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.driver.ups import acquaint, configure
from tests.netns.kernel import LabError, python_module
from tests.netns.lab import Kind, Lab, Site, eventually
from tests.netns.programs import Program, Sshd, checksum, environment, ptunnel, random_file, server_address, start_server
from tests.netns.recovery import Talk

KINDS: Final[tuple[Kind, ...]] = ("prc", "fw", "sym", "prcrace")  # of the peers' sites, in turn
FORWARDS: Final = 3  # to each peer
FIRST_PORT: Final = 7001  # of the programs behind a peer, one for each forward
ECHO_PORT: Final = 7000
IPERF_PORT: Final = 5201
PATIENCE_S: Final = 60.0  # for what takes one second on a quiet machine
MB: Final = 1_000_000

SERVE: Final = """
import socket, sys, threading
def serve(listener, name):
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=talk, args=(sock, name), daemon=True).start()
def talk(sock, name):
    try:
        sock.sendall(name)
        while data := sock.recv(65536):
            sock.sendall(data)
    except OSError:
        pass
    sock.close()
name, first, count, echo = sys.argv[1], *map(int, sys.argv[2:])
for port in (echo, *range(first, first + count)):
    said = b"" if port == echo else f"{name}:{port}\\n".encode()
    threading.Thread(target=serve, args=(socket.create_server(("127.0.0.1", port)), said)).start()
print("serving", flush=True)
"""
"""A program on each port that says its name and its port, then echoes; the one at the last port says nothing before."""

SUPERVISE: Final = 'trap \'kill -KILL "$child"; exit\' TERM\nwhile :; do "$@" & child=$!; wait "$child"; done'
"""Starts a program anew whenever it has ended."""


class Homes:
    """A home under a supervisor, its peers behind NATs, each with its own `up`, and programs behind them."""

    def __init__(self, lab: Lab, peers: int) -> None:
        self.lab = lab
        self.home = lab.add_site("home", "prc")
        self.sites = [lab.add_site(f"peer{number}", KINDS[number % len(KINDS)]) for number in range(peers)]
        self.server = start_server(lab)
        self.places = {site.name: lab.folder / f"home-{site.name}" for site in (self.home, *self.sites)}
        for site in self.sites:
            acquaint(server_address(lab), home=self._state("home"), **{site.name: self._state(site.name)})
        for site in self.sites:
            words = [site.name, str(FIRST_PORT), str(FORWARDS), str(ECHO_PORT)]
            programs = Program(lab, site.host, f"programs-{site.name}", [sys.executable, "-c", SERVE, *words])
            ports = [*range(FIRST_PORT, FIRST_PORT + FORWARDS), ECHO_PORT, IPERF_PORT, 2022]
            what = ", ".join(f'"{port}"' for port in ports)
            self._configure(site.name, f'[[expose]]\nwhat = [{what}]\nto = ["home"]\n')
            programs.wait_said("serving")
            self._start(site)
        self.wanted: dict[int, str] = {}  # what has to answer, by local port
        self.supervisor: Program | None = None

    def _state(self, name: str) -> Path:
        return self.places[name] / "ptunnel"

    def _configure(self, name: str, text: str) -> None:
        configure(self._state(name), f'server = "{server_address(self.lab)}"\n{text}')

    def _start(self, site: Site) -> Program:
        run = ["setpriv", "--pdeathsig", "KILL", *python_module("tunnel", "up", "--json")]
        # As an installed program it finds its modules compiled; the repository keeps none.
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.lab.folder / "compiled")}
        return Program(
            self.lab,
            site.host,
            f"up-{site.name}",
            ["sh", "-c", SUPERVISE, "supervise", *run],
            env=environment(self.places[site.name], **compiled),
        )

    # --- what the home forwards

    def local(self, peer: int, number: int) -> int:
        return 10_000 + 100 * peer + number

    def write(self, peers: int, *, away: int = 0, more: str = "") -> None:
        """The home's config.toml: FORWARDS to each of the first `peers`, and to as many that run nowhere as `away` says."""
        text = ""
        self.wanted = {}
        for peer in range(peers):
            listen = []
            for number in range(FORWARDS):
                self.wanted[self.local(peer, number)] = f"peer{peer}:{FIRST_PORT + number}"
                listen.append(f'"{self.local(peer, number)}:{FIRST_PORT + number}"')
            text += f'[[forward]]\npeer = "peer{peer}"\nlisten = [{", ".join(listen)}]\n'
        for number in range(away):
            text += f'[[forward]]\npeer = "away{number}"\nlisten = ["{30_000 + number}:22"]\n'
        self._configure("home", text + more)

    def start(self) -> None:
        self.supervisor = self._start(self.home)

    def stop(self) -> None:
        assert self.supervisor is not None
        self.supervisor.end()

    @property
    def pid(self) -> int:
        """Of the home's `up` that runs now."""
        assert self.supervisor is not None
        supervisor = self.supervisor.pid

        def child() -> str:
            return Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="ascii").strip()

        return int(eventually("the home runs", child, PATIENCE_S))

    def ask(self, name: str, *words: str, code: int = 0) -> str:
        """Run a command at one of the homes; returns what it said."""
        done = ptunnel(self.lab.sites[name].host, self.places[name], *words, timeout=PATIENCE_S)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def open(self, port: int) -> socket.socket | None:
        """A connection to a local port of the home over which the program behind it has said its name; None: it does not."""
        sock = self.home.host.socket(kind=socket.SOCK_STREAM)
        sock.settimeout(1.0)
        try:
            sock.connect(("127.0.0.1", port))
            if sock.recv(100) == f"{self.wanted[port]}\n".encode():
                return sock
        except OSError:
            pass
        sock.close()
        return None

    def wait_open(self, port: int) -> socket.socket:
        return eventually(f"{port} leads to {self.wanted[port]}", lambda: self.open(port), PATIENCE_S, step=0.02)

    def wait_all(self) -> None:
        """Until each forward leads to the program that it names."""
        for port in self.wanted:
            try:
                self.wait_open(port).close()
            except LabError as error:
                assert self.supervisor is not None
                raise self.supervisor.trouble(str(error)) from None

    def is_shut(self, port: int) -> bool:
        with self.home.host.socket(kind=socket.SOCK_STREAM) as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0


class Copies:
    """An scp of the same file from the first peer, begun anew whenever one has ended."""

    def __init__(self, homes: Homes, port: int, size: int = 30 * MB) -> None:
        self._homes = homes
        self._folder = homes.lab.folder / "copies"
        self._folder.mkdir()
        self._digest = random_file(self._folder / "given", size)
        self._sshd = Sshd(homes.lab, homes.sites[0].host)
        self._port = port
        self._target = self._folder / "none"
        self._now: Program | None = None
        self.count = 0

    def ensure(self) -> None:
        """One is under way when this returns."""
        if self._now is None or self._now.process.poll() is not None:
            self.finish()
            self._target = self._folder / f"taken{self.count}"
            words = self._sshd.scp_words(self._port, self._sshd.remote(self._folder / "given"), str(self._target))
            self._now = Program(self._homes.lab, self._homes.home.host, "scp", [words[0], "-l", "40000", *words[1:]])
            eventually("the copy has begun", lambda: self._target.exists() and self._target.stat().st_size, PATIENCE_S)

    def finish(self) -> None:
        if self._now is not None:
            assert self._now.wait(PATIENCE_S) == 0, self._now.said()
            assert checksum(self._target) == self._digest
            self.count += 1
            self._now = None


class Flows:
    """An iperf3 flow from the home to the first peer, begun anew whenever one has ended."""

    def __init__(self, homes: Homes, port: int) -> None:
        self._homes = homes
        self._words = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", "8", "-b", "8M", "-i", "0.5", "--forceflush"]
        server = Program(homes.lab, homes.sites[0].host, "iperf3", ["iperf3", "-s", "-p", str(IPERF_PORT), "--forceflush"])
        server.wait_said("Server listening")
        self._now: Program | None = None

    def ensure(self) -> None:
        if self._now is None or self._now.process.poll() is not None:
            self.finish()
            self._now = Program(self._homes.lab, self._homes.home.host, "iperf3-client", self._words)
            self._now.wait_said("MBytes", PATIENCE_S)

    def finish(self) -> None:
        """It came to its end, and both ends have said what they saw."""
        if self._now is not None:
            assert self._now.wait(PATIENCE_S) == 0, self._now.said()
            assert "receiver" in self._now.said()
            self._now = None


def changes(homes: Homes) -> Iterator[tuple[str, Callable[[], None]]]:
    """All that can change while the home runs, and each seen to be done.  The second peer and the third must be there."""
    wanted = homes.wanted

    def add(peer: int, port: int, target: int) -> None:
        homes.ask("home", "forward", "add", f"peer{peer}", f"{port}:{target}")
        wanted[port] = f"peer{peer}:{target}"
        homes.wait_open(port).close()

    def remove(peer: int, port: int, target: int) -> None:
        homes.ask("home", "forward", "remove", f"peer{peer}", f"{port}:{target}")
        del wanted[port]
        assert homes.is_shut(port)

    def reload() -> None:
        path = homes.places["home"] / "ptunnel" / "config.toml"
        text = path.read_text()
        moved, gone = homes.local(0, 1), homes.local(2, 2)
        text = text.replace(f"{moved}:{FIRST_PORT + 1}", f"{moved}:{FIRST_PORT + 2}").replace(f', "{gone}:{FIRST_PORT + 2}"', "")
        path.write_text(text + f'[[forward]]\npeer = "peer0"\nlisten = ["23000:{FIRST_PORT}"]\n')
        homes.ask("home", "reload")
        wanted[moved], wanted[23_000] = f"peer0:{FIRST_PORT + 2}", f"peer0:{FIRST_PORT}"
        del wanted[gone]
        assert homes.is_shut(gone)
        for port in (moved, 23_000):
            homes.wait_open(port).close()

    def fail() -> None:
        path = homes.places["home"] / "ptunnel" / "config.toml"
        text = path.read_text()
        path.write_text(text + "[[forward]]\n")
        assert "config.toml:" in homes.ask("home", "reload", code=2)
        path.write_text(text)

    def regrant() -> None:
        homes.ask("peer0", "revoke", "home", str(FIRST_PORT))
        assert homes.open(homes.local(0, 0)) is None
        homes.ask("peer0", "grant", "home", str(FIRST_PORT))
        homes.wait_open(homes.local(0, 0)).close()

    yield "forward add, same peer", lambda: add(0, 21_000, FIRST_PORT)
    yield "forward add, other peer", lambda: add(1, 21_001, FIRST_PORT + 1)
    yield "reload", reload
    yield "reload of a file that cannot be read", fail
    yield "revoke and grant, same peer", regrant
    yield "forward remove, same peer", lambda: remove(0, 21_000, FIRST_PORT)
    yield "forward remove, other peer", lambda: remove(1, 21_001, FIRST_PORT + 1)


def change_under_load(homes: Homes, quiet_s: float = 0.0) -> dict[str, float]:
    """The longest silence of a stream of a record every 10 ms, in seconds, by what was done; no byte of anything is lost.

    The home runs already; `quiet_s` of nothing are looked at first.
    """
    peer0 = '\n[[forward]]\npeer = "peer0"\nlisten = '
    with (homes.places["home"] / "ptunnel" / "config.toml").open("a") as file:
        file.write(f'{peer0}["22000:{ECHO_PORT}", "22001:2022", "22002:{IPERF_PORT}"]\n')
    homes.ask("home", "reload")
    copies, flows = Copies(homes, 22_001), Flows(homes, 22_002)
    talk = Talk(homes.lab, homes.home.host, 22_000)
    found: dict[str, float] = {}

    def look(name: str, happen: Callable[[], None]) -> None:
        copies.ensure()
        flows.ensure()
        since = time.monotonic()
        happen()
        talk.wait_flowing(time.monotonic())
        found[name] = talk.silence(since)

    if quiet_s:
        look("nothing", lambda: time.sleep(quiet_s))
    for name, happen in changes(homes):
        look(name, happen)
    copies.finish()
    flows.finish()
    talk.finish()
    assert copies.count
    homes.wait_all()
    return found


def revoke(homes: Homes) -> tuple[float, float]:
    """Seconds from the start of the command until the open stream is cut, and until the command has ended."""
    sock = homes.wait_open(homes.local(1, 0))
    other = homes.wait_open(homes.local(1, 1))
    began = time.monotonic()
    site, place = homes.lab.sites["peer1"], homes.places["peer1"]
    command = Program(
        homes.lab, site.host, "revoke", python_module("tunnel", "revoke", "home", str(FIRST_PORT)), env=environment(place)
    )
    sock.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    cut = time.monotonic() - began
    assert command.wait(PATIENCE_S) == 0, command.said()
    ended = time.monotonic() - began
    other.settimeout(PATIENCE_S)
    other.sendall(b"still")
    assert other.recv(5) == b"still"
    sock.close()
    other.close()
    assert homes.open(homes.local(1, 0)) is None
    homes.ask("peer1", "grant", "home", str(FIRST_PORT))
    homes.wait_open(homes.local(1, 0)).close()
    return cut, ended


def restart(homes: Homes) -> tuple[float, float, float]:
    """Seconds from a kill -9 until one forward answers, and until all do; and those of the processor that it took."""
    before = homes.pid
    began = time.monotonic()
    os.kill(before, 9)
    homes.wait_open(homes.local(0, 0)).close()
    first = time.monotonic() - began
    homes.wait_all()
    took = time.monotonic() - began
    assert homes.pid != before
    times = Path(f"/proc/{homes.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return first, took, sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK")


def at_rest(homes: Homes, seconds: float) -> tuple[float, float, float]:
    """Kilobytes resident, wakes a second, and datagrams a second that leave the home, to whomever."""
    pid = homes.pid

    def status(word: str) -> int:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(word))

    def wakes() -> int:
        return status("voluntary_ctxt_switches")  # of the thread that does all; the others are there for files and names

    def sent() -> int:
        others = [homes.lab.server, *homes.sites]
        return sum(homes.lab.core.counter("account", f"home_to_{other.name}")[0] for other in others)

    before, sent_before, began = wakes(), sent(), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return float(status("VmRSS")), (wakes() - before) / took, (sent() - sent_before) / took


def start_with(homes: Homes, peers: int, away: int = 0) -> None:
    """The home anew, with so many peers, each forward seen to answer."""
    if homes.supervisor is not None:
        homes.stop()
    homes.write(peers, away=away)
    homes.start()
    homes.wait_all()


def rest(homes: Homes, seconds: float) -> Iterator[str]:
    peers = len(homes.sites)
    found: dict[str, tuple[float, float, float]] = {}
    for name, count, away in (("1 peer", 1, 0), (f"{peers} peers", peers, 0), (f"1 peer, {peers} away", 1, peers)):
        start_with(homes, count, away)
        time.sleep(seconds)  # the search for better paths has ended by then
        for turn in ("", ", later"):
            found[name + turn] = figures = at_rest(homes, seconds)
            yield f"{name + turn}: {figures[0] / 1000:.1f} MB, {figures[1]:.1f} wakes/s, {figures[2]:.1f} datagrams/s"
    one, many = found["1 peer, later"], found[f"{peers} peers, later"]
    yield f"a peer more: {(many[0] - one[0]) / (peers - 1):.0f} KB, {(many[1] - one[1]) / (peers - 1):.2f} wakes/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["changes", "revoke", "restart", "rest"])
    parser.add_argument("--peers", type=int, default=20, help="at least 3, at most 28 (20)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each look at a home at rest (30)")
    parser.add_argument("--kills", type=int, default=6, help="one after the other, as soon as all forwards answer (6)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        homes = Homes(lab, arguments.peers)
        for number in range(arguments.peers):
            acquaint(server_address(lab), home=homes._state("home"), **{f"away{number}": Path(folder) / f"away{number}"})
        start_with(homes, arguments.peers)
        print(f"{arguments.peers} peers, {FORWARDS} forwards to each: all lead where they shall", flush=True)
        if "changes" in arguments.parts:
            for name, silence in change_under_load(homes, 10.0).items():
                print(f"longest silence, {name}: {1000 * silence:.0f} ms", flush=True)
        if "revoke" in arguments.parts:
            print("revoke: cut after {:.2f} s, the command has ended after {:.2f} s".format(*revoke(homes)), flush=True)
        if "restart" in arguments.parts:
            for number in range(1, arguments.kills + 1):
                words = "kill -9, number {}: a forward answers after {:.2f} s, all after {:.2f} s, with {:.2f} s of the processor"
                print(words.format(number, *restart(homes)), flush=True)
        if "rest" in arguments.parts:
            for line in rest(homes, arguments.seconds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
