"""What honest clients want of a server: to pair by a code, to measure their mapping, to hear of a lost channel, to be relayed."""

from __future__ import annotations

import os
import random
import ssl
import statistics
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from tests.bench.floods.attacks import PEERS_ROOM, Target
from tests.unit.rendezvous.world import heard
from tunnel.host.clock import boottime
from tunnel.nat import stun
from tunnel.node.punching import QUESTION_SIZE
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.client import Client
from tunnel.units import CHANNEL_SIZE, Address, SocketId

PATIENCE: Final = 5.0  # seconds until a person would call it failed
ANSWER_PATIENCE: Final = 1.0  # seconds for one datagram's answer
PAIRINGS: Final = 4.0  # a second
QUESTIONS: Final = 20.0  # a second
KNOCKS: Final = 5.0  # a second, at the TLS door
FRAMES: Final = 64.0  # a second each way, as a game has
FRAME_SIZE: Final = 150  # bytes
SENT_AT: Final = struct.Struct(">d")
STANDING: Final = 30  # codes that wait for a friend all the time


@dataclass
class Tally:
    """One thing that the honest do."""

    asked: int = 0
    took: list[float] = field(default_factory=list)  # seconds of those that succeeded

    def __str__(self) -> str:
        if not self.asked:
            return "-"
        share = f"{100 * len(self.took) / self.asked:.1f} %"
        if len(self.took) < 2:
            return share
        ordered = sorted(self.took)
        middle, late = statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return f"{share} {1e3 * middle:.1f} / {1e3 * late:.1f} ms"


@dataclass
class Report:
    pairing: Tally = field(default_factory=Tally)
    mapping: Tally = field(default_factory=Tally)
    hints: Tally = field(default_factory=Tally)
    relay: Tally = field(default_factory=Tally)
    door: Tally = field(default_factory=Tally)  # for TLS, where there is one
    codes: int = 0  # that were waiting
    spent: int = 0  # of those, by strangers


def household(number: int) -> str:
    """An address of an honest client, each in another /24.  The first is the victim that forgers name."""
    return f"127.{1 + number // 200}.{number % 200}.1"


class Household:
    """A client on a socket of its own, which lives as long as the block."""

    def __init__(self, number: int, target: Target) -> None:
        self._number = number
        self._target = target
        self._news = trio.lowlevel.ParkingLot()
        self._events: list[events.ClientEvent] = []
        self.relayed: Callable[[bytes], None] = lambda data: None

    @asynccontextmanager
    async def at_home(self) -> AsyncIterator[Household]:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as self._socket:
            await self._socket.bind((household(self._number), 0))
            server = Address(*self._target.udp)
            self.client = Client(servers=[(SocketId(0), server)], now=boottime(), rng=random.Random(), entropy=os.urandom)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run)
                yield self
                nursery.cancel_scope.cancel()
            self.client.close(boottime())
            with trio.CancelScope(shield=True):
                await self.flush()

    async def send(self, data: bytes) -> None:
        await self._socket.sendto(data, self._target.udp)

    async def flush(self) -> None:
        while (out := self.client.poll_transmit(boottime())) is not None:
            await self._socket.sendto(out[2], tuple(out[1]))
        while (event := self.client.poll_event()) is not None:
            self._events.append(event)
            self._news.unpark_all()

    async def _run(self) -> None:
        while True:
            await self.flush()
            deadline = self.client.poll_timeout()
            with trio.move_on_after(max(0.0, (boottime() + 1.0 if deadline is None else deadline) - boottime())):
                data, source = await self._socket.recvfrom(2_048)
                if data[0] >= 0xC0:
                    self.relayed(data)
                else:
                    self.client.handle_datagram(boottime(), SocketId(0), Address(source[0], source[1]), data)
            self.client.handle_timeout(boottime())

    async def until(self, kind: type[Any]) -> Any:
        while True:
            for event in heard(self._events, kind):
                return event
            await self._news.park()


async def _timed(tally: Tally, patience: float, action: Callable[[], Awaitable[None]]) -> None:
    tally.asked += 1
    began = time.perf_counter()
    with trio.move_on_after(patience) as scope:
        await action()
    if not scope.cancelled_caught:
        tally.took.append(time.perf_counter() - began)


async def _pair(target: Target, number: int) -> None:
    """From nothing to the first answer through the mailbox."""
    async with Household(number, target).at_home() as owner, Household(number + 100, target).at_home() as friend:
        owner.client.allocate(boottime())
        await owner.flush()
        code = await owner.until(messages.Allocated)
        friend.client.claim(boottime(), code.nameplate, b"pake")
        await friend.flush()
        claim = await owner.until(messages.ClaimReceived)
        owner.client.post(boottime(), claim.mailbox, b"answer")
        await owner.flush()
        await friend.until(messages.ClaimAccepted)
        await friend.until(messages.Posted)


async def _ask(target: Target, number: int, question: bytes, first: int) -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((household(number % 200), 0))
        await sock.sendto(question, target.udp)
        while (await sock.recv(2_048))[0] != first:
            pass


async def _every(interval: float, end: float, action: Callable[[int], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(1_000_000):
            if trio.current_time() >= end:
                return
            nursery.start_soon(action, number)
            await trio.sleep(interval)


async def _relay(target: Target, tally: Tally, end: float) -> None:
    """Two who met in a room, and then speak through the server."""

    def heard(data: bytes) -> None:
        (sent_at,) = SENT_AT.unpack_from(data, CHANNEL_SIZE + 1)
        tally.took.append(time.perf_counter() - sent_at)

    room = os.urandom(messages.ROOM_SIZE)
    async with Household(201, target).at_home() as listener, Household(202, target).at_home() as dialer:
        listener.relayed = dialer.relayed = heard
        listener.client.listen(boottime(), [PEERS_ROOM, room])
        await listener.flush()
        await trio.sleep(1.0)  # whoever else dials it comes first
        dialer.client.dial(boottime(), [room])
        await dialer.flush()
        tally.asked += 1  # a pair that is not led together fails as a whole
        introduced: Any = None
        with trio.move_on_at(end):
            introduced = await dialer.until(messages.Introduced)
        if introduced is None:
            return
        tally.asked -= 1
        channel = introduced.channel.channel
        while trio.current_time() < end:
            for who in (listener, dialer):
                await who.send((channel + b"\x80" + SENT_AT.pack(time.perf_counter())).ljust(FRAME_SIZE, b"."))
                tally.asked += 1
            await trio.sleep(1 / FRAMES)
        await trio.sleep(ANSWER_PATIENCE)


async def _wait_for_a_friend(target: Target, number: int, report: Report, end: float) -> None:
    async with Household(number, target).at_home() as owner:
        owner.client.allocate(boottime())
        await owner.flush()
        await owner.until(messages.Allocated)
        report.codes += 1
        with trio.move_on_at(end):
            await owner.until(messages.ClaimReceived)
            report.spent += 1


async def _knock(target: Target, number: int) -> None:
    """From nothing to the first answer over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    sock = trio.socket.socket()
    try:
        await sock.bind((household(number % 200), 0))
        await sock.connect((target.host, target.tls_port))
        stream = trio.SSLStream(trio.SocketStream(sock), context)
        request = messages.encode_request(random.getrandbits(64), os.urandom(messages.SESSION_SIZE), messages.Hello())
        await stream.send_all(len(request).to_bytes(2, "big") + request)
        assert await stream.receive_some(2_048)
    finally:
        sock.close()


async def serves(target: Target) -> None:
    """Returns when two have paired by a code and a question was answered; raises TooSlowError when that takes for ever."""
    question = stun.encode_binding_request(bytes(12), padding_to=QUESTION_SIZE)
    with trio.fail_after(10 * PATIENCE):
        await _pair(target, 90)
        while True:
            with trio.move_on_after(ANSWER_PATIENCE):
                await _ask(target, 190, question, 1)
                return


async def live(target: Target, seconds: float) -> Report:
    """All of it at once, for so long."""
    report = Report()
    end = trio.current_time() + seconds
    question = stun.encode_binding_request(bytes(12), padding_to=QUESTION_SIZE)

    async def pair(number: int) -> None:
        await _timed(report.pairing, PATIENCE, lambda: _pair(target, number % 100))

    async def measure(number: int) -> None:
        await _timed(report.mapping, ANSWER_PATIENCE, lambda: _ask(target, number, question, 1))

    async def knock(number: int) -> None:
        with suppress(OSError, trio.BrokenResourceError):
            await _timed(report.door, PATIENCE, lambda: _knock(target, number))

    async def hint(number: int) -> None:
        lost = bytes((0xC1,)) + os.urandom(7) + b"\x80" + bytes(60)
        await _timed(report.hints, ANSWER_PATIENCE, lambda: _ask(target, number, lost, messages.PUSH))

    async with trio.open_nursery() as nursery:
        for number in range(STANDING):
            nursery.start_soon(_wait_for_a_friend, target, 250 + number, report, end)
        nursery.start_soon(_relay, target, report.relay, end)
        nursery.start_soon(_every, 1 / PAIRINGS, end, pair)
        nursery.start_soon(_every, 1 / QUESTIONS, end, measure)
        nursery.start_soon(_every, 1 / QUESTIONS, end, hint)
        if target.tls_port:
            nursery.start_soon(_every, 1 / KNOCKS, end, knock)
    return report
