"""The command line of a benchmark that has parts."""

from __future__ import annotations

import argparse
from collections.abc import Collection


def parts_parser(doc: str | None, parts: Collection[str], *, runs: int, seconds: float) -> argparse.ArgumentParser:
    """With the parts, `--runs` and `--seconds`; these are what they are when nobody says."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="all of them when none is named")
    parser.add_argument("--runs", type=int, default=runs, help=f"interleaved; medians are shown ({runs})")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of each transfer ({seconds:g})")
    return parser
