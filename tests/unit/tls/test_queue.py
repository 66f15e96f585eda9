"""Frames that are late are dropped, oldest first, and never in the middle."""

from __future__ import annotations

from collections import Counter

from tunnel.doors.tls.framing import frame_burst
from tunnel.doors.tls.queue import MAX_BYTES, MAX_BYTES_IN_ALL, MAX_WAIT, PART_OF_FREE, Budget, SendQueue
from tunnel.units import Instant


def framed(count: int, size: int = 98) -> bytes:
    return frame_burst(memoryview(bytes(count * size)), size)


def make() -> tuple[SendQueue, Counter[str]]:
    drops: Counter[str] = Counter()
    return SendQueue(drops), drops


def test_frames_leave_in_order_and_whole() -> None:
    queue, drops = make()
    now = Instant(5.0)
    queue.put(now, framed(10), 100)
    queue.put(now, b"\x00\x01x", 3)
    taken = [bytes(chunk) for chunk in iter(lambda: queue.take(now, 350), None)]
    assert [len(chunk) for chunk in taken] == [300, 300, 300, 100, 3]
    assert b"".join(taken) == framed(10) + b"\x00\x01x"
    assert queue.size == 0
    assert not drops


def test_a_frame_larger_than_what_is_asked_for_leaves_by_itself() -> None:
    queue, _ = make()
    queue.put(Instant(0.0), framed(2, 5_000), 5_002)
    chunk = queue.take(Instant(0.0), 100)
    assert chunk is not None
    assert len(chunk) == 5_002


def test_what_waits_longer_than_50_ms_is_dropped_and_counted_by_frames() -> None:
    queue, drops = make()
    queue.put(Instant(1.0), framed(10), 100)
    assert queue.take(Instant(1.0), 300) is not None
    queue.put(Instant(1.04), framed(2), 100)
    chunk = queue.take(Instant(1.0 + MAX_WAIT + 0.001), 10_000)
    assert chunk is not None
    assert len(chunk) == 200  # the younger burst
    assert drops == {"late": 7}
    assert queue.size == 0


def test_what_just_made_it_is_sent() -> None:
    queue, drops = make()
    queue.put(Instant(1.0), framed(1), 100)
    assert queue.take(Instant(1.0 + MAX_WAIT - 0.001), 100) is not None
    assert not drops


def test_a_stalled_connection_holds_50_ms_and_a_fixed_number_of_bytes() -> None:
    queue, drops = make()
    for tick in range(10_000):
        queue.put(Instant(tick / 1000), framed(40, 1_198), 1_200)
        assert queue.size <= 51 * 40 * 1_200
    assert drops["late"] > 0
    queue.clear()
    assert queue.size == 0
    for _ in range(1_000):
        queue.put(Instant(100.0), framed(40, 1_198), 1_200)
        assert queue.size <= MAX_BYTES
    assert drops["queue_full"] > 0


def test_all_queues_together_hold_a_bounded_sum_and_leave_something_for_the_next() -> None:
    budget, drops = Budget(), Counter[str]()
    queues = [SendQueue(drops, budget) for _ in range(200)]
    now = Instant(9.0)
    for _ in range(100):
        for queue in queues:
            queue.put(now, framed(40, 1_198), 1_200)
    assert budget.used == sum(queue.size for queue in queues) <= MAX_BYTES_IN_ALL
    assert drops["queue_full"] > 0
    late = SendQueue(drops, budget)
    late.put(now, framed(40, 1_198), 1_200)
    assert late.size == 48_000
    for queue in queues[:150]:
        queue.drop_late(Instant(now + MAX_WAIT + 0.001))
        assert not queue.size
    for queue in (*queues[150:], late):
        queue.clear()
    assert budget.used == 0


def test_one_reader_has_one_part_of_what_is_free_and_the_next_one_a_part_of_the_rest() -> None:
    drops = Counter[str]()
    budget = Budget(PART_OF_FREE * 48_000)
    first, second = SendQueue(drops, budget), SendQueue(drops, budget)
    for size in (1_198, 98):
        first.put(Instant(9.0), framed(40, size), size + 2)
    assert (first.size, drops["queue_full"]) == (48_000, 40)
    most = budget.limit * (PART_OF_FREE - 1) // PART_OF_FREE // (PART_OF_FREE + 1)  # what it holds itself is not free any more
    while not drops["queue_full"] > 40:
        second.put(Instant(9.0), framed(10, 98), 100)
    assert most - 1_000 < second.size <= most + 1_000
