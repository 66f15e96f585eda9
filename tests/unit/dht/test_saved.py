"""Nodes of an earlier run: the DHT is entered by them where those that everybody begins at are gone."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.dht import Home, World, cone
from tests.unit.dht.test_route import ROOM, liar, world
from tunnel.dht.client import MAX_SAVED, SAVED_AT_ONCE
from tunnel.dht.krpc import NodeInfo
from tunnel.dht.table import Table
from tunnel.rendezvous.messages import Introduced
from tunnel.units import Address

GONE = [Address(f"45.{number}.1.1", 6_881) for number in range(100)]


def known_by(at: World) -> list[Address]:
    """What a home of an earlier run has kept."""
    home = Home(at, cone(), seed=5)
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 20.0, home)
    at.homes.remove(home)
    found: list[Address] = home.part.nodes(MAX_SAVED)
    for each in at.nodes.values():
        each.peers.clear()
    return found


def meet(at: World, saved: list[Address], *, entries: int = 0, seconds: float = 30.0) -> bool:
    homes = [
        Home(at, cone(), seed=21, entries=entries, saved=saved),
        Home(at, cone("198.18.0.9", 50_000), seed=22, entries=entries, saved=saved),
    ]
    homes[0].part.listen(at.now, [ROOM])
    homes[1].part.dial(at.now, [ROOM])
    return at.run(lambda: bool(homes[1].heard(Introduced)), seconds, *homes)


def test_nodes_that_answered_and_say_where_they_see_us_are_kept_spread_over_all_ids() -> None:
    at = world()
    for number, each in enumerate(at.nodes.values()):
        each.echoes = number % 4 != 0
    kept = known_by(at)
    tellers = [at.nodes[each].echoes for each in kept]
    assert 8 <= sum(tellers) <= MAX_SAVED
    assert tellers == sorted(tellers, reverse=True)
    assert len({at.nodes[each].id[0] >> 4 for each in kept[:6]}) >= 3


def test_of_many_a_few_of_every_part_of_all_ids_are_kept() -> None:
    at, table = world(), Table()
    for each in at.nodes.values():
        table.answered(NodeInfo(each.id, each.address), tells_our_address=True)
    kept = table.best(MAX_SAVED)
    assert len(kept) == MAX_SAVED
    assert set(Counter(each.id[0] >> 4 for each in kept).values()) == {2}


@pytest.mark.parametrize("entries", [0, 3])
def test_a_pair_meets_by_kept_nodes_though_the_first_ones_are_gone(entries: int) -> None:
    at = world()
    saved = known_by(at)
    for each in list(at.nodes.values())[:3]:
        each.is_dead = True
    assert meet(at, saved, entries=entries)


def test_where_most_of_them_have_gone_the_next_are_asked() -> None:
    at = world()
    assert meet(at, [*GONE[: MAX_SAVED - 2], *known_by(at)[:2]])


def test_as_long_as_nodes_answer_no_more_are_asked() -> None:
    at = world()
    saved = known_by(at)
    at.sent.clear()
    home = Home(at, cone(), seed=21, entries=3, saved=[*GONE[:SAVED_AT_ONCE], *saved])
    at.run(lambda: False, 10.0, home)
    assert sum(each.host in at.sent for each in GONE) == SAVED_AT_ONCE
    assert max(at.sent[each.host] for each in GONE[:SAVED_AT_ONCE]) == 1


def test_entries_that_somebody_has_forged_cost_a_question_each() -> None:
    at = world()
    home = Home(at, cone(), seed=21, entries=0, saved=GONE)
    at.run(lambda: False, 30.0, home)
    assert sum(at.sent.get(each.host, 0) for each in GONE) == MAX_SAVED


def test_a_pair_meets_though_all_kept_nodes_lie() -> None:
    at = world()
    liars = at.add_nodes(MAX_SAVED)
    for each in liars:
        each.lie = liar
    assert meet(at, [each.address for each in liars], entries=3)


def test_nodes_whose_names_are_known_late_are_asked_beside() -> None:
    at = world()
    home = Home(at, cone(), seed=21, entries=0, saved=GONE[:4])
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 8.0, home)
    assert not home.part.is_reached
    home.part.enter(at.now, list(at.nodes)[:3])
    friend = Home(at, cone("198.18.0.9", 50_000), seed=22)
    friend.part.dial(at.now, [ROOM])
    assert at.run(lambda: bool(friend.heard(Introduced)), 30.0, home, friend)
