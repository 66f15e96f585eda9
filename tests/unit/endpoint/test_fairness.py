"""A flood from one peer is dropped unopened; whoever sends little loses nothing."""

from __future__ import annotations

import random
from collections import Counter

from tunnel.proto.endpoint.fairness import MOST, FairShare
from tunnel.units import Instant

QUEUE = 2_000_000  # bytes that the kernel keeps
OPENED = 60e6  # bytes a second that we open; dropping costs a tenth of it
TURN = 0.001  # seconds between two looks


def simulate(seconds: float, rates: dict[str, tuple[float, int]]) -> tuple[Counter[str], Counter[str], Counter[str], FairShare]:
    """Senders with bytes a second and bytes a datagram, into one queue: sent, lost in the queue, dropped unopened."""
    rng = random.Random(7)
    share = FairShare(random.Random(1))
    sent: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    owed = dict.fromkeys(rates, 0.0)
    queue: list[tuple[str, int]] = []
    held = 0
    for step in range(int(seconds / TURN)):
        now = Instant(1000 + step * TURN)
        arriving: list[tuple[str, int]] = []
        for name, (rate, size) in rates.items():
            owed[name] += rate * TURN
            while owed[name] >= size:
                owed[name] -= size
                arriving.append((name, size))
        rng.shuffle(arriving)
        overflow = False
        for name, size in arriving:
            sent[name] += 1
            if held + size > QUEUE:
                lost[name] += 1
                overflow = True
            else:
                queue.append((name, size))
                held += size
        if overflow:
            share.overflowed()
        work = OPENED * TURN
        at = 0
        while work > 0 and at < len(queue):
            name, size = queue[at]
            at += 1
            held -= size
            if share.admits(now, name, size):
                work -= size
            else:
                dropped[name] += 1
                work -= size / 10
        del queue[:at]
    return sent, lost, dropped, share


def test_a_flood_costs_the_others_almost_nothing() -> None:
    sent, lost, dropped, _ = simulate(10.0, {"flood": (150e6, 9000), "game": (20e3, 100), "voice": (8e3, 160)})
    assert dropped["game"] == dropped["voice"] == 0
    assert lost["game"] < 0.03 * sent["game"]
    assert lost["voice"] < 0.03 * sent["voice"]
    assert dropped["flood"] > 0.3 * sent["flood"]


def test_without_overflow_nobody_is_dropped() -> None:
    _, lost, dropped, share = simulate(3.0, {"bulk": (55e6, 9000), "game": (20e3, 100)})
    assert not lost
    assert not dropped
    assert share.level == 0


def test_a_lone_sender_is_never_dropped_unopened() -> None:
    _, lost, dropped, share = simulate(2.0, {"bulk": (150e6, 9000)})
    assert lost["bulk"]
    assert not dropped
    assert share.level == MOST


def test_two_floods_share_and_the_level_goes_when_they_end() -> None:
    sent, _, dropped, share = simulate(5.0, {"one": (100e6, 9000), "two": (100e6, 9000), "game": (20e3, 100)})
    assert dropped["game"] == 0
    opened = [sent[name] - dropped[name] for name in ("one", "two")]
    assert 0.7 < opened[0] / opened[1] < 1.4
    assert share.admits(Instant(2000.0), "one", 9000)
    assert share.level == 0
