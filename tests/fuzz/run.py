"""The program behind scripts/fuzz: machines in turn for so many seconds; what is found is made small, kept and said."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from queue import Empty
from typing import Final

from tests.fuzz.engine import CASES, Finding, Machine, minimise, run_episode, signature
from tests.fuzz.machines import MACHINES

TURN: Final = 2.0  # seconds of one machine, then the next
MOST_FINDINGS: Final = 20  # of one machine: then it is left alone
SEED_STEP: Final = 1_000_000  # from one process's seeds to the next's


Tell = Callable[[tuple[str, int, float, str | None]], None]  # of a machine: inputs, seconds, and what was found


def work(names: Sequence[str], seconds: float, seed: int, folder: Path, tell: Tell) -> None:
    """One process's part."""
    corpora = {name: MACHINES[name].corpus() for name in names}
    seeds = dict.fromkeys(names, seed)
    seen: dict[str, set[tuple[str, str, int]]] = {name: set() for name in names}
    ends = time.monotonic() + seconds
    turn = min(TURN, seconds / len(names))
    while time.monotonic() < ends:
        busy = [name for name in names if len(seen[name]) < MOST_FINDINGS]
        if not busy:
            return
        for name in busy:
            begun, count = time.monotonic(), 0
            turn_ends = min(ends, begun + turn)
            while time.monotonic() < turn_ends:
                try:
                    count += run_episode(MACHINES[name], seeds[name], corpora[name])
                except Finding as found:
                    count += len(found.case.inputs)
                    mark = signature(found.error)
                    if mark not in seen[name]:
                        seen[name].add(mark)
                        tell((name, 0, 0.0, keep(MACHINES[name], found, folder)))
                seeds[name] += 1
            tell((name, count, time.monotonic() - begun, None))


def keep(machine: Machine, found: Finding, folder: Path) -> str:
    """Make it small and write it down; what to say."""
    case = minimise(machine, found.case, found.error)
    digest = sha256(repr(signature(found.error)).encode()).hexdigest()[:8]
    path = case.write(folder, f"{machine.name}-{digest}")
    trace = "".join(traceback.format_exception(found.error))
    return f"{found}\n  seed {case.seed}, {len(case.inputs)} inputs, kept as {path}\n{trace}"


def together(names: Sequence[str], options: argparse.Namespace, hear: Tell) -> int:
    """Several processes at once; how many failed."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    jobs = [
        context.Process(target=work, args=(names, options.seconds, options.seed + n * SEED_STEP, options.cases, queue.put))
        for n in range(options.jobs)
    ]
    for job in jobs:
        job.start()
    while True:
        is_over = not any(job.is_alive() for job in jobs)
        try:
            hear(queue.get(timeout=0.5))
        except Empty:
            if is_over:
                return sum(job.exitcode != 0 for job in jobs)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=0, help="where the seeds begin (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--cases", type=Path, default=CASES, help="where findings are kept")
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help=f"of {', '.join(MACHINES)} (all)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.machines) - MACHINES.keys())
    if unknown:
        parser.error(f"there is no machine {', '.join(unknown)}")
    names = options.machines or list(MACHINES)
    options.cases.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    spent: defaultdict[str, float] = defaultdict(float)
    findings: Counter[str] = Counter()

    def hear(told: tuple[str, int, float, str | None]) -> None:
        name, count, seconds, finding = told
        counts[name] += count
        spent[name] += seconds
        if finding is not None:
            findings[name] += 1
            print(f"FOUND {finding}", flush=True)

    failed = 0
    if options.jobs == 1:
        work(names, options.seconds, options.seed, options.cases, hear)
    else:
        failed = together(names, options, hear)
    print(f"{'machine':<12}{'inputs':>12}{'a second':>10}{'findings':>10}")
    for name in names:
        print(f"{name:<12}{counts[name]:>12,}{counts[name] / (spent[name] or 1):>10,.0f}{findings[name]:>10}")
    print(f"{'in all':<12}{counts.total():>12,}{'':>10}{findings.total():>10}")
    return 1 if findings or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
