"""`ptunnel serve` under floods: `python -m tests.bench.floods [FLOOD ...] [--seconds 10] [--rate N] [--list]`.

One server, on loopback; the flood in a process of its own, from thousands of addresses of 127.0.0.0/8; and honest clients, which
pair by code, measure, ask after a lost channel, are relayed and keep codes open.  A row a flood, after one without: of each of
these the share that succeeded, with the median and the 99th percentile.  Nothing is asserted, as the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import trio

from tests.bench.floods.attacks import FLOODS, Flood, Target
from tests.bench.floods.honest import Report, live
from tests.driver.tls import make_certificate

HEAD = (
    "flood", "sent/s", "pair by code", "measure", "lost channel", "relay", "TLS door", "codes left", "server CPU", "log",
    "learned",
)  # fmt: skip
BEFORE = 2.0  # seconds that a flood runs before the honest come
PATIENCE = 30.0  # seconds for a flood to end
TICKS = os.sysconf("SC_CLK_TCK")


class Outcome(NamedTuple):
    report: Report
    counts: Counter[str]
    cpu: float  # seconds of the server
    log: int  # bytes on its stderr


@contextmanager
def serving(options: tuple[str, ...], folder: Path, log: IO[bytes]) -> Iterator[tuple[Target, int]]:
    """A server of its own home: where it is, and its process."""
    words = [sys.executable, "-m", "tunnel", "serve", "--listen", "127.0.0.1:0", "--json", *options]
    if "--tls" in options:  # a flood that needs the TLS door says so by this word alone
        words.remove("--tls")
        made = make_certificate(folder, "127.0.0.1")
        words += ["--tls-cert", str(made.certificate), "--tls-key", str(made.key), "--tls-port", "0"]
    environ = {**os.environ, "PTUNNEL_HOME": str(folder / "server")}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=environ) as process:
        try:
            assert process.stdout is not None
            places: list[str] = []
            while len(places) < 1 + ("--tls" in options):
                event = json.loads(process.stdout.readline())
                if event["event"] == "listening":
                    places.append(event["bind"])
            ports = [int(place.rpartition(":")[2]) for place in places]
            yield Target("127.0.0.1", *ports), process.pid
        finally:
            process.terminate()
            process.wait(10)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def flooding(each: Flood, target: Target, rate: float, seconds: float) -> Iterator[Counter[str]]:
    """In a process of its own; what it counted stands in the counter afterwards."""
    place = (target.host, target.port, target.tls_port, rate, seconds)
    words = [sys.executable, "-m", "tests.bench.floods.attacks", each.name, *map(str, place)]
    counts: Counter[str] = Counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            yield counts
            counts.update(json.loads(process.communicate(timeout=seconds + PATIENCE)[0]))
        finally:
            process.kill()


def run(each: Flood | None, seconds: float, rate: float = 0.0) -> Outcome:
    """The honest beside this flood, or alone.  A `rate` of 0: the flood's own."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "wb") as log, ExitStack() as stack:
        target, pid = stack.enter_context(serving(each.options if each is not None else (), Path(folder), log))
        counts: Counter[str] = Counter()
        if each is not None:
            counts = stack.enter_context(flooding(each, target, rate, seconds + BEFORE))
            time.sleep(BEFORE)
        before = cpu_of(pid)
        report = trio.run(live, target, seconds)
        spent = cpu_of(pid) - before
        stack.close()
        return Outcome(report, counts, spent, (Path(folder) / "log").stat().st_size)


def row(name: str, outcome: Outcome, seconds: float) -> list[str]:
    report, counts = outcome.report, outcome.counts
    learned = ", ".join(f"{count} {what}" for what, count in counts.items() if what != "sent" and count) or "-"
    cells = [name, f"{counts['sent'] / (seconds + BEFORE):,.0f}"]
    cells += map(str, (report.pairing, report.mapping, report.hints, report.relay, report.door))
    return [
        *cells,
        f"{report.codes - report.spent} of {report.codes}",
        f"{100 * outcome.cpu / seconds:.0f} %",
        f"{outcome.log:,}",
        learned,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("floods", nargs="*", metavar="FLOOD", help="all, unless some are named")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each")
    parser.add_argument("--rate", type=float, default=0.0, help="of each flood, a second; each has its own unless said")
    parser.add_argument("--list", action="store_true", help="what there is")
    options = parser.parse_args()
    unknown = set(options.floods) - {each.name for each in FLOODS}
    if unknown:
        parser.error(f"there is no flood {', '.join(sorted(unknown))}: see --list")
    if options.list:
        for each in FLOODS:
            print(f"{each.name:12} {each.what}")
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    chosen = [each for each in FLOODS if not options.floods or each.name in options.floods]
    for flood_or_none in (None, *chosen):
        outcome = run(flood_or_none, options.seconds, options.rate)
        name = "none" if flood_or_none is None else flood_or_none.name
        print(f"| {' | '.join(row(name, outcome, options.seconds))} |", flush=True)


if __name__ == "__main__":
    main()
