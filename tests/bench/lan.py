"""Figures of a LAN between two members, beside references in the same minutes: `python -m tests.bench.lan [--runs 5]`.

Two namespaces joined by a veth of MTU 1500, both members and the load on this machine; wireguard-go is Debian's where it is
installed.  Runs are interleaved and what is printed are medians; nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.compare import Bench, Tool
from tests.bench.whole import ECHO, IPERF, A, Desk, echo_server, memory, round_trip
from tests.netns.emulator import Shape
from tests.netns.kernel import ROOT, LabError
from tests.netns.programs import Program, Ptunnel

SERVER = f"{A}:24531"
CUBIC = ("-C", "cubic")
#: Packets a second that are tried with 100-byte packets, both ways at once.
RATES = (10_000, 20_000, 30_000, 40_000, 60_000)
SLOW = Shape(delay=0.020, rate=100e6, queue=0.040)
UDP_OVERHEAD = 28  # bytes of IPv4 and UDP


class Lan:
    """A room of two: its creator in A, who joined in B."""

    def __init__(self, desk: Desk) -> None:
        for name, space in (("a", desk.a), ("b", desk.b)):
            space.be_a_machine(name, desk.folder / f"etc-{name}")
        self.server = Ptunnel(desk, desk.a, "serve", "serve", "--listen", SERVER)
        self.server.wait_event("listening")
        self.creator = Ptunnel(desk, desk.a, "lan-a", "lan", "create", "--server", SERVER, "--name", "bench")
        code = self.creator.wait_event("code")["code"]
        self.joiner = Ptunnel(desk, desk.b, "lan-b", "lan", "join", code, "--server", SERVER)
        self.address = self.joiner.wait_event("member", 30, kind="direct")["address"]

    def tool(self) -> Tool:
        return Tool("ptunnel lan", self.address, (IPERF, ECHO), [self.creator, self.joiner], CUBIC)

    def peak(self) -> float:
        return max(memory(process.pid, "VmHWM") for process in (self.creator, self.joiner))


def imports_only() -> float:
    """MB of a process that has imported what `lan` needs, and done nothing."""
    code = (
        "import tunnel.cli.lan, tunnel.room.verbs, tunnel.room.plane, tunnel.control.server, tunnel.doors.tun.host, time\n"
        "print(flush=True); time.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    figure = memory(process.pid)
    process.kill()
    process.wait()
    return figure


class Rows:
    """Figures by name, and their medians."""

    def __init__(self) -> None:
        self._rows: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        self._rows.setdefault(name, []).append(value)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self._rows.items()}


def iperf(desk: Desk, host: str, *words: str, seconds: int) -> dict[str, Any]:
    command = ["iperf3", "-c", host, "-p", str(IPERF), "-t", str(seconds), "-J", *words]
    for _ in range(20):
        report: dict[str, Any] = json.loads(desk.b.run(*command, timeout=60 + seconds, check=False).stdout)
        if "error" not in report:
            return report
        time.sleep(0.2)
    raise LabError(f"iperf3 {host}: {report['error']}")


def ping(desk: Desk, host: str, count: int, interval: float) -> list[float]:
    """Round trips in ms, sorted; a lost one is left out."""
    done = desk.b.run("ping", "-c", str(count), "-i", str(interval), host, timeout=60 + count * interval, check=False)
    return sorted(float(found) for found in re.findall(r"time=([\d.]+) ms", done.stdout))


def clean_link(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    rows = Rows()
    with Desk(folder) as desk:
        Program(desk, desk.a, "iperf3", ["iperf3", "-s", "-p", str(IPERF)])
        echo = echo_server(desk.a, ECHO)
        lan = Lan(desk)
        bench = Bench(desk, arguments.tools, None)
        bench.add("ptunnel lan", lan.tool)
        bench.add("wireguard-go", bench.wireguard)
        time.sleep(2)
        for run in range(arguments.runs):
            print(f"run {run + 1} of {arguments.runs}", file=sys.stderr, flush=True)
            for way, words in (("up", ()), ("down", ("-R",))):
                for tool in bench.tools:
                    before = tool.cpu()
                    end = iperf(desk, tool.host, *words, seconds=arguments.seconds)["end"]["sum_received"]
                    rows.note(f"{tool.name}, {way}: Mbit/s", end["bits_per_second"] / 1e6)
                    rows.note(f"{tool.name}, {way}: CPU s/GB", (tool.cpu() - before) / (end["bytes"] / 1e9))
            for tool in bench.tools:
                rows.note(f"{tool.name}: echo ms", round_trip(desk.b, tool.host, ECHO))
            rows.note("veth: echo ms", round_trip(desk.b, A, ECHO))
        figures = rows.medians()
        for way in ("up", "down"):
            if "wireguard-go, up: Mbit/s" in figures:
                figures[f"ptunnel lan / wireguard-go, {way}"] = (
                    figures[f"ptunnel lan, {way}: Mbit/s"] / figures[f"wireguard-go, {way}: Mbit/s"]
                )
        figures["round trip beyond the veth's, ms"] = figures["ptunnel lan: echo ms"] - figures["veth: echo ms"]
        for rate in RATES:
            game = ("-u", "-b", str(rate * 72 * 8), "-l", str(100 - UDP_OVERHEAD), "--bidir", "--pacing-timer", "1000")
            end = iperf(desk, lan.address, *game, seconds=arguments.seconds)["end"]
            for way, key in (("up", "sum"), ("down", "sum_bidir_reverse")):
                found = end.get(key) or end["sum_sent"]
                figures[f"100 B at {rate}/s both ways, {way}: lost %"] = found["lost_percent"]
        base = imports_only()
        figures["imports MB"] = base
        figures["peak MB above the imports, larger end"] = lan.peak() - base
        echo.close()
        for name, why in bench.missing.items():
            print(f"{name} left out: {why}", file=sys.stderr)
    return figures


def slow_link(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """CUBIC inside and outside of the LAN on 100 Mbit/s and 40 ms, and ping beside it."""
    rows = Rows()
    with Desk(folder, SLOW) as desk:
        for space in (desk.a, desk.b):
            with contextlib.suppress(PermissionError):
                space.sysctl("net.ipv4.tcp_congestion_control", "cubic")
        Program(desk, desk.a, "iperf3", ["iperf3", "-s", "-p", str(IPERF)])
        lan = Lan(desk)
        time.sleep(3)
        for _ in range(arguments.runs):
            for name, host in (("bare", A), ("ptunnel lan", lan.address)):
                load = desk.b.popen(["iperf3", "-c", host, "-p", str(IPERF), "-t", "12", "-J", *CUBIC], stdout=subprocess.PIPE)
                time.sleep(3)
                trips = ping(desk, host, 80, 0.1)
                report = json.loads(load.communicate(timeout=60)[0])
                rows.note(f"{name}: CUBIC Mbit/s", report["end"]["sum_received"]["bits_per_second"] / 1e6)
                rows.note(f"{name}: ping p99 under load, ms", trips[int(0.99 * (len(trips) - 1))])
    figures = rows.medians()
    figures["CUBIC inside / outside"] = figures["ptunnel lan: CUBIC Mbit/s"] / figures["bare: CUBIC Mbit/s"]
    figures["ping p99 beyond the bare link's, ms"] = (
        figures["ptunnel lan: ping p99 under load, ms"] - figures["bare: ping p99 under load, ms"]
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", choices=["clean", "slow"])
    parser.add_argument("--tools", type=Path, help="where a wireguard-go that is not installed was unpacked")
    arguments = parser.parse_args()
    parts: list[Callable[[Path, argparse.Namespace], dict[str, float]]] = []
    if arguments.only != "slow":
        parts.append(clean_link)
    if arguments.only != "clean":
        parts.append(slow_link)
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            for name, value in part(Path(folder), arguments).items():
                print(f"{name:<55} {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
