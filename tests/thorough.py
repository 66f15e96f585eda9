"""Which tests `scripts/test quick` leaves out: writes thorough.txt from what a run has measured.

    PTUNNEL_TEST_TIMES=/tmp/times .venv/bin/python -m pytest tests/style tests/unit tests/sim tests/fuzz tests/driver
    .venv/bin/python -m tests.thorough /tmp/times.*

A file that takes WHOLE_S or more, half of it in long tests, is left out whole; of others the long functions are.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

CPU_S: Final = 0.05  # of the processor, on the machine that measured: a test that takes more is a long one
WALL_S: Final = 0.7  # likewise, of waiting
WHOLE_S: Final = 6.0  # of a file

LIST: Final = Path(__file__).with_name("thorough.txt")


def choose(lines: Iterable[str]) -> list[str]:
    """The names for thorough.txt.  A line: seconds of the processor, seconds in all, the test's id."""
    took: defaultdict[str, float] = defaultdict(float)
    in_long: defaultdict[str, float] = defaultdict(float)
    long: set[str] = set()
    for line in lines:
        cpu, wall, node = line.rstrip("\n").split(" ", 2)
        file, _, function = node.partition("::")
        took[file] += float(cpu)
        if float(cpu) > CPU_S or float(wall) > WALL_S:
            in_long[file] += float(cpu)
            long.add(f"{file}::{function.partition('[')[0]}")
    whole = {file for file, seconds in took.items() if seconds > WHOLE_S and in_long[file] > seconds / 2}
    return sorted(whole | {name for name in long if name.partition("::")[0] not in whole})


def main() -> None:
    names = choose(line for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").splitlines())
    LIST.write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{LIST.name}: {len(names)} names")


if __name__ == "__main__":
    main()
