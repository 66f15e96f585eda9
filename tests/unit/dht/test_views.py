from __future__ import annotations

import random

from tunnel.dht.views import ENOUGH, MAX_STEP, MAX_VIEWS, Views
from tunnel.units import Address, Instant

US = "198.18.0.7"


def views(*seen: Address | int, first: int = 0) -> Views:
    """What nodes of different networks saw, asked one after the other; a number is a port of ours."""
    found = Views()
    for number, each in enumerate(seen, first):
        address = Address(US, each) if isinstance(each, int) else each
        found.note(f"44.{number}.0.1", address, Instant(number / 10))
    return found


def test_one_port_for_all_is_endpoint_independent() -> None:
    found = views(*[40_000] * ENOUGH)
    assert (found.seen, found.varies, found.step) == (Address(US, 40_000), False, None)


def test_too_few_views_tell_nothing() -> None:
    assert (views(*[40_000] * (ENOUGH - 1)).varies, views(40_000, 40_001).seen, Views().varies) == (None, None, None)


def test_many_nodes_of_one_network_are_one_view() -> None:
    found = Views()
    for number in range(50):
        found.note(f"44.7.{number}.1", Address("203.0.113.1", 1_025), Instant(0.0))
    assert len(found) == 1


def test_ports_one_after_the_other_are_told_with_their_step() -> None:
    assert views(*range(46_000, 46_012)).step == 1
    assert views(*range(46_000, 46_024, 2)).step == 2
    assert views(46_000, 46_001, 46_002, 46_004, 46_005, 46_007, 46_008).step == 1  # others' ports are between
    assert views(*range(46_000, 46_012)).varies


def test_ports_by_chance_have_no_step() -> None:
    rng = random.Random(3)
    found = views(*(rng.randrange(1_024, 65_536) for _ in range(12)))
    assert (found.varies, found.step) == (True, None)
    assert views(*range(10_000, 10_000 + 12 * (MAX_STEP + 1), MAX_STEP + 1)).step is None


def test_a_third_of_liars_changes_nothing() -> None:
    liars = [Address("203.0.113.9", 1_025)] * 4
    assert views(*[40_000] * 8, *liars).seen == Address(US, 40_000)
    assert views(*[40_000] * 8, 1, 2, 3, 4).varies is False


def test_without_a_majority_nothing_is_told() -> None:
    assert views(*[40_000] * 6, *[Address("203.0.113.9", 1_025)] * 6).seen is None


def test_the_views_have_an_end() -> None:
    assert len(views(*[40_000] * (2 * MAX_VIEWS))) == MAX_VIEWS


def test_a_new_mapping_is_told_from_one_that_varies() -> None:
    found = views(*[40_000] * 12)
    for number in range(3):
        assert not found.varies
        found.note(f"44.{number}.0.1", Address(US, 41_000), Instant(100.0 + number))
    assert (found.seen, found.varies) == (Address(US, 41_000), False)


def test_one_node_that_contradicts_itself_changes_nothing() -> None:
    found = views(*[40_000] * 12)
    for number in range(50):
        found.note("44.3.0.1", Address(US, 41_000 + number), Instant(100.0 + number))
    assert (found.seen, found.varies, len(found)) == (Address(US, 40_000), False, 12)


def test_half_of_liars_make_no_mapping_vary() -> None:
    """Else we would announce that nobody need knock."""
    assert views(*[40_000] * 4, 1_025, 1_026, 1_027, 1_028).varies is False
    assert views(*[40_000] * 8, *range(1_025, 1_041)).varies is False
    assert views(*[40_000] * 3, 1_025, 1_026).seen == Address(US, 40_000)
    assert views(40_000, 40_000, *range(1_025, 1_032)).varies  # two that are the same by chance, of few ports


def test_past_the_last_port_none_is_foretold() -> None:
    assert views(*range(65_524, 65_536)).next_port is None
    assert views(*range(65_523, 65_535)).next_port == 65_535
