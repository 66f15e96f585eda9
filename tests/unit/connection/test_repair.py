"""IP packets that are lost are sent again: to whom, how often, and when they are not."""

from __future__ import annotations

from tests.unit.connection.pair import Pair
from tests.unit.connection.test_repeats import meter_of, rtt_of
from tunnel.core.trace import Drops
from tunnel.transport.connection.connection import TAKES, TAKES_REPEATS
from tunnel.transport.connection.packets import PACKET_ROOM, PacketBurst, PacketRun
from tunnel.transport.connection.repair import (
    FEWEST_LOST,
    KEPT_FOR,
    MOST_KEPT,
    PING_AFTER,
    PINGS,
    REPAIR_AT_ONCE,
    REPAIR_FOR,
    REPAIR_FROM,
    REPAIR_SHARE,
    SECOND_AFTER,
    Kept,
    Repair,
)
from tunnel.transport.packet.frames import PACKET, PACKET_AGAIN, PACKET_IN_ORDER, PACKET_KEPT, PACKET_LAST, Frame
from tunnel.transport.recovery.lossiness import LossMeter
from tunnel.units import Instant, Seconds

WANTED = PACKET_KEPT | PACKET_IN_ORDER
AT = Instant(100.0)


def lossy(*, takes: bool = True, meter: LossMeter | None = None) -> tuple[Repair, Drops]:
    drops = Drops()
    repair = Repair(drops)
    if takes:
        repair.peer_takes()
    repair.look(AT, meter or meter_of(0.05), rtt_of(0.04))
    return repair, drops


def again(repair: Repair, now: Instant) -> list[bytes]:
    found = []
    while (frame := repair.next_frame(now)) is not None:
        found.append(frame)
    return found


def whole(data: bytes) -> Kept:
    return Kept(PACKET.pack(Frame.PACKET, WANTED, 0, 0, 0) + data)


def test_packets_are_kept_on_a_path_that_loses_some_for_a_peer_that_takes_it() -> None:
    assert lossy()[0].flags == WANTED
    assert lossy(takes=False)[0].flags == 0
    assert lossy(meter=meter_of(REPAIR_FROM * 0.9))[0].flags == 0
    assert lossy(meter=meter_of(0.5, total=2 * FEWEST_LOST - 1))[0].flags == 0
    repair, _ = lossy()
    repair.look(Instant(AT + REPAIR_FOR / 2), meter_of(0.0), rtt_of(0.04))
    assert repair.flags == WANTED
    repair.look(Instant(AT + REPAIR_FOR), meter_of(0.0), rtt_of(0.04))
    assert repair.flags == 0
    off, _ = lossy()
    off.set_wanted(False)
    assert off.flags == 0


def test_the_frames_of_a_super_packet_are_made_again_as_they_were() -> None:
    tail = PACKET.pack(Frame.PACKET, 0, 0, 4, 10)[3:] + b"head"
    kept = Kept(bytes(range(25)), 10, 7, WANTED, tail, is_last=True)
    flags = WANTED | PACKET_AGAIN
    assert kept.frame(0) == bytes((Frame.PACKET, flags, 7)) + tail + bytes(range(10))
    assert kept.frame(2) == bytes((Frame.PACKET, flags | PACKET_LAST, 9)) + tail + bytes(range(20, 25))
    assert whole(b"x").frame(0) == PACKET.pack(Frame.PACKET, flags, 0, 0, 0) + b"x"


def test_what_is_lost_is_sent_twice_again() -> None:
    repair, _ = lossy()
    kept = whole(b"lost")
    repair.keep(AT, kept, 1)
    repair.on_lost(kept, 1)
    first = again(repair, AT)
    assert first == [kept.frame(0)]
    assert again(repair, Instant(AT + SECOND_AFTER * 0.9)) == []
    assert again(repair, Instant(AT + SECOND_AFTER)) == first
    assert repair.count == 2


def test_congestion_is_left_to_the_flows() -> None:
    repair, drops = lossy()
    for round_ in range(1, 4):
        repair.look(Instant(AT + round_), meter_of(0.05), rtt_of(0.04, 0.09))
    assert repair.flags == PACKET_KEPT
    repair.on_lost(whole(b"lost"), 1)
    assert again(repair, AT) == []
    assert drops["lost packet left to its flow"] == 1


def test_no_more_than_a_share_of_what_is_sent_is_sent_again() -> None:
    repair, drops = lossy()
    for _ in range(2 * REPAIR_AT_ONCE):
        repair.on_lost(whole(b"lost"), 1)
    assert len(again(repair, AT)) == REPAIR_AT_ONCE
    assert drops["lost packet left to its flow"] == REPAIR_AT_ONCE
    repair.keep(AT, whole(b"more"), round(5 / REPAIR_SHARE))
    for _ in range(9):
        repair.on_lost(whole(b"lost"), 1)
    assert len(again(repair, AT)) == 5


def test_what_is_kept_is_bounded_in_bytes_and_in_time() -> None:
    repair, _ = lossy()
    first, second = whole(bytes(MOST_KEPT // 2)), whole(bytes(MOST_KEPT // 2))
    repair.keep(AT, first, 1)
    repair.keep(AT, second, 1)
    assert (bool(first.data), bool(second.data)) == (False, True)
    repair.keep(Instant(AT + KEPT_FOR + 0.1), whole(b"x"), 1)
    assert not second.data
    repair.on_lost(second, 1)
    assert again(repair, AT) == []


def test_pings_follow_the_last_packet_that_was_kept() -> None:
    repair, _ = lossy()
    repair.keep(AT, whole(b"x"), 1)
    count, now = 0, AT
    assert not repair.takes_ping(now)
    while (at := repair.due_at) is not None:
        now = at
        count += repair.takes_ping(now)
    assert count == PINGS
    assert now - AT < (PINGS + 1) * PING_AFTER


class Lan:
    """`a` sends packets that are to be kept; `b` keeps what comes."""

    def __init__(self, takes: int = TAKES) -> None:
        self.pair = Pair(relayed=False)
        self.pair.run(3.0)
        self.pair.a.peer_takes(takes)
        self.pair.a._shared.repair.look(self.pair.now, meter_of(0.05), self.pair.a._shared.paths.current.recovery.rtt)
        self.came: list[bytes] = []
        self.pair.b.set_packet_sink(self._take)

    def _take(self, now: Instant, runs: list[PacketRun]) -> None:
        self.came += [bytes(payload) for run in runs for payload in run.payloads]

    def send(self, data: bytes) -> None:
        sealer = self.pair.a.packets
        assert sealer is not None
        burst = PacketBurst(bytearray(65_536))
        view = memoryview(bytearray(PACKET_ROOM) + data)
        sealer.begin(burst, 0)
        assert sealer.seal_packet(burst, self.pair.now, view, PACKET_ROOM, len(view), sealer.repair_flags)
        transmit = burst.transmit()
        assert transmit is not None
        self.pair.carry("a", transmit)

    def segments(self, data: bytes, step: int) -> None:
        sealer = self.pair.a.packets
        assert sealer is not None
        burst = PacketBurst(bytearray(65_536))
        view = memoryview(bytearray(PACKET_ROOM) + b"head" + data)
        sealer.begin(burst, 0)
        sealer.seal_segments(burst, self.pair.now, view, PACKET_ROOM, b"head", len(view), step, 0, sealer.repair_flags)
        transmit = burst.transmit()
        assert transmit is not None
        self.pair.carry("a", transmit)


def test_a_lost_packet_comes_within_two_round_trips_and_so_does_the_last_one() -> None:
    lan = Lan()
    lan.send(b"first")
    lost = {1: True}
    lan.pair.hook = lambda name, relayed, data: [] if name == "a" and lost.pop(1, False) else None
    lan.send(b"lost, and nothing behind it")
    lan.pair.run(4 * lan.pair.delay + (PINGS + 1) * PING_AFTER + 0.010)
    assert lan.came[:2] == [b"first", b"lost, and nothing behind it"]
    lan.pair.run(Seconds(1.0))
    assert lan.pair.a.stats().resent == 2
    assert lan.came[2:] == [b"lost, and nothing behind it"]  # the interface's side drops that: test_order.py


def test_lost_segments_of_a_super_packet_come_too() -> None:
    lan = Lan()
    count = 0

    def hook(name: str, relayed: bool, data: bytes) -> list[float] | None:
        nonlocal count
        count += name == "a"
        return [] if name == "a" and count in (2, 4) else None

    lan.pair.hook = hook
    lan.segments(bytes(100) + bytes([1] * 100) + bytes([2] * 100) + bytes([3] * 50), 100)
    lan.pair.run(0.2)
    assert sorted(set(lan.came)) == [bytes(100), bytes([1] * 100), bytes([2] * 100), bytes([3] * 50)]


def test_an_older_peer_gets_packets_as_before() -> None:
    lan = Lan(takes=TAKES_REPEATS)
    assert lan.pair.a.packets is not None
    assert lan.pair.a.packets.repair_flags == 0
