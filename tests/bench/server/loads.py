"""The loads: each returns a row of figures.  Times are CPU seconds of the server, so that other programs change them little."""

from __future__ import annotations

import math
import os
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from typing import Final

from tests.bench.server.crowd import Client, Crowd, ignore, room
from tests.bench.server.host import Host, serving, times
from tunnel.doors.udp import mmsg
from tunnel.host.collector import tamed
from tunnel.rendezvous import messages

STEP: Final = 0.001  # seconds between two bursts of the sender
STRETCH: Final = 0.005  # seconds' worth of what gamers send that leaves at once, where the sender was late
FRAME: Final = 150  # bytes of a game's datagram
SHEET: Final = 16  # datagrams of the load that leave at the same moment
UNBOUNDED: Final = 1e6  # datagrams a second of a pair: as many as come back, ...
WINDOW: Final = 1_024  # ... with so many on their way
FRAMES: Final = 64.0  # of them a second, each way
REFRESHES: Final = 0.1425  # requests a second of a client at rest, ...
HELLOS: Final = 0.05  # ... and of its other family
SAMPLE: Final = 16  # one datagram in so many is timed
_COOKIE: Final = slice(14, 31)  # in a Welcome
_TIME: Final = struct.Struct("<d")
_ARRIVED: Final = struct.Struct("@ll")  # struct timespec
SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h: the kernel tells when a datagram came into the buffer
_SPACE: Final = 128  # bytes of control messages of one datagram, with that one

Row = dict[str, str]


def quantiles(seconds: list[float]) -> Row:
    if len(seconds) < 100:
        return {"p50 ms": "-", "p99 ms": "-"}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50 ms": f"{1e3 * cuts[49]:.1f}", "p99 ms": f"{1e3 * cuts[98]:.1f}"}


def ticks(seconds: float, rate: float, stretch: float = math.inf) -> Iterator[int]:
    """How many are due, again and again for so long; what is due for longer than `stretch` is not made up for.

    Else a sender that was kept from sending for a while fills the server's buffer at once, which no crowd of clients does.
    """
    began, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = int(elapsed * rate) - sent
        sent += due
        yield int(min(due, max(1.0, stretch * rate)))
        if rate < UNBOUNDED:
            time.sleep(STEP)


def waiting(tree: str | None, peers: int, seconds: float, families: int) -> Row:
    """So many who wait, of one family or of two; the server on the first of our processors, and all clients on the last."""
    with serving(tree) as host, tamed():
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(host.process.pid, cores[:1])
        os.sched_setaffinity(0, cores[-1:])
        before = host.resident
        crowd = Crowd(host.port, peers)
        began = time.monotonic()
        crowd.register()
        registered = time.monotonic() - began
        memory = (host.resident - before) / peers
        others = Crowd(host.port, peers if families == 2 else 0, 4_000_000)
        clients, turn, other, seen = crowd.clients, 0, 0, 0
        latencies: list[float] = []
        sent = answered = 0

        def listen() -> None:
            nonlocal answered, seen
            now = time.monotonic()
            for client, data in crowd.heard():
                if data[0] == messages.RESPONSE:
                    answered += 1
                    if data[_COOKIE] != client.cookie:
                        client.cookie = bytes(data[_COOKIE])
                        client.refresh = b""
                    seen += 1
                    if seen % SAMPLE == 0 and client.sent_at:
                        latencies.append(now - client.sent_at)
            answered += sum(1 for _ in others.heard())

        share = HELLOS / (REFRESHES + HELLOS) if families == 2 else 0.0
        rate = peers * (REFRESHES + (HELLOS if families == 2 else 0.0))
        owed = cpu = wait = own_wait = 0.0
        for phase in (7.0, seconds):  # a round before it counts: all have their mean pace then
            taken = host.counters()["received_datagrams"]
            (cpu, wait), (_, own_wait), began, sent, answered = host.times, times(os.getpid()), time.monotonic(), 0, 0
            latencies.clear()
            for due in ticks(phase, rate):
                now = time.monotonic()
                for _ in range(min(due, 2_000)):
                    owed += share
                    if owed >= 1.0:
                        owed -= 1.0
                        client = others.clients[other % peers]
                        other += 1
                        others.say(client, client.again(messages.Hello()))
                    else:
                        client = clients[turn % peers]
                        turn += 1
                        client.sent_at = now
                        crowd.say(client, client.again(messages.Refresh()))
                    sent += 1
                crowd.deliver()
                others.deliver()
                listen()
            cpu, wait, own_wait = host.times[0] - cpu, host.times[1] - wait, times(os.getpid())[1] - own_wait
            elapsed = time.monotonic() - began
        time.sleep(0.3)
        listen()
        taken = host.counters()["received_datagrams"] - taken
        each = 1e6 * cpu / max(1, taken)
        return {
            "peers": f"{peers:,}",
            "families": str(families),
            "registered in s": f"{registered:.1f}",
            "messages/s": f"{sent / elapsed:,.0f}",
            "taken": f"{100 * taken / max(1, sent):.1f} %",
            "answered": f"{100 * answered / max(1, sent):.1f} %",
            "us each": f"{each:.1f}",
            "core": f"{100 * cpu / elapsed:.0f} %",
            "kept from it": f"{100 * wait / elapsed:.0f} %",
            "clients kept from theirs": f"{100 * own_wait / elapsed:.0f} %",
            **quantiles(latencies),
            "worst ms": f"{1e3 * max(latencies, default=0.0):.0f}",
            "bytes a peer": f"{memory:,.0f}",
        }


def introductions(tree: str | None, rate: float, seconds: float) -> Row:
    """A dialer meets a listener, both acknowledge, and the dialer leaves room and channel."""
    count = int(rate * seconds) + 100
    with serving(tree) as host:
        listeners, dialers = Crowd(host.port, count), Crowd(host.port, count, 4_000_000)
        listeners.register(1)
        met: list[float] = []
        done = sent = 0
        cpu, began = host.cpu, time.monotonic()

        def listen() -> None:
            nonlocal done
            now = time.monotonic()
            for client, data in listeners.heard():
                listeners.ack(client, data)
            for client, data in dialers.heard():
                if data[0] == messages.PUSH:
                    message = dialers.ack(client, data)
                    if isinstance(message, messages.Introduced) and not client.channel:
                        client.channel = message.channel
                        met.append(now - client.sent_at)
                        leave = messages.Leave(rooms=(message.room,), channels=(message.channel,))
                        dialers.say(client, client.request(leave))
                        done += 1
                elif data[0] == messages.RESPONSE and not client.cookie:
                    answer = messages.decode_response(bytes(data)).message
                    if isinstance(answer, messages.Retry):
                        client.cookie = answer.cookie
                        owner = listeners.clients[client.state]
                        dialers.say(client, client.request(messages.Join(messages.Role.DIAL, (room(owner),))))
            dialers.deliver()
            listeners.deliver()

        for due in ticks(seconds, rate):
            now = time.monotonic()
            for _ in range(min(due, 500, count - sent)):
                client = dialers.clients[sent]
                client.state, client.sent_at = sent, now
                dialers.say(client, client.request(messages.Hello()))
                sent += 1
            dialers.deliver()
            listen()
        elapsed = time.monotonic() - began
        cpu = host.cpu - cpu
        for _ in range(50):
            time.sleep(0.01)
            listen()
        return {
            "offered/s": f"{rate:,.0f}",
            "done/s": f"{done / elapsed:,.0f}",
            "met": f"{100 * done / max(1, sent):.1f} %",
            "us each": f"{1e6 * cpu / max(1, done):.0f}",
            "core": f"{100 * cpu / elapsed:.0f} %",
            **quantiles(met),
        }


class Games:
    """Pairs that are relayed: what they send is laid out once, so that this side costs little more than the kernel's part."""

    def __init__(self, host: Host, pairs: int, first: int = 0) -> None:
        self.ones, self.others = Crowd(host.port, pairs, first), Crowd(host.port, pairs, first + 4_000_000)
        self.ones.register(1)
        self.others.ask_all(self.others.clients, lambda _: messages.Hello(), ignore)
        mates = dict(zip(self.others.clients, self.ones.clients, strict=True))
        self.others.ask_all(
            self.others.clients, lambda client: messages.Join(messages.Role.DIAL, (room(mates[client]),)), self._introduced
        )
        until = time.monotonic() + 5.0
        while time.monotonic() < until and not all(each.channel for each in (*self.ones.clients, *self.others.clients)):
            for crowd in (self.ones, self.others):
                for client, data in crowd.heard():
                    self._introduced(client, data)
                crowd.deliver()
        self.sheets = [
            sheet for crowd in (self.ones, self.others) for sheet in _sheets(crowd, (b"\0" * 8 + bytes(FRAME - 16))[: FRAME - 8])
        ]
        self.sent = self.received = 0
        self.latencies: list[float] = []  # from the call that sent it until we read it
        self.carried: list[float] = []  # ... until it was in our socket's buffer: what is beyond that is ours
        self._turn = self._owed = 0
        self._inboxes = [(crowd.udp, mmsg.Inbox(64, 16, _SPACE)) for crowd in (self.ones, self.others)]
        for udp, _ in self._inboxes:
            udp._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def _introduced(self, client: Client, data: memoryview) -> None:
        for crowd in (self.ones, self.others):
            if crowd.by_host.get(client.host) is client:
                message = crowd.ack(client, data)
                if isinstance(message, messages.Introduced):
                    client.channel = message.channel

    def send(self, count: int) -> None:
        """So many more datagrams are due; whole sheets leave."""
        self._owed += count
        while self._owed >= (sheet := self.sheets[self._turn % len(self.sheets)][1]).count:
            crowd = self.sheets[self._turn % len(self.sheets)][0]
            self._turn += 1
            sheet.datagram(0)[8:16] = _TIME.pack(time.time())
            at = 0
            while at < sheet.count:
                try:
                    at += sheet.send(crowd.udp.fileno(), at)
                except BlockingIOError:
                    time.sleep(0.0002)
            self.sent += sheet.count
            self._owed -= sheet.count

    def receive(self) -> None:
        for udp, inbox in self._inboxes:
            while count := inbox.receive(udp.fileno(), 64):
                now = time.time()
                self.received += count
                for index, size in enumerate(inbox.lengths[:count].tolist()):
                    if size == FRAME:
                        start = index * mmsg.SLOT
                        (at,) = _TIME.unpack_from(inbox.data, start + 8)
                        if at:
                            told = inbox.controls[index * _SPACE : index * _SPACE + inbox.control_lengths[index]]
                            arrived = next(
                                _arrival(data) for _, kind, data in mmsg.read_control(bytes(told)) if kind == SO_TIMESTAMPNS
                            )
                            self.latencies.append(now - at)
                            self.carried.append(arrived - at)


def _arrival(told: bytes) -> float:
    seconds, nanoseconds = _ARRIVED.unpack(told)
    return float(seconds + nanoseconds / 1e9)


def _sheets(crowd: Crowd, payload: bytes) -> list[tuple[Crowd, mmsg.Post]]:
    found = []
    clients = [each for each in crowd.clients if each.channel]
    server = crowd.udp._name(crowd.server)
    assert server is not None
    for start in range(0, len(clients), SHEET):
        part = clients[start : start + SHEET]
        sheet = mmsg.Post(len(part), len(server))
        for client in part:
            sheet.put(server, client.channel + payload, crowd.udp._header(True, 0, client.host))
        found.append((crowd, sheet))
    return found


def gamers(tree: str | None, pairs: int, seconds: float, rate: float = FRAMES, flood: float = 0.0) -> Row:
    """Pairs that send so many small datagrams a second each way; `flood`: beside one that sends so many more."""
    with serving(tree) as host:
        games = Games(host, pairs)
        child = os.fork() if flood else 0
        if flood and not child:
            _flood(host, flood, seconds)
        if flood:
            time.sleep(0.5)
        for phase in (1.0, seconds):
            games.sent = games.received = 0
            games.latencies.clear()
            games.carried.clear()
            before, (own, own_wait), (cpu, wait), began = host.counters(), times(os.getpid()), host.times, time.monotonic()
            for due in ticks(phase, 2 * pairs * rate, STRETCH):
                games.send(min(due, WINDOW - games.sent + games.received) if rate >= UNBOUNDED else due)
                games.receive()
            elapsed = time.monotonic() - began
            cpu, wait = host.times[0] - cpu, host.times[1] - wait
            own, own_wait = times(os.getpid())[0] - own, times(os.getpid())[1] - own_wait
        for _ in range(30):
            time.sleep(0.01)
            games.receive()
        if child:
            os.waitpid(child, 0)
        after = host.counters()
        came, left = (after[each] - before[each] for each in ("received_datagrams", "relayed_bursts"))
        return {
            "pairs": f"{pairs:,}",
            "datagrams/s": f"{games.sent / elapsed:,.0f}",
            "lost": f"{100 * (1 - games.received / max(1, games.sent)):.2f} %",
            "before the server": f"{100 * (1 - came / max(1, games.sent)):.2f} %",
            "after it": f"{100 * (1 - games.received / max(1, left)):.2f} %",
            "us each": f"{1e6 * cpu / max(1, games.received):.1f}",
            "core": f"{100 * cpu / elapsed:.0f} %",
            "kept from it": f"{100 * wait / elapsed:.0f} %",
            "clients' core": f"{100 * own / elapsed:.0f} %",
            "kept from theirs": f"{100 * own_wait / elapsed:.0f} %",
            **quantiles(games.latencies),
            **{f"{name}, until it came": value for name, value in quantiles(games.carried).items()},
            "flood/s": f"{flood:,.0f}",
        }


def _flood(host: Host, rate: float, seconds: float) -> None:
    """In a process of its own, which ends here."""
    try:
        games = Games(host, 1, 3_900_000)
        for due in ticks(seconds + 1.0, rate):
            games.send(due)
            games.receive()
    finally:
        os._exit(0)
