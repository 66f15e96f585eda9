"""Two homes in a DHT of ten thousand simulated nodes: do they meet, how soon, and what does it cost, as ever more of it is bad?

    python -m tests.sim.dht_reach [--render]

Runs some pairs for each share of dead nodes, of loss and of liars (some minutes), keeps them in docs/reach-dht.jsonl, and draws
docs/reach-dht.svg.  Virtual time: the same figures on every machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from tests.sim.dht import Home, World, cone
from tests.unit.dht.test_route import deceiver
from tunnel.rendezvous.messages import Allocated, ClaimReceived, Refused

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PICTURE = ROOT / "docs" / "reach-dht.jsonl", ROOT / "docs" / "reach-dht.svg"
NODES: Final = 10_000
NEAREST: Final = 24  # nodes to the infohash, of which some lie
PAIRS: Final = 8
SHARES: Final = {
    "dead": (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8),
    "loss": (0.0, 0.03, 0.1, 0.15, 0.2, 0.3, 0.4),
    "liars": (0.0, 0.25, 0.5, 0.625, 0.75, 0.875),
}
WORDS: Final = {
    "dead": "nodes that are gone",
    "loss": "datagrams lost, each way",
    "liars": "liars among the 24 nearest nodes",
}


class Outcome(NamedTuple):
    """Of one pair.  `seconds` from the claim to its arrival; None: it did not come.  `sent`: datagrams of whoever came."""

    axis: str
    share: float
    seconds: float | None
    sent: int


def meet(dead: float, loss: float, liars: float, seed: int, delay: float = 0.03) -> tuple[float | None, int]:
    """Seconds from the claim to its arrival, None if that did not come; and the datagrams of whoever came."""
    at = World(seed=seed, delay=delay, loss=loss)
    at.add_nodes(NODES)
    for each in list(at.nodes.values())[8:]:  # those by which everybody enters are looked after
        each.is_dead = at.rng.random() < dead
    home = Home(at, cone(), seed=seed, entries=8)
    home.part.allocate(at.now)
    assert at.run(lambda: bool(home.heard(Allocated)), 5.0, home)
    info_hash = next(iter(home.part._appointments.values())).meeting.keys.info_hash
    for number, each in enumerate(at.closest(info_hash, NEAREST)):
        each.lie = deceiver if (0, 4, 2, 6, 1, 5, 3, 7)[number % 8] < 8 * liars else None
    at.run(lambda: False, 5.0, home)
    (allocated,) = home.heard(Allocated)
    friend = Home(at, cone("198.18.0.9", 50_000), seed=seed + 100, entries=8)
    begun = at.now
    friend.part.claim(at.now, allocated.nameplate, b"hello")
    at.run(lambda: bool(home.heard(ClaimReceived) or friend.heard(Refused)), 40.0, home, friend)
    return (at.now - begun if home.heard(ClaimReceived) else None), friend.sent


def run_all() -> Iterable[Outcome]:
    for axis, shares in SHARES.items():
        for share in shares:
            for seed in range(1, PAIRS + 1):
                seconds, sent = meet(**{**dict.fromkeys(SHARES, 0.0), axis: share}, seed=seed)
                yield Outcome(axis, share, None if seconds is None else round(seconds, 2), sent)


# -------------------------------------------------------------------- a picture

WIDTH, GAP, LEFT, TOP, HEIGHT, BETWEEN = 210, 40, 62, 76, 150, 34  # of one panel, in pixels
MOST_SECONDS, MOST_SENT, LABEL = 10.0, 6_000.0, 28
MET, MISSED, LINE = "#4b8f6b", "#e0564f", "#1d5c8f"


def draw(outcomes: Sequence[Outcome]) -> str:
    width = LEFT + 3 * WIDTH + 2 * GAP + 20
    height = TOP + 2 * HEIGHT + BETWEEN + 74
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="11">',
        "<title>Meeting over the DHT: seconds and datagrams as ever more of it is bad</title>",
        "<desc>Three columns: nodes that are gone, datagrams lost, liars among the nearest nodes. Above, the seconds of each "
        "pair until they met, and how many did; below, the datagrams that it cost. docs/reach.md says it in words.</desc>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold" fill="#222">Meeting over a DHT of 10,000 nodes</text>',
        f'<text x="{LEFT}" y="42" fill="#444">each dot is one of {PAIRS} pairs, the line their median, the figures above how '
        "many of them met; 60 ms round trip, simulated</text>",
    ]
    for column, axis in enumerate(SHARES):
        mine = [each for each in outcomes if each.axis == axis]
        left = LEFT + column * (WIDTH + GAP)
        out += panel(mine, axis, left, TOP, MOST_SECONDS, [each.seconds for each in mine], (0, 2, 4, 6, 8, 10), "seconds")
        below = TOP + HEIGHT + BETWEEN
        out += panel(mine, axis, left, below, MOST_SENT, [each.sent for each in mine], (0, 2_000, 4_000, 6_000), "datagrams")
        middle = left + WIDTH / 2
        out.append(f'<text x="{middle}" y="{below + HEIGHT + 40}" text-anchor="middle" fill="#222">{WORDS[axis]}</text>')
        for share in SHARES[axis]:
            met = sum(each.seconds is not None for each in mine if each.share == share)
            colour = MISSED if met < PAIRS else "#222"
            out.append(
                f'<text x="{place(axis, share, left):.0f}" y="{TOP - 8}" text-anchor="middle" fill="{colour}">{met}</text>'
            )
    return "\n".join([*out, "</svg>", ""])


def place(axis: str, share: float, left: float) -> float:
    return left + 8 + (WIDTH - 16) * share / SHARES[axis][-1]


def panel(
    outcomes: Sequence[Outcome],
    axis: str,
    left: int,
    top: int,
    most: float,
    values: Sequence[float | None],
    ticks: Sequence[int],
    unit: str,
) -> list[str]:
    """Values over the share of what is bad."""
    bottom = top + HEIGHT
    out = []
    for tick in ticks:
        y = bottom - HEIGHT * tick / most
        out.append(f'<line x1="{left}" y1="{y:.0f}" x2="{left + WIDTH}" y2="{y:.0f}" stroke="#dddddd" stroke-width="1"/>')
        if left == LEFT:
            out.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end" fill="#444">{tick:,}</text>')
    if left == LEFT:
        y = top + HEIGHT / 2
        out.append(f'<text x="14" y="{y:.0f}" text-anchor="middle" fill="#222" transform="rotate(-90 14 {y:.0f})">{unit}</text>')
    points = []
    labelled = 0.0
    for share in SHARES[axis]:
        x = place(axis, share, left)
        own = [value for each, value in zip(outcomes, values, strict=True) if each.share == share and value is not None]
        for number, value in enumerate(own):
            y = bottom - HEIGHT * min(value, most) / most
            shift = (number % 5 - 2) * 1.5
            out.append(f'<circle cx="{x + shift:.1f}" cy="{y:.1f}" r="2" fill="{MET}" fill-opacity="0.6"/>')
        if own:
            points.append(f"{x:.1f},{bottom - HEIGHT * min(median(own), most) / most:.1f}")
        if x - labelled >= LABEL:
            labelled = x
            out.append(f'<text x="{x:.0f}" y="{bottom + 15}" text-anchor="middle" fill="#444">{100 * share:.0f}%</text>')
    out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.sim.dht_reach", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="run nothing: the picture from the results")
    if not parser.parse_args().render:
        with RESULTS.open("w", encoding="utf-8") as file:
            for each in run_all():
                file.write(json.dumps(each._asdict()) + "\n")
                file.flush()
    outcomes = [Outcome(**json.loads(line)) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    PICTURE.write_text(draw(outcomes), encoding="utf-8")
    for axis, shares in SHARES.items():
        for share in shares:
            own = [each for each in outcomes if (each.axis, each.share) == (axis, share)]
            seconds = sorted(each.seconds for each in own if each.seconds is not None)
            shown = f"{median(seconds):.1f} s, worst {seconds[-1]:.1f} s" if seconds else ""
            sent = median(each.sent for each in own)
            print(f"{axis:>6} {100 * share:3.0f} %: met {len(seconds)} of {len(own)}, {shown}, {sent:.0f} datagrams")


if __name__ == "__main__":
    main()
