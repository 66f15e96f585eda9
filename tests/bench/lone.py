"""The cost of a datagram that comes alone, and how quick an answer is: `python -m tests.bench.lone [PART ...] [--runs 5]`.

Parts:
- `rates`: CPU seconds per GB of both ends over an emulated link of 40 ms, which delivers each datagram by itself, as most links
  do: 20, 100 and 500 Mbit/s, a forward and a LAN, up and down.
- `echo`: 64 bytes and back on the bare veth, every 10 ms and every second: median and 99th percentile.
- `streams`: 1, 20 and 200 TCP connections at once through one forward, and the first byte of a new one beside them.
- `plain`: a forward where the kernel knows neither UDP_SEGMENT nor UDP_GRO.

References in the same run: `ssh -L`, the kernel's own TCP, and iroh where `--python` names an interpreter that has it, as
scripts/bench keeps one in PTUNNEL_BENCH_CACHE.  `--beside FOLDER` measures the code of another checkout too.
Runs are interleaved, and medians are printed; nothing here asserts a time.  As root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench.compare import BASE, Bench, Tool
from tests.bench.lan import Lan, Rows
from tests.bench.links import OTHER_IPERF, percentile
from tests.bench.parts import parts_parser
from tests.bench.whole import ECHO, IPERF, Desk, Tunnel, echo_server
from tests.netns.emulator import Shape
from tests.netns.kernel import LabError
from tests.netns.programs import Program

RATES = (20, 100, 500)  # Mbit/s
DELAY = 0.020  # seconds, one way
QUEUE = 0.040  # seconds of rate
ECHO_BYTES = 64
SPACINGS = {"10 ms": (0.010, 300), "1 s": (1.0, 12)}  # seconds between two questions, and how many
STREAMS = (1, 20, 200)
MOST_OF_IPERF = 100  # connections of one iperf3: it has a limit of 128
FIRST_BYTES = 20  # new connections of a measurement
OURS, OURS_LAN, SSH = "ptunnel", "ptunnel lan", "ssh -L"


class Yard:
    """A desk with what answers in A, and the tools between A and B."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, shape: Shape = Shape(), *, no_gso: bool = False) -> None:  # noqa: B008
        self._stack = ExitStack()
        self.desk = desk = self._stack.enter_context(Desk(folder, shape, no_gso=no_gso))
        for space in (desk.a, desk.b):
            with contextlib.suppress(PermissionError):  # where the machine's default is the only one for namespaces
                space.sysctl("net.ipv4.tcp_congestion_control", "cubic")
        for port in (IPERF, OTHER_IPERF, BASE):
            Program(desk, desk.a, f"iperf3-{port}", ["iperf3", "-s", "-p", str(port)])
        for port in (ECHO, BASE + 1):
            self._stack.callback(echo_server(desk.a, port).close)
        self.bench = Bench(desk, None, arguments.python)
        self.bench.add("kernel TCP", self.bench.kernel)
        self.bench.add(OURS, lambda: self.forward(OURS, 6401))
        if arguments.beside:
            self.bench.add("beside", lambda: self.forward(f"{OURS} of {arguments.beside.name}", 6411, arguments.beside))
        self.bench.add(SSH, self.bench.ssh)
        if arguments.python:
            self.bench.add("iroh", self.bench.iroh)

    def forward(self, name: str, port: int, code_in: Path | None = None) -> Tool:
        """A tunnel whose local ports from `port` on lead to iperf3, the echo and the other iperf3."""
        forwards = {port: IPERF, port + 1: ECHO, port + 2: OTHER_IPERF}
        tunnel = Tunnel(self.desk, str(port), "auto", forwards, port=port + 20_000, code_in=code_in)
        return Tool(name, "127.0.0.1", (port, port + 1), [tunnel.expose, tunnel.connect])

    def add_lan(self) -> None:
        self.bench.add(OURS_LAN, Lan(self.desk).tool)

    def __enter__(self) -> Yard:
        time.sleep(3)  # the search for the path's size has ended by then
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for name, why in self.bench.missing.items():
            print(f"{name} left out: {why}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def yard(arguments: argparse.Namespace, shape: Shape = Shape(), *, lan: bool = False, no_gso: bool = False) -> Iterator[Yard]:  # noqa: B008
    with tempfile.TemporaryDirectory() as folder:
        found = Yard(Path(folder), arguments, shape, no_gso=no_gso)
        if lan:
            found.add_lan()
        with found:
            yield found


def load(desk: Desk, tool: Tool, port: int, seconds: float, *words: str) -> subprocess.Popen[str]:
    command = ["iperf3", "-c", tool.host, "-p", str(port), "-t", f"{seconds:g}", "-J", *tool.words, *words]
    return desk.b.popen(command, stdout=subprocess.PIPE)


def arrived(process: subprocess.Popen[str], seconds: float) -> tuple[float, float]:
    """Mbit/s that came through, and the bytes.  Raises LabError."""
    report = json.loads(process.communicate(timeout=60 + seconds)[0])
    if "error" in report:
        raise LabError(report["error"])
    end = report["end"]["sum_received"]
    return end["bits_per_second"] / 1e6, max(1.0, end["bytes"])


def transfer(desk: Desk, tool: Tool, seconds: float, *words: str) -> tuple[float, float]:
    """Mbit/s and CPU seconds per GB of one connection."""
    for _ in range(10):  # the server takes one at a time, and is a moment behind the end of the last
        before = tool.cpu()
        try:
            mbit, count = arrived(load(desk, tool, tool.iperf, seconds, *words), seconds)
        except LabError:
            time.sleep(0.3)
            continue
        return mbit, (tool.cpu() - before) / (count / 1e9)
    raise LabError(f"iperf3 does not get through {tool.name}")


def say(*words: object) -> None:
    print(*words, flush=True)


def show(rows: Rows) -> dict[str, float]:
    figures = rows.medians()
    for name, value in figures.items():
        say(f"{name:<60} {value:>10.3f}")
    return figures


def ratios(figures: dict[str, float], what: str, references: tuple[str, ...]) -> None:
    """What is ours over that of each reference, of all figures with `what` in their name."""
    for name, value in figures.items():
        tool, _, rest = name.partition(": ")
        if tool not in (OURS, OURS_LAN) or what not in rest:
            continue
        for reference in references:
            theirs = figures.get(f"{reference}: {rest}")
            if theirs:
                say(f"{f'{tool} / {reference}: {rest}':<60} {value / theirs:>10.3f}")


def rates(arguments: argparse.Namespace) -> None:
    for mbit in arguments.mbit or RATES:
        shape = Shape(delay=DELAY, rate=mbit * 1e6, queue=QUEUE)
        rows = Rows()
        with yard(arguments, shape, lan=not arguments.no_lan) as found:
            for _ in range(arguments.runs):
                for way, words in (("up", ()), ("down", ("-R",))):
                    for tool in found.bench.tools:
                        speed, cost = transfer(found.desk, tool, arguments.seconds, *words)
                        rows.note(f"{tool.name}: {way}, Mbit/s", speed)
                        if tool.pids():
                            rows.note(f"{tool.name}: {way}, CPU s/GB", cost)
        say(f"--- {mbit} Mbit/s, 40 ms, each datagram by itself")
        ratios(show(rows), "CPU", (SSH, "iroh"))


def answers(desk: Desk, tool: Tool, spacing: float, count: int) -> list[float]:
    """Milliseconds of `count` echoes, one at each `spacing`."""
    times: list[float] = []
    with desk.b.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect((tool.host, tool.echo))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        question = bytes(ECHO_BYTES)
        due = time.perf_counter()
        for _ in range(count + 3):
            due += spacing
            time.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            sock.sendall(question)
            left = ECHO_BYTES
            while left:
                left -= len(sock.recv(left))
            times.append(1e3 * (time.perf_counter() - began))
    return times[3:]


def echo(arguments: argparse.Namespace) -> None:
    rows = Rows()
    with yard(arguments, lan=not arguments.no_lan) as found:
        for _ in range(arguments.runs):
            for spacing, (seconds, count) in SPACINGS.items():
                if arguments.short and count < 100:
                    continue
                for tool in found.bench.tools:
                    times = answers(found.desk, tool, seconds, count)
                    rows.note(f"{tool.name}: echo every {spacing}, p50 ms", percentile(times, 0.5))
                    rows.note(f"{tool.name}: echo every {spacing}, p99 ms", percentile(times, 0.99))
    say("--- an echo of 64 bytes on the bare veth")
    figures = show(rows)
    for name, value in figures.items():
        tool_name, _, rest = name.partition(": ")
        if tool_name != "kernel TCP":
            say(f"{f'{tool_name}: beyond the veth, {rest}':<60} {value - figures[f'kernel TCP: {rest}']:>10.3f}")


def first_bytes(desk: Desk, tool: Tool) -> float:
    """Median milliseconds from connect() to the answer of a new connection."""
    times: list[float] = []
    for _ in range(FIRST_BYTES):
        began = time.perf_counter()
        with desk.b.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect((tool.host, tool.echo))
            sock.sendall(b"x")
            sock.recv(1)
        times.append(1e3 * (time.perf_counter() - began))
        time.sleep(0.02)
    return percentile(times, 0.5)


def streams(arguments: argparse.Namespace) -> None:
    rows = Rows()
    with yard(arguments) as found:
        tools = [tool for tool in found.bench.tools if tool.name.startswith((OURS, SSH))]
        others = {tool.name: tool.iperf + 2 for tool in tools}
        for _ in range(arguments.runs):
            for tool in tools:
                rows.note(f"{tool.name}: first byte at rest, ms", first_bytes(found.desk, tool))
            for count in STREAMS:
                for tool in tools:
                    if count > MOST_OF_IPERF and not tool.name.startswith(OURS):
                        continue
                    parts = -(-count // MOST_OF_IPERF)
                    ports = (tool.iperf, others[tool.name])[:parts]
                    seconds = max(2.0, arguments.seconds)
                    running = [load(found.desk, tool, port, seconds, "-P", str(count // parts)) for port in ports]
                    beside: list[float] = []
                    watch = threading.Thread(target=lambda beside=beside, tool=tool: beside.append(first_bytes(found.desk, tool)))
                    time.sleep(0.7)
                    watch.start()
                    total = sum(arrived(process, seconds)[0] for process in running)
                    watch.join()
                    rows.note(f"{tool.name}: {count} streams, Mbit/s", total)
                    rows.note(f"{tool.name}: first byte beside {count}, ms", beside[0])
                    time.sleep(0.5)
    say("--- many streams on the bare veth")
    figures = show(rows)
    for name, value in figures.items():
        tool_name, _, rest = name.partition(": ")
        if "streams" in rest and not rest.startswith("1 "):
            one = figures[f"{tool_name}: 1 streams, Mbit/s"]
            say(f"{f'{tool_name}: {rest} / one':<60} {value / one:>10.3f}")


def plain(arguments: argparse.Namespace) -> None:
    rows = Rows()
    with yard(arguments, no_gso=True) as found:
        for _ in range(arguments.runs):
            for way, words in (("up", ()), ("down", ("-R",))):
                for tool in found.bench.tools:
                    speed, cost = transfer(found.desk, tool, arguments.seconds, *words)
                    rows.note(f"{tool.name}: {way}, Mbit/s", speed)
                    if tool.pids():
                        rows.note(f"{tool.name}: {way}, CPU s/GB", cost)
    say("--- without UDP_SEGMENT and UDP_GRO on the bare veth")
    ratios(show(rows), "Mbit/s", (SSH, "iroh"))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"rates": rates, "echo": echo, "streams": streams, "plain": plain}


def main() -> None:
    parser = parts_parser(__doc__, PARTS, runs=5, seconds=4.0)
    parser.add_argument("--mbit", type=float, action="append", help="not 20, 100 and 500; repeatable")
    parser.add_argument("--no-lan", action="store_true", help="leave the LAN out")
    parser.add_argument("--short", action="store_true", help="leave the echo of every second out")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, whose code is measured too")
    parser.add_argument("--python", help="an interpreter that has iroh")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("it makes network namespaces, so run it as root")
    for part in arguments.parts or PARTS:
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
