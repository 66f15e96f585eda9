"""Two members of a room, each with the twin of an interface, and the packets that they exchange."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import trio

from tests.driver.core_link import CoreLinks
from tests.twins.tap import ALL_OFFLOADS, MemoryTap
from tests.unit.ip.packets import (
    A4,
    A6,
    B4,
    B6,
    Flow,
)
from tunnel.doors.tun.device import TapDevice
from tunnel.room.members import LanAddresses
from tunnel.room.plane import LanForward
from tunnel.shell.packets import PacketDoor
from tunnel.units import Transmit

SUBNET = A4[:3] + b"\0"
MAC = {"a": b"\x02pt\0\0\x01", "b": b"\x02pt\0\0\x02"}
NAMES = {"a": LanAddresses("ann", b"a" * 32, A4, (A6,)), "b": LanAddresses("bob", b"b" * 32, B4, (B6,))}
OUR_PORT = 41_641
DATAGRAM = struct.pack("!HHHH", 5, 5, 8, 0)
PARTIAL, TCPV4, TCPV6, UDP_L4 = 1, 1, 4, 5


class Door:
    """A PacketDoor that delivers at once, or blocks."""

    def __init__(self, links: CoreLinks, side: str) -> None:
        self._links, self._side = links, side
        self.is_open = trio.Event()
        self.is_open.set()
        self.bursts = 0
        self.flush = links.flush

    @staticmethod
    def is_ours(port: int) -> bool:
        return port == OUR_PORT

    def send(self, burst: Transmit) -> bool:
        if not self.is_open.is_set():
            return False
        self.bursts += 1
        self._links.deliver(self._side, burst)
        return True

    async def wait_writable(self, burst: Transmit) -> None:
        await self.is_open.wait()


class Lan:
    """Ann and Bob, each with an interface; `far` is what comes out at Bob's."""

    def __init__(self, offloads: int = ALL_OFFLOADS) -> None:
        self.links = CoreLinks()
        self.taps = {"a": MemoryTap("a"), "b": MemoryTap("b", offloads=offloads)}
        self.mtus: list[int] = []
        self.doors = {side: Door(self.links, side) for side in "ab"}
        self.forwards = {side: self._forward(side) for side in "ab"}

    def _forward(self, side: str) -> LanForward:
        async def set_mtu(mtu: int) -> None:
            self.mtus.append(mtu)

        other = "b" if side == "a" else "a"
        forward = LanForward(cast(TapDevice, self.taps[side]), clock=self.links.now, set_mtu=set_mtu)
        forward.set_roster(NAMES[side], SUBNET, [NAMES[other]], MAC[side])
        link = self.links.near if side == "a" else self.links.far
        link.door = cast(PacketDoor, self.doors[side])
        forward.set_link(NAMES[other].static, link)
        return forward

    def send(self, packet: bytes, *, flags: int = 0, kind: int = 0, gso: int = 0, start: int = 0, offset: int = 0) -> None:
        """Ann's host sends a frame."""
        ethertype = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        virtio = struct.pack("=BBHHHH", flags, kind, 0, gso, start, offset)
        assert self.taps["a"].send_from_host(virtio + MAC["a"] + MAC["a"] + ethertype + packet)

    async def received(self) -> list[bytes]:
        """Everything that came out at Bob's by the time that nothing moves any more."""
        await trio.testing.wait_all_tasks_blocked(0.01)
        found = list(self.taps["b"].written)
        self.taps["b"].written.clear()
        return found

    def drops(self, side: str) -> dict[str, int]:
        return {reason: count for reason, count in self.forwards[side].table.drops.items() if count}


@asynccontextmanager
async def a_lan(**options: Any) -> AsyncIterator[Lan]:
    lan = Lan(**options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lan.links.run)
        await trio.sleep(1)  # virtual: keys are confirmed, the path's size is known
        for forward in lan.forwards.values():
            nursery.start_soon(forward.run)
        yield lan
        nursery.cancel_scope.cancel()


def packets(frames: list[bytes]) -> list[bytes]:
    return [frame[24:] for frame in frames]


def send_super(lan: Lan, flow: Flow, payload: bytes, step: int) -> None:
    start = 14 + flow.head_size - (20 + len(flow.options) if flow.protocol == 6 else 8)
    kind = UDP_L4 if flow.protocol == 17 else TCPV4 if flow.version == 4 else TCPV6
    packet = flow.packet(payload, partial=True)
    lan.send(packet, flags=PARTIAL, kind=kind, gso=step, start=start, offset=16 if flow.protocol == 6 else 6)
