"""ptunnel beside what others use, in one go: run it by scripts/bench, which fetches them.

Every tool joins the same two namespaces (veth, MTU 1500) and carries the same iperf3; the runs are interleaved, so that a noisy
machine is noisy for all, and what is printed are medians and ratios.  Forwards carry a TCP connection, the others IP packets.
Kernel TCP, alone and in IP tunnels, is CUBIC whatever this machine's default is; that of ssh is told.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import plot
from tests.bench.whole import ECHO, IPERF, A, Desk, Tunnel, cpu, echo_server, memory, round_trip
from tests.netns.emulator import Shape
from tests.netns.kernel import ROOT, LabError
from tests.netns.programs import Program, Sshd

SECONDS = 3
#: iperf3 and the echo behind one another, so that a forward of the n-th port leads to the n-th.
BASE = 5400
CUBIC = ("-C", "cubic")


class Tool:
    """Something that carries TCP from B to A: where to connect in B, and whose CPU time it costs."""

    def __init__(
        self, name: str, host: str, ports: tuple[int, int], programs: list[Program | int], words: tuple[str, ...] = ()
    ) -> None:
        self.words = words
        self.name, self.host = name, host
        self.iperf, self.echo = ports
        self._programs = programs

    def pids(self) -> list[int]:
        roots = [each if isinstance(each, int) else each.pid for each in self._programs]
        return [pid for root in roots for pid in _family(root)]

    def cpu(self) -> float:
        return sum(_quietly(cpu, pid) for pid in self.pids())

    def peak(self) -> float:
        """MB of the larger end."""
        return max((_quietly(lambda pid: memory(pid, "VmHWM"), pid) for pid in self.pids()), default=0.0)


def _quietly(read: Callable[[int], float], pid: int) -> float:
    with contextlib.suppress(OSError):
        return read(pid)
    return 0.0


def _family(pid: int) -> list[int]:
    """A process and its descendants: sshd does its work in one, and privilege droppers fork."""
    found = [pid]
    for root in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{root}/task/{root}/children").read_text(encoding="ascii").split()
            found += [int(child) for child in children]
    return found


class Bench:
    """The desk, and every tool that could be had."""

    def __init__(self, desk: Desk, tools: Path | None, python: str | None) -> None:
        self.desk = desk
        self.tools: list[Tool] = []
        self.missing: dict[str, str] = {}
        self.is_bad = False  # the link: then BBR is a reference too
        self._deb = tools
        self._python = python

    def find(self, name: str, *places: str) -> str:
        """The program's path.  Raises LabError."""
        import shutil

        folders = [str(self._deb / place) for place in places] if self._deb else []
        found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
        if found is None:
            raise LabError(f"{name} is not installed")
        return found

    def add(self, name: str, make: Callable[[], Tool]) -> None:
        try:
            tool = make()
            for _ in range(20):
                with contextlib.suppress(OSError, LabError):
                    round_trip(self.desk.b, tool.host, tool.echo, 3)
                    break
                time.sleep(0.5)
            else:
                raise LabError("it does not carry anything")
        except (LabError, OSError, subprocess.SubprocessError, StopIteration) as error:
            self.missing[name] = str(error).strip().splitlines()[0][:120]
        else:
            self.tools.append(tool)

    # the tools

    def kernel(self) -> Tool:
        return Tool("kernel TCP", A, (IPERF, ECHO), [], CUBIC)

    def kernel_bbr(self) -> Tool:
        return Tool("kernel TCP, BBR", A, (IPERF, ECHO), [], ("-C", "bbr"))

    def ptunnel(self, path: str) -> Tool:
        shift = 0 if path == "auto" else 100
        tunnel = Tunnel(self.desk, path, path, {6201 + shift: IPERF, 6300 + shift: ECHO})
        programs: list[Program | int] = [tunnel.expose, tunnel.connect]
        if path == "relay":
            programs.append(tunnel.server)
        return Tool("ptunnel" if path == "auto" else "ptunnel, relayed", "127.0.0.1", (6201 + shift, 6300 + shift), programs)

    def ssh(self) -> Tool:
        sshd = Sshd(self.desk, self.desk.a, address=A)
        words = ["-N", "-p", "2022", "-L", f"6203:127.0.0.1:{IPERF}", "-L", f"6303:127.0.0.1:{ECHO}", f"{sshd.user}@{A}"]
        ssh = Program(self.desk, self.desk.b, "ssh", ["ssh", *sshd.options(), *words])
        return Tool("ssh -L", "127.0.0.1", (6203, 6303), [sshd, ssh])

    def iroh(self) -> Tool:
        here, there = self._two(
            "forward_iroh.py", ["listen", f"{A}:4701", str(BASE)], lambda said: ["dial", said, f"{A}:4701"], 6204
        )
        return Tool("iroh", "127.0.0.1", (6204, 6205), [here, there])

    def aioquic(self) -> Tool:
        here, there = self._two("forward_aioquic.py", ["listen", A, "4702", str(BASE)], lambda _said: ["dial", A, "4702"], 6206)
        return Tool("aioquic", "127.0.0.1", (6206, 6207), [here, there])

    def _two(self, script: str, words: list[str], dial: Callable[[str], list[str]], port: int) -> tuple[Program, Program]:
        if self._python is None:
            raise LabError("it is not installed")
        command = [self._python, str(ROOT / "tests/bench" / script)]
        here = Program(self.desk, self.desk.a, script, [*command, *words])
        said = _first_line(here)
        there = Program(self.desk, self.desk.b, script, [*command, *dial(said), str(port), str(port + 1)])
        _first_line(there)
        return here, there

    def wireguard(self) -> Tool:
        wireguard, wg = self.find("wireguard-go", "usr/bin"), self.find("wg", "usr/bin")
        keys = {}
        for side in "ab":
            private = subprocess.run([wg, "genkey"], capture_output=True, text=True, check=True).stdout
            public = subprocess.run([wg, "pubkey"], input=private, capture_output=True, text=True, check=True).stdout.strip()
            file = self.desk.folder / f"wg-{side}"
            file.write_text(private, encoding="ascii")
            keys[side] = (file, public)
        programs: list[Program | int] = []
        tag = f"pt{os.getpid() % 100_000}"
        for side, space, other, address in (("a", self.desk.a, "b", "10.91.0.1"), ("b", self.desk.b, "a", "10.91.0.2")):
            device = f"{tag}{side}"
            program = Program(self.desk, space, f"wireguard-{side}", [wireguard, "-f", device])
            programs.append(program)
            sock = f"/var/run/wireguard/{device}.sock"  # the namespace may have a /run of its own
            _await(lambda space=space, sock=sock: space.run("test", "-S", sock, check=False).returncode == 0)
            endpoint = ["endpoint", f"{A}:4703"] if side == "b" else []
            peer = ["peer", keys[other][1], "allowed-ips", "10.91.0.0/24", *endpoint]
            space.run(wg, "set", device, "listen-port", "4703", "private-key", keys[side][0], *peer)
            space.ip(f"addr add {address}/24 dev {device}\nlink set {device} mtu 1420 up")
        return Tool("wireguard-go", "10.91.0.1", (IPERF, ECHO), programs, CUBIC)

    def n2n(self) -> Tool:
        supernode, edge = self.find("supernode", "usr/bin", "usr/sbin"), self.find("edge", "usr/sbin", "usr/bin")
        tools = os.path.dirname(self.find("ifconfig", "sbin", "usr/sbin"))
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        programs: list[Program | int] = []
        Program(self.desk, self.desk.a, "supernode", [supernode, "-l", "4704"])
        for side, space, address in (("a", self.desk.a, "10.92.0.1"), ("b", self.desk.b, "10.92.0.2")):
            words = ["-d", f"n2n-{side}", "-a", address, "-s", "255.255.255.0", "-c", "bench", "-k", "bench", "-l", f"{A}:4704"]
            programs.append(Program(self.desk, space, f"edge-{side}", [edge, *words], env=environment))
        return Tool("n2n", "10.92.0.1", (IPERF, ECHO), programs, CUBIC)

    # measuring

    def measure(self, runs: int, seconds: int) -> dict[str, dict[str, float]]:
        """Medians by tool and figure."""
        rows: dict[str, dict[str, list[float]]] = {tool.name: {} for tool in self.tools}

        def note(tool: Tool, figure: str, value: float) -> None:
            rows[tool.name].setdefault(figure, []).append(value)

        for run in range(runs):
            print(f"run {run + 1} of {runs}", file=sys.stderr, flush=True)
            for way, words in (("up", ()), ("down", ("-R",))):
                for tool in self.tools:
                    before = tool.cpu()
                    try:
                        mbit, count = _rate(self.desk, tool, seconds, *words)
                    except (subprocess.SubprocessError, KeyError, ValueError) as error:
                        print(f"{tool.name}, {way}: {str(error)[:200]}", file=sys.stderr)
                        continue
                    note(tool, way, mbit)
                    if tool.pids():
                        note(tool, f"CPU {way}", (tool.cpu() - before) / (count / 1e9))
            for tool in self.tools:
                with contextlib.suppress(OSError):
                    note(tool, "echo", round_trip(self.desk.b, tool.host, tool.echo))
        medians = {name: {key: statistics.median(values) for key, values in found.items()} for name, found in rows.items()}
        for tool in self.tools:
            if tool.pids():
                medians[tool.name]["MB"] = tool.peak()
        return medians


def _rate(desk: Desk, tool: Tool, seconds: int, *words: str) -> tuple[float, float]:
    command = ["iperf3", "-c", tool.host, "-p", str(tool.iperf), "-t", str(seconds), "-J", *tool.words, *words]
    for _ in range(20):  # the server takes one at a time, and is a moment behind the end of the last
        report = json.loads(desk.b.run(*command, timeout=60 + seconds, check=False).stdout)
        if "busy" not in report.get("error", ""):
            break
        time.sleep(0.2)
    end = report["end"]["sum_received"]
    return end["bits_per_second"] / 1e6, max(1.0, end["bytes"])


def _first_line(program: Program, patience: float = 20.0) -> str:
    _await(lambda: "\n" in program.said() or program.process.poll() is not None, patience)
    lines = program.said().splitlines()
    if not lines or program.process.poll() is not None:
        raise LabError(f"{program.name} ended: {(lines or ['it said nothing'])[-1]}")
    return lines[0]


def _await(done: Callable[..., bool], patience: float = 20.0) -> None:
    end = time.monotonic() + patience
    while not done():
        if time.monotonic() > end:
            raise LabError("it does not start")
        time.sleep(0.05)


HEADS = ("up", "down", "CPU up", "CPU down", "echo", "MB")


def table(medians: dict[str, dict[str, float]]) -> str:
    """Columns of figures, then of ratios."""
    ours = medians.get("ptunnel", {})
    lines = [
        f"{'':<18}{'Mbit/s':>17}{'CPU s/GB':>15}{'echo':>9}{'peak':>8}{'ptunnel is so many times':>30}",
        f"{'':<18}{'up':>9}{'down':>8}{'up':>8}{'down':>7}{'ms':>9}{'MB':>8}{'up':>20}{'down':>10}",
    ]
    for name, found in medians.items():
        cells = [found.get(head) for head in HEADS]
        widths = (9, 8, 8, 7, 9, 8)
        places = (0, 0, 1, 1, 2, 0)
        shown = [
            f"{'-' if cell is None else format(cell, f',.{digits}f'):>{width}}"
            for cell, width, digits in zip(cells, widths, places, strict=True)
        ]
        ratios = [f"{ours[way] / found[way]:.2f}" if ours.get(way) and found.get(way) else "-" for way in ("up", "down")]
        lines.append(f"{name:<18}{''.join(shown)}{ratios[0]:>20}{ratios[1]:>10}")
    return "\n".join(lines)


def a_desk(arguments: argparse.Namespace, folder: Path) -> Desk:
    if arguments.link is None:
        return Desk(folder, ordinary=arguments.ordinary)
    rate, rtt, loss = arguments.link
    return Desk(folder, Shape(rtt / 2e3, rate * 1e6, loss / 100), ordinary=arguments.ordinary)


def link_of(text: str) -> tuple[float, float, float]:
    rate, rtt, loss = (float(part) for part in text.split(","))
    return rate, rtt, loss


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with a_desk(arguments, folder) as desk:
        default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii").strip()
        for space in (desk.a, desk.b):
            with contextlib.suppress(PermissionError):  # where the machine's default is the only one for namespaces
                space.sysctl("net.ipv4.tcp_congestion_control", "cubic")
                default = "cubic"
        for port in (IPERF, BASE):
            Program(desk, desk.a, f"iperf3-{port}", ["iperf3", "-s", "-p", str(port)])
        echoes = [echo_server(desk.a, port) for port in (ECHO, BASE + 1)]
        bench = Bench(desk, arguments.tools, arguments.python)
        bench.is_bad = arguments.link is not None
        makers: dict[str, Callable[[], Tool]] = {
            "kernel TCP": bench.kernel,
            **({"kernel TCP, BBR": bench.kernel_bbr} if bench.is_bad else {}),
            "ptunnel": lambda: bench.ptunnel("auto"),
            "ptunnel, relayed": lambda: bench.ptunnel("relay"),
            "ssh -L": bench.ssh,
            "iroh": bench.iroh,
            "aioquic": bench.aioquic,
            "wireguard-go": bench.wireguard,
            "n2n": bench.n2n,
        }
        for name, make in makers.items():
            if not arguments.only or name in arguments.only:
                bench.add(name, make)
        medians = bench.measure(arguments.runs, arguments.seconds)
        for echo in echoes:
            echo.close()
    return {"medians": medians, "missing": bench.missing, "congestion control of ssh": default}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="interleaved; medians are shown (5)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of each transfer (3)")
    parser.add_argument("--only", action="append", metavar="TOOL", help="this one; repeatable")
    parser.add_argument("--link", type=link_of, metavar="MBIT,RTT_MS,LOSS_%",
                        help="over an emulated link with 100 ms of queue, as 100,40,1, instead of the bare veth")  # fmt: skip
    parser.add_argument("--ordinary", action="store_true", help="without CAP_NET_ADMIN: the kernel's default socket buffers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the SVG here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--tools", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--python", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(arguments, Path(folder))
    print(table(found["medians"]))
    print(f"ssh -L rides on kernel TCP with {found['congestion control of ssh']}")
    for name, why in found["missing"].items():
        print(f"{name:<18} left out: {why}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        where = "veth of MTU 1500"
        if arguments.link is not None:
            rate, rtt, loss = arguments.link
            where = f"{rate:g} Mbit/s, {rtt:g} ms, {loss:g} % lost each way"
        arguments.plot.write_text(plot.bars(found["medians"], arguments.runs, where), encoding="utf-8")


if __name__ == "__main__":
    main()
