"""Path MTU: found by probes, and a path that shrinks does not stall."""

from __future__ import annotations

import random

import pytest

from tests.unit.connection.pair import Pair
from tests.unit.connection.test_paths import upgrade


@pytest.mark.parametrize("relayed", [True, False])
@pytest.mark.parametrize(
    ("link", "found"), [(1200, 1200), (1252, 1252), (1300, 1252), (1372, 1372), (1464, 1464), (1472, 1472), (8972, 8972)]
)
def test_the_mtu_of_a_path_is_found(relayed: bool, link: int, found: int) -> None:
    pair = Pair(relayed=relayed, mtu=link)
    pair.run(20)
    assert pair.a.current_path.mtu == found
    assert pair.b.current_path.mtu == found
    assert pair.a.stats().packets_lost == 0


@pytest.mark.parametrize("relayed", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_an_mtu_that_shrinks_in_mid_transfer_stalls_for_less_than_two_seconds(seed: int, relayed: bool) -> None:
    pair = Pair(seed, relayed=True, mtu=1472, loss=0.001)
    if not relayed:
        upgrade(pair)
    pair.run(2)
    stream = pair.a.open_stream()
    data = random.Random(seed).randbytes(4_000_000)
    at, before, since, longest = 0, 0, pair.now, 0.0
    while len(pair.read["b"].get(stream, b"")) < len(data):
        at += pair.a.stream_write(stream, data[at : at + 100_000])
        if before > 1_000_000:
            pair.mtu = 1300
        assert pair.step()
        got = len(pair.read["b"].get(stream, b""))
        if got > before:
            before, since = got, pair.now
        longest = max(longest, pair.now - since)
    assert longest < 2.0
    assert pair.read["b"][stream] == data
    pair.run(5)
    assert pair.a.current_path.mtu == 1252
