"""How long until all are back after a restart: the real client and server cores in virtual time, one server of a given speed.

The network takes some milliseconds and loses nothing; the server's receive buffer is bounded and first in, first out.
"""

from __future__ import annotations

import random
from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import Final

from tunnel.rendezvous.client import Client
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.units import Address, Instant, SocketId

BUFFER: Final = 6_500  # datagrams: 4 MiB of padded requests, as the kernel counts them
DOWN: Final = 2.0  # seconds
SETTLED: Final = 25.0  # seconds after the first client came, and all wait
PATIENCE: Final = 120.0  # seconds after the restart
ROOMS: Final = 3
SERVER: Final = -1
HERE: Final = SocketId(0)
PLACE: Final = Address("192.0.2.1", 24_531)


class Storm:
    def __init__(self, peers: int, cost: float, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.cost = cost
        self.now = 0.0
        self._heap: list[tuple[float, int, int, bytes]] = []  # due, order, client or SERVER, datagram
        self._order = count()
        self._queue: deque[tuple[Address, bytes]] = deque()
        self._is_busy = False
        self.server: Server | None = None
        self.lost = self.served = 0
        self.back: list[float] = []
        self._whole: set[bytes] = set()
        self.clients: list[Client | None] = [None] * peers
        self._due = [0.0] * peers
        for number in range(peers):
            self._at(self.rng.uniform(0.0, 10.0), number, b"")

    def _entropy(self, size: int) -> bytes:
        return self.rng.randbytes(size)

    def _at(self, due: float, whom: int, data: bytes) -> None:
        heappush(self._heap, (due, next(self._order), whom, data))

    @staticmethod
    def place(number: int) -> Address:
        return Address(f"10.{number >> 14}.{number >> 6 & 255}.{1 + (number & 63)}", 4_000)

    def start_server(self) -> None:
        place = ServerSocket(HERE, PLACE, None)
        config = ServerConfig(max_sessions=1_000_000, max_room_entries=4_000_000)
        self.server = Server(
            config, sockets=[place], now=Instant(self.now), entropy=self._entropy, unix_time=lambda: 1_800_000_000 + int(self.now)
        )
        self._queue.clear()
        self._is_busy = False

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            due, _, whom, data = heappop(self._heap)
            self.now = due
            if whom == SERVER:
                self._serve()
            elif data:
                self._hear(whom, data)
            else:
                self._wake(whom)
        self.now = until

    def _wake(self, number: int) -> None:
        client = self.clients[number]
        if client is None:
            client = self.clients[number] = Client(
                servers=[(HERE, PLACE)], now=Instant(self.now), rng=self.rng, entropy=self._entropy
            )
            client.listen(Instant(self.now), [self._entropy(16) for _ in range(ROOMS)])
        elif self.now < self._due[number]:
            return  # an earlier wish
        else:
            client.handle_timeout(Instant(self.now))
        self._flush(number, client)

    def _hear(self, number: int, data: bytes) -> None:
        client = self.clients[number]
        assert client is not None
        client.handle_datagram(Instant(self.now), HERE, PLACE, data)
        self._flush(number, client)

    def _flush(self, number: int, client: Client) -> None:
        while client.poll_event() is not None:
            pass
        while (datagram := client.poll_transmit(Instant(self.now))) is not None:
            self._arrive(number, datagram[2])
        due = client.poll_timeout()
        self._due[number] = float("inf") if due is None else max(due, self.now)
        if due is not None:
            self._at(max(due, self.now), number, b"")

    def _arrive(self, number: int, data: bytes) -> None:
        """The way takes the same time for all, so what is sent first comes first."""
        if self.server is None or len(self._queue) >= BUFFER:
            self.lost += 1
            return
        self._queue.append((self.place(number), data))
        if not self._is_busy:
            self._is_busy = True
            self._at(self.now + self.cost, SERVER, b"")

    def _serve(self) -> None:
        server = self.server
        if server is None or not self._queue:
            self._is_busy = False
            return
        remote, data = self._queue.popleft()
        self.served += 1
        now = Instant(self.now)
        if (timeout := server.poll_timeout()) is not None and timeout <= now:
            server.handle_timeout(now)
        answer = server.refreshed(now, HERE, remote, data) if data[0] == 0x40 else None
        if answer is not None:
            self._answer(remote, answer)
        else:
            server.handle_batch(now, HERE, remote, memoryview(data), len(data))
            self._send()
            session = server.registry.sessions.get(data[10:26])
            if session is not None and len(session.listening) == ROOMS and session.id not in self._whole:
                self._whole.add(session.id)
                self.back.append(self.now)
        self._at(self.now + self.cost, SERVER, b"")

    def _send(self) -> None:
        assert self.server is not None
        while (transmit := self.server.poll_transmit(Instant(self.now))) is not None:
            self._answer(transmit.remote, bytes(transmit.buffer))

    def _answer(self, remote: Address, data: bytes) -> None:
        _, high, middle, low = (int(part) for part in remote.host.split("."))
        self._at(self.now + self.rng.uniform(0.01, 0.05), (high << 14) + (middle << 6) + low - 1, data)


def restart(peers: int, cost_us: float) -> list[dict[str, str]]:
    """A crash, and a clean stop."""
    rows = []
    for is_clean in (False, True):
        storm = Storm(peers, cost_us / 1e6)
        storm.start_server()
        storm.run(SETTLED)
        assert storm.server is not None
        present = len(storm.back)
        if is_clean:
            storm.server.stop(Instant(storm.now))
            storm._send()
        storm.server = None
        storm.back.clear()
        storm._whole.clear()
        storm.run(storm.now + DOWN)
        storm.start_server()
        storm.lost = storm.served = 0
        began = storm.now
        while len(storm.back) < present and storm.now < began + PATIENCE:
            storm.run(storm.now + 1.0)
        times = [each - began for each in storm.back]

        def share(part: float, times: list[float] = times) -> str:
            index = int(part * peers) - 1
            return f"{times[index]:.1f}" if index < len(times) else "never"

        rows.append(
            {
                "peers": f"{peers:,}",
                "us a request": f"{cost_us:.0f}",
                "after": "a clean stop" if is_clean else "a crash",
                "half back s": share(0.5),
                "99 %": share(0.99),
                "99.9 %": share(0.999),
                "all": share(1.0),
                "served a client": f"{storm.served / peers:.1f}",
                "lost a client": f"{storm.lost / peers:.1f}",
            }
        )
    return rows
