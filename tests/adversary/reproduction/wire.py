"""A rendezvous client made from docs/protocol.md alone (chapter 2), and the server's core that it speaks to."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, Final

import msgspec

from tests.sim.world import Host, World
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.units import Address, Instant, SocketId, Transmit

REQUEST: Final = 0x40
RESPONSE: Final = 0x41
PUSH: Final = 0x42
PUSH_ACK: Final = 0x43
PUSH_HEAD: Final = 26  # bytes of a push before its body: type, version, session, push id
HEAD: Final = 26  # bytes of a request before its cookie: type, version, transaction, session
SMALLEST: Final = 512  # bytes of a request

HELLO, REFRESH, ALLOCATE, RELEASE, CLAIM = 1, 2, 3, 4, 5
JOIN, RESTORE = 7, 10
RETRY, ALLOCATED, CLAIM_ACCEPTED, DONE, REFUSED = 32, 34, 35, 36, 37
INTRODUCED: Final = 66
SLOW_DOWN: Final = 11
LISTEN, DIAL = 0, 1

FIRST, SECOND = SocketId(0), SocketId(1)
SERVER: Final = Address("192.88.99.1", 24_531)


def request(transaction: int, session: bytes, message: list[Any], cookie: bytes = b"") -> bytes:
    body = msgspec.msgpack.encode(message)
    head = bytes((REQUEST, 1)) + transaction.to_bytes(8, "big") + session
    whole = head + bytes((len(cookie),)) + cookie + b"\0" + len(body).to_bytes(2, "big") + body
    return whole.ljust(SMALLEST, b"\0")


def read_request(datagram: bytes) -> list[Any]:
    """What it asks."""
    at = HEAD
    for _ in range(2):  # cookie, access proof
        at += 1 + datagram[at]
    return list(msgspec.msgpack.decode(datagram[at + 2 : at + 2 + int.from_bytes(datagram[at : at + 2], "big")]))


def read_response(datagram: bytes) -> tuple[int, list[Any]]:
    """Transaction and body."""
    return int.from_bytes(datagram[2:10], "big"), list(msgspec.msgpack.decode(datagram[10:]))


class Rendezvous:
    """The server's core by itself, at a time that the test tells: a request goes in, its answer comes out."""

    def __init__(self) -> None:
        self.now = Instant(1_000.0)
        places = [ServerSocket(FIRST, SERVER, SECOND), ServerSocket(SECOND, Address(SERVER.host, 24_532), FIRST)]
        self.server = Server(
            ServerConfig(), sockets=places, now=self.now, entropy=random.Random("server").randbytes, stun=ServerStun()
        )
        self._cookies: dict[Address, bytes] = {}
        self._transactions = 0

    def pass_time(self, seconds: float) -> None:
        self.now = Instant(self.now + seconds)
        while (due := self.server.poll_timeout()) is not None and due <= self.now:
            self.server.handle_timeout(self.now)

    def send(self, source: Address, datagram: bytes) -> list[bytes]:
        """What leaves for `source` because of it, bare responses and STUN answers."""
        self.server.handle_batch(self.now, FIRST, source, memoryview(datagram), len(datagram))
        answers = []
        while (transmit := self.server.poll_transmit(self.now)) is not None:
            if transmit.remote == source:
                answers.append(bytes(transmit.buffer))
        return answers

    def ask(self, source: Address, message: list[Any], session: bytes = b"") -> list[Any]:
        """The answer's body, [] for none; with a cookie, and with a session of the address's own unless one is given."""
        session = session or f"{source.host:.<16.16}".encode()
        for _ in range(2):
            self._transactions += 1
            datagram = request(self._transactions, session, message, self._cookies.get(source, b""))
            bodies = [read_response(each) for each in self.send(source, datagram) if each[0] == RESPONSE]
            answer = next((body for transaction, body in bodies if transaction == self._transactions), [])
            if not answer or answer[0] != RETRY:
                break
            self._cookies[source] = answer[1]
        return answer

    def insist(self, source: Address, message: list[Any], session: bytes = b"") -> list[Any]:
        """Ask, and ask again as long as the answer is "slow down", a second later each time."""
        while (answer := self.ask(source, message, session))[:2] == [REFUSED, SLOW_DOWN]:
            self.pass_time(max(1.0, answer[3]))
        return answer


class Client:
    """The same client as a node of tests/sim: what it is told to say leaves when the world runs."""

    def __init__(self, world: World, host: Host, address: Address, server: Address, session: bytes) -> None:
        self.world, self.host, self.server, self.session = world, host, server, session
        self.answers: dict[int, list[Any]] = {}
        self.channels: set[bytes] = set()
        self._socket = FIRST
        self._asked: dict[int, list[Any]] = {}
        self._cookie = b""
        self._out: deque[bytes] = deque()
        self._transactions = 0
        world.attach(host, self, {FIRST: address})

    def say(self, message: list[Any]) -> int:
        """Returns the transaction by which `answers` has what is answered."""
        self._transactions += 1
        self._asked[self._transactions] = message
        self._send(self._transactions)
        self.world.touch(self.host)
        return self._transactions

    def send_into_channels(self, datagram: bytes) -> None:
        """Through the relay, by every channel that it was told of."""
        self._out.extend(channel + datagram for channel in self.channels)
        self.world.touch(self.host)

    def _send(self, transaction: int) -> None:
        self._out.append(request(transaction, self.session, self._asked[transaction], self._cookie))

    # the world's face

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        data = bytes(buffer)
        for at in range(0, len(data), stride):
            datagram = data[at : at + stride]
            if datagram[0] == PUSH:
                self._out.append(bytes((PUSH_ACK,)) + datagram[1:PUSH_HEAD])
                body = msgspec.msgpack.decode(datagram[PUSH_HEAD:])
                if body[0] == INTRODUCED:
                    self.channels.add(body[2])
            elif datagram[0] == RESPONSE:
                transaction, body = read_response(datagram)
                self.answers[transaction] = body
                if body[0] == RETRY and transaction in self._asked:
                    self._cookie = body[1]
                    self._send(transaction)

    def handle_timeout(self, now: Instant) -> None:
        pass

    def poll_timeout(self) -> Instant | None:
        return None

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        if not self._out:
            return None
        datagram = self._out.popleft()
        return Transmit(socket_id=self._socket, remote=self.server, segment_size=len(datagram), buffer=memoryview(datagram))
