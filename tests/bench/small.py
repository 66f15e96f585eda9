"""ptunnel on a small machine: `python -m tests.bench.small [PART ...] [--share 0.25] [--runs 5]`.

Parts:
- `carry`: each process may use a part of a processor only (a control group's quota, 100 ms periods).  Mbit/s of a forward up and
  down, with all that iperf3 offers and with what `--mbit` says, and beside it an echo of one byte every 100 ms on a second
  connection through the same tunnel: median and 99th percentile.
- `memory`: MB of `connect` and `expose` at rest, 20 s after they stand: resident (RSS), its own share (PSS) and what is its alone
  (USS); beside it what the interpreter and its imports take.
- `start`: milliseconds and instructions of the stages of a start: the interpreter alone, `--version`, the imports of `connect`.

`--beside FOLDER` measures the code of another checkout in the same run.  Nothing here asserts a time.  As root, for `carry`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.compare import Tool
from tests.bench.lan import Rows
from tests.bench.links import percentile
from tests.bench.lone import arrived, load, say
from tests.bench.parts import parts_parser
from tests.bench.whole import ECHO, IPERF, Desk, Tunnel, echo_server
from tests.netns.emulator import Shape
from tests.netns.kernel import ROOT, LabError, python_module
from tests.netns.programs import Program, Ptunnel, environment

PERIOD = 100_000  # microseconds
SPACING = 0.1  # seconds from keystroke to keystroke
REST = 12.0  # seconds until a command that has begun is at rest
CONTROLLER = {"cgroup.controllers": Path("/sys/fs/cgroup"), "cpu.shares": Path("/sys/fs/cgroup/cpu")}
IMPORTS = {
    "interpreter": "",
    "click": "import click",
    "trio": "import trio",
    "all of connect": (
        "import tunnel.cli.main, tunnel.cli.connect, tunnel.cli.running, tunnel.ports.connecting, tunnel.ports.stdio, "
        "tunnel.ports.serve, tunnel.control.server"
    ),
}


class Groups:
    """A control group of its own for each process, below one that ends with this."""

    def __init__(self, share: float) -> None:
        base = CONTROLLER["cpu.shares"]
        if not base.exists():
            base = CONTROLLER["cgroup.controllers"]
            (base / "cgroup.subtree_control").write_text("+cpu", encoding="ascii")
        self._folder = base / f"ptunnel-bench-{os.getpid()}"
        self._folder.mkdir()
        quota = round(share * PERIOD)
        if base.name == "cpu":
            limit = f"echo {quota} > $d/cpu.cfs_quota_us"
        else:
            (self._folder / "cgroup.subtree_control").write_text("+cpu", encoding="ascii")
            limit = f"echo '{quota} {PERIOD}' > $d/cpu.max"
        self._script = f'd={self._folder}/$$; mkdir $d && {limit} && echo $$ > $d/cgroup.procs && exec "$@"'

    def wrap(self, words: list[str]) -> list[str]:
        return ["sh", "-c", self._script, "sh", *words]

    def throttled(self, pid: int) -> int:
        """Periods in which the process was made to stand still."""
        text = (self._folder / str(pid) / "cpu.stat").read_text(encoding="ascii")
        return int(dict(line.split() for line in text.splitlines())["nr_throttled"])

    def close(self) -> None:
        deadline = time.monotonic() + 5
        for folder in [*self._folder.iterdir(), self._folder]:
            while folder.is_dir() and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                time.sleep(0.02)


@contextlib.contextmanager
def limited(desk: Desk, groups: Groups) -> Iterator[None]:
    """Whatever is started in the desk meanwhile has its share only."""
    before = [(space, space.command) for space in (desk.a, desk.b)]
    for space, command in before:
        setattr(space, "command", lambda words, command=command: command(groups.wrap(words)))  # noqa: B010
    try:
        yield
    finally:
        for space, command in before:
            setattr(space, "command", command)  # noqa: B010


def keystrokes(desk: Desk, port: int, seconds: float, found: list[float]) -> None:
    """Milliseconds of the echo of one byte each SPACING."""
    with desk.b.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends = time.perf_counter() + seconds
        due = time.perf_counter()
        while due < ends:
            time.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            sock.sendall(b"x")
            sock.recv(1)
            found.append(1e3 * (time.perf_counter() - began))
            due = max(due + SPACING, time.perf_counter())


def carry(arguments: argparse.Namespace) -> None:
    rows = Rows()
    shape = Shape(delay=arguments.delay / 2, rate=arguments.link * 1e6, queue=0.040) if arguments.link else Shape()
    groups = Groups(arguments.share)
    try:
        with tempfile.TemporaryDirectory() as folder, Desk(Path(folder), shape) as desk:
            Program(desk, desk.a, "iperf3", ["iperf3", "-s", "-p", str(IPERF)])
            echo = echo_server(desk.a, ECHO)
            tunnels: dict[str, Tunnel] = {}
            with limited(desk, groups):
                for index, (name, code_in) in enumerate(checkouts(arguments).items()):
                    port = 6201 + 10 * index
                    tunnels[name] = Tunnel(
                        desk, f"t{index}", "auto", {port: IPERF, port + 1: ECHO}, port=24_531 + 10 * index, code_in=code_in
                    )
            time.sleep(3)
            for _ in range(arguments.runs):
                for way, words in (("up", ()), ("down", ("-R",))):
                    for what, most in (("all", ()), (f"{arguments.mbit:g} Mbit/s", ("-b", f"{arguments.mbit:g}M"))):
                        for index, (name, tunnel) in enumerate(tunnels.items()):
                            port = 6201 + 10 * index
                            one(desk, groups, rows, f"{name}: {way}, {what}", tunnel, port, arguments.seconds, *words, *most)
            echo.close()
    finally:
        groups.close()
    say(f"--- {arguments.share:g} of a processor for each process")
    for name, value in rows.medians().items():
        say(f"{name:<60} {value:>10.2f}")


def one(desk: Desk, groups: Groups, rows: Rows, what: str, tunnel: Tunnel, port: int, seconds: float, *words: str) -> None:
    tool = Tool(what, "127.0.0.1", (port, port + 1), [tunnel.expose, tunnel.connect])
    for _ in range(10):  # the server takes one at a time, and is a moment behind the end of the last
        found: list[float] = []
        stood = sum(groups.throttled(end.pid) for end in (tunnel.expose, tunnel.connect))
        before = tool.cpu()
        process = load(desk, tool, port, seconds + 1, *words)
        time.sleep(1)
        typing = threading.Thread(target=keystrokes, args=(desk, port + 1, seconds, found))
        typing.start()
        try:
            mbit, count = arrived(process, seconds)
        except LabError:
            typing.join()
            time.sleep(0.5)
            continue
        spent = tool.cpu() - before
        typing.join()
        rows.note(f"{what}: Mbit/s", mbit)
        rows.note(f"{what}: CPU s/GB, both ends", spent / (count / 1e9))
        rows.note(f"{what}: keystroke p50, ms", percentile(found, 0.5))
        rows.note(f"{what}: keystroke p99, ms", percentile(found, 0.99))
        now = sum(groups.throttled(end.pid) for end in (tunnel.expose, tunnel.connect))
        rows.note(f"{what}: periods stood still, both ends", now - stood)
        return
    raise LabError(f"iperf3 does not get through {what}")


def checkouts(arguments: argparse.Namespace) -> dict[str, Path | None]:
    """Name and folder of the codes that are measured; this one's folder is None."""
    return {"ptunnel": None, **({} if arguments.beside is None else {arguments.beside.name: arguments.beside})}


# -- memory


def shares(pid: int) -> dict[str, float]:
    """MB of a process in memory."""
    told: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, size, *_ = line.split()
        told[name.rstrip(":")] = int(size)
    own = told["Private_Clean"] + told["Private_Dirty"]
    return {"RSS": told["Rss"] / 1024, "PSS": told["Pss"] / 1024, "USS": own / 1024}


def memory(arguments: argparse.Namespace) -> None:
    rows = Rows()
    for name, folder in checkouts(arguments).items():
        with tempfile.TemporaryDirectory() as place, Desk(Path(place)) as desk:
            echo = echo_server(desk.a, ECHO)
            tunnel = Tunnel(desk, "rest", "auto", {6201: ECHO}, code_in=folder)
            leave(tunnel)
            variables = {} if folder is None else {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(folder)}
            again = Ptunnel(desk, desk.b, "again", "connect", "--forward", f"6201:{ECHO}", home=tunnel.connect.home, **variables)
            again.wait_event("path", 20, kind="direct")
            time.sleep(REST)
            for what, pid in (("connect", again.pid), ("expose", tunnel.expose.pid), ("serve", tunnel.server.pid)):
                for kind, value in shares(pid).items():
                    rows.note(f"{name}: {what}, {kind} MB", value)
            echo.close()
    for what, code in IMPORTS.items():
        rows.note(f"imports of {what}, RSS MB", imported(code))
    say("--- memory at rest")
    for name, value in rows.medians().items():
        say(f"{name:<60} {value:>10.1f}")


def leave(tunnel: Tunnel) -> None:
    """The connecting side ends; its home remembers the peer."""
    tunnel.connect.interrupt()
    tunnel.connect.wait(5)


def imported(code: str) -> float:
    """MB of a process that has imported something, and done nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(flush=True)\nsys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    figure = shares(process.pid)["RSS"]
    process.communicate()
    return figure


# -- start


def start(arguments: argparse.Namespace) -> None:
    rows = Rows()
    with tempfile.TemporaryDirectory() as place, Desk(Path(place), Shape(delay=0.010)) as desk:
        echo = echo_server(desk.a, ECHO)
        homes: dict[str, tuple[Path, dict[str, str]]] = {}
        for index, (name, folder) in enumerate(checkouts(arguments).items()):
            tunnel = Tunnel(desk, f"t{index}", "auto", {6201: ECHO}, port=24_531 + 10 * index, code_in=folder)
            leave(tunnel)
            homes[name] = tunnel.connect.home, {} if folder is None else {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(folder)}
        for _ in range(arguments.runs):
            note(rows, "interpreter", desk, [sys.executable, "-c", "pass"], dict(os.environ))
            for name, (home, variables) in homes.items():
                for words in (["--version"], ["connect", "--help"], ["connect", "--stdio", str(ECHO)]):
                    command = python_module("tunnel", *words)
                    note(rows, f"{name}: {' '.join(words)}", desk, command, environment(home, **variables))
        echo.close()
    say("--- start; the last one is a remembered peer, 20 ms away, until its first byte has come and the command has ended")
    for name, value in rows.medians().items():
        say(f"{name:<60} {value:>10.1f}")


def note(rows: Rows, what: str, desk: Desk, words: list[str], variables: dict[str, str]) -> None:
    """One run: wall time, processor time, and instructions where perf(1) is there."""
    counted = Path(desk.folder / "counted")
    perf = ["perf", "stat", "-x,", "-e", "instructions:u", "-o", str(counted)] if shutil.which("perf") else []
    before, began = os.times(), time.perf_counter()
    desk.b.run(*perf, *words, env=variables, stdin="x", timeout=30)
    took, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    rows.note(f"{what}: ms", 1e3 * took)
    rows.note(f"{what}: CPU ms", 1e3 * used)
    if perf and (found := re.search(r"^(\d+),", counted.read_text(encoding="ascii"), re.MULTILINE)):
        rows.note(f"{what}: million instructions", int(found[1]) / 1e6)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"carry": carry, "memory": memory, "start": start}


def main() -> None:
    parser = parts_parser(__doc__, PARTS, runs=5, seconds=10.0)
    parser.add_argument("--share", type=float, default=0.25, help="of a processor for each process (0.25)")
    parser.add_argument("--mbit", type=float, default=50.0, help="of the second load (50)")
    parser.add_argument("--link", type=float, help="Mbit/s of an emulated link, which delivers each datagram by itself")
    parser.add_argument("--delay", type=float, default=0.010, help="seconds there and back of such a link (0.01)")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, whose code is measured too")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("it makes network namespaces, so run it as root")
    for part in arguments.parts or PARTS:
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
