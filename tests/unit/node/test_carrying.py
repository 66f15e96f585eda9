"""What a member passes on for two others, and how much of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tunnel.core.trace import Drops
from tunnel.node.carrying import (
    CARRIED_BURST,
    CARRIED_IDLE,
    CARRIED_OF_A_PAIR,
    CARRIED_OF_A_PAIR_BURST,
    CARRIED_RATE,
    CARRIED_WAITING,
    MAX_CARRIED,
    Carried,
    Carrying,
)
from tunnel.node.fairness import FairShare
from tunnel.units import CHANNEL_BYTE, Address, Instant, PathKey, SocketId

T0 = Instant(100.0)
SOCKET = SocketId(0)
PLACES = {bytes((number,)) * 32: Address("192.0.2.1", 1000 + number) for number in range(1, 9)}
ONE, OTHER, *MORE = PLACES


class Near:
    """The connection to a member, and the member."""

    def __init__(self, static: bytes, key: PathKey | None, place: Address) -> None:
        self.peer = self.connection = self
        self.static = static
        self.direct_path = key
        self._key = PathKey(SOCKET, place)

    def is_path(self, key: PathKey) -> bool:
        return key == self._key


class Office:
    """A member that carries, and whom it reaches."""

    def __init__(self) -> None:
        self.drops = Drops()
        self.carrying = Carrying(self.drops, random.Random(1).randbytes)
        self.share = FairShare(random.Random(1))
        self.relayed: set[bytes] = set()  # to whom no direct path leads
        self.carrying.find = self._find

    def _find(self, static: bytes) -> Any:
        place = PLACES.get(static)
        if place is None:
            return None
        return Near(static, None if static in self.relayed else PathKey(SOCKET, place), place)

    def take(self, pair: Carried, data: bytes, stride: int, source: Address = PLACES[ONE], now: Instant = T0) -> int:
        return self.carrying.handle(now, SOCKET, source, memoryview(data), 0, stride, 2, self.share)

    def sent(self) -> list[Any]:
        found = []
        while (burst := self.carrying.poll_transmit()) is not None:
            found.append(burst)
        return found


def a_pair(office: Office, one: bytes = ONE, other: bytes = OTHER) -> Carried:
    pair = office.carrying.open(T0, one, other)
    assert pair is not None
    return pair


def test_a_run_of_one_channel_leaves_as_one_burst_for_the_other_of_the_two_as_it_came() -> None:
    office = Office()
    pair = a_pair(office)
    assert pair.channel[0] >= CHANNEL_BYTE
    assert office.carrying.open(T0, OTHER, ONE) is pair
    data = b"".join(pair.channel + bytes((n,)) * 92 for n in range(3))
    assert office.take(pair, data + b"\xff" * 100, 100) == len(data)
    [burst] = office.sent()
    assert (burst.remote, burst.segment_size, burst.ecn, bytes(burst.buffer)) == (PLACES[OTHER], 100, 2, data)
    data += pair.channel + b"last"
    assert office.take(pair, data, 100, PLACES[OTHER]) == len(data)
    [burst] = office.sent()
    assert (burst.remote, bytes(burst.buffer)) == (PLACES[ONE], data)
    assert office.carrying.to_dict() == {"pairs": 1, "datagrams": 7, "bytes": 612}


def test_nothing_is_taken_from_elsewhere_or_for_whom_no_direct_path_leads() -> None:
    office = Office()
    pair = a_pair(office)
    office.take(pair, pair.channel + b"x", 9, PLACES[MORE[0]])
    office.take(pair, pair.channel + b"x", 9, Address("198.51.100.1", 1))
    assert office.drops["carried from elsewhere"] == 2
    office.relayed.add(OTHER)
    office.take(pair, pair.channel + b"x", 9)
    assert office.drops["carried to whom we reach not directly"] == 1
    assert not office.sent()


def test_there_are_so_many_pairs_and_no_more_and_one_that_ends_makes_room() -> None:
    office = Office()
    pairs = [a_pair(office, bytes((n, 1)) * 16, bytes((n, 2)) * 16) for n in range(MAX_CARRIED)]
    assert office.carrying.open(T0, ONE, OTHER) is None
    office.carrying.close(pairs[3])
    assert len({pair.channel for pair in pairs}) == MAX_CARRIED
    assert a_pair(office).channel in office.carrying.pairs


@pytest.mark.parametrize(
    ("count", "burst", "rate"), [(1, CARRIED_OF_A_PAIR_BURST, CARRIED_OF_A_PAIR), (4, CARRIED_BURST, CARRIED_RATE)]
)
def test_one_pair_and_all_pairs_have_a_rate(count: int, burst: int, rate: float) -> None:
    office = Office()
    pairs = [a_pair(office, ONE, other) for other in (OTHER, *MORE)[:count]]
    size = 1_000

    def offer(now: Instant, each: int) -> int:
        before = office.carrying.bytes
        for _ in range(each):
            for pair in pairs:
                office.take(pair, pair.channel + bytes(size - 8), size, now=now)
        office.sent()
        return office.carrying.bytes - before

    passed = offer(T0, 2 * CARRIED_BURST // size)
    assert burst - size <= passed <= burst
    passed = sum(offer(Instant(T0 + tick / 20), 60) for tick in range(1, 101))
    assert passed == pytest.approx(5 * rate, rel=0.02)
    assert office.drops["carried over the rate"] > 0


def test_what_waits_for_a_socket_is_bounded() -> None:
    office = Office()
    pairs = [a_pair(office, one, other) for number, one in enumerate(PLACES) for other in list(PLACES)[number + 1 :]]
    for second in range(6):
        for pair in pairs:
            for _ in range(60):
                office.take(pair, pair.channel + bytes(992), 1_000, PLACES[pair.ends[0]], Instant(T0 + second))
    assert office.drops["carried while the socket would block"] > 0
    assert sum(len(burst.buffer) for burst in office.sent()) <= CARRIED_WAITING
    pair = pairs[0]
    office.take(pair, pair.channel + b"x", 9, now=Instant(T0 + 10))
    assert len(office.sent()) == 1


def test_a_pair_is_idle_when_nothing_was_passed_on_for_so_long() -> None:
    office = Office()
    pair = a_pair(office)
    half = Instant(T0 + CARRIED_IDLE / 2)
    office.take(pair, pair.channel + b"x", 9, now=half)
    assert not pair.is_idle(Instant(T0 + CARRIED_IDLE))
    office.take(pair, pair.channel + b"x", 9, PLACES[MORE[0]], now=Instant(T0 + CARRIED_IDLE))  # from elsewhere
    assert pair.is_idle(Instant(half + CARRIED_IDLE))
