"""REPEAT frames: what is sent once more is delivered once, and what nobody sent ends the connection."""

from __future__ import annotations

import pytest

from tests.unit.connection.pair import Pair
from tunnel.core.trace import Drops
from tunnel.transport.connection.connection import TAKES, Connection
from tunnel.transport.connection.events import CloseCode, ConnectionClosed
from tunnel.transport.connection.packets import PacketRun
from tunnel.transport.connection.repeats import (
    ALWAYS,
    APART_LEAST,
    APART_MOST,
    APART_PACKETS,
    FULL_FOR,
    MOST_IN_ONE,
    MOST_WAITING,
    TOO_LATE,
    Repeats,
)
from tunnel.transport.packet.frames import DATAGRAM, PACKET, REPEAT, Frame
from tunnel.transport.recovery.lossiness import LossMeter
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant, Seconds

FLOW = 4


def talking() -> Pair:
    pair = Pair(relayed=False)
    for side in (pair.a, pair.b):
        side.peer_takes(TAKES)
    pair.run(3.0)
    return pair


def datagram(data: bytes) -> bytes:
    return DATAGRAM.pack(Frame.DATAGRAM, FLOW, 1, 0, 1, len(data)) + data


def sealed(pair: Pair, *contents: bytes, numbers: list[int] | None = None) -> bytes:
    """Datagrams of `a` with these frames, all of one size."""
    shared = pair.a._shared
    most = max(map(len, contents))
    out = memoryview(bytearray(65_536))
    at = 0
    for content in contents:
        at = shared.seal(b"", out, at, memoryview(bytearray(content.ljust(most, b"\0"))))
        if numbers is not None:
            numbers.append(shared.next_number - 1)
    return bytes(out[:at])


def take(pair: Pair, datagrams: bytes, count: int = 1) -> None:
    key = pair.b.current_path.key
    pair.b.handle_datagrams(pair.now, key, memoryview(datagrams), 0, len(datagrams) // count)


def repeat(number: int, frames: bytes) -> bytes:
    return REPEAT.pack(Frame.REPEAT, number, len(frames)) + frames


def got(pair: Pair) -> list[bytes]:
    return [data for _, data in pair.b.receive_datagrams()]


def why_closed(side: Connection) -> tuple[int, str] | None:
    while (event := side.poll_event()) is not None:
        if isinstance(event, ConnectionClosed):
            return event.reason.code, event.reason.text
    return None


def test_a_copy_of_what_has_come_is_dropped() -> None:
    pair = talking()
    numbers: list[int] = []
    take(pair, sealed(pair, datagram(b"one"), numbers=numbers))
    take(pair, sealed(pair, repeat(numbers[0], datagram(b"one"))))
    assert got(pair) == [b"one"]
    stats = pair.b.stats()
    assert (stats.repaired, stats.duplicates) == (0, 1)


def test_a_copy_in_the_batch_that_brings_the_first_is_dropped() -> None:
    pair = talking()
    first = pair.a._shared.next_number
    assert pair.a._shared._skip_at > first + 2
    body = datagram(b"one")
    take(pair, sealed(pair, body, repeat(first, body)), count=2)
    assert got(pair) == [b"one"]


def test_the_copy_counts_where_the_first_is_lost_and_the_first_is_dropped_where_it_comes_later() -> None:
    pair = talking()
    numbers: list[int] = []
    late = sealed(pair, datagram(b"one") + datagram(b"two"), numbers=numbers)
    take(pair, sealed(pair, repeat(numbers[0], datagram(b"one") + datagram(b"two"))))
    assert got(pair) == [b"one", b"two"]
    take(pair, late)
    assert got(pair) == []
    stats = pair.b.stats()
    assert (stats.repaired, stats.duplicates, pair.b.drops["replayed"]) == (1, 0, 1)


def test_an_ip_packet_comes_as_a_copy_too() -> None:
    pair = talking()
    came: list[bytes] = []

    def sink(now: Instant, runs: list[PacketRun]) -> None:
        came.extend(bytes(run.payloads[0]) for run in runs)

    pair.b.set_packet_sink(sink)
    numbers: list[int] = []
    sealed(pair, PACKET.pack(Frame.PACKET, 0, 0, 0, 0) + b"a packet", numbers=numbers)  # lost
    body = PACKET.pack(Frame.PACKET, 0, 0, 0, 0) + b"a packet"
    take(pair, sealed(pair, repeat(numbers[0], body) + repeat(numbers[0], body)))
    assert came == [b"a packet"]


def test_what_was_never_sent_cannot_be_repeated() -> None:
    pair = talking()
    take(pair, sealed(pair, repeat(pair.a._shared.next_number + 1000, datagram(b"one"))))
    assert why_closed(pair.b) == (CloseCode.PROTOCOL_VIOLATION, "the peer repeated a packet that it has not sent")


@pytest.mark.parametrize(
    "body", [bytes((Frame.PING,)), datagram(b"one")[:-1], DATAGRAM.pack(Frame.DATAGRAM, FLOW, 1, 3, 2, 0), b"\x31"], ids=repr
)
def test_a_copy_holds_datagrams_or_a_packet_and_nothing_else(body: bytes) -> None:
    pair = talking()
    numbers: list[int] = []
    sealed(pair, datagram(b"lost"), numbers=numbers)
    take(pair, sealed(pair, repeat(numbers[0], body)))
    found = why_closed(pair.b)
    assert found is not None
    assert found[0] == CloseCode.PROTOCOL_VIOLATION


def test_a_copy_that_is_cut_short_ends_the_connection() -> None:
    pair = talking()
    take(pair, sealed(pair, REPEAT.pack(Frame.REPEAT, 0, 100) + b"too little"))
    found = why_closed(pair.b)
    assert found is not None
    assert found[0] == CloseCode.PROTOCOL_VIOLATION


# --- the sender's half


def ready(mode: str = ALWAYS) -> tuple[Repeats, Drops]:
    drops = Drops()
    repeats = Repeats(drops)
    repeats.set_mode(mode)
    repeats.peer_takes()
    return repeats, drops


def test_a_copy_waits_for_other_packets_and_no_longer_than_it_may() -> None:
    repeats, _ = ready()
    repeats.add(Instant(1.0), 10, b"frames")
    assert repeats.due_at(11) == 1.0 + APART_MOST
    assert repeats.due_at(10 + APART_PACKETS) == 1.0 + APART_LEAST
    assert not repeats.is_due(Instant(1.0 + APART_LEAST), 11)
    assert repeats.is_due(Instant(1.0 + APART_LEAST), 10 + APART_PACKETS)
    assert repeats.is_due(Instant(1.0 + APART_MOST), 11)


def test_a_copy_that_could_not_leave_in_time_is_dropped() -> None:
    repeats, drops = ready()
    repeats.add(Instant(1.0), 10, b"frames")
    assert not repeats.is_due(Instant(1.0 + APART_MOST + TOO_LATE + 0.001), 11)
    assert drops["copy too late"] == 1


def test_what_is_large_is_sent_once() -> None:
    repeats, drops = ready()
    repeats.add(Instant(1.0), 10, bytes(MOST_IN_ONE + 1))
    assert not repeats.waiting
    assert not drops


def test_copies_that_wait_are_bounded() -> None:
    repeats, drops = ready()
    for number in range(MOST_WAITING + 1):
        repeats.add(Instant(1.0), number, b"x")
    assert len(repeats.waiting) == MOST_WAITING
    assert repeats.waiting[0].number == 1
    assert drops["copy over the rate"] == 1


def meter_of(share: float, total: float = 1000.0) -> LossMeter:
    meter = LossMeter()
    meter.total, meter.lost = total, share * total
    return meter


def rtt_of(*samples: float) -> RttEstimator:
    rtt = RttEstimator()
    for sample in samples:
        rtt.update(Seconds(sample), Seconds(0.0), Instant(0.0))
    return rtt


def test_a_queue_or_a_blocked_copy_is_a_full_link_for_a_while() -> None:
    repeats, drops = ready("auto")
    repeats.judge(Instant(1.0), meter_of(0.05), rtt_of(0.04))
    assert repeats.is_on
    repeats.judge(Instant(2.0), meter_of(0.05), rtt_of(0.04, *[0.1] * 20))
    assert not repeats.is_on
    repeats.judge(Instant(3.0), meter_of(0.05), rtt_of(0.04))
    repeats.add(Instant(3.0), 10, b"frames")
    repeats.on_blocked(Instant(3.1), 11)  # it came too late by then
    assert repeats.is_on
    repeats.add(Instant(3.1), 10, b"frames")
    repeats.on_blocked(Instant(3.1 + APART_MOST), 11)
    assert drops["copy for a full link"] == 1
    assert not repeats.is_on
    repeats.judge(Instant(3.5), meter_of(0.05), rtt_of(0.04))
    assert not repeats.is_on
    repeats.judge(Instant(3.2 + APART_MOST + FULL_FOR), meter_of(0.05), rtt_of(0.04))
    assert repeats.is_on


def test_a_lost_datagram_or_two_are_no_lossy_path() -> None:
    repeats, _ = ready("auto")
    repeats.judge(Instant(1.0), meter_of(0.1, total=20.0), rtt_of(0.04))
    assert not repeats.is_on
    repeats.set_mode("off")
    repeats.judge(Instant(1.0), meter_of(0.1), rtt_of(0.04))
    assert not repeats.is_on
