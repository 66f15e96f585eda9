"""A game, and TCP with CUBIC, inside a LAN over a link that loses: `python -m tests.bench.lossy [--runs 3] [--seconds 60]`.

Two namespaces, 40 ms of round trip; the game is 120 bytes 60 times a second, one way.  What is printed are medians of what it
misses, with `--repeat off`, which is what the link loses, and with `auto`; and of what iperf3 moves, bare and inside the LAN, on
100 Mbit/s with a queue of 50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from tests.bench.lan import SERVER, iperf
from tests.bench.whole import IPERF, A, Desk
from tests.netns.emulator import Shape
from tests.netns.kernel import Namespace
from tests.netns.lab import eventually
from tests.netns.programs import Program, Ptunnel, ptunnel

PORT: Final = 27_960
HERTZ: Final = 60.0
SIZE: Final = 120  # bytes
LINKS: Final = {
    "no loss": Shape(delay=0.020),
    "5 % lost": Shape(delay=0.020, loss=0.05),
    "5 % lost, 3 in a row": Shape(delay=0.020, loss=0.05, burst=3.0),
    "1 % lost": Shape(delay=0.020, loss=0.01),
}


class LossyLan:
    """A room of two on such a link: its creator in A, who joined in B."""

    def __init__(self, desk: Desk, *words: str) -> None:
        self.desk = desk
        for name, space in (("a", desk.a), ("b", desk.b)):
            space.be_a_machine(name, desk.folder / f"etc-{name}")
        server = Ptunnel(desk, desk.a, "serve", "serve", "--listen", SERVER)
        server.wait_event("listening")
        self.creator = Ptunnel(desk, desk.a, "lan-a", "lan", "create", "--server", SERVER, "--name", "lossy", *words)
        code = self.creator.wait_event("code")["code"]
        self.joiner = Ptunnel(desk, desk.b, "lan-b", "lan", "join", code, "--server", SERVER, *words)
        self.address = self.joiner.wait_event("member", 60, kind="direct")["address"]
        ping = ("ping", "-q", "-c", "1", "-W", "1", self.address)
        eventually("an answer", lambda: desk.b.run(*ping, check=False).returncode == 0, 60)

    def figures(self, of: Ptunnel) -> dict[str, Any]:
        """What `status` says of the one link of a member."""
        space = self.desk.a if of is self.creator else self.desk.b
        done = ptunnel(space, of.home, "status", "--json")
        for line in done.stdout.splitlines():
            event = json.loads(line)
            for link in event.get("links", []):
                found: dict[str, Any] = link
                return found
        return {}


def play(source: Namespace, sink: Namespace, host: str, seconds: float, hertz: float = HERTZ) -> tuple[int, int]:
    """Datagrams sent, and how many of them came, each counted once."""
    with contextlib.ExitStack() as stack:
        ear = stack.enter_context(sink.socket(socket.AF_INET, socket.SOCK_DGRAM))
        mouth = stack.enter_context(source.socket(socket.AF_INET, socket.SOCK_DGRAM))
        ear.bind(("0.0.0.0", PORT))
        ear.settimeout(0.2)
        came: set[int] = set()
        is_over = threading.Event()

        def listen() -> None:
            while True:
                try:
                    came.add(int.from_bytes(ear.recv(2048)[:8], "big"))
                except TimeoutError:
                    if is_over.is_set():
                        return

        thread = threading.Thread(target=listen)
        thread.start()
        began, count = time.monotonic(), int(seconds * hertz)
        for number in range(count):
            time.sleep(max(0.0, began + number / hertz - time.monotonic()))
            mouth.sendto(number.to_bytes(8, "big") + bytes(SIZE - 8), (host, PORT))
        time.sleep(1.0)
        is_over.set()
        thread.join()
        return count, len(came)


def wait_lossy(lan: LossyLan) -> None:
    """Play until the sender has noticed that the link loses some."""

    def is_noticed() -> bool:
        play(lan.desk.b, lan.desk.a, lan.address, 2.0)
        return bool(lan.figures(lan.joiner).get("repeated"))

    eventually("copies of what is sent", is_noticed, 120)


def fast(loss: float, burst: float = 1.0) -> Shape:
    return Shape(delay=0.020, rate=100e6, queue=0.050, loss=loss, burst=burst)


BULK: Final = {
    "no loss": fast(0.0),
    "1 % lost": fast(0.01),
    "5 % lost": fast(0.05),
    "5 % lost, 3 in a row": fast(0.05, 3.0),
}


def move(desk: Desk, host: str, seconds: float) -> float:
    """Mbit/s of CUBIC from B to A, of the second half of twice that time: the first is its slow start."""
    omit = ("-O", str(int(seconds)))
    end = iperf(desk, host, "-C", "cubic", *omit, seconds=int(seconds))["end"]
    return float(end["sum_received"]["bits_per_second"]) / 1e6


def measure_bulk(runs: int, seconds: float) -> None:
    for name, shape in BULK.items():
        rows: dict[str, list[float]] = {"bare": [], "inside": [], "inside, --no-repair": []}
        for run in range(runs):
            print(f"TCP, {name}: run {run + 1} of {runs}", file=sys.stderr, flush=True)
            for words in ((), ("--no-repair",)):
                with tempfile.TemporaryDirectory() as folder, Desk(Path(folder), shape) as desk:
                    Program(desk, desk.a, "iperf3", ["iperf3", "-s", "-p", str(IPERF)])
                    lan = LossyLan(desk, *words)
                    rows["inside, --no-repair" if words else "inside"].append(move(desk, lan.address, seconds))
                    if not words:
                        rows["bare"].append(move(desk, A, seconds))
        for kind, values in rows.items():
            print(f"{name + ', TCP ' + kind + ': Mbit/s':<55} {statistics.median(values):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", choices=["game", "tcp"])
    arguments = parser.parse_args()
    if arguments.only != "game":
        measure_bulk(arguments.runs, arguments.seconds / 4)
    if arguments.only != "tcp":
        measure_games(arguments.runs, arguments.seconds)


def measure_games(runs: int, seconds: float) -> None:
    for name, shape in LINKS.items():
        shares: dict[str, list[float]] = {"off": [], "auto": []}
        copies: list[float] = []
        for run in range(runs):
            for mode in shares:
                print(f"{name}, {mode}: run {run + 1} of {runs}", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory() as folder, Desk(Path(folder), shape) as desk:
                    lan = LossyLan(desk, "--repeat", mode)
                    time.sleep(2)
                    if mode == "auto" and shape.loss:
                        wait_lossy(lan)
                    before = lan.figures(lan.joiner)["repeated"]
                    sent, came = play(desk.b, desk.a, lan.address, seconds)
                    shares[mode].append(100 * (1 - came / sent))
                    if mode == "auto":
                        copies.append(100 * (lan.figures(lan.joiner)["repeated"] - before) / sent)
        for mode, values in shares.items():
            print(f"{name + ', --repeat ' + mode + ': missed %':<55} {statistics.median(values):.2f}", flush=True)
        print(f"{name + ', --repeat auto: sent twice %':<55} {statistics.median(copies):.1f}", flush=True)


if __name__ == "__main__":
    main()
