"""Figures of the whole, beside references measured in the same minutes: `python -m tests.bench.whole [--runs 5] [--ordinary]`.

Two namespaces joined by a veth of MTU 1500, both ends and the load on this machine.  What counts are the ratios, as medians of
interleaved runs; nothing here asserts a time.  `--ordinary` runs ptunnel without privileges and with the kernel's default
limit of 212,992 bytes for socket buffers (needs root to set that limit, and sets it back).  `--no-gso` has ptunnel believe that
the kernel knows neither UDP_SEGMENT nor UDP_GRO.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.netns.emulator import Shape
from tests.netns.kernel import ROOT, LabError, Namespace, python_module
from tests.netns.lab import Lab
from tests.netns.programs import Program, Ptunnel, Sshd, environment

A, B = "192.88.99.1", "192.88.99.2"
IPERF, ECHO = 5201, 5300
SECONDS = 2
RMEM = Path("/proc/sys/net/core/rmem_max")
TICKS = os.sysconf("SC_CLK_TCK")
#: A sitecustomize that refuses UDP_SEGMENT and UDP_GRO as an old kernel does.
NO_GSO = """
import errno, socket

def setsockopt(self, level, option, *value):
    if level == 17 and option in (103, 104):
        raise OSError(errno.ENOPROTOOPT, "not in this bench")
    return super(socket.socket, self).setsockopt(level, option, *value)

socket.socket.setsockopt = setsockopt
"""


class Desk(Lab):
    """A laboratory of two hosts only."""

    def __init__(self, folder: Path, shape: Shape = Shape(), *, ordinary: bool = False, no_gso: bool = False) -> None:  # noqa: B008
        super().__init__(folder, hops=0)
        self.variables: dict[str, Any] = {}  # for ptunnel's environment
        if no_gso:
            custom = folder / "no-gso"
            custom.mkdir()
            (custom / "sitecustomize.py").write_text(NO_GSO, encoding="ascii")
            self.variables["PYTHONPATH"] = str(custom)
        self.a, self.b = self._namespace("a"), self._namespace("b")
        self._cable(self.a, "eth0", self.b, "eth0", shape)
        self.a.ip(f"addr add {A}/24 dev eth0\nlink set eth0 up")
        self.b.ip(f"addr add {B}/24 dev eth0\nlink set eth0 up")
        self._settle()
        if ordinary:
            for space in (self.a, self.b):
                command = space.command
                drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
                setattr(space, "command", lambda words, command=command, drop=drop: command([*drop, *words]))  # noqa: B010


def cpu(pid: int) -> float:
    """Seconds of user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int, field: str = "VmRSS") -> float:
    """MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def iperf(space: Namespace, port: int, *words: str, host: str = "127.0.0.1", udp: bool = False) -> dict[str, Any]:
    for _ in range(20):  # the server takes one at a time, is a moment behind the end of the last, and resets who waits then
        done = space.run("iperf3", "-c", host, "-p", str(port), "-t", str(SECONDS), "-J", *words, timeout=60, check=False)
        report: dict[str, Any] = json.loads(done.stdout)
        if not any(text in report.get("error", "") for text in ("busy", "unable to receive control message")):
            break
        time.sleep(0.1)
    if "error" in report:
        raise LabError(f"iperf3 -p {port} {' '.join(words)}: {report['error']}")
    found: dict[str, Any] = report["end"]
    return found


def rate(space: Namespace, port: int, *words: str, host: str = "127.0.0.1") -> tuple[float, float]:
    """Mbit/s that arrived, and the bytes."""
    end = iperf(space, port, *words, host=host)["sum_received"]
    return end["bits_per_second"] / 1e6, end["bytes"]


def echo_server(space: Namespace, port: int) -> socket.socket:
    listener = space.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(1024)

    def one(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := peer.recv(65_536):
                peer.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener


def round_trip(space: Namespace, host: str, port: int, count: int = 300) -> float:
    """Median milliseconds of a one-byte echo."""
    sock = space.socket(socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(10)
        sock.connect((host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(count):
            started = time.perf_counter()
            sock.sendall(b"x")
            sock.recv(1)
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def short_connections(space: Namespace, port: int, count: int, at_once: int = 50) -> int:
    """How many of `count` short TCP connections brought their echo back."""
    good = [0] * at_once

    def worker(index: int) -> None:
        def body() -> None:
            for _ in range(count // at_once):
                with contextlib.suppress(OSError), socket.socket() as sock:
                    sock.settimeout(20)
                    sock.connect(("127.0.0.1", port))
                    sock.sendall(b"hello")
                    sock.shutdown(socket.SHUT_WR)
                    data = b""
                    while piece := sock.recv(100):
                        data += piece
                    good[index] += data == b"hello"

        space.inside(body)

    threads = [threading.Thread(target=worker, args=(index,)) for index in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(good)


class Tunnel:
    """serve, expose in A, connect in B."""

    def __init__(
        self, desk: Desk, tag: str, path: str, forwards: dict[int, int], *, port: int | None = None, code_in: Path | None = None
    ) -> None:
        """`port` of the server; `code_in`: another checkout, whose code runs instead of this one's."""
        self.path = path
        if port is None:
            port = 24_531 if path == "auto" else 24_541
        variables = desk.variables
        if code_in is not None:
            before = variables.get("PYTHONPATH")
            found = f"{before}:{code_in}" if before else str(code_in)
            variables = {**variables, "PYTHONSAFEPATH": "1", "PYTHONPATH": found}
        self.server = Ptunnel(desk, desk.a, f"serve-{tag}", "serve", "--listen", f"{A}:{port}", **variables)
        self.server.wait_event("listening")
        grants = [str(target) for target in forwards.values()] + [f"{target}/udp" for target in forwards.values()]
        server = f"{A}:{port}"
        words = [*grants, "--server", server, "--path", path, "--name", f"home-{tag}"]
        self.expose = Ptunnel(desk, desk.a, f"expose-{tag}", "expose", *words, **variables)
        code = self.expose.wait_event("code")["code"]
        words = [word for here, there in forwards.items() for word in ("--forward", f"{here}:{there}/tcp+udp")]
        self.home = desk.folder / f"connect-{tag}"
        self.connect = Ptunnel(
            desk, desk.b, f"connect-{tag}", "connect", "--server", server, "--path", path, *words, PTUNNEL_CODE=code, **variables
        )
        self.connect.wait_event("forward")
        if path == "auto":
            self.connect.wait_event("path", 10, kind="direct")

    def cpu(self) -> float:
        return cpu(self.expose.pid) + cpu(self.connect.pid) + (cpu(self.server.pid) if self.path == "relay" else 0.0)


def bare(desk: Desk) -> float:
    receiver = desk.a.popen(python_module("tests.bench.bare", "receive", "5999"), stdout=subprocess.PIPE, cwd=ROOT)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    sender = desk.b.popen(python_module("tests.bench.bare", "send", A, "5999", str(SECONDS)), cwd=ROOT)
    figure = float(receiver.stdout.readline())
    sender.wait(20)
    receiver.wait(20)
    return figure


def imports_only() -> float:
    """MB of a process that has imported what `connect` needs, and done nothing."""
    code = (
        "import tunnel.ports.connecting, tunnel.cli.connect, tunnel.ports.serve, tunnel.control.server, time\n"
        "print(flush=True); time.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    figure = memory(process.pid)
    process.kill()
    process.wait()
    return figure


@contextlib.contextmanager
def default_socket_buffers(wanted: bool) -> Iterator[None]:
    before = RMEM.read_text(encoding="ascii")
    if wanted:
        RMEM.write_text("212992", encoding="ascii")
    try:
        yield
    finally:
        if wanted:
            RMEM.write_text(before, encoding="ascii")


def measure(runs: int, folder: Path, ordinary: bool, no_gso: bool = False) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with Desk(folder, ordinary=ordinary, no_gso=no_gso) as desk:
        sshd = Sshd(desk, desk.a, address=A)
        Program(desk, desk.a, "iperf3", ["iperf3", "-s", "-p", str(IPERF)])
        echo = echo_server(desk.a, ECHO)
        direct = Tunnel(desk, "direct", "auto", {6201: IPERF, 6300: ECHO})
        relay = Tunnel(desk, "relay", "relay", {6202: IPERF, 6302: ECHO})
        ssh = Program(
            desk,
            desk.b,
            "ssh",
            [
                "ssh",
                *sshd.options(),
                "-N",
                "-p",
                "2022",
                "-L",
                f"6203:127.0.0.1:{IPERF}",
                "-L",
                f"6303:127.0.0.1:{ECHO}",
                f"{sshd.user}@{A}",
            ],
        )
        time.sleep(1.5)
        rows: dict[str, list[float]] = {}

        def note(name: str, value: float) -> None:
            rows.setdefault(name, []).append(value)

        for _ in range(runs):
            for way, words in (("up", ()), ("down", ("-R",))):
                for name, port, tunnel in (("ptunnel", 6201, direct), ("relayed", 6202, relay), ("ssh -L", 6203, None)):
                    before = tunnel.cpu() if tunnel else cpu(ssh.pid)
                    mbit, count = rate(desk.b, port, *words)
                    note(f"{name} {way} Mbit/s", mbit)
                    if tunnel:
                        note(f"{name} {way} CPU s/GB", (tunnel.cpu() - before) / (count / 1e9))
            note("bare UDP GSO/GRO + AES-GCM Mbit/s", bare(desk))
            note("veth echo ms", round_trip(desk.b, A, ECHO))
            note("ptunnel echo ms", round_trip(desk.b, "127.0.0.1", 6300))
            note("relayed echo ms", round_trip(desk.b, "127.0.0.1", 6302))
            note("ssh -L echo ms", round_trip(desk.b, "127.0.0.1", 6303))
            many = iperf(desk.b, 6201, "-P", "20")["sum_received"]["bits_per_second"] / 1e6
            note("ptunnel 20 streams up Mbit/s", many)
            udp = iperf(desk.b, 6201, "-u", "-b", "400M", "-l", "1200")["sum"]
            note("UDP forward 1200 B at 400 Mbit/s: datagrams/s", udp["packets"] / udp["seconds"])
            note("UDP forward 1200 B at 400 Mbit/s: lost %", udp["lost_percent"])
        for name, values in rows.items():
            figures[name] = round(statistics.median(values), 3)
        for way in ("up", "down"):
            figures[f"ptunnel / ssh -L {way}"] = round(figures[f"ptunnel {way} Mbit/s"] / figures[f"ssh -L {way} Mbit/s"], 3)
            figures[f"relayed / ptunnel {way}"] = round(figures[f"relayed {way} Mbit/s"] / figures[f"ptunnel {way} Mbit/s"], 3)
        figures["ptunnel up / bare"] = round(figures["ptunnel up Mbit/s"] / figures["bare UDP GSO/GRO + AES-GCM Mbit/s"], 3)
        base = imports_only()
        figures["imports MB"] = round(base, 1)
        figures["connect peak MB above imports"] = round(memory(direct.connect.pid, "VmHWM") - base, 1)
        figures["expose peak MB above imports"] = round(memory(direct.expose.pid, "VmHWM") - base, 1)

        def descriptors() -> int:
            return sum(len(os.listdir(f"/proc/{p.pid}/fd")) for p in (direct.connect, direct.expose))

        rss = memory(direct.connect.pid) + memory(direct.expose.pid)
        open_before = descriptors()
        started = time.perf_counter()
        figures["short connections that came back, of 10,000"] = short_connections(desk.b, 6300, 10_000)
        figures["short connections a second"] = round(10_000 / (time.perf_counter() - started))
        time.sleep(3)
        figures["descriptors left behind"] = descriptors() - open_before
        figures["MB left behind, both ends"] = round(memory(direct.connect.pid) + memory(direct.expose.pid) - rss, 1)
        before = direct.cpu()
        time.sleep(20)
        figures["idle CPU %, both ends together"] = round((direct.cpu() - before) / 20 * 100, 2)
        echo.close()
    return figures


def first_byte(folder: Path, runs: int) -> dict[str, Any]:
    """A remembered peer, 10 ms one way: the whole command, and from the end of imports to the first byte."""
    figures: dict[str, Any] = {}
    with Desk(folder, Shape(delay=0.010)) as desk:
        echo = echo_server(desk.a, ECHO)
        tunnel = Tunnel(desk, "first", "auto", {6300: ECHO})
        tunnel.connect.interrupt()
        tunnel.connect.wait(5)
        home = tunnel.connect.home
        whole: list[float] = []
        inside: list[float] = []
        probe = (
            "import sys, time\nimport tunnel.cli.main, tunnel.cli.connect, tunnel.ports.connecting\n"
            "import tunnel.ports.stdio, tunnel.control.server\n"
            "started = time.perf_counter()\nimport os, threading\n"
            "r, w = os.pipe()\n"
            "def watch():\n"
            "    os.read(r, 1)\n"
            "    print(time.perf_counter() - started, file=sys.stderr, flush=True)\n"
            "threading.Thread(target=watch, daemon=True).start()\n"
            "os.dup2(w, 1)\nsys.argv = ['ptunnel', 'connect', '--stdio', '5300']\ntunnel.cli.main.main()\n"
        )
        for _ in range(runs):
            started = time.perf_counter()
            done = desk.b.run(
                *python_module("tunnel", "connect", "--stdio", str(ECHO)), env=environment(home), stdin="x", timeout=20
            )
            whole.append(time.perf_counter() - started)
            assert done.stdout == "x", done
            timed = desk.b.run(sys.executable, "-c", probe, env=environment(home), stdin="x", timeout=20, check=False)
            inside.append(float(timed.stderr.strip().splitlines()[0]))
        echo.close()
        figures["first byte: whole command, ms"] = round(statistics.median(whole) * 1e3)
        figures["first byte: after imports, ms"] = round(statistics.median(inside) * 1e3)
        figures["first byte: 6 round trips + 100 ms"] = 220
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ordinary", action="store_true")
    parser.add_argument("--no-gso", action="store_true")
    parser.add_argument("--only", choices=["first", "throughput"])
    arguments = parser.parse_args()
    parts: list[Callable[[Path], dict[str, Any]]] = []
    if arguments.only != "first":
        parts.append(lambda folder: measure(arguments.runs, folder, arguments.ordinary, arguments.no_gso))
    if arguments.only != "throughput":
        parts.append(lambda folder: first_byte(folder, arguments.runs))
    with default_socket_buffers(arguments.ordinary):
        for part in parts:
            with tempfile.TemporaryDirectory() as folder:
                for name, value in part(Path(folder)).items():
                    print(f"{name:<50} {value}", flush=True)


if __name__ == "__main__":
    main()
