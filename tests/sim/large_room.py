"""A full room on the simulated network: `python -m tests.sim.large_room [--members 64]` prints what it costs a member.

All members are in this one process, with the network between them, so the figures are upper bounds of the core's part.  Each is
in a /24 of its own, since a server lets neighbours together have only so many relay channels at a time.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

from tests.sim.lan import Party
from tunnel.room.core.addresses import MAX_MEMBERS

AT_ONCE = 8  # who claim the code together


def come(party: Party, count: int, limit: float = 600.0) -> float:
    """Have so many friends join, some at a time; how long it took, in virtual seconds."""
    code, began = party.open(), party.world.now
    for number in range(count):
        party.friend(f"friend{number:02}").claim(code)
        if number % AT_ONCE == AT_ONCE - 1:
            party.world.run(0.5)
    party.world.run_until(party.is_whole, limit)
    return party.world.now - began


def memory_kb() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=MAX_MEMBERS)
    count = parser.parse_args().members
    before = memory_kb()
    with Party(kind="full", are_apart=True) as party:

        def spent(what: str, seconds: float, began: float) -> None:
            used = (time.process_time() - began) / count
            print(f"{what}: {seconds:.1f} s, {1000 * used:.0f} ms of the processor a member", flush=True)

        began = time.process_time()
        spent(f"{count} join, {AT_ONCE} at a time", come(party, count - 1), began)
        print(f"memory: {(memory_kb() - before) / count:.0f} KB a member, with {count - 1} links each", flush=True)
        began = time.process_time()
        party.world.run(60.0)
        spent("a minute in which paths are looked for", 60.0, began)
        print(f"memory: {(memory_kb() - before) / count:.0f} KB a member", flush=True)
        began = time.process_time()
        party.world.run(60.0)
        spent("a minute at rest", 60.0, began)
        began, at = time.process_time(), party.world.now
        gone = party.friends.pop()
        party.creator.remove(gone.name)
        party.world.run_until(party.is_whole, 60)
        spent("one is removed, and all have the next secret", party.world.now - at, began)
        began, at = time.process_time(), party.world.now
        party.friends.pop(0).quit()
        party.world.run_until(lambda: party.creator.roster.epoch == 3 and party.is_whole(), 60)
        spent("one leaves", party.world.now - at, began)
        began = time.process_time()
        party.world.run(300.0)
        spent("five minutes in which every link gets new keys", 300.0, began)
        drops = {reason for each in party.everybody for reason, number in each.room.drops.items() if number}
        print(f"dropped: {', '.join(sorted(drops)) or 'nothing'}", flush=True)


if __name__ == "__main__":
    main()
