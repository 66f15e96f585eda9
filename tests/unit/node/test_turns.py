from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tunnel.nat.candidate import CandidateKind, Offer, encode_offer, make_candidate
from tunnel.nat.memory import Remembered
from tunnel.node.pool import SocketPool
from tunnel.node.punching import LocalSocket, Puncher
from tunnel.node.turns import AT_ONCE, TURN, Turns
from tunnel.units import Address, Instant, PathKey, SocketId

T0 = Instant(100.0)
V4 = SocketId(0)
FAR = Address("198.51.100.9", 4_000)
BEFORE = Address("198.51.100.9", 5_000)


def test_a_few_begin_at_once_and_the_others_one_after_the_other() -> None:
    turns = Turns()
    waits = [turns.take(T0) - T0 for _ in range(AT_ONCE + 4)]
    assert waits == pytest.approx([0.0] * AT_ONCE + [number * TURN for number in range(1, 5)])


def test_who_comes_after_a_pause_does_not_wait() -> None:
    turns = Turns()
    for _ in range(AT_ONCE):
        turns.take(T0)
    later = Instant(T0 + 100.0)
    assert [turns.take(later) for _ in range(AT_ONCE)] == pytest.approx([later] * AT_ONCE)
    assert turns.take(later) > later + TURN / 2


class Checked:
    """A connection that notes where checks go."""

    has_path = True
    is_closed = False

    def __init__(self) -> None:
        self.checks: list[Address] = []
        self.used_sockets: set[SocketId] = set()

    def challenge(self, now: Instant, key: PathKey, kind: object, ttl: object) -> None:
        self.checks.append(key.remote)


def made(connection: Any, begins_at: Instant | None, remembered: Remembered | None = None) -> Puncher:
    return Puncher(
        connection,
        controlling=True,
        sockets=[LocalSocket(V4, False, 40_000)],
        local={CandidateKind.HOST: ((V4, Address("203.0.113.7", 40_000)),)},
        client=None,
        same_machine=False,
        now=T0,
        rng=random.Random(1),
        pool=SocketPool(),
        remembered=remembered,
        begins_at=begins_at,
    )


def offer(generation: int) -> bytes:
    return encode_offer(Offer(generation, (make_candidate(CandidateKind.HOST, FAR, V4),)))


def run(puncher: Puncher, begin: Instant, end: float) -> list[bytes]:
    offers, now = [], begin
    while now < end:
        while (said := puncher.pump(now)) is not None:
            offers.append(said)
        at = puncher.next_at
        assert at is not None
        now = Instant(max(at, now + 0.001))
    return offers


def test_before_its_turn_a_search_names_nothing_and_checks_nothing_but_what_worked_before() -> None:
    connection, turn = Checked(), Instant(T0 + 2.0)
    puncher = made(connection, turn, Remembered(BEFORE, CandidateKind.HOST))
    for generation in (1, 2):
        puncher.handle_offer(T0, offer(generation))
    assert run(puncher, T0, turn) == []
    assert set(connection.checks) == {BEFORE}
    assert len(connection.checks) == 3
    assert run(puncher, turn, turn + 1.0)
    assert FAR in connection.checks  # though the peer has named it only once, before


def test_a_search_without_a_turn_begins_at_once() -> None:
    connection = Checked()
    puncher = made(connection, None)
    puncher.handle_offer(T0, offer(1))
    assert run(puncher, T0, T0 + 1.0)
    assert set(connection.checks) == {FAR}


def test_a_puncher_says_nothing_of_a_turn_that_has_come() -> None:
    puncher = made(SimpleNamespace(has_path=True, is_closed=False), T0)
    assert puncher.pump(T0) is not None
