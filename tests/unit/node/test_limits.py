"""What one peer can make an endpoint hold: the limit is reached, and the oldest gives way."""

from __future__ import annotations

import pytest

from tests.sim.cast import Cast
from tunnel.node import peerings
from tunnel.node.peering import Peering
from tunnel.node.peerings import MAX_PEERINGS_A_PEER

FEW = 3


def live(party: Cast) -> set[Peering]:
    return set(party.home.endpoint.peerings)


def crash(party: Cast) -> None:
    """The friend's process dies without a goodbye; its next one has told nothing yet."""
    party.friend.boot()
    party.friend.meet(party.server)


def test_of_connections_whose_other_end_died_so_many_are_kept_and_the_one_longest_silent_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_PEERINGS_A_PEER > 3 * FEW
    monkeypatch.setattr(peerings, "MAX_PEERINGS_A_PEER", FEW)
    with Cast() as party:
        party.acquaint()
        for number in range(FEW + 3):
            party.friend.dial(party.home)
            party.world.run_until(lambda n=number: len(party.home.peerings) == n + 1)
            assert live(party) == set(party.home.peerings[-FEW:])
            party.echoed(party.friend.peerings[0], b"%d" % number)
            crash(party)


def test_connections_that_began_with_a_code_are_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peerings, "MAX_PEERINGS_A_PEER", FEW)
    with Cast() as party:
        party.home.meet(party.server)
        for number in range(FEW + 2):
            crash(party)
            party.home.offer()
            party.world.run_until(lambda n=number: len(party.home.codes) == n + 1)
            party.friend.claim(party.home.codes[-1])
            party.world.run_until(lambda n=number: len(party.home.peerings) == n + 1 and bool(party.friend.peerings))
            assert live(party) == set(party.home.peerings[-FEW:])
