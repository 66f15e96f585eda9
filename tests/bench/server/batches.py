"""What a datagram costs the server in batches of a given size, sockets included: both ends in one process, only the server timed.

The clock is moved by hand, so that no client seems faster than it is; other programs of the machine hardly change these figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import trio

from tests.bench.server.crowd import Client, Crowd, room
from tests.bench.server.host import LIMITS
from tunnel.doors.udp.many import MOST, ManySocket
from tunnel.faults import Faults
from tunnel.host.collector import tamed
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.shell.server_loop import ServerLoop
from tunnel.units import Instant, SocketId

HERE: Final = SocketId(0)
SIZES: Final = (MOST, 8, 1)  # datagrams that come at once
ROUNDS: Final = 40  # for the largest of them; eight times as many datagrams at least
REST: Final = 7.0  # seconds of the clock between two words of a client
FRAME: Final = 150  # bytes that are relayed


class Bench:
    def __init__(self, clients: int) -> None:
        self.now = 1_000.0
        self.udp = ManySocket("127.0.0.1", 0)
        where = self.udp.local_address
        self.server = Server(
            ServerConfig(**LIMITS),  # type: ignore[arg-type]
            sockets=[ServerSocket(HERE, where, None)],
            now=Instant(self.now),
            entropy=os.urandom,
            unix_time=lambda: 1_800_000_000 + int(self.now),
        )
        self.loop = ServerLoop(self.server, {HERE: self.udp}, {}, lambda: Instant(self.now), Faults())
        self.crowd = Crowd(where.port, clients)
        self.pushed: list[tuple[Client, bytes]] = []

    async def take(self) -> float:
        """Let the server do all that there is; returns the processor time that it took."""
        spent = 0.0
        while True:
            began = time.thread_time()
            batches = self.udp.receive_many()
            if batches:
                await self.loop._process_all(HERE, batches, Instant(self.now))
            spent += time.thread_time() - began
            if self.udp.is_drained:
                return spent

    def hear(self) -> int:
        """What the clients do with what comes: cookies are kept, pushes are for `pushed`."""
        heard = 0
        for client, data in self.crowd.heard():
            heard += 1
            if data[0] == messages.RESPONSE:
                answer = messages.decode_response(bytes(data)).message
                if isinstance(answer, messages.Retry | messages.Welcome):
                    client.cookie = answer.cookie
            elif data[0] == messages.PUSH:
                self.pushed.append((client, bytes(data)))
        return heard

    async def ask(self, clients: list[Client], question: Callable[[Client], bytes], size: int = MOST) -> float:
        """So many at once; returns the server's time for all."""
        spent = 0.0
        for start in range(0, len(clients), size):
            for client in clients[start : start + size]:
                self.crowd.say(client, question(client))
            self.crowd.deliver()
            spent += await self.take()
            self.hear()
        return spent


def say(message: messages.RequestMessage) -> Callable[[Client], bytes]:
    return lambda client: client.request(message)


async def measure(clients: int) -> list[dict[str, str]]:
    bench = Bench(clients)
    those = bench.crowd.clients
    costs: dict[str, dict[int, float]] = {}

    async def each(name: str, question: Callable[[Client], bytes], some: list[Client], *, are_known: bool = False) -> None:
        for size in SIZES:
            part = some[: ROUNDS * size if size == MOST else 8 * ROUNDS]
            for _ in range(2 * are_known):  # told of a cookie, and then of the same once more
                bench.now += REST
                await bench.ask(part, say(messages.Refresh()))
            bench.now += REST
            costs.setdefault(name, {})[size] = 1e6 * await bench.ask(part, question, size) / len(part)

    half = len(those) // 2
    await each("Hello, and its Retry", say(messages.Hello()), those)
    await bench.ask(those, say(messages.Hello()))
    await each("Join of a waiting client, three rooms", _listen, those[half:])
    await bench.ask(those[:half], _listen)
    await each("Refresh, the long way", _impatient, those[half:])
    await each("Refresh of a client at rest", say(messages.Refresh()), those, are_known=True)
    await _introduce(bench, those[:half], costs)
    return [
        {"what": name, **{f"us, {size} at once": f"{found[size]:.1f}" for size in SIZES}, "a second": f"{1e6 / found[MOST]:,.0f}"}
        for name, found in costs.items()
    ]


def _impatient(client: Client) -> bytes:
    """A Refresh in a form that is taken the long way always."""
    data = bytearray(client.request(messages.Refresh()))
    at = data.index(b"\0\2\x91\2", 27 + len(client.cookie))
    data[at : at + 6] = b"\0\4\xdc\0\1\2"  # an array of 16 bits' length, which decodes to the same
    return bytes(data)


def _listen(client: Client) -> bytes:
    return client.request(messages.Join(messages.Role.LISTEN, tuple(room(client, number) for number in range(3))))


async def _introduce(bench: Bench, owners: list[Client], costs: dict[str, dict[int, float]]) -> None:
    """All six datagrams of an introduction with the one that ends it, and then what is relayed."""
    crowd = bench.crowd
    for size in SIZES:
        count = 4 * MOST if size == MOST else 2 * MOST
        listeners, owners = owners[:count], owners[count:]
        first = len(crowd.clients)
        dialers = [Client(first + number) for number in range(count)]
        crowd.clients += dialers
        crowd.by_host.update({each.host: each for each in dialers})
        owner = dict(zip(dialers, listeners, strict=True))
        spent = await bench.ask(dialers, say(messages.Hello()), size)
        spent += await bench.ask(
            dialers,
            lambda client, owner=owner: client.request(messages.Join(messages.Role.DIAL, (room(owner[client]),))),  # type: ignore[misc]
            size,
        )
        spent += await _acknowledge(bench, size)
        relayed = [each for each in dialers if each.channel]
        for _ in range(4):
            relay = await bench.ask(relayed, lambda client: client.channel + b"\x80" + bytes(FRAME - 9), size)
        costs.setdefault("a relayed datagram of 150 bytes", {})[size] = 1e6 * relay / len(relayed)
        spent += await bench.ask(
            dialers,
            lambda client, owner=owner: client.request(messages.Leave(rooms=(room(owner[client]),), channels=(client.channel,))),  # type: ignore[misc]
            size,
        )
        spent += await _acknowledge(bench, size)
        costs.setdefault("an introduction, to its end", {})[size] = 1e6 * spent / count


async def _acknowledge(bench: Bench, size: int) -> float:
    pushed, bench.pushed = bench.pushed, []
    acks: dict[Client, bytes] = {}
    spent = 0.0
    for client, data in pushed:
        push = messages.decode_push(data)
        if isinstance(push.message, messages.Introduced):
            client.channel = push.message.channel
        acks[client] = messages.encode_push_ack(client.session, push.push_id)
    spent += await bench.ask(list(acks), acks.__getitem__, size)
    return spent


def batches(clients: int) -> list[dict[str, str]]:
    with tamed():
        return trio.run(measure, clients)
