from __future__ import annotations

import random

from tunnel.dht.ids import ID_SIZE, bound_id
from tunnel.dht.krpc import NodeInfo
from tunnel.dht.lookup import (
    CLOSEST,
    MAX_ASKED,
    MAX_CANDIDATES,
    MAX_IN_VAIN,
    MAX_LASTING,
    MAX_LOOSE,
    MAX_OF_NETWORK,
    MAX_TIPS,
    PARALLEL,
    Lookup,
)
from tunnel.units import Address, Instant

START = Instant(100.0)
TARGET = bytes(ID_SIZE)
rng = random.Random(7)


def node(number: int, node_id: bytes | None = None, *, port: int = 6881, host: str = "") -> NodeInfo:
    host = host or f"44.{number >> 8}.{number & 255}.1"
    return NodeInfo(bound_id(host, rng.randbytes) if node_id is None else node_id, Address(host, port))


def near(number: int) -> bytes:
    """An id closer to the target than any that fits an address by chance."""
    return bytes(ID_SIZE - 2) + number.to_bytes(2, "big")


def asked(lookup: Lookup, now: Instant = START) -> list[NodeInfo]:
    found = []
    while (each := lookup.next(now)) is not None:
        found.append(each)
    return found


def test_the_closest_are_asked_first_a_few_at_a_time() -> None:
    lookup = Lookup(TARGET, START)
    nodes = [node(number) for number in range(40)]
    for each in nodes:
        lookup.offer(each)
    nodes.sort(key=lambda each: each.id)
    assert asked(lookup) == nodes[:PARALLEL]
    lookup.answered(nodes[0])
    lookup.silent(nodes[1])
    assert asked(lookup) == nodes[PARALLEL : PARALLEL + 2]
    assert not lookup.is_over(START)


def test_it_is_over_when_the_closest_have_answered() -> None:
    lookup = Lookup(TARGET, START)
    for number in range(40):
        lookup.offer(node(number))
    count = 0
    while not lookup.is_over(START):
        for each in asked(lookup):
            lookup.answered(each)
            count += 1
    assert count == CLOSEST


def test_whoever_answers_late_counts() -> None:
    lookup = Lookup(TARGET, START)
    only = node(1)
    lookup.offer(only)
    assert asked(lookup) == [only]
    lookup.silent(only)
    assert lookup.is_over(START)
    lookup.answered(only)
    lookup.offer(node(1, port=6882))  # its network has a voice now, again
    assert len(lookup) == 1


def test_ids_that_fit_no_address_take_half_of_the_places() -> None:
    lookup = Lookup(TARGET, START)
    for number in range(20):
        lookup.offer(node(number, near(number)))
    honest = [node(number) for number in range(100, 120)]
    for each in honest:
        lookup.offer(each)
    found: list[NodeInfo] = []
    while not lookup.is_over(START):
        for each in asked(lookup):
            lookup.answered(each)
            found.append(each)
    assert sum(each.id < near(20) for each in found) == MAX_LOOSE
    assert len(set(found) & set(honest)) == CLOSEST - MAX_LOOSE


def test_a_network_has_one_voice() -> None:
    lookup = Lookup(TARGET, START)
    crowd = [node(0, host=f"44.1.1.{number}") for number in range(1, 100)]
    for each in crowd:
        lookup.offer(each)
    assert len(lookup) == MAX_OF_NETWORK
    first = asked(lookup)[0]
    lookup.answered(first)
    lookup.offer(node(0, host="44.1.1.200"))
    assert len(lookup) == MAX_OF_NETWORK


def test_whoever_tells_of_ever_closer_nodes_costs_little() -> None:
    lookup = Lookup(TARGET, START)
    count = number = 0
    lookup.offer(node(0))
    while not lookup.is_over(START):
        for each in asked(lookup):
            count += 1
            lookup.answered(each)
            for _ in range(8):
                number += 1
                lookup.offer(node(number, near(60_000 - number)))
    assert count <= MAX_ASKED
    assert len(lookup) <= MAX_CANDIDATES


def test_the_candidates_have_an_end() -> None:
    lookup = Lookup(TARGET, START)
    for number in range(2 * MAX_CANDIDATES):
        lookup.offer(node(number))
    assert len(lookup) == MAX_CANDIDATES


def test_it_ends_whoever_still_answers() -> None:
    lookup = Lookup(TARGET, START)
    for number in range(40):
        lookup.offer(node(number))
    later = Instant(START + MAX_LASTING)
    assert asked(lookup, later) == []
    assert lookup.is_over(later)


def test_of_ever_closer_nodes_only_so_many_are_asked() -> None:
    lookup = Lookup(TARGET, START)
    count = 0
    for number in range(2 * MAX_ASKED):
        lookup.offer(node(number, near(1_000 - number)))
        for each in asked(lookup):
            count += 1
            lookup.answered(each)
    assert count == MAX_ASKED


def test_of_one_answer_few_nodes_are_taken() -> None:
    lookup = Lookup(TARGET, START)
    lookup.tell(node(0), [node(number) for number in range(1, 150)])
    assert len(lookup) == MAX_TIPS


def test_addresses_that_are_made_up_push_nobody_out_and_are_asked_last() -> None:
    """Each liar tells of nodes nearer than any; there is nobody at their addresses."""
    lookup = Lookup(TARGET, START)
    honest = [node(number) for number in range(1_000, 1_040)]
    liars = [node(number) for number in range(12)]
    for each in liars:
        lookup.tell(each, [node(100 + 256 * number + liars.index(each), near(number)) for number in range(MAX_TIPS)])
    for number, each in enumerate(honest):
        lookup.tell(honest[number - 1], [each])
    there = set(honest)
    reached: list[NodeInfo] = []
    vain = 0
    while not lookup.is_over(START):
        for each in asked(lookup):
            if each in there:
                lookup.answered(each)
                reached.append(each)
            else:
                lookup.silent(each)
                vain += 1
    assert vain <= len(liars) * MAX_IN_VAIN
    assert sorted(honest, key=lambda each: each.id)[0] in reached


def test_whoever_told_of_silent_nodes_is_believed_again_when_one_answers() -> None:
    lookup = Lookup(TARGET, START)
    tips = [node(number, near(number)) for number in range(1, MAX_IN_VAIN + 2)]
    lookup.tell(node(0), tips)
    for number in range(600, 620):
        lookup.offer(node(number))
    first = asked(lookup)
    assert first[:MAX_IN_VAIN] == tips[:MAX_IN_VAIN]
    assert tips[MAX_IN_VAIN] not in first
    lookup.answered(first[0])
    assert tips[MAX_IN_VAIN] in asked(lookup)
