"""The ACKs that an interface hands over in one turn: the newest leaves for all that it makes needless, and none waits."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import trio

from tests.driver.lan_doors import PARTIAL, Lan, a_lan, packets, send_super
from tests.unit.ip.packets import ACK, ECE, PSH, Flow
from tunnel.room.send import FRAMES_A_TURN, NEEDLESS_IN_A_ROW

NEEDLESS = "ACK that a newer one made needless"
STAMPED = Flow(options=b"\1\1\x08\x0a" + bytes(8))


def ack(number: int, flow: Flow = STAMPED) -> bytes:
    """With a partial checksum, as a kernel hands it over: the pseudo-header's sum, which the number is no part of."""
    packet = bytearray(flow.packet(b"", partial=True))
    struct.pack_into("!I", packet, 28 if flow.version == 4 else 48, number & 0xFFFF_FFFF)
    return bytes(packet)


def send(lan: Lan, packet: bytes) -> None:
    lan.send(packet, flags=PARTIAL, start=34 if packet[0] >> 4 == 4 else 54, offset=16)


@pytest.mark.parametrize("flow", [Flow(), Flow(version=6), STAMPED, replace(STAMPED, version=6)])
@pytest.mark.parametrize("start", [1000, 0xFFFF_FFFF - 40_000])
async def test_one_ack_leaves_for_all_of_a_turn(autojump_clock: object, flow: Flow, start: int) -> None:
    async with a_lan() as lan:
        sent = [ack(start + 9_000 * number, replace(flow, ident=number)) for number in range(10)]
        for packet in sent:
            send(lan, packet)
        assert packets(await lan.received()) == [sent[-1]]
        assert lan.drops("a") == {NEEDLESS: 9}


async def test_so_many_in_a_row_and_no_more(autojump_clock: object) -> None:
    async with a_lan() as lan:
        sent = [ack(1000 * number) for number in range(2 * NEEDLESS_IN_A_ROW + 5)]
        for packet in sent:
            send(lan, packet)
        last = len(sent) - 1
        every = [sent[at] for at in (NEEDLESS_IN_A_ROW, 2 * NEEDLESS_IN_A_ROW + 1, last)]
        assert packets(await lan.received()) == every
        assert lan.drops("a") == {NEEDLESS: len(sent) - 3}


async def test_an_ack_waits_for_no_other_turn(autojump_clock: object) -> None:
    async with a_lan() as lan:
        for number in range(5):
            send(lan, ack(number))
            lan.forwards["a"].pump()
            assert packets(list(lan.taps["b"].written)) == [ack(at) for at in range(number + 1)]
        assert lan.drops("a") == {}


async def test_a_turn_that_ends_in_the_middle_sends_what_it_kept(autojump_clock: object) -> None:
    async with a_lan() as lan:
        lan.taps["a"].queue_length = 2 * FRAMES_A_TURN
        for number in range(FRAMES_A_TURN + 1):
            send(lan, ack(number))
        assert lan.forwards["a"].pump() is False
        before = packets(list(lan.taps["b"].written))
        assert before[-1] == ack(FRAMES_A_TURN - 1)
        assert packets(await lan.received()) == [*before, ack(FRAMES_A_TURN)]


async def test_duplicates_and_window_updates_all_leave(autojump_clock: object) -> None:
    async with a_lan() as lan:
        update = bytearray(ack(5_000))
        update[34:36] = b"\x12\x34"
        sent = [ack(5_000), ack(5_000), ack(5_000), bytes(update), ack(5_000)]
        for packet in sent:
            send(lan, packet)
        assert packets(await lan.received()) == sent
        send(lan, ack(5_000))  # a duplicate of one in an earlier turn ...
        send(lan, ack(6_000))  # ... is not thrown away for what comes next
        send(lan, ack(7_000))
        assert packets(await lan.received()) == [ack(5_000), ack(7_000)]
        assert lan.drops("a") == {NEEDLESS: 1}


@pytest.mark.parametrize(
    "between",
    [
        Flow(flags=ACK | ECE, options=STAMPED.options).packet(b""),
        Flow(options=STAMPED.options + b"\1\1\5\x0a" + bytes(8)).packet(b""),
        Flow(options=STAMPED.options, flags=ACK | PSH).packet(b"data"),
        Flow(options=STAMPED.options, ports=(1, 2)).packet(b""),
        Flow(protocol=17).packet(b"game"),
        Flow(version=6).packet(b""),
    ],
)
async def test_whatever_comes_between_is_not_overtaken(autojump_clock: object, between: bytes) -> None:
    async with a_lan() as lan:
        for packet in (ack(1), ack(2), between, ack(3), ack(4)):
            lan.send(packet) if packet is between else send(lan, packet)
        assert packets(await lan.received()) == [ack(2), between, ack(4)]
        assert lan.drops("a") == {NEEDLESS: 2}


async def test_super_packets_and_datagrams_go_on_around_acks(autojump_clock: object) -> None:
    async with a_lan() as lan:
        game = [Flow(protocol=17, ident=number).packet(b"x" * 24) for number in range(4)]  # frames as large as those of ACKs
        bulk = Flow(ports=(7, 8))
        for packet in (game[0], game[1], ack(1), ack(2), game[2]):
            send(lan, packet) if packet[9] == 6 else lan.send(packet)
        send_super(lan, bulk, bytes(3000), 1000)
        for packet in (ack(3), ack(4), game[3], ack(5)):
            send(lan, packet) if packet[9] == 6 else lan.send(packet)
        got = packets(await lan.received())
        assert got[:4] == [game[0], game[1], ack(2), game[2]]
        assert [len(packet) for packet in got[4:-3]] == [3040]
        assert got[-3:] == [ack(4), game[3], ack(5)]


async def test_an_ack_whose_frame_is_another_kind_stands_for_none(autojump_clock: object) -> None:
    async with a_lan() as lan:
        send(lan, ack(1))
        lan.send(ack(2), flags=PARTIAL, start=60_000, offset=6)  # of a raw socket: it goes no further, so the one before must
        assert packets(await lan.received()) == [ack(1)]
        assert NEEDLESS not in lan.drops("a")


async def test_where_the_socket_blocks_the_kept_ack_is_stuck_with_the_rest(autojump_clock: object) -> None:
    async with a_lan() as lan:
        door = lan.doors["a"]
        door.is_open = trio.Event()
        data = Flow(options=STAMPED.options, flags=ACK | PSH).packet(b"data" * 100)
        for packet in (ack(1), ack(2), data, ack(3)):
            lan.send(packet) if packet is data else send(lan, packet)
        assert await lan.received() == []
        door.is_open.set()
        assert packets(await lan.received()) == [ack(2), data, ack(3)]
        assert lan.drops("a") == {NEEDLESS: 1}
