"""A member whose own network clashes with the room's does without IPv4: others, whose programs try it first, hear so at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.twins.tap import MemoryTap
from tests.unit.ip.packets import A4, A6, B4, B6, SYN, Flow, ip4
from tunnel.doors.tun.device import TapDevice
from tunnel.room.core.discovery import EVERYBODY_BURST
from tunnel.room.ip.filter import WRONG_DESTINATION
from tunnel.room.members import LanAddresses, LanPeer, LanTable
from tunnel.room.receive import LanReceiver
from tunnel.shell.packets import PacketRun
from tunnel.units import Instant

ME = LanAddresses("me", b"m" * 32, B4, (B6,))
OTHER = LanAddresses("other", b"o" * 32, A4, (A6,))
SUBNET = B4[:3] + b"\0"
FIRST_TRY = Flow(flags=SYN).packet(b"")


class Here:
    """We in a room with one other."""

    def __init__(self) -> None:
        self.table = LanTable(ME, SUBNET)
        self.table.set(ME, SUBNET, [OTHER])
        self.tap = MemoryTap()
        self.sent: list[bytes] = []
        self.receiver = LanReceiver(self.table, cast(TapDevice, self.tap), b"\x02pt\0\0\x02", self._send)

    @property
    def member(self) -> LanPeer:
        return self.table.members[OTHER.static]

    def _send(self, member: LanPeer, packet: bytes) -> None:
        assert member is self.member
        self.sent.append(packet)

    def take(self, packet: bytes, at: float = 1000.0) -> tuple[int, int]:
        """How many frames of one packet went to the kernel, and how many packets back."""
        self.member.link = cast(Any, SimpleNamespace(packets=SimpleNamespace(room=1300)))
        before = len(self.tap.written), len(self.sent)
        self.receiver.take(self.member, Instant(at), [PacketRun(b"", [memoryview(packet)], len(packet), 0, 0, True, False, 0)])
        return len(self.tap.written) - before[0], len(self.sent) - before[1]


@pytest.fixture
def here() -> Here:
    return Here()


def test_where_the_interface_has_its_address_nothing_is_refused(here: Here) -> None:
    assert here.take(FIRST_TRY) == (1, 0)


def test_where_it_has_none_the_first_packet_is_answered_and_ipv6_comes_in_as_ever(here: Here) -> None:
    here.table.set_has_ipv4(False)
    assert here.take(FIRST_TRY) == (0, 1)
    reply = here.sent[0]
    assert (reply[12:16], reply[16:20], reply[20:22]) == (B4, A4, b"\x03\x0a")
    assert reply[28:] == FIRST_TRY
    assert here.table.drops[WRONG_DESTINATION] == 1
    assert here.take(Flow(version=6, flags=SYN).packet(b"")) == (1, 0)
    assert here.take(ip4(17, bytes(40), destination=bytes((10, 99, 0, 1)))) == (0, 0), "what was never for us has no answer"
    here.table.set(ME, SUBNET, [OTHER])
    assert here.take(FIRST_TRY) == (0, 1), "after a newer roster, too"
    here.table.set_has_ipv4(True)
    assert here.take(FIRST_TRY) == (1, 0)


def test_who_floods_us_is_answered_at_the_rate_of_what_goes_to_everybody(here: Here) -> None:
    here.table.set_has_ipv4(False)
    answers = sum(here.take(FIRST_TRY)[1] for _ in range(2 * EVERYBODY_BURST))
    assert answers == EVERYBODY_BURST
    assert here.take(FIRST_TRY, at=1001.0) == (0, 1)
