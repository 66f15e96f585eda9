"""Has another server write to sockets of ours unasked, under trio: those of a server that runs, or of one that is to run here."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import trio

from tunnel.doors.udp.socket import UdpSocket
from tunnel.errors import OfflineError
from tunnel.host.clock import boottime
from tunnel.node.outside import Outside
from tunnel.server_spec import parse_server
from tunnel.shell.places import NO_NETWORK, has_network, unknown_name
from tunnel.units import Address, ReceivedBatch, SocketId

LONGEST_SLEEP: Final = 1.0  # seconds


class View(NamedTuple):
    """One socket of ours as another server sees it."""

    bind: str  # ours
    server: str  # which was asked
    seen: str | None  # our address there; None: it does not answer
    has_second: bool  # it has a port from which it can write unasked
    is_reached: bool  # what it wrote from there has come
    clock_off_s: float | None  # by how much our clock is ahead of its; None: it does not tell

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


async def servers_named(name: str, place: str) -> dict[bool, Address]:
    """The addresses of a server, by whether they are IPv6.  Raises ConfigurationError, ServerUnreachableError."""
    host, port = parse_server(name, place)
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise (unknown_name(host, error) if has_network() else OfflineError(NO_NETWORK)) from None
    addresses: dict[bool, Address] = {}
    for *_, sockaddr in found:
        address = Address(str(sockaddr[0]), port)
        addresses.setdefault(address.is_ipv6, address)
    return addresses


class Views:
    """Questions that are under way, by socket.  Whoever receives hands batches to `hear`; `ask` sends, and waits for the end."""

    def __init__(self, unix_time: Callable[[], float] = time.time) -> None:
        self._asked: dict[SocketId, Outside] = {}
        self._unix_time = unix_time
        self._news = trio.Event()
        self._turn = trio.Lock()  # of those who ask

    def __bool__(self) -> bool:
        """Whether anything is asked now; else nothing that comes is looked at."""
        return bool(self._asked)

    def hear(self, socket_id: SocketId, batch: ReceivedBatch) -> bool:
        """Whether all of the batch was an answer to a question of ours."""
        outside = self._asked.get(socket_id)
        if outside is None:
            return False
        parts = range(0, len(batch.buffer), batch.stride)
        taken = [outside.handle_datagram(boottime(), batch.remote, batch.buffer[at : at + batch.stride]) for at in parts]
        if any(taken):
            self._news.set()
        return all(taken)

    async def ask(self, sockets: Mapping[SocketId, UdpSocket], servers: Mapping[bool, Address]) -> list[View]:
        """Some seven seconds at most.  A socket of a family that the server lacks is left out."""
        async with self._turn:
            now = boottime()
            mine = {each: udp for each, udp in sockets.items() if udp.is_ipv6 in servers}
            self._asked = {each: Outside(servers[udp.is_ipv6], now=now, entropy=os.urandom) for each, udp in mine.items()}
            try:
                await self._drive(mine)
                return [self._view(udp, self._asked[each]) for each, udp in mine.items()]
            finally:
                self._asked = {}

    async def _drive(self, sockets: Mapping[SocketId, UdpSocket]) -> None:
        while not all(each.is_done for each in self._asked.values()):
            self._news = trio.Event()
            for socket_id, outside in self._asked.items():
                now = boottime()
                outside.handle_timeout(now)
                while (datagram := outside.poll_transmit(now)) is not None:
                    sockets[socket_id].send(outside.server, memoryview(datagram), len(datagram))
            due = min((at for each in self._asked.values() if (at := each.poll_timeout()) is not None), default=math.inf)
            with trio.move_on_after(min(LONGEST_SLEEP, max(0.001, due - boottime()))):
                await self._news.wait()

    def _view(self, udp: UdpSocket, outside: Outside) -> View:
        ahead = None
        if outside.calendar is not None:
            calendar, heard_at = outside.calendar
            ahead = round(self._unix_time() - (calendar + boottime() - heard_at), 3)
        seen = None if outside.seen is None else str(outside.seen)
        return View(str(udp.local_address), str(outside.server), seen, outside.has_second, outside.is_reached, ahead)


async def view_from(sockets: Iterable[UdpSocket], servers: Mapping[bool, Address]) -> list[View]:
    """The same for sockets that nobody else reads."""
    views = Views()
    numbered = {SocketId(number): each for number, each in enumerate(sockets)}

    async def receive(socket_id: SocketId, udp: UdpSocket) -> None:
        while True:
            await udp.wait_readable()
            while (batch := udp.receive()) is not None:
                views.hear(socket_id, batch)

    async with trio.open_nursery() as nursery:
        for socket_id, udp in numbered.items():
            nursery.start_soon(receive, socket_id, udp)
        found = await views.ask(numbered, servers)
        nursery.cancel_scope.cancel()
    return found
