"""What waits behind a gap of its flow, and what does not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.unit.ip.packets import RST, SYN, Flow
from tunnel.room.order import ENTRY, FORGET_AFTER, MOST_FLOWS, MOST_HELD, MOST_HELD_OF_ALL, Held, Order
from tunnel.transport.connection.packets import PacketRun
from tunnel.units import Instant, Seconds

STEP = 1000
WAIT = Seconds(0.1)
AT = Instant(5.0)
FLOW = Flow()  # its numbers pass 2^32 after 256 bytes
UDP = Flow(protocol=17)


def whole(number: int, *, flow: Flow = FLOW, kept: bool = True, again: bool = False, size: int = STEP) -> PacketRun:
    """The packet of that number of the flow."""
    packet = replace(flow, sequence=flow.sequence + number * STEP).packet(number.to_bytes(4, "big") + bytes(size - 4))
    return PacketRun(b"", [memoryview(packet)], len(packet), 0, 0, True, False, 0, kept, again)


def segments(number: int, first: int, count: int, *, flow: Flow = FLOW) -> PacketRun:
    """Segments `first` and so on of a super-packet that begins with the packet of that number."""
    base = replace(flow, sequence=flow.sequence + number * STEP)
    head = base.packet(b"")
    payloads = [memoryview((number + first + index).to_bytes(4, "big") + bytes(STEP - 4)) for index in range(count)]
    return PacketRun(head, payloads, count * STEP, STEP, first, False, True, 0, True)


def numbers(runs: list[PacketRun]) -> list[int]:
    """Of the packets in them."""
    found = []
    for run in runs:
        if run.gso_size:
            found += [int.from_bytes(payload[:4], "big") for payload in run.payloads]
        else:
            found.append(int.from_bytes(run.payloads[0][-STEP : 4 - STEP], "big"))
    return found


@pytest.mark.parametrize("flow", [FLOW, Flow(version=6), Flow(options=bytes(12))], ids=["IPv4", "IPv6", "options"])
def test_what_comes_behind_a_gap_waits_for_it(flow: Flow) -> None:
    order = Order()
    assert numbers(order.take(AT, [whole(0, flow=flow), whole(2, flow=flow), whole(3, flow=flow)], WAIT)) == [0]
    assert order.due_at == AT + WAIT
    assert numbers(order.take(AT, [whole(5, flow=flow)], WAIT)) == []
    assert numbers(order.take(AT, [whole(1, flow=flow, again=True)], WAIT)) == [1, 2, 3]
    assert numbers(order.take(AT, [whole(4, flow=flow, again=True)], WAIT)) == [4, 5]
    assert order.due_at is None
    assert order.given_up == 0


def test_super_packets_wait_too_and_their_bytes_live_on() -> None:
    order = Order()
    run = segments(0, 2, 3)
    backing = [bytearray(payload) for payload in run.payloads]
    run = run._replace(payloads=[memoryview(each) for each in backing])
    assert numbers(order.take(AT, [segments(0, 0, 1), run], WAIT)) == [0]
    for each in backing:
        each[:] = bytes(STEP)  # the next batch is opened there
    assert numbers(order.take(AT, [segments(0, 1, 1)], WAIT)) == [1, 2, 3, 4]


def test_what_nobody_fills_is_given_up_in_time_and_no_later_gap_with_it() -> None:
    order = Order()
    order.take(AT, [whole(0), whole(2)], WAIT)
    order.take(Instant(AT + WAIT / 2), [whole(4)], WAIT)
    assert order.due(Instant(AT + WAIT * 0.9)) == []
    assert numbers(order.due(Instant(AT + WAIT))) == [2]
    assert order.due_at == pytest.approx(AT + 1.5 * WAIT)
    assert numbers(order.due(Instant(AT + 1.5 * WAIT))) == [4]
    assert order.given_up == 2
    assert numbers(order.take(AT, [whole(5)], WAIT)) == [5]


def test_only_the_flow_that_lost_something_waits() -> None:
    order = Order()
    other = replace(FLOW, ports=(40_001, 5_001))
    order.take(AT, [whole(0), whole(0, flow=other)], WAIT)
    came = order.take(AT, [whole(2), whole(1, flow=other), whole(1, flow=UDP), whole(3, flow=UDP)], WAIT)
    assert numbers(came) == [1, 1, 3]


def test_what_asks_for_no_repair_waits_for_nothing_and_lets_go_on_what_waits() -> None:
    order = Order()
    order.take(AT, [whole(0), whole(2)], WAIT)
    assert numbers(order.take(AT, [whole(4, kept=False)], WAIT)) == [2, 4]
    plain = Order()
    assert numbers(plain.take(AT, [whole(0, kept=False), whole(5, kept=False)], WAIT)) == [0, 5]
    assert not plain


def test_what_the_flow_itself_repeats_goes_on_and_what_was_sent_again_twice_does_not() -> None:
    order = Order()
    order.take(AT, [whole(0), whole(1), whole(2)], WAIT)
    assert numbers(order.take(AT, [whole(1), whole(1, again=True)], WAIT)) == [1]
    order.take(AT, [whole(4), whole(4)], WAIT)
    assert numbers(order.take(AT, [whole(3)], WAIT)) == [3, 4]


def test_acknowledgements_never_wait() -> None:
    order = Order()
    order.take(AT, [whole(0), whole(2)], WAIT)
    packet = replace(FLOW, sequence=FLOW.sequence + 3 * STEP).packet(b"")
    run = PacketRun(b"", [memoryview(packet)], len(packet), 0, 0, True, False, 0)
    assert order.take(AT, [run], WAIT) == [run]


@pytest.mark.parametrize("flags", [SYN, RST])
def test_a_flow_that_begins_anew_takes_what_waited_with_it(flags: int) -> None:
    order = Order()
    order.take(AT, [whole(0), whole(2)], WAIT)
    anew = whole(70, flow=replace(FLOW, flags=flags))
    assert numbers(order.take(AT, [anew], WAIT)) == [2, 70]
    assert order.due_at is None


def test_flows_and_what_they_hold_are_bounded() -> None:
    order = Order()
    for port in range(MOST_FLOWS):
        flow = replace(FLOW, ports=(port, 5_001))
        order.take(AT, [whole(0, flow=flow), *([whole(2, flow=flow)] if port == 0 else [])], WAIT)
    assert numbers(order.take(AT, [whole(0, flow=replace(FLOW, ports=(9_999, 1)))], WAIT)) == [2, 0]
    assert order.due_at is None
    held = MOST_HELD // (STEP + 40 + ENTRY)
    order.take(AT, [whole(0)], WAIT)
    assert order.take(AT, [whole(number) for number in range(2, held + 2)], WAIT) == []
    assert len(order.take(AT, [whole(held + 2)], WAIT)) == held + 1  # the flow goes on as it came


def test_all_members_together_hold_only_so_much_and_whoever_goes_gives_its_part_back() -> None:
    of_all = Held()
    held = MOST_HELD // (STEP + 40 + ENTRY)
    orders = [Order(of_all) for _ in range(MOST_HELD_OF_ALL // MOST_HELD)]
    runs = [whole(number) for number in range(2, held + 2)]
    for order in orders:
        order.take(AT, [whole(0)], WAIT)
        assert order.take(AT, runs, WAIT) == []
    last = Order(of_all)
    last.take(AT, [whole(0)], WAIT)
    came = 0
    for number in range(2, held + 2):
        came += len(last.take(AT, [whole(number)], WAIT))
    assert came > held // 2  # the others hold what there is, so its flows go on as they come
    assert of_all.bytes <= MOST_HELD_OF_ALL
    for order in (last, *orders[1:]):
        order.forget()
    orders[0].due(Instant(AT + WAIT))
    assert of_all.bytes == 0


def test_without_repair_for_a_while_no_flow_is_looked_at() -> None:
    order = Order()
    order.take(AT, [whole(0)], WAIT)
    assert order
    order.take(Instant(AT + FORGET_AFTER + 1), [whole(1, kept=False)], WAIT)
    assert not order


@pytest.mark.parametrize("seed", range(20))
def test_everything_comes_out_once_and_in_order_whatever_the_order_in_which_it_comes(seed: int) -> None:
    rng = random.Random(seed)
    order = Order()
    arriving = [(number + rng.uniform(0, 20), number) for number in range(1, 300)]
    came = numbers(order.take(AT, [whole(0)], WAIT))
    for _, number in sorted(arriving):
        came += numbers(order.take(AT, [whole(number)], WAIT))
    assert came == list(range(300))
