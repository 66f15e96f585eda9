"""A flood from one peer is dropped unopened; whoever sends little loses nothing."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from tests.sim.cast import Three
from tunnel.errors import StreamLimitError
from tunnel.node.fairness import (
    COSTLY,
    MAX_DEBT,
    MAX_SENDERS,
    MOST,
    PAID_OFF,
    STREAM_PRICE,
    TOO_COSTLY,
    TOO_MUCH,
    WORST_DEBT,
    FairShare,
)
from tunnel.transport.connection.connection import Connection
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
            if share.refusal(now, name, size) is None:
                work -= size
                share.spent(now, name, size, size / OPENED)
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
    assert share.refusal(Instant(2000.0), "one", 9000) is None
    assert share.level == 0


def test_who_floods_is_told_by_what_it_costs_and_not_by_its_bytes() -> None:
    """A fifth of the bytes, ten times their price: that is the flood, and the bulk beside it is not touched."""
    now = Instant(1000.0)
    share = FairShare(random.Random(1))
    dropped: Counter[str] = Counter()
    for _ in range(2_000):
        now = Instant(now + 0.001)
        for name, size, price in (("bulk", 10_000, 20e-9), ("small", 2_000, 200e-9), ("game", 100, 100e-9)):
            share.overflowed()
            if share.refusal(now, name, size) is None:
                share.spent(now, name, size, size * price)
            else:
                dropped[name] += 1
    assert set(dropped) == {"small"}
    assert dropped["small"] > 1_000


def test_strangers_take_from_everybodys_share() -> None:
    """Whoever sends less than all strangers together is not the one to give way to them."""
    now = Instant(1000.0)
    share = FairShare(random.Random(1))
    for _ in range(1_000):
        now = Instant(now + 0.001)
        share.overflowed()
        share.spent(now, None, 20_000, 0.000_8)
        for name, seconds in (("bulk", 0.000_2), ("game", 0.000_01)):
            assert share.refusal(now, name, 1_000) is None
            share.spent(now, name, 1_000, seconds)


def waits(
    seconds: float, senders: dict[str, tuple[float, int, float]]
) -> tuple[dict[str, list[float]], Counter[str], dict[str, float]]:
    """Senders with seconds between datagrams, bytes and price of one, before one processor and a queue without an end.

    How long those of each waited until they were opened; how many were dropped unopened; what each took of the processor.
    """
    share = FairShare(random.Random(1))
    arrivals = sorted(
        (1000 + number * gap, name) for name, (gap, _, _) in senders.items() for number in range(int(seconds / gap))
    )
    waited: dict[str, list[float]] = {name: [] for name in senders}
    dropped: Counter[str] = Counter()
    took = dict.fromkeys(senders, 0.0)
    clock = 0.0
    for at, name in arrivals:
        clock = max(clock, at)
        _, size, price = senders[name]
        if share.refusal(Instant(clock), name, size) is None:
            waited[name].append(clock - at)
            share.spent(Instant(clock), name, size, price)
            clock += price
            took[name] += price
        else:
            dropped[name] += 1
            clock += 0.000_01
    return waited, dropped, took


def test_a_costly_trickle_does_not_keep_the_others_waiting() -> None:
    """24 datagrams a second of 58 ms each, 0.26 Mbit/s: more than a processor, and the kernel's queue never overflows."""
    waited, dropped, took = waits(
        60.0, {"evil": (1 / 24, 1_379, 0.058), "ping": (0.05, 150, 0.000_05), "bulk": (0.001, 9_000, 0.000_2)}
    )
    assert set(dropped) == {"evil"}
    assert max(waited["ping"]) < MAX_DEBT + 0.058 + 0.01
    assert sum(waited["ping"]) / len(waited["ping"]) < 0.05
    assert 0.8 * PAID_OFF * 60 < took["evil"] < 1.2 * PAID_OFF * 60  # it has half of the processor still


def test_a_batch_that_took_seconds_is_paid_for_as_long() -> None:
    waited, dropped, _ = waits(60.0, {"evil": (0.5, 46_400, 2.0), "ping": (0.05, 150, 0.000_05)})
    assert set(dropped) == {"evil"}
    assert len(waited["evil"]) < 18  # one in four seconds, and the first ones


def test_whoever_opens_streams_and_drops_them_has_a_tenth_of_the_processor() -> None:
    """Datagrams full of streams, 50 each, whose tasks take a tenth of a millisecond: another sender keeps the rest for itself."""
    clock, took, bulk = 1000.0, 0.0, 0.0
    share = FairShare(random.Random(1), lambda: clock)
    while clock < 1060.0:
        now = Instant(clock)
        for name, size, streams, work, later in (("evil", 1_379, 50, 0.000_3, 0.005), ("bulk", 9_000, 0, 0.000_2, 0.0)):
            if share.refusal(now, name, size) is not None:
                clock += 0.000_01
                continue
            share.begin(2)
            clock += work
            share.charge(now, name, size, streams)
            clock += later  # the tasks
            took += work + later if name == "evil" else 0.0
            bulk += work if name == "bulk" else 0.0
    assert took < 0.13 * 60
    assert bulk > 0.8 * 60


@pytest.mark.parametrize(("size", "is_refused"), [(60, True), (250, False)])
def test_a_stream_on_which_something_comes_has_paid_for_itself(size: int, is_refused: bool) -> None:
    clock, refused = 1000.0, 0
    share = FairShare(random.Random(1), lambda: clock)
    for _ in range(5_000):  # connections one after the other, of half a millisecond each
        refused += share.refusal(Instant(clock), "web", size) is not None
        share.begin(2)
        share.charge(Instant(clock), "web", size, 1)
        clock += STREAM_PRICE
    assert bool(refused) == is_refused


def test_no_batch_silences_a_sender_for_longer_than_the_worst_debt() -> None:
    """A machine that stood still for a minute while it opened one batch: that was not the sender's fault."""
    share, now = FairShare(random.Random(1)), Instant(1000.0)
    share.spent(now, "unlucky", 1_379, 60.0)
    assert share.refusal(Instant(now + (WORST_DEBT - MAX_DEBT) / PAID_OFF - 0.01), "unlucky", 100) == TOO_COSTLY
    assert share.refusal(Instant(now + (WORST_DEBT - MAX_DEBT) / PAID_OFF + 0.01), "unlucky", 100) is None


def test_debtors_have_half_of_the_processor_together() -> None:
    evil = {f"evil {number}": (1 / 20, 1_379, 0.058) for number in range(5)}
    _, dropped, took = waits(60.0, {**evil, "ping": (0.05, 150, 0.000_05)})
    assert "ping" not in dropped
    assert 0.8 * PAID_OFF * 60 < sum(took[name] for name in evil) < 1.3 * PAID_OFF * 60


@pytest.mark.parametrize(("price", "is_refused"), [(0.99 * COSTLY, False), (1.3 * COSTLY, True)])
def test_whoever_is_worth_its_bytes_owes_nothing_however_much_it_takes(price: float, is_refused: bool) -> None:
    share, now, size = FairShare(random.Random(1)), Instant(1000.0), 10_000
    refused = 0
    for _ in range(200):
        if share.refusal(now, "bulk", size) is None:
            share.spent(now, "bulk", size, size * price)
        else:
            refused += 1
    assert bool(refused) == is_refused


def test_more_senders_than_an_endpoint_has_are_not_counted() -> None:
    share, now = FairShare(random.Random(1)), Instant(1000.0)
    share.refusal(now, "first", 1)
    for number in range(2 * MAX_SENDERS):
        share.spent(now, number, 100, 0.01)
    assert len(share._now) == len(share._debts) == MAX_SENDERS
    assert share.refusal(now, 2 * MAX_SENDERS - 1, 100) is None


def test_a_slow_machine_and_a_pause_are_no_debts() -> None:
    """Small datagrams one by one at five times the usual price, and a tenth of a second in which rubbish was collected."""
    share, now = FairShare(random.Random(1)), Instant(1000.0)
    for number in range(10_000):
        now = Instant(now + 0.001)
        assert share.refusal(now, "game", 100) is None
        share.spent(now, "game", 100, 0.000_19 + (0.1 if number == 5_000 else 0.0))


def test_the_endpoint_measures_what_each_peer_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    with Three() as three:
        friend, mate = three.meet_both()
        home, evil = three.home.endpoint, three.at_home("friend").connection
        whole, worked = Connection.handle_datagrams, [0.0]

        def costly(self: Connection, *arguments: Any) -> int:
            worked[0] += 0.058 if self is evil else 0.000_05
            return whole(self, *arguments)

        monkeypatch.setattr(Connection, "handle_datagrams", costly)
        monkeypatch.setattr(home._share, "_processor", lambda: worked[0])
        for _ in range(100):
            three.friend.send(friend, b"x")
            three.world.run(0.02)
        assert home.drops[TOO_COSTLY] > 20
        assert home.drops[TOO_MUCH] == 0
        assert worked[0] < 0.75 * 2.0 + 0.2
        three.carries(mate)
        monkeypatch.undo()
        three.world.run(5.0)
        before = home.drops[TOO_COSTLY]
        three.echoed(friend, b"all is forgiven")
        assert home.drops[TOO_COSTLY] == before


def test_the_endpoint_charges_streams_to_whoever_opens_them() -> None:
    """Opened and reset as fast as they are allowed, beside a link that goes on."""
    with Three() as three:
        friend, mate = three.meet_both()
        home, evil = three.home.endpoint, friend.connection
        assert evil is not None
        for _ in range(100):
            for _ in range(200):
                with suppress(StreamLimitError):
                    stream = evil.open_stream()
                    evil.stream_write(stream, b"x")
                    evil.stream_reset(stream, 1)
                    evil.stream_stop(stream, 1)
            three.world.touch(three.friend.host)
            three.world.run(0.02)
        accepted = three.at_home("friend").connection
        assert accepted is not None
        assert home.drops[TOO_COSTLY] > 20
        assert 500 < accepted.streams_accepted <= (MAX_DEBT + PAID_OFF * 2.3) / (0.8 * STREAM_PRICE) + 200  # of 20,000
        three.carries(mate)
        three.world.run(10.0)
        dropped = home.drops[TOO_COSTLY]
        three.echoed(friend, b"all is forgiven")
        assert home.drops[TOO_COSTLY] == dropped
