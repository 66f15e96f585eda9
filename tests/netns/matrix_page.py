"""The matrix as a page and as a picture, from the results that tests.netns.matrix kept."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from tests.netns.matrix import KINDS, SITUATIONS, Result, can_be_direct, may_be_direct

BEGIN, END = "<!-- matrix: scripts/nat-matrix writes from here -->", "<!-- matrix: to here -->"

COLOURS: Final = {
    "checks": ("#b7e1a1", "direct, plain checks"),
    "IPv6": ("#d9f0a3", "direct, IPv6"),
    "prediction": ("#8fd3c7", "direct, port prediction"),
    "birthday": ("#9ec9e8", "direct, birthday technique"),
    "relayed": ("#e3e3e3", "relayed: no direct path is possible"),
    "luck": ("#f6e3b4", "relayed: only luck would make it direct"),
    "missed": ("#f2a35e", "relayed though a direct path is possible"),
    "failed": ("#e0564f", "not connected"),
}
CELL_W, CELL_H, LEFT, TOP = 46, 26, 92, 128


def read_results(path: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]


def first_tries(results: Iterable[Result]) -> dict[tuple[str, str], Result]:
    found: dict[tuple[str, str], Result] = {}
    for result in results:
        found.setdefault((result.home, result.friend), result)
    return found


def class_of(result: Result) -> str:
    """Which of COLOURS."""
    if result.outcome == "failed":
        return "failed"
    if result.outcome == "relayed":
        if may_be_direct(result.home, result.friend):
            return "luck"
        return "missed" if can_be_direct(result.home, result.friend) else "relayed"
    for name in ("birthday", "prediction", "IPv6"):
        if name in result.technique:
            return name
    return "checks"


def label_of(result: Result | None) -> str:
    if result is None:
        return ""
    if result.outcome == "direct":
        return f"{result.seconds:.2f}" if result.seconds is not None else "?"
    return "relay" if result.outcome == "relayed" else "none"


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


# -------------------------------------------------------------------- words


def summary(results: Sequence[Result]) -> list[str]:
    firsts = first_tries(results)
    possible = [each for pair, each in firsts.items() if can_be_direct(*pair)]
    direct = [each for each in possible if each.outcome == "direct" and each.seconds is not None]
    hopeless = [each for pair, each in firsts.items() if not can_be_direct(*pair) and not may_be_direct(*pair)]
    lines = [f"- {len(firsts)} meetings, of which {len(possible)} can be direct: {len(direct)} of those were, on the first try."]
    for words, chosen in (
        ("all that were", direct),
        ("without the birthday technique", [each for each in direct if class_of(each) != "birthday"]),
        ("with it", [each for each in direct if class_of(each) == "birthday"]),
    ):
        times = [each.seconds for each in chosen if each.seconds is not None]
        if times:
            lines.append(
                f"- Seconds to direct, {words} ({len(times)}): median {statistics.median(times):.2f}, "
                f"95 % {percentile(times, 0.95):.2f}, 99 % {percentile(times, 0.99):.2f}, worst {max(times):.2f}."
            )
    served = sum(each.outcome == "relayed" for each in hopeless)
    lines.append(f"- {len(hopeless)} cannot be direct: {served} of those were relayed.")
    loads = [each.load for each in firsts.values()]
    if loads:
        middle = statistics.median(loads)
        lines.append(f"- Load average meanwhile, on two cores: {min(loads):.1f} to {max(loads):.1f}, median {middle:.1f}.")
    return lines


def table(firsts: dict[tuple[str, str], Result]) -> list[str]:
    marks = {
        "birthday": "b",
        "prediction": "p",
        "IPv6": "6",
        "checks": "",
        "relayed": "",
        "luck": "?",
        "missed": "!",
        "failed": "!",
    }
    lines = ["| | " + " | ".join(KINDS) + " |", "|---|" + "---|" * len(KINDS)]
    for home in KINDS:
        cells = []
        for friend in KINDS:
            result = firsts.get((home, friend))
            cells.append("" if result is None else (label_of(result) + " " + marks[class_of(result)]).strip())
        lines.append(f"| **{home}** | " + " | ".join(cells) + " |")
    return lines


def situations(firsts: dict[tuple[str, str], Result]) -> list[str]:
    lines = ["| two who share something | path | seconds | by |", "|---|---|---|---|"]
    for name in SITUATIONS:
        result = firsts.get((name, ""))
        if result is not None:
            seconds = label_of(result) if result.outcome == "direct" else ""
            lines.append(f"| {name} | {result.outcome} | {seconds} | {result.technique} |")
    return lines


def repeated(results: Sequence[Result], firsts: dict[tuple[str, str], Result]) -> list[str]:
    """What was not as it should be, or slow, and how it went when it was tried again."""
    lines = []
    for pair, first in firsts.items():
        again = [each for each in results if (each.home, each.friend) == pair and each is not first]
        is_odd = class_of(first) in ("missed", "failed") and can_be_direct(*pair)
        if again or is_odd:
            tries = ", ".join(
                f"{each.outcome} {label_of(each) if each.outcome == 'direct' else ''}".strip() for each in (first, *again)
            )
            lines.append(f"- {pair[0]} x {pair[1]}: {tries}".rstrip(" x"))
    return ["Tried more than once, in order:", "", *lines] if lines else []


def write_page(results: Sequence[Result], page: Path, picture: Path) -> None:
    """Put the table between the two marks of `page`, and the picture where it is told."""
    firsts = first_tries(results)
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no marks to write between")
    blocks = [summary(results), table(firsts), situations(firsts), repeated(results, firsts)]
    middle = "\n\n".join("\n".join(block) for block in blocks if block)
    page.write_text(f"{before}{BEGIN}\n{middle}\n{END}{after}", encoding="utf-8")
    picture.write_text(draw(firsts), encoding="utf-8")


# -------------------------------------------------------------------- a picture


def draw(firsts: dict[tuple[str, str], Result]) -> str:
    width = LEFT + len(KINDS) * CELL_W + 20
    below = TOP + len(KINDS) * CELL_H + 18
    names = [name for name in SITUATIONS if (name, "") in firsts]
    used = [name for name in COLOURS if any(class_of(each) == name for each in firsts.values())]
    height = below + 24 * len(names) + 22 * math.ceil(len(used) / 2) + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="11">',
        "<title>Which kinds of network meet directly, and after how many seconds</title>",
        "<desc>A grid of kinds of site. Rows expose, columns connect. A number is the seconds from the introduction "
        "to the direct path; the colour says by what technique. docs/reach.md has the same as a table.</desc>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold" fill="#222">'
        "Seconds from the introduction to a direct path</text>",
        f'<text x="{LEFT}" y="42" fill="#444">rows expose, columns connect; one side hears of the other 0 to 250 ms late; '
        "real kernels, 10 ms each way at both</text>",
    ]
    for at, kind in enumerate(KINDS):
        x, y = LEFT + at * CELL_W + CELL_W / 2, TOP - 8
        out.append(f'<text x="{x + 4:.0f}" y="{y}" transform="rotate(-45 {x + 4:.0f} {y})" fill="#222">{escape(kind)}</text>')
        middle = TOP + at * CELL_H + CELL_H / 2 + 4
        out.append(f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end" fill="#222">{escape(kind)}</text>')
    for row, home in enumerate(KINDS):
        for column, friend in enumerate(KINDS):
            out += box(firsts.get((home, friend)), LEFT + column * CELL_W, TOP + row * CELL_H)
    y = below
    for name in names:
        out += box(firsts[name, ""], LEFT, y)
        out.append(f'<text x="{LEFT + CELL_W + 10}" y="{y + CELL_H / 2 + 4:.0f}" fill="#222">{escape(name)}</text>')
        y += 24
    y += 14
    for at, name in enumerate(used):
        x, line = LEFT + (at % 2) * 330, y + (at // 2) * 22
        colour, words = COLOURS[name]
        out.append(f'<rect x="{x}" y="{line}" width="26" height="15" fill="{colour}" stroke="#888" stroke-width="0.5"/>')
        out.append(f'<text x="{x + 34}" y="{line + 12}" fill="#222">{escape(words)}</text>')
    return "\n".join([*out, "</svg>", ""])


def box(result: Result | None, x: int, y: int) -> list[str]:
    colour = "#fafafa" if result is None else COLOURS[class_of(result)][0]
    middle = f'x="{x + CELL_W / 2 - 1:.0f}" y="{y + CELL_H / 2 + 3:.0f}" text-anchor="middle"'
    return [
        f'<rect x="{x}" y="{y}" width="{CELL_W - 2}" height="{CELL_H - 2}" fill="{colour}"/>',
        f'<text {middle} fill="#222">{label_of(result)}</text>',
    ]
