"""A bar chart as SVG, by hand: what scripts/bench writes into docs/."""

from __future__ import annotations

from html import escape

WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 760, 150, 90, 64, 15, 14
OURS, THEIRS, FLOOR = "#0b6e4f", "#8a94a0", "#c9ced4"
LEFT_OUT = ("kernel TCP",)  # no tunnel: it would dwarf all others; it is told in the caption


def bars(medians: dict[str, dict[str, float]], runs: int, where: str = "veth of MTU 1500") -> str:
    """Mbit/s of one TCP stream, up and down, a pair of bars for each tool, the fastest first."""
    rows = [(name, found.get("up", 0.0), found.get("down", 0.0)) for name, found in medians.items()]
    if where.startswith("veth"):
        rows = [row for row in rows if row[0] not in LEFT_OUT]
    rows.sort(key=lambda row: -(row[1] + row[2]))
    top = max((value for _, *values in rows for value in values), default=1.0) or 1.0
    height = TOP + len(rows) * (2 * BAR + GAP) + 34
    scale = (WIDTH - LEFT - RIGHT) / top
    whence = "one run" if runs == 1 else f"medians of {runs} interleaved runs"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "<title>One TCP stream through each tool, Mbit/s</title>",
        f"<desc>Up and down: {escape('; '.join(f'{name} {up:,.0f} and {down:,.0f}' for name, up, down in rows))}.</desc>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="24" font-size="16" font-weight="600" fill="#1c2126">One TCP stream through each tool, Mbit/s</text>',
        f'<text x="12" y="44" fill="#57606a">Both ends on one machine, {where}, {whence}. Upper bar: up; lower bar: down.</text>',
    ]
    for step in _ticks(top):
        x = LEFT + step * scale
        lines.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 28}" stroke="{FLOOR}" stroke-width="1"/>')
        lines.append(f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle" fill="#57606a">{step:,}</text>')
    y = TOP
    for name, up, down in rows:
        colour = OURS if name.startswith("ptunnel") else THEIRS
        weight = "600" if name.startswith("ptunnel") else "400"
        middle = y + BAR + 5
        lines.append(
            f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end" font-weight="{weight}" fill="#1c2126">{escape(name)}</text>'
        )
        for value, at, shade in ((up, y, "1"), (down, y + BAR + 1, "0.72")):
            width = max(1.0, value * scale)
            lines.append(f'<rect x="{LEFT}" y="{at}" width="{width:.1f}" height="{BAR}" fill="{colour}" fill-opacity="{shade}"/>')
            lines.append(f'<text x="{LEFT + width + 6:.1f}" y="{at + 12}" fill="#1c2126" font-size="12">{value:,.0f}</text>')
        y += 2 * BAR + GAP
    return "\n".join([*lines, "</svg>"]) + "\n"


def _ticks(top: float) -> list[int]:
    step = 1
    while top / step > 6:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return list(range(0, int(top) + 1, step))
