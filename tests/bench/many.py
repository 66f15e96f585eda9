"""What one datagram costs beside how many links: `python -m tests.bench.many [LINKS ...] [--rounds 1000]`.

The core of an endpoint alone, without sockets and scheduler: a datagram of 150 bytes arrives on one link, alone in its batch.
Then the endpoint is polled until it is dry, as its driver does.  Least and median in microseconds.  After that all links rest for
20 seconds of virtual time: how much of one processor that takes, and how much for each link.
"""

from __future__ import annotations

import argparse
import statistics

from tests.star import Star

REST = 20.0  # seconds


def measure(links: int, rounds: int) -> str:
    star = Star(links)
    star.run(30.0)  # the search for better paths has ended by then
    took: list[float] = []
    for number in range(rounds):
        star.run(0.001)
        sealed = star.datagram(number % min(links, 7))
        before = star.seconds
        star.arrive(number % min(links, 7), sealed)
        took.append(1e6 * (star.seconds - before))
        star.take(number % min(links, 7))
    star.run(5.0)
    before = star.seconds
    star.run(REST)
    idle = 100 * (star.seconds - before) / REST
    return f"{min(took):>10.1f}{statistics.median(took):>10.1f}{idle:>10.3f} %{idle / links:>12.5f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("links", nargs="*", type=int, default=[1, 10, 100, 1_000])
    parser.add_argument("--rounds", type=int, default=1_000, help="datagrams (1000)")
    arguments = parser.parse_args()
    print(f"{'links':>8}{'least':>10}{'median':>10}{'at rest':>12}{'a link':>14}")
    for links in arguments.links:
        print(f"{links:>8}{measure(links, arguments.rounds)}", flush=True)


if __name__ == "__main__":
    main()
