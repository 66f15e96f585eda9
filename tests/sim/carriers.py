"""Two homes behind carriers with few ports for each, and a new mapping for every destination: do they meet, and how soon?

    python -m tests.sim.carriers [--seeds 100]

Prints a row for each pair: virtual time, the same figures on every machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.sim.link import Link
from tests.sim.nat import REFUSALS, Box
from tests.sim.punching import PunchNode, make_pair
from tests.sim.world import World

PAIRS: Final = (
    ("block512", "block512"),
    ("block1024", "block1024"),
    ("block2048", "block2048"),
    ("block512", "block2048"),
    ("pool512", "pool512"),
    ("block512", "symseq"),
    ("block2048", "symseq"),
    ("block512", "sym"),
    ("block1024", "sym"),
    ("unique512", "block512"),
    ("unique512", "unique512"),
    ("slow512", "slow512"),
    ("few512", "few512"),
)
LIMIT: Final = 17.0  # seconds after which a pair has not met


class Meeting(NamedTuple):
    """One try.  `seconds` from the moment both could begin until both were direct; None: they were not in time."""

    seconds: float | None
    told: float | None  # seconds until one side said that nothing will come of it
    probes: int  # of the side that sent more
    mappings: int  # that the carrier made, on that side which made more
    refused: int  # mappings that either carrier did not make
    world: World


def boxes(node: PunchNode) -> Iterator[Box]:
    """The NATs before a host, from the home outwards."""
    realm = node.host.realm
    while (gateway := realm.gateways.get(False)) is not None:
        yield gateway.box
        realm = gateway.outer


def meet(a: str, b: str, seed: int, *, link: Link | None = None, second_host: bool = True, limit: float = LIMIT) -> Meeting:
    with World(seed) as world:
        hosts = world.host("a", world.site("left", a)), world.host("b", world.site("right", b))
        pair = make_pair(world, *hosts, second_host=second_host)
        if link is not None:
            world.set_link(hosts[0], hosts[1], link)
            world.set_link(hosts[1], hosts[0], link)
        begun, told = world.now, None
        while world.now < begun + limit and not all(node.direct_at is not None for node in pair):
            if told is None and any(node.agent.is_hopeless for node in pair):
                told = world.now - begun
            if not world.step(begun + limit):  # type: ignore[arg-type]
                break
        is_direct = all(node.direct_at is not None for node in pair)
        start = max(node.started_at or begun for node in pair)
        return Meeting(
            max(0.0, max(node.direct_at or 0.0 for node in pair) - start) if is_direct else None,
            told,
            max(node.technique.stats(world.now).probes_sent for node in pair),
            max(max(box.made for box in boxes(node)) for node in pair),
            sum(box.drops.get(reason, 0) for node in pair for box in boxes(node) for reason in REFUSALS),
            world,
        )


def share(values: list[float], part: float) -> float:
    """The value below which that part of them lies; those that did not come are infinite."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def row(a: str, b: str, seeds: int) -> str:
    found = [meet(a, b, seed) for seed in range(seeds)]
    times = [float("inf") if each.seconds is None else each.seconds for each in found]
    met = sum(each.seconds is not None for each in found)
    refused = sum(each.refused > 0 for each in found)
    most = max(each.refused for each in found)
    cells = [
        f"{a} x {b}",
        f"{met} of {seeds}",
        *(f"{share(times, part):.1f}" if share(times, part) < LIMIT else "-" for part in (0.5, 0.95)),
        f"{statistics.median(each.probes for each in found):,.0f}",
        f"{max(each.mappings for each in found):,}",
        f"{most} in one, {refused} of {seeds}" if most else "none",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.sim.carriers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="pairs of each kind (default 100)")
    options = parser.parse_args()
    print("| pair | met | median, s | 95 %, s | tries of a side, median | mappings, most | refused |")
    print("|---|---|---|---|---|---|---|")
    for a, b in PAIRS:
        print(row(a, b, options.seeds), flush=True)


if __name__ == "__main__":
    main()
