"""What stands on a terminal after all that was written to it: as much of ECMA-48 as a live status uses."""

from __future__ import annotations

import re


def screen_of(written: str) -> list[str]:
    """Its lines down to the last one that is not empty.  Nothing scrolls and nothing wraps."""
    lines: dict[int, str] = {}
    row = column = 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if part == "\n":
            row, column = row + 1, 0
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            count = int(re.sub(r"\D", "", part) or 1)
            if part.endswith("A"):
                row -= count
            elif part.endswith("K"):
                lines[row] = ""
        else:
            before = lines.get(row, "").ljust(column)
            lines[row] = before[:column] + part + before[column + len(part) :]
            column += len(part)
    last = max((number for number, text in lines.items() if text.strip()), default=-1)
    return [lines.get(number, "").rstrip() for number in range(last + 1)]
