"""Datagrams between the sockets of a rendezvous server and its core: all that has come is handled, and then all answers leave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import trio

from tunnel.doors.tls.server import TlsListener
from tunnel.doors.udp.batches import BatchSocket, Letter, by_batches
from tunnel.doors.udp.socket import UdpSocket
from tunnel.faults import Faults
from tunnel.rendezvous.load import BURST, TYPICAL, Cost, Kind
from tunnel.rendezvous.messages import PUSH_ACK, REQUEST
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.shell.outside import Views
from tunnel.units import CHANNEL_BYTE, Address, Buffer, Instant, ReceivedBatch, Seconds, SocketId, Transmit

if TYPE_CHECKING:
    from tunnel.shell.fleet import Feed

FIRST_LOCAL_ID: Final = 20_000  # socket ids of our addresses behind a wildcard; pairs, like those of the sockets
MAX_LOCALS: Final = 64  # addresses that are answered from one by one; for further ones the system chooses the source
BATCHES_PER_TURN: Final = 128  # receives of one socket before the others get their turn; two milliseconds at most
BEHIND_AFTER: Final = Seconds(0.03)  # without an empty queue of a socket, and it counts as one that is not read fast enough
WRITABLE_PATIENCE: Final = Seconds(0.005)  # what is relayed waits no longer for a full send buffer: it is lost, as in any router


class _Source:
    """One address of ours on a socket that is bound to all of them: what was asked there is answered from there."""

    __slots__ = ("_host", "_udp")

    def __init__(self, udp: BatchSocket, host: str) -> None:
        self._udp = udp
        self._host = host

    def post(self, remote: Address, buffer: Buffer, segment_size: int, ecn: int = 0) -> bool:
        return self._udp.post(remote, buffer, segment_size, ecn, self._host)

    def post_all(self, letters: Iterable[Letter]) -> int:
        return self._udp.post_all(letters, self._host)

    async def wait_writable(self) -> None:
        await self._udp.wait_writable()


class _TlsDoor:
    """A listener for TLS, posted to like a socket; what is posted leaves at once, and never has to wait."""

    __slots__ = ("_listener",)

    def __init__(self, listener: TlsListener) -> None:
        self._listener = listener

    def post(self, remote: Address, buffer: Buffer, segment_size: int, ecn: int = 0) -> bool:
        return self._listener.send(remote, memoryview(buffer), segment_size, None, ecn)

    def post_all(self, letters: Iterable[Letter]) -> int:
        return sum([not self.post(remote, data, len(data)) for _, remote, data in letters])

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()


class ServerLoop:
    """Moves datagrams between the sockets and the server."""

    def __init__(
        self,
        server: Server,
        sockets: dict[SocketId, UdpSocket],
        listeners: dict[SocketId, TlsListener],
        clock: Callable[[], Instant],
        faults: Faults,
        views: Views | None = None,
    ) -> None:
        self.faults = faults
        self._views = Views() if views is None else views
        self._server = server
        self._sockets = {each: by_batches(udp) for each, udp in sockets.items()}
        self._doors: dict[SocketId, BatchSocket | _TlsDoor | _Source] = {
            **self._sockets,
            **{each: _TlsDoor(listener) for each, listener in listeners.items()},
        }
        self._locals: dict[tuple[SocketId, str], SocketId] = {}  # by wildcard socket and address of ours
        self._clock = clock
        self._armed: float = math.inf
        self._wakeup = trio.Event()
        self._is_leaving = False
        self.feed: Feed | None = None  # of a fleet

    def changed(self) -> None:
        """Something came from elsewhere than a socket."""
        self.flush()
        self._wakeup.set()

    async def run_socket(self, socket_id: SocketId) -> None:
        udp = self._sockets[socket_id]
        turn = 0
        full_since: Instant | None = None
        while True:
            batches = udp.receive_many()
            now = self._clock()
            if batches:
                full_since = now if full_since is None else full_since
                self._server.look(now, now - full_since > BEHIND_AFTER)
                await self._process_all(socket_id, batches, now)
                turn += len(batches)
            if udp.is_drained:
                turn, full_since = 0, None
                await udp.wait_readable()
            elif turn >= BATCHES_PER_TURN or not batches:
                turn = 0
                await trio.lowlevel.checkpoint()

    def _at(self, socket_id: SocketId, host: str) -> SocketId:
        """The id of one of our addresses on a wildcard socket.  The first datagram to it makes one for each of the two ports."""
        known = self._locals.get((socket_id, host))
        if known is not None:
            return known
        if len(self._locals) >= 2 * MAX_LOCALS:
            return socket_id
        first = FIRST_LOCAL_ID + len(self._locals)
        for each, twin in ((socket_id & ~1, 0), (socket_id | 1, 1)):
            udp = self._sockets[SocketId(each)]
            made = self._locals[SocketId(each), host] = SocketId(first + twin)
            self._doors[made] = _Source(udp, host)
            place = Address(host, udp.local_address.port)
            self._server.add_socket(ServerSocket(made, place, SocketId(first + (1 - twin))))
        return self._locals[socket_id, host]

    async def handle(self, socket_id: SocketId, batch: ReceivedBatch) -> bool:
        """Handle one receive of a TLS connection.  Return whether it brought something from a client."""
        before, now = self._server.proofs, self._clock()
        self._server.look(now, False)
        await self._process_all(socket_id, [batch], now)
        return self._server.proofs != before

    async def _process_all(self, socket_id: SocketId, batches: list[ReceivedBatch], now: Instant) -> None:
        """Handle what came at once, and all that follows from it.  Work that is no relaying is charged the time that it took."""
        server, doors, locals_ = self._server, self._doors, self._locals
        views = self._views if self._views else None
        began = time.thread_time()
        costs: list[Cost] = []
        refreshed = relayed = others = 0
        for batch in batches:
            remote, buffer, stride, ecn, local = batch
            here = (locals_.get((socket_id, local)) or self._at(socket_id, local)) if local else socket_id
            if views is not None and views.hear(socket_id, batch):
                continue
            kind, is_alone = buffer[0], len(buffer) <= stride
            try:
                if is_alone:
                    if kind == REQUEST:
                        answer = server.refreshed(now, here, remote, buffer)
                        if answer is not None:
                            refreshed += 1
                            if not doors[here].post(remote, answer, len(answer)):
                                server.drops["server_congested"] += 1
                            continue
                    elif kind == PUSH_ACK:
                        others += 1
                        server.acknowledged(now, buffer)
                        continue
                    elif kind >= CHANNEL_BYTE:
                        side = server.passed_on(now, here, remote, buffer)
                        if side is not None:
                            relayed += 1
                            if side.remote is not None and not doors[side.socket_id].post(side.remote, buffer, stride, ecn):
                                began = 0.0  # others work meanwhile
                                await self._send_late(Transmit(side.socket_id, side.remote, stride, buffer, None, ecn))
                            continue
                    if kind < CHANNEL_BYTE:
                        costs.append(server.handle_alone(now, here, remote, buffer))
                        continue
                bursts = server.handle_batch(now, here, remote, buffer, stride, ecn)
            except Exception as error:
                self.faults.note("datagram", f"dropped datagrams from {remote}", error)
                continue
            for burst in bursts:
                # a view of the socket's buffer: must be gone before the next receive
                if not doors[burst.socket_id].post(burst.remote, burst.buffer, burst.segment_size, burst.ecn):
                    began = 0.0
                    await self._send_late(burst)
            if self._is_relayed(batch):
                relayed += 1
            else:
                costs.append(server.cost(remote, -(-len(buffer) // stride)))
        self.post_answers()
        for udp in self._sockets.values():
            if not udp.deliver():
                began = 0.0
                await self._deliver_late(udp)
        if self.feed is not None:
            self.feed.look()
        deadline = server.poll_timeout()
        if deadline is not None and deadline < self._armed:
            self._wakeup.set()
        spent = time.thread_time() - began - relayed * BURST if began else None
        self._charge(now, costs, refreshed, others, spent)

    def _charge(self, now: Instant, costs: list[Cost], refreshed: int, others: int, seconds: float | None) -> None:
        """Each datagram its part of that time, or what is typical where it was not measured.  `others`: those of nobody."""
        costs += (("", refreshed, Kind.KNOWN, 0.0), ("", others, Kind.DROPPED, 0.0))
        datagrams = sum([count for _, count, _, _ in costs])
        if datagrams:
            self._server.load.charge_all(now, costs, TYPICAL if seconds is None else seconds / datagrams)

    @staticmethod
    def _is_relayed(batch: ReceivedBatch) -> bool:
        """Whether every datagram is for the relay: none other goes uncharged, whatever it stands behind."""
        buffer, stride = batch.buffer, batch.stride
        return buffer[0] >= CHANNEL_BYTE and (len(buffer) <= stride or min(bytes(buffer[::stride])) >= CHANNEL_BYTE)

    async def _send_late(self, burst: Transmit) -> None:
        """The send buffer of a UDP socket is full: wait a moment, then the burst is lost."""
        door = self._doors[burst.socket_id]
        with trio.move_on_after(WRITABLE_PATIENCE):
            await door.wait_writable()
            if door.post(burst.remote, burst.buffer, burst.segment_size, burst.ecn):
                return
        self._server.drops["relay_congested"] += 1

    async def _deliver_late(self, udp: BatchSocket) -> None:
        """Likewise for what was posted."""
        with trio.move_on_after(WRITABLE_PATIENCE):
            await udp.wait_writable()
            if udp.deliver():
                return
        self._server.drops["server_congested"] += udp.give_up()

    def flush(self) -> None:
        """Answers and pushes; what a full buffer does not take is asked for again, so goodbyes do not leave this way."""
        self.post_answers()
        for udp in self._sockets.values():
            if not udp.deliver():
                self._server.drops["server_congested"] += udp.give_up()

    def post_answers(self) -> None:
        if self._is_leaving:
            return
        with self.faults.wall("answers", "interrupted the sending"):
            for socket_id, answers in groupby(self._server.answers(), itemgetter(0)):
                lost = self._doors[socket_id].post_all(answers)
                if lost:
                    self._server.drops["server_congested"] += lost

    async def say_goodbye(self) -> None:
        """Bye to every client, as fast as the sockets take it; TLS connections are there until then."""
        self.flush()
        self._is_leaving = True
        self._server.stop(self._clock())
        turn = 0
        with self.faults.wall("answers", "interrupted the goodbyes"):
            while (transmit := self._server.poll_transmit(self._clock())) is not None:
                door = self._doors[transmit.socket_id]
                while not door.post(transmit.remote, transmit.buffer, transmit.segment_size):
                    await door.wait_writable()
                turn += 1
                if turn % BATCHES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            for udp in self._sockets.values():
                while not udp.deliver():
                    await udp.wait_writable()

    async def run_timers(self) -> None:
        while True:
            self._wakeup = trio.Event()
            now = self._clock()
            with self.faults.wall("timers", "interrupted the timers"):
                self._server.handle_timeout(now)
            self.flush()
            if self.feed is not None:
                self.feed.look()
            deadline = self._server.poll_timeout()
            self._armed = math.inf if deadline is None else deadline
            with trio.move_on_after(max(0.0, self._armed - self._clock())):
                await self._wakeup.wait()
