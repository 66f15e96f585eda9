"""A LAN over a path that loses: which packets are sent again or twice, and how long others wait for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import trio

from tests.driver.lan_doors import NAMES, Lan, a_lan, packets, send_super
from tests.unit.connection.test_repeats import meter_of
from tests.unit.ip.packets import SYN, Flow
from tests.unit.room.test_order import whole
from tunnel.room.order import MOST_WAIT, WAIT_RTTS, WAIT_SLACK
from tunnel.room.send import EXPEDITED, SMALLEST_KEPT
from tunnel.shell.link import Link
from tunnel.transport.connection.connection import TAKES, Connection


def connection_of(lan: Lan) -> Connection:
    connection = lan.links.near.connection
    assert connection is not None
    return connection


def make_lossy(lan: Lan) -> None:
    """Ann's path to Bob loses a twentieth, as far as she knows."""
    connection = connection_of(lan)
    connection.peer_takes(TAKES)
    shared = connection._shared
    for half in (shared.repair.look, shared.repeats.judge):
        half(lan.links.now(), meter_of(0.05), shared.paths.current.recovery.rtt)


def kept(lan: Lan) -> int:
    """How many bursts of packets may be sent again."""
    return len(connection_of(lan)._shared.repair._kept)


LARGE = bytes(SMALLEST_KEPT)


@pytest.mark.parametrize(
    ("flow", "payload", "is_kept"),
    [
        (Flow(), LARGE, True),
        (Flow(version=6), LARGE, True),
        (Flow(), b"", False),
        (Flow(flags=SYN), b"", False),
        (Flow(tos=EXPEDITED << 2), LARGE, False),
        (Flow(version=6, tos=EXPEDITED << 2), LARGE, False),
        (Flow(protocol=17), LARGE, False),
    ],
)
async def test_large_packets_of_tcp_are_kept_unless_they_are_marked(
    autojump_clock: object, flow: Flow, payload: bytes, is_kept: bool
) -> None:
    async with a_lan() as lan:
        make_lossy(lan)
        lan.send(flow.packet(payload))
        assert packets(await lan.received()) == [flow.packet(payload)]
        assert kept(lan) == is_kept


@pytest.mark.parametrize(("flow", "is_kept"), [(Flow(), 1), (Flow(tos=EXPEDITED << 2), 0), (Flow(protocol=17), 0)])
async def test_super_packets_of_tcp_are_kept_unless_they_are_marked(autojump_clock: object, flow: Flow, is_kept: int) -> None:
    async with a_lan() as lan:
        make_lossy(lan)
        send_super(lan, flow, bytes(5000), 1000)
        await lan.received()
        assert kept(lan) == is_kept


async def test_small_packets_of_udp_are_sent_twice_and_come_once(autojump_clock: object) -> None:
    async with a_lan() as lan:
        make_lossy(lan)
        sent = [Flow(protocol=17, ident=number).packet(bytes(100)) for number in range(3)]
        for packet in sent:
            lan.send(packet)
        lan.send(Flow(protocol=17).packet(bytes(1000)))
        lan.send(Flow().packet(bytes(100)))
        assert len(await lan.received()) == 5
        await trio.sleep(1)
        assert await lan.received() == []
        assert connection_of(lan).stats().repeated == 3


async def test_what_waits_in_vain_is_written_in_time(autojump_clock: object) -> None:
    async with a_lan() as lan:
        forward = lan.forwards["b"]
        member = forward.table.members[NAMES["a"].static]
        forward._receiver.take(member, lan.links.now(), [whole(0), whole(2), whole(3)])
        assert len(await lan.received()) == 1
        await trio.sleep(MOST_WAIT + 0.1)
        assert len(await lan.received()) == 2
        assert lan.drops("b") == {"waited in vain for a lost packet": 1}
        forward._receiver.take(member, lan.links.now(), [whole(5)])
        forward._receiver.take(member, lan.links.now(), [whole(4)])
        assert len(await lan.received()) == 2


@pytest.mark.parametrize(("rtt", "wait"), [(0.04, WAIT_RTTS * 0.04 + WAIT_SLACK), (10.0, MOST_WAIT)])
async def test_no_packet_waits_longer_than_it_may(autojump_clock: object, rtt: float, wait: float) -> None:
    member = Lan().forwards["b"].table.members[NAMES["a"].static]
    member.link = cast(Link, SimpleNamespace(connection=SimpleNamespace(current_path=SimpleNamespace(smoothed_rtt=rtt))))
    assert member.wait == wait
