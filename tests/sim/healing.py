"""How long a direct link that loses its path is silent, whether it holds a relay channel all the time or lets go of it.

    python -m tests.sim.healing [--seeds 50]

Prints a row for each misfortune: virtual time, the same figures on every machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from typing import Final
from unittest import mock

from tests.sim.cast import Cast
from tests.sim.link import Link
from tests.sim.peers import PeerNode
from tunnel.node import letting_go
from tunnel.node.peering import Peering
from tunnel.units import Seconds

SETTLED: Final = Seconds(letting_go.LET_GO_AFTER + 100.0)  # after which a link has let go
NEVER: Final = Seconds(1e9)
LIMIT: Final = 60.0  # seconds after which a link has not healed


def both_holes(cast: Cast) -> None:
    cast.black_hole("home")
    cast.black_hole("friend")


def both_new(cast: Cast) -> None:
    cast.world.renumber(cast.home_site)
    cast.world.renumber(cast.friend_site)


def server_away(cast: Cast) -> None:
    """The server restarts while the path fails."""
    both_holes(cast)
    cast.server.kill()
    cast.world.call_later(3.0, cast.server.boot)


def server_was_away(cast: Cast) -> None:
    """The server forgot everything a while before."""
    cast.server.kill()
    cast.world.run(20.0)
    cast.server.boot()
    cast.world.run(30.0)
    both_holes(cast)


MISFORTUNES: Final[dict[str, Callable[[Cast], None]]] = {
    "nothing gets through either way": both_holes,
    "nothing of the exposer gets through": lambda cast: cast.black_hole("home"),
    "nothing of the connector gets through": lambda cast: cast.black_hole("friend"),
    "the exposer's router forgets": lambda cast: cast.world.flush_mappings(cast.home_site),
    "the connector's router forgets": lambda cast: cast.world.flush_mappings(cast.friend_site),
    "the exposer's address changes": lambda cast: cast.world.renumber(cast.home_site),
    "the connector's address changes": lambda cast: cast.world.renumber(cast.friend_site),
    "both addresses change": both_new,
    "the server restarts meanwhile": server_away,
    "the server restarted before": server_was_away,
}


def talk(cast: Cast, sender: PeerNode, peering: Peering) -> Seconds:
    """A short message and its echo, from now on; how long that takes."""
    transfer = sender.send(peering, b"are you there")
    try:
        return cast.world.run_until(lambda: transfer.is_done, LIMIT)
    except AssertionError:
        return Seconds(float("inf"))


def heal(happen: Callable[[Cast], None], seed: int, by: str, *, lets_go: bool = True) -> Seconds:
    """`by` whom the first word after the misfortune comes.  Infinite: not within LIMIT."""
    rng = random.Random(f"healing {seed}")
    link = Link(
        delay=Seconds(rng.uniform(0.003, 0.060)), jitter=Seconds(rng.uniform(0.0, 0.005)), loss=rng.choice((0.0, 0.0, 0.01))
    )
    kinds = ("prc", "prcrace", "uprc")
    after = letting_go.LET_GO_AFTER if lets_go else NEVER
    with (
        mock.patch.object(letting_go, "LET_GO_AFTER", after),
        Cast(seed=seed, link=link, home=rng.choice(kinds), friend=rng.choice(kinds)) as cast,
    ):
        cast.meet_directly(30.0)
        cast.world.run(SETTLED + rng.uniform(0.0, 30.0))
        for _ in range(8):  # one whose path failed by loss keeps its channel for an hour
            if not lets_go or not len(cast.server.server.relay):
                break
            cast.world.run(900.0)
        happen(cast)
        node = cast.who(by)
        return talk(cast, node, node.live[0])


def row(name: str, seeds: int) -> str:
    cells = [name]
    for lets_go in (False, True):
        for by in ("friend", "home"):
            found = [heal(MISFORTUNES[name], seed, by, lets_go=lets_go) for seed in range(seeds)]
            cells.append(f"{statistics.median(found):.2f} / {sorted(found)[int(0.95 * seeds)]:.2f} / {max(found):.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.sim.healing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50, help="links of each kind (default 50)")
    options = parser.parse_args()
    print("Seconds until a message and its echo are through: median / 95 % / longest.")
    print("| misfortune | holds, connector speaks | holds, exposer speaks | lets go, connector | lets go, exposer |")
    print("|---|---|---|---|---|")
    for name in MISFORTUNES:
        print(row(name, options.seeds), flush=True)


if __name__ == "__main__":
    main()
