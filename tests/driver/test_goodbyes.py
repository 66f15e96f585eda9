"""Goodbyes of a server whose socket is full while requests still come."""

from __future__ import annotations

from typing import Any, cast

import trio

from tunnel.doors.udp.socket import UdpSocket
from tunnel.faults import Faults
from tunnel.rendezvous.server import Server
from tunnel.shell.server_loop import ServerLoop
from tunnel.units import Address, Instant, SocketId, Transmit

CLIENTS = 100


class LeavingServer:
    """Has a Bye for each client once it is stopped."""

    def __init__(self) -> None:
        self.byes: list[Transmit] = []
        self.drops = {"server_congested": 0}

    def stop(self, now: Instant) -> None:
        places = (Address("192.0.2.1", 1_000 + number) for number in range(CLIENTS))
        self.byes = [Transmit(SocketId(0), place, 3, memoryview(b"bye")) for place in places]

    def answers(self) -> tuple[()]:
        return ()

    def poll_transmit(self, now: Instant) -> Transmit | None:
        return self.byes.pop(0) if self.byes else None


class SmallSocket:
    """Takes two datagrams, and then none before somebody has waited."""

    def __init__(self) -> None:
        self.room = 2
        self.sent: set[Address] = set()

    def send(self, remote: Address, buffer: memoryview, segment_size: int, *_more: Any) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.add(remote)
        return True

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        self.room = 2


async def test_a_request_that_comes_meanwhile_takes_nobodys_goodbye() -> None:
    server, door = LeavingServer(), SmallSocket()
    loop = ServerLoop(cast(Server, server), {SocketId(0): cast(UdpSocket, door)}, {}, lambda: Instant(0.0), Faults())

    async def answer_requests() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            loop.flush()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_requests)
        await loop.say_goodbye()
        nursery.cancel_scope.cancel()
    assert len(door.sent) == CLIENTS
    assert server.drops["server_congested"] == 0
