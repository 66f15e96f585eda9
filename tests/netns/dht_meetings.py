"""Two homes that meet over the DHT, between real routers and nodes that are not ours: how many seconds to the first byte?

    python -m tests.netns.dht_meetings [CONDITION ...]

Runs every ordered pair of the easy kinds under each condition, and those with a NAT that cannot be met, five pairs at a time in
one DHT.  Prints the rows of the table in docs/reach.md.  As root, or in a namespace like scripts/nat-matrix makes.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.netns.dht import Farm, OtherNodes, leave_dead_homes
from tests.netns.kernel import LabError
from tests.netns.lab import Kind, Lab, Site
from tests.netns.matrix import PORT, PageServer
from tests.netns.programs import Ptunnel

EASY: Final[tuple[Kind, ...]] = ("fw", "restricted", "prc", "uprc", "cgn")
"""Endpoint-independent mappings: every pair of these can be direct."""

HARD: Final[tuple[tuple[Kind, Kind], ...]] = (("sym", "prc"), ("prc", "sym"), ("sym", "sym"))
PATIENCE: Final = 60.0  # seconds for what takes five to ten
LATE: Final = 0.25  # seconds at most between the two starts


class Condition(NamedTuple):
    """What lies between everybody and everybody else."""

    words: str
    delay: float = 0.005  # seconds one way, of each site's line, so a quarter of the round trip
    loss: float = 0.0  # of each site's line, so half of what a path loses one way
    is_decayed: bool = False  # tables full of dead homes, and a third of the nodes dies


CONDITIONS: Final = {
    "near": Condition("20 ms"),
    "far": Condition("120 ms, 3 % lost", delay=0.03, loss=0.015),
    "decayed": Condition("20 ms, a third of the nodes dead, 40 dead homes in the tables", is_decayed=True),
}


@dataclass
class Times:
    """Seconds from the start of `connect` to the first byte from the other side; None: it did not come."""

    code: float | None = None
    name: float | None = None  # whoever exposes has been there for a while
    both: float | None = None  # both begin within a quarter of a second, by name; from the later one
    trouble: str = ""


def first_byte(connector: Ptunnel, friend: Site) -> float:
    """When the first byte of the page came through the tunnel."""
    connector.wait_event("forward", PATIENCE)
    with friend.host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", PORT))
        assert sock.recv(1)
        return time.monotonic()


def end(*programs: Ptunnel) -> None:
    for each in programs:
        each.interrupt()
    for each in programs:
        each.wait(PATIENCE)


class Homes:
    """One who exposes a page and one who wants it."""

    def __init__(self, lab: Lab, farm: Farm, home: Site, friend: Site) -> None:
        self.lab = lab
        self.home = home
        self.friend = friend
        self.bootstrap = farm.bootstrap
        self.running: list[Ptunnel] = []
        self.folders = [lab.folder / f"{home.name}-{friend.name}-{number}" for number in range(2)]

    def start(self, at: Site, folder: Path, *words: str, **more: str) -> Ptunnel:
        more["PTUNNEL_DHT_BOOTSTRAP"] = self.bootstrap
        self.running.append(Ptunnel(self.lab, at.host, f"{words[0]}-{at.name}", *words, "--no-portmap", home=folder, **more))
        return self.running[-1]

    def end(self) -> None:
        """All that runs."""
        end(*self.running)
        self.running.clear()

    def expose(self) -> Ptunnel:
        return self.start(self.home, self.folders[0], "expose", str(PORT), "--server", "dht", "--name", "home")

    def connect(self, code: str = "") -> Ptunnel:
        forward = ("--forward", str(PORT))
        if code:
            return self.start(self.friend, self.folders[1], "connect", "--server", "dht", *forward, PTUNNEL_CODE=code)
        return self.start(self.friend, self.folders[1], "connect", "home", *forward)

    def by_code(self) -> float:
        """Whoever comes; how long it took."""
        code = self.expose().wait_event("code", PATIENCE)["code"]
        begun = time.monotonic()
        return first_byte(self.connect(code), self.friend) - begun

    def by_name(self, lag: float) -> float:
        """Both begin; whoever connects comes `lag` seconds after the other, or before it."""
        if lag >= 0:
            self.expose()
            time.sleep(lag)
            begun = time.monotonic()
            connector = self.connect()
        else:
            connector = self.connect()
            time.sleep(-lag)
            begun = time.monotonic()
            self.expose()
        return first_byte(connector, self.friend) - begun


def meet(lab: Lab, farm: Farm, home: Site, friend: Site, lag: float) -> Times:
    """By a code; again by name while the other runs on; and by name when both have ended and begin anew."""
    times = Times()
    homes = Homes(lab, farm, home, friend)
    page = PageServer(home.host)
    try:
        times.code = homes.by_code()
        assert homes.running[-1].wait_event("path", PATIENCE)["kind"] == "direct"
        end(homes.running.pop())
        begun = time.monotonic()
        times.name = first_byte(homes.connect(), friend) - begun
        homes.end()
        times.both = homes.by_name(lag)
    except (LabError, OSError, AssertionError) as error:
        times.trouble = "\n".join([str(error), *(str(each.trouble("beside it")) for each in homes.running)])
    finally:
        homes.end()
        page.close()
    return times


def told(lab: Lab, farm: Farm, home: Site, friend: Site) -> tuple[float, str]:
    """Of a pair that cannot meet: after how many seconds it is told so, and in which words."""
    homes = Homes(lab, farm, home, friend)
    exposer = homes.expose()
    code = exposer.wait_event("code", PATIENCE)["code"]
    begun = time.monotonic()
    connector = homes.connect(code)
    error = connector.wait_event("error", PATIENCE)
    connector.wait(PATIENCE)
    end(exposer)
    return error["heard_at"] - begun, error["message"]


# -------------------------------------------------------------------- the table


def run(condition: Condition, seed: int) -> tuple[list[Times], list[float]]:
    """All pairs of easy kinds; then, after how long the hard ones are told."""
    rng = random.Random(seed)
    line: dict[str, Any] = {"delay": condition.delay, "loss": condition.loss}
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab, contextlib.ExitStack() as stack:
        farm = Farm(lab, **line)
        OtherNodes(lab, farm)
        homes = [lab.add_site(f"{kind}-home", kind, **line) for kind in EASY]
        friends = [lab.add_site(f"{kind}-friend", kind, **line) for kind in EASY]
        hard = {kind: [lab.add_site(f"{kind}-hard-{end}", kind, **line) for end in range(2)] for kind in ("sym",)}
        if condition.is_decayed:
            leave_dead_homes(farm)
            farm.ask(f"kill {len(farm.hosts) // 3}")
        pool = stack.enter_context(ThreadPoolExecutor(len(EASY)))
        found: list[Times] = []
        for turn in range(len(EASY)):
            pairs = [(home, friends[(at + turn) % len(EASY)]) for at, home in enumerate(homes)]
            lags = [rng.uniform(-LATE, LATE) for _ in pairs]
            times = list(pool.map(lambda pair, lag: meet(lab, farm, pair[0], pair[1], lag), pairs, lags))
            for (home, friend), each in zip(pairs, times, strict=True):
                shown = [None if it is None else round(it, 1) for it in (each.code, each.name, each.both)]
                print(f"{home.kind:>10} x {friend.kind:<10} {shown} {each.trouble[:2000]}", file=sys.stderr, flush=True)
            found += times
        late: list[float] = []
        for one, other in HARD:
            home = hard["sym"][0] if one == "sym" else homes[EASY.index(one)]
            friend = hard["sym"][1] if other == "sym" else friends[EASY.index(other)]
            seconds, words = told(lab, farm, home, friend)
            late.append(seconds)
            print(f"{one:>10} x {other:<10} told after {seconds:.1f}: {words}", file=sys.stderr, flush=True)
        return found, late


def row(condition: Condition, found: Iterable[Times], late: Iterable[float]) -> str:
    cells = [condition.words]
    found = list(found)
    for what in ("code", "name", "both"):
        seconds = [value for each in found if (value := getattr(each, what)) is not None]
        if seconds:
            cells.append(f"{len(seconds)} of {len(found)}: {statistics.median(seconds):.1f}, {max(seconds):.1f}")
        else:
            cells.append(f"0 of {len(found)}")
    return "| " + " | ".join([*cells, f"{max(late):.1f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.netns.dht_meetings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("conditions", nargs="*", metavar="CONDITION", help=f"of {', '.join(CONDITIONS)}; all if none is named")
    parser.add_argument("--seed", type=int, default=1, help="of who is late, and by how much (default 1)")
    options = parser.parse_args()
    print("| round trip | by a code | by name | both begin, by name | told that it cannot be |\n|---|---|---|---|---|")
    for name in options.conditions or CONDITIONS:
        print(row(CONDITIONS[name], *run(CONDITIONS[name], options.seed)), flush=True)


if __name__ == "__main__":
    main()
