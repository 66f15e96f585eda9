"""Orders out, news in: what comes of a batch, and when the store counts as broken."""

from __future__ import annotations

from collections.abc import Callable

from tunnel.rendezvous.fleet.directory import BATCH, MAX_ORDERS, MISSES, PROBE_INTERVAL, Directory, Entries, Look, Tell
from tunnel.units import Instant

NOW = Instant(100.0)


class Heard(list[Entries | None]):
    def then(self) -> Callable[[Instant, Entries | None], None]:
        return lambda now, entries: self.append(entries)


def fail(directory: Directory, now: Instant, batches: int) -> None:
    for _ in range(batches):
        assert directory.poll_orders()
        directory.finish(now, None)


def test_a_batch_is_carried_out_before_the_next_one_begins() -> None:
    directory, heard = Directory(), Heard()
    for number in range(BATCH + 3):
        directory.order(NOW, Look(b"%d" % number), heard.then())
    first = directory.poll_orders()
    assert len(first) == BATCH
    assert directory.poll_orders() == []
    assert not directory.has_orders
    directory.finish(NOW, [{b"n": b"%d" % number} for number in range(BATCH)])
    assert heard[BATCH - 1] == {b"n": b"%d" % (BATCH - 1)}
    assert [order.key for order in directory.poll_orders() if isinstance(order, Look)] == [b"256", b"257", b"258"]


def test_three_batches_in_a_row_that_fail_break_it_and_what_waits_comes_to_nothing() -> None:
    directory, heard = Directory(), Heard()
    for _ in range(MISSES * BATCH + 5):
        directory.order(NOW, Tell(b"c", b"d"), heard.then())
    fail(directory, NOW, MISSES - 1)
    assert not directory.is_broken
    fail(directory, NOW, 1)
    assert directory.is_broken
    assert heard == [None] * (MISSES * BATCH + 5)
    directory.order(NOW, Look(b"k"), heard.then())
    assert heard[-1] is None
    assert not directory.has_orders
    assert directory.free == 0
    assert directory.failed == MISSES * BATCH + 6


def test_one_that_is_carried_out_in_between_counts_the_misses_anew() -> None:
    directory, heard = Directory(), Heard()
    outcomes: list[list[Entries] | None] = [None, None, [{}], None, None]
    for results in outcomes:
        directory.order(NOW, Look(b"k"), heard.then())
        directory.poll_orders()
        directory.finish(NOW, results)
    assert not directory.is_broken


def test_while_it_is_broken_one_question_a_second_goes_out_and_its_answer_mends_it() -> None:
    directory, heard = Directory(), Heard()
    back: list[Instant] = []
    directory.on_back = back.append
    for _ in range(MISSES):
        directory.order(NOW, Look(b"k"), heard.then())
        fail(directory, NOW, 1)
    assert not directory.wants_probe(NOW)
    later = Instant(NOW + PROBE_INTERVAL)
    assert directory.poll_timeout() == later
    assert directory.wants_probe(later)
    assert not directory.wants_probe(later)
    for _ in range(3):
        directory.probe(later, Look(b"servers"), heard.then())
    assert len(directory.poll_orders()) == 1
    directory.finish(later, [{b"0": b"x"}])
    assert (directory.is_broken, back, heard[-1]) == (False, [later], {b"0": b"x"})


def test_more_orders_than_can_wait_fail_at_once() -> None:
    directory, heard = Directory(), Heard()
    for _ in range(MAX_ORDERS + 1):
        directory.order(NOW, Look(b"k"), heard.then())
    assert heard == [None]


def test_what_is_not_urgent_waits_elsewhere() -> None:
    directory, heard = Directory(), Heard()
    assert directory.free == 2 * BATCH
    for _ in range(2 * BATCH):
        directory.order(NOW, Look(b"k"), heard.then())
    assert directory.free == 0
    directory.poll_orders()
    assert directory.free == BATCH
