"""ptunnel on bad links and beside others, on real kernels: `python -m tests.bench.links [PART ...] [--runs 3] [--seconds 10]`.

Parts: `rates` (loss, reordering, duplication: against kernel CUBIC and BBR in the same run), `narrow` (2 Mbit/s, 30 % lost),
`neighbour` (six times as long, beside one kernel CUBIC flow, four sizes of buffer), `queue` (what a saturating transfer adds to
ping, to a keystroke on another stream and to a UDP datagram), `datagrams` (a UDP forward on the bare veth, from 10,000 a second
to more than it carries).  Each line says what is wanted, so that a reader can judge; nothing is asserted, as the machine may be
busy with other things.  The links are the laboratory's emulator.  As root.
"""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.parts import parts_parser
from tests.bench.whole import ECHO, IPERF, A, Desk, Tunnel, echo_server
from tests.netns.emulator import Shape
from tests.netns.kernel import ROOT, python_module
from tests.netns.programs import Program, environment

MBIT = 1e6
HUNDRED = Shape(delay=0.020, rate=100 * MBIT, queue=0.040)
OTHER_IPERF = IPERF + 1
UDP_ECHO = ECHO + 1
FORWARDS = {6201: IPERF, 6300: ECHO, 6301: UDP_ECHO, 6302: UDP_ECHO + 1}

RATES: dict[str, Shape] = {
    "no loss": HUNDRED,
    "1 % lost": HUNDRED._replace(loss=0.01),
    "5 % lost": HUNDRED._replace(loss=0.05),
    "1 % lost in bursts of 8": HUNDRED._replace(loss=0.01, burst=8),
    "5 % lost in bursts of 8": HUNDRED._replace(loss=0.05, burst=8),
    "20 ms bad, 5 % of the time": HUNDRED._replace(loss=0.05, bad=0.020),
    "30 ms of jitter, in order": HUNDRED._replace(jitter=0.030),
    "30 ms of jitter": HUNDRED._replace(jitter=0.030, overtakes=1),
    "5 % late by 5 ms": HUNDRED._replace(reorder=0.05, late=0.005),
    "5 % twice": HUNDRED._replace(duplicate=0.05),
}
NARROW: dict[str, Shape] = {
    "2 Mbit/s": Shape(delay=0.020, rate=2 * MBIT, queue=0.100),
    "2 Mbit/s, 30 % lost": Shape(delay=0.020, rate=2 * MBIT, queue=0.100, loss=0.3),
    "20 Mbit/s, 30 % lost": Shape(delay=0.020, rate=20 * MBIT, queue=0.100, loss=0.3),
}


@contextmanager
def bench(shape: Shape) -> Iterator[tuple[Desk, Tunnel]]:
    """Two ends, a tunnel between them, and what measures."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        desk = stack.enter_context(Desk(Path(folder), shape))
        for port in (IPERF, OTHER_IPERF):
            Program(desk, desk.a, f"iperf3-{port}", ["iperf3", "-s", "-p", str(port)])
        stack.callback(echo_server(desk.a, ECHO).close)
        stack.callback(udp_echo(desk, UDP_ECHO).close)
        yield desk, Tunnel(desk, "direct", "auto", FORWARDS)


def udp_echo(desk: Desk, port: int) -> socket.socket:
    sock = desk.a.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))

    def serve() -> None:
        while True:
            try:
                data, client = sock.recvfrom(2048)
            except OSError:
                return
            sock.sendto(data, client)

    threading.Thread(target=serve, daemon=True).start()
    return sock


def iperf_words(host: str, port: int, seconds: float, *words: str) -> list[str]:
    return ["iperf3", "-c", host, "-p", str(port), "-t", str(int(seconds)), "-J", *words]


def goodput(desk: Desk, host: str, port: int, seconds: float, *words: str) -> float:
    """Mbit/s that arrived; 0 when nothing came of it."""
    for _ in range(3):
        done = desk.b.run(*iperf_words(host, port, seconds, *words), timeout=seconds + 60, check=False)
        report: dict[str, Any] = json.loads(done.stdout or "{}")
        if "error" not in report and report.get("end"):
            return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6
        time.sleep(0.5)
    return 0.0


def say(*words: object) -> None:
    print(*words, flush=True)


def rates(runs: int, seconds: float, only: str = "") -> None:
    say(f"medians of {runs} runs of {seconds:g} s, Mbit/s")
    say(f"{'100 Mbit/s, 40 ms, 40 ms of queue':<34}{'CUBIC':>8}{'BBR':>8}{'ptunnel':>16}   ratio up and down")
    clean = 0.0
    for name, shape in {only: RATES[only]}.items() if only else RATES.items():
        found: dict[str, list[float]] = {}
        with bench(shape) as (desk, _):
            for _ in range(runs):
                for who, host, port, words in (
                    ("cubic", A, IPERF, ("-C", "cubic")),
                    ("bbr", A, IPERF, ("-C", "bbr")),
                    ("up", "127.0.0.1", 6201, ()),
                    ("down", "127.0.0.1", 6201, ("-R",)),
                ):
                    found.setdefault(who, []).append(goodput(desk, host, port, seconds, *words))
        cubic, bbr, up, down = (statistics.median(found[who]) for who in ("cubic", "bbr", "up", "down"))
        if not shape.loss and not clean:
            clean = min(up, down)
        reference, wanted = (cubic, "0.97 of CUBIC") if name == "no loss" else (bbr, "0.95 of BBR")
        if shape.reorder or shape.duplicate:
            reference, wanted = clean, "0.90 of no loss"
        ratio = [each / reference if reference else 0.0 for each in (up, down)]
        say(f"{name:<34}{cubic:>8.1f}{bbr:>8.1f}{up:>8.1f}{down:>8.1f}   {ratio[0]:.3f} {ratio[1]:.3f}  wanted {wanted}")


def narrow(runs: int, seconds: float) -> None:
    say(f"{'40 ms, 100 ms of queue':<34}{'ptunnel up/down':>16}   share of rate x (1 - loss); wanted 0.6")
    for name, shape in NARROW.items():
        found: dict[str, list[float]] = {"up": [], "down": []}
        with bench(shape) as (desk, _):
            for _ in range(runs):
                found["up"].append(goodput(desk, "127.0.0.1", 6201, 2 * seconds))
                found["down"].append(goodput(desk, "127.0.0.1", 6201, 2 * seconds, "-R"))
        up, down = (statistics.median(found[way]) for way in ("up", "down"))
        there_is = shape.rate / 1e6 * (1 - shape.loss)
        say(f"{name:<34}{up:>8.2f}{down:>8.2f}   {up / there_is:.2f} {down / there_is:.2f}")


def neighbour(runs: int, seconds: float) -> None:
    del runs  # a minute each is long enough
    say("beside one kernel CUBIC flow, 50 Mbit/s, 40 ms: shares of the link, ptunnel / CUBIC")
    for buffer, least in ((0.5, 0.10), (1.0, 0.25), (2.0, 0.25), (4.0, 0.10)):
        with bench(Shape(delay=0.020, rate=50 * MBIT, queue=0.040 * buffer)) as (desk, _):
            words = iperf_words(A, OTHER_IPERF, seconds, "-C", "cubic")
            other = desk.b.popen(words, stdout=subprocess.PIPE)
            ours = goodput(desk, "127.0.0.1", 6201, seconds) / 50
            theirs = json.loads(other.communicate()[0])["end"]["sum_received"]["bits_per_second"] / 50e6
        say(f"buffer {buffer} x bandwidth x delay: {ours:.2f} / {theirs:.2f}   wanted at least {least:.2f} each")


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def queue(runs: int, seconds: float) -> None:
    del runs
    shape = HUNDRED._replace(queue=0.200)
    rtt = 2 * shape.delay
    with bench(shape) as (desk, _):
        idle = pings(desk, 3)
        found: dict[str, list[float]] = {}

        def probe(name: str, measure: Callable[[], list[float]]) -> threading.Thread:
            thread = threading.Thread(target=lambda: found.__setitem__(name, measure()))
            thread.start()
            return thread

        for way, words in (("up", ()), ("down", ("-R",))):
            load = desk.b.popen(iperf_words("127.0.0.1", 6201, seconds + 3, *words), stdout=subprocess.PIPE)
            time.sleep(2)
            threads = [
                probe("ping", lambda: pings(desk, seconds)),
                probe("keystroke", lambda: echoes(desk, socket.SOCK_STREAM, 6300, seconds)),
                probe("datagram", lambda: echoes(desk, socket.SOCK_DGRAM, 6301, seconds)),
            ]
            for thread in threads:
                thread.join()
            mbit = json.loads(load.communicate()[0])["end"]["sum_received"]["bits_per_second"] / 1e6
            added = 1e3 * (statistics.mean(found["ping"]) - statistics.median(idle))
            say(f"saturated {way} at {mbit:.1f} Mbit/s, 200 ms of buffer: ping + {added:.1f} ms on average, wanted under 40")
            for name in ("keystroke", "datagram"):
                middle, late = (1e3 * percentile(found[name], share) for share in (0.5, 0.99))
                wanted = 1e3 * (2 * rtt) + 10
                say(f"  {name}: median {middle:.1f} ms, p99 {late:.1f} ms of {len(found[name])}, wanted under {wanted:.0f}")


def pings(desk: Desk, seconds: float) -> list[float]:
    """Round trips of the link, in seconds."""
    said = desk.b.run("ping", "-i", "0.05", "-w", str(int(seconds)), A, timeout=seconds + 10, check=False).stdout
    return [float(found) / 1e3 for found in re.findall(r"time=([0-9.]+) ms", said)] or [0.0]


def echoes(desk: Desk, kind: socket.SocketKind, port: int, seconds: float) -> list[float]:
    """Round trips of a byte or a datagram that is answered, through the tunnel, in seconds; one every 30 ms or so."""
    times: list[float] = []
    with desk.b.socket(socket.AF_INET, kind) as sock:
        sock.settimeout(2)
        sock.connect(("127.0.0.1", port))
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.monotonic()
            sock.send(b"k")
            try:
                sock.recv(100)
            except TimeoutError:  # a datagram may be lost
                continue
            times.append(time.monotonic() - began)
            time.sleep(0.03)
    return times


def datagrams(runs: int, seconds: float) -> None:
    """Every rate by itself, the median of its runs by loss."""
    say("UDP forward of 1,200 B on a veth: wanted under 0.1 % lost up to 40,000 a second, and past that drops but no stall")
    with bench(Shape()) as (desk, tunnel):
        for rate in (10_000, 20_000, 40_000, 60_000, 100_000, 150_000):
            found = sorted((flood(desk, tunnel, rate, seconds) for _ in range(runs)), key=lambda each: each["lost"])
            middle = found[len(found) // 2]
            say(
                f"{rate:>8} offered: {middle['arrived']:>8.0f} a second arrived, {middle['lost']:>7.3f} % lost, longest silence "
                f"{middle['silence']:.0f} ms, CPU {middle['cpu']:.1f} us a datagram; named drops: {middle['drops']}"
            )


def flood(desk: Desk, tunnel: Tunnel, rate: int, seconds: float) -> dict[str, Any]:
    before, drops = tunnel.cpu(), dropped(tunnel)
    sink = desk.a.popen(python_module("tests.bench.flood", "receive", str(UDP_ECHO + 1)), stdout=subprocess.PIPE, cwd=ROOT)
    assert sink.stdout is not None
    sink.stdout.readline()
    words = python_module("tests.bench.flood", "send", "127.0.0.1", "6302", str(rate), str(seconds), "1200")
    sent = json.loads(desk.b.run(*words, timeout=seconds + 30).stdout)
    got = json.loads(sink.communicate(timeout=30)[0])
    return {
        "arrived": got["received"] / sent["seconds"],
        "lost": 100 * (1 - got["received"] / max(1, sent["sent"])),
        "silence": got["longest_silence_ms"],
        "cpu": (tunnel.cpu() - before) / max(1, sent["sent"]) * 1e6,
        "drops": {name: count - drops.get(name, 0) for name, count in dropped(tunnel).items() if count > drops.get(name, 0)},
    }


def dropped(tunnel: Tunnel) -> dict[str, int]:
    """What both ends count as dropped, by name."""
    found: dict[str, int] = {}
    for end in (tunnel.connect, tunnel.expose):
        command = python_module("tunnel", "status", "--json")
        said = subprocess.run(command, env=environment(end.home), capture_output=True, text=True, cwd=ROOT, check=False)
        for line in said.stdout.splitlines():
            for reasons in json.loads(line).get("drops", {}).values():
                for name, count in reasons.items():
                    found[name] = found.get(name, 0) + count
    return found


PARTS: dict[str, Callable[[int, float], None]] = {
    "rates": rates,
    "narrow": narrow,
    "neighbour": neighbour,
    "queue": queue,
    "datagrams": datagrams,
}


def main() -> None:
    parser = parts_parser(__doc__, PARTS, runs=3, seconds=10.0)
    parser.add_argument("--only", choices=RATES, help="of `rates`, this line alone")
    arguments = parser.parse_args()
    if arguments.only:
        rates(arguments.runs, arguments.seconds, arguments.only)
        return
    for part in arguments.parts or PARTS:
        PARTS[part](arguments.runs, arguments.seconds * (6 if part == "neighbour" else 1))


if __name__ == "__main__":
    main()
