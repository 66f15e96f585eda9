"""What each type of frame costs the receiver at worst: `python -m tests.bench.frames`.

The rows are those of tests/unit/connection/test_frame_cost.py, here in nanoseconds for each byte that a peer sends, answers to it
included: the least of three rounds.  With 2,048 streams of either side open.
"""

from __future__ import annotations

import gc
import time

from tests.unit.connection.test_frame_cost import NAMES, ROWS, deliver, prepare
from tunnel.transport.stream.flow import MAX_STREAMS

ROUNDS = 3


def main() -> None:
    for kind, rows in ROWS.items():
        for row in rows:
            least = float("inf")
            for _ in range(ROUNDS):
                crowd, batches = prepare(row, MAX_STREAMS, victim_initiates=False)
                size = sum(len(datagram) for batch in batches for datagram in batch)
                gc.collect()
                crowd.send(b"\x01" * 40)  # after which everything is at hand again
                began = time.perf_counter()
                deliver(row, crowd, batches)
                least = min(least, (time.perf_counter() - began) / size)
            print(f"{NAMES[kind]:<16}{row.what:<52}{least * 1e9:>8.0f} ns/B")


if __name__ == "__main__":
    main()
