"""Ten thousand nodes, of which many are gone and some lie: do two homes meet, how soon, and what does it cost?"""

from __future__ import annotations

from statistics import median

import pytest

from tests.sim.dht import Home, World, cone
from tests.unit.dht.test_route import liar
from tunnel.rendezvous.messages import Allocated, ClaimReceived, Refused

NODES = 10_000
PAIRS = 3


def meet(dead: float, loss: float, liars: float, seed: int, delay: float = 0.03) -> tuple[float | None, int]:
    """Seconds from the claim to its arrival, None if that did not come; and the datagrams of whoever came."""
    at = World(seed=seed, delay=delay, loss=loss)
    at.add_nodes(NODES)
    for each in list(at.nodes.values())[8:]:  # those by which everybody enters are looked after
        each.is_dead = at.rng.random() < dead
    home = Home(at, cone(), seed=seed, entries=8)
    home.part.allocate(at.now)
    assert at.run(lambda: bool(home.heard(Allocated)), 5.0, home)
    info_hash = next(iter(home.part._by_tag.values())).meeting.keys.info_hash
    for number, each in enumerate(at.closest(info_hash, 24)):
        each.lie = liar if number % 4 < 4 * liars else None
    at.run(lambda: False, 5.0, home)
    (allocated,) = home.heard(Allocated)
    friend = Home(at, cone("198.18.0.9", 50_000), seed=seed + 100, entries=8)
    begun = at.now
    friend.part.claim(at.now, allocated.nameplate, b"hello")
    at.run(lambda: bool(home.heard(ClaimReceived) or friend.heard(Refused)), 40.0, home, friend)
    return (at.now - begun if home.heard(ClaimReceived) else None), friend.sent


@pytest.mark.parametrize(
    ("dead", "loss", "liars", "most"),
    [(0.0, 0.0, 0.0, 6.0), (1 / 3, 0.03, 0.0, 12.0), (1 / 2, 0.03, 0.0, 15.0), (0.0, 0.0, 0.5, 12.0), (1 / 3, 0.03, 0.25, 15.0)],
)
def test_homes_meet_among_nodes_that_are_gone_and_nodes_that_lie(dead: float, loss: float, liars: float, most: float) -> None:
    found = [meet(dead, loss, liars, seed) for seed in range(1, PAIRS + 1)]
    seconds = [each for each, _ in found if each is not None]
    assert len(seconds) == PAIRS, found
    assert median(seconds) < most
