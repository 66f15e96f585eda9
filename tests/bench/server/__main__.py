"""`python -m tests.bench.server batches|memory|waiting|introductions|relay|gamers|flood|restart [--seconds S] [--tree PATH] ...`.

A row a load.  `--tree` names another working tree whose server is measured with the same clients.  CPU times are of the server's
process alone; what clients cost is not in them, but both share this machine, so p50 and p99 are of it all.
"""

from __future__ import annotations

import argparse

from tests.bench.server import loads
from tests.bench.server.batches import batches
from tests.bench.server.memory import memory
from tests.bench.server.restart import restart


def show(rows: list[loads.Row]) -> None:
    for number, row in enumerate(rows):
        if not number:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}", flush=True)
        print(f"| {' | '.join(row.values())} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", choices=("batches", "memory", "waiting", "introductions", "relay", "gamers", "flood", "restart"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--tree", help="a working tree whose server is measured")
    parser.add_argument("--peers", type=int, nargs="+", help="who wait, or are there at a restart")
    parser.add_argument("--families", type=int, default=2, help="of addresses that each of them has")
    parser.add_argument("--rates", type=float, nargs="+", help="introductions a second, or datagrams of a flooding pair")
    parser.add_argument("--pairs", type=int, nargs="+", help="that are relayed")
    parser.add_argument("--cost", type=float, default=25.0, help="microseconds that the simulated server takes for a request")
    options = parser.parse_args()
    tree, seconds = options.tree, options.seconds
    match options.load:
        case "batches":
            rows = [row for each in options.peers or (6_000,) for row in batches(each)]
        case "memory":
            rows = [memory(each) for each in options.peers or (100_000, 200_000)]
        case "waiting":
            rows = [loads.waiting(tree, each, seconds, options.families) for each in options.peers or (10_000, 50_000)]
        case "introductions":
            rows = [loads.introductions(tree, each, seconds) for each in options.rates or (1_000.0, 4_000.0)]
        case "relay":
            rows = [loads.gamers(tree, each, seconds, loads.UNBOUNDED) for each in options.pairs or (10, 100, 1_000)]
        case "gamers":
            rows = [loads.gamers(tree, each, seconds) for each in options.pairs or (50, 200, 800)]
        case "flood":
            pairs = (options.pairs or [50])[0]
            rates = options.rates or (0.0, 15_000.0, 30_000.0, 60_000.0)
            rows = [loads.gamers(tree, pairs, seconds, flood=each) for each in rates]
        case _:
            rows = [row for each in options.peers or (5_000, 30_000) for row in restart(each, options.cost)]
    show(rows)


if __name__ == "__main__":
    main()
