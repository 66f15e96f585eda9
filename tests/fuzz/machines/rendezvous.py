"""A server among strangers and proven clients who say anything; a client whose server says anything."""

from __future__ import annotations

import random

from tests.fuzz.engine import Machine
from tests.fuzz.machines.decoders import PUSHES, REQUESTS, RESPONSES
from tests.unit.rendezvous.world import SOCKETS, V4, entropy_of
from tunnel.nat import stun
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous import messages as m
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.units import Address, Instant, SocketId

SOURCES = [Address(f"198.18.0.{n}", 1000 + n) for n in range(6)] + [Address(f"3fff:{n}::1", 1000 + n) for n in range(6)]
SESSIONS = [bytes((n,)) * 16 for n in range(1, 5)]
HOME = Address("192.88.99.1", 24_531)
KEPT = ("sessions", "rooms", "nameplates", "mailboxes", "channels")
CONFIG = ServerConfig(
    open_directory=True, max_sessions=24, max_nameplates=12, max_mailboxes=8, max_channels=12, max_room_entries=64
)
LIMITS = dict(zip(KEPT, (24, 64, 12, 8, 12), strict=True))


class _Server:
    """Inputs: what it is, who says it, and the rest."""

    def __init__(self, seed: int) -> None:
        self.now = Instant(10.0)
        self.server = Server(CONFIG, sockets=SOCKETS, now=self.now, entropy=entropy_of(seed), stun=ServerStun())
        self.cookies: dict[Address, bytes] = {}
        self.pushed: list[tuple[bytes, int]] = []
        self.live: list[bytes] = [bytes(8)]  # channels and mailboxes that were told
        self.numbers = [0]
        self.transaction = 0

    def feed(self, data: bytes) -> None:
        if len(data) < 3:
            return
        source, rest = SOURCES[data[1] % len(SOURCES)], data[2:]
        match data[0] % 8:
            case 0:
                stride = max(1, data[1])
                self.server.handle_batch(self.now, V4, source, memoryview(rest), stride)
            case 1:
                datagram = self.live[data[2] % len(self.live)] + data[3:]
                if datagram[0] >= 0xC0:
                    self.server.handle_batch(self.now, V4, source, memoryview(datagram), len(datagram))
            case 2:
                self.now = Instant(self.now + data[2] * data[2] / 64)
                self.server.handle_timeout(self.now)
            case 3 if self.pushed:
                session, push_id = self.pushed[data[2] % len(self.pushed)]
                self._take(source, m.encode_push_ack(session, push_id))
            case 4:
                number, eight = self.numbers[data[2] % len(self.numbers)], self.live[data[2] % len(self.live)]
                session = SESSIONS[data[2] >> 3 & 3]
                told: list[m.RequestMessage] = [
                    m.Claim(number, data[3:60]),
                    m.Post(eight, data[3:60]),
                    m.Release(number),
                    m.Allocate(number, 1 + data[2]),
                    m.Leave((), (eight,), (eight,)),
                    m.Restore(eight, data[2] & 1, bytes(16)),
                    m.Join(data[2] & 1, (data[2:18].ljust(16),)),
                    m.Rebind(
                        eight,
                        data[2] & 1,
                        data[2],
                        m.rebind_mac(bytes(16), eight, data[2] & 1, data[2], self.cookies.get(source, b"")),
                    ),
                ]
                self._request(source, session, m._encoder.encode(told[data[2] % len(told)]))
            case _:
                self._request(source, SESSIONS[data[2] & 3], data[3:])
        self._hear()

    def _request(self, source: Address, session: bytes, body: bytes) -> None:
        """From whoever has proven its address, whatever the body is."""
        self.transaction += 1
        cookie = self.cookies.get(source, b"")
        head = m._REQUEST_HEAD.pack(m.REQUEST, m.VERSION, self.transaction, session)
        said = head + bytes((len(cookie),)) + cookie + b"\0" + len(body).to_bytes(2, "big") + body
        self._take(source, said.ljust(m.MIN_REQUEST, b"\0")[: m.MAX_DATAGRAM])

    def _take(self, source: Address, datagram: bytes) -> None:
        self.server.handle_batch(self.now, V4, source, memoryview(datagram), len(datagram))

    def _hear(self) -> None:
        for _ in range(10_000):
            transmit = self.server.poll_transmit(self.now)
            if transmit is None:
                return
            data = bytes(transmit.buffer)
            assert len(data) <= m.MAX_DATAGRAM
            if data[0] == m.RESPONSE:
                self._learn(transmit.remote, m.decode_response(data).message)
            elif data[0] == m.PUSH:
                push = m.decode_push(data)
                self.pushed = [*self.pushed[-20:], (push.session, push.push_id)]
                self._learn(transmit.remote, push.message)
        raise AssertionError("the server never runs dry")

    def _learn(self, source: Address, message: object) -> None:
        cookie = getattr(message, "cookie", None)
        if cookie is not None:
            self.cookies[source] = cookie
        for name in ("channel", "mailbox"):
            found = getattr(message, name, None)
            if found is not None:
                self.live = [*self.live[-20:], found]
        if isinstance(message, m.Allocated):
            self.numbers = [*self.numbers[-20:], message.nameplate]

    def end(self) -> None:
        counters = self.server.counters()
        assert {name: counters[name] for name in KEPT if counters[name] > LIMITS[name]} == {}
        for _ in range(100):
            self.now = Instant(self.now + 100)
            self.server.handle_timeout(self.now)
            self._hear()
        counters = self.server.counters()
        assert {name: counters[name] for name in KEPT if counters[name]} == {}


def server_corpus() -> list[bytes]:
    bodies = [m._encoder.encode(each) for each in REQUESTS]
    proven = [bytes((5 + number % 3, number, number)) + body for number, body in enumerate(bodies)]
    whole = [b"\0\xff" + m.encode_request(9, SESSIONS[0], each) for each in REQUESTS]
    other = [b"\0\xff" + stun.encode_binding_request(bytes(12), padding_to=100), b"\0\xffip ver 1\n", b"\0\xff\xc0" + bytes(60)]
    live = [bytes((4, n, n)) + bytes(range(40)) for n in range(40)]
    relayed = [bytes((1, n, n)) + b"\x80" + bytes(50) for n in range(4)]
    return (
        proven * 3 + whole + other + live + relayed + [bytes((2, 0, n)) for n in (0, 1, 8, 40, 90)] + [b"\3\0\0", b"\3\0\1"] * 4
    )


class _Client:
    """Inputs: a push or a response, to which of its questions, and the body."""

    def __init__(self, seed: int) -> None:
        self.now = Instant(10.0)
        self.client = Client(
            servers=[(SocketId(1), HOME)], now=self.now, rng=random.Random(seed), entropy=entropy_of(seed), has_fallback=True
        )
        self.seen: list[m.Request] = []
        self.pushes = 0
        self.client.listen(self.now, [bytes(16), b"r" * 16])
        self.client.dial(self.now, [b"s" * 16])
        self.client.allocate(self.now)
        self.client.claim(self.now, 5, b"p" * 33)
        self._hear()

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        match data[0] % 8:
            case 0:
                self.client.handle_datagram(self.now, SocketId(1), HOME, data[1:])
            case 1:
                self.now = Instant(self.now + data[1] / 16)
            case 2:
                self.client.network_changed(self.now)
            case 3:
                self._ask(data)
            case 4 | 5 if self.seen:
                self.pushes += 1
                head = m._PUSH_HEAD.pack(m.PUSH, m.VERSION, self.seen[-1].session, self.pushes if data[1] else 1)
                self.client.handle_datagram(self.now, SocketId(1), HOME, head + data[2:])
            case _ if self.seen:
                asked = self.seen[-1 - data[1] % min(len(self.seen), 8)]
                head = m._RESPONSE_HEAD.pack(m.RESPONSE, m.VERSION, asked.transaction)
                self.client.handle_datagram(self.now, SocketId(1), HOME, head + data[2:])
            case _:
                pass
        at = self.client.poll_timeout()
        if at is not None and at <= self.now:
            self.client.handle_timeout(self.now)
        self._hear()

    def _ask(self, data: bytes) -> None:
        """What a person may want meanwhile."""
        match data[1] % 6:
            case 0:
                self.client.allocate(self.now)
            case 1:
                self.client.claim(self.now, 7, b"p" * 33)
            case 2:
                self.client.dial(self.now, [b"s" * 16])
            case 3:
                self.client.post(self.now, b"m" * 8, b"x")
            case 4:
                self.client.leave(self.now, [b"s" * 16])
            case _:
                for channel in list(self.client.channels)[:1]:
                    self.client.leave_channel(self.now, channel.channel)

    def _hear(self) -> None:
        for _ in range(10_000):
            out = self.client.poll_transmit(self.now)
            if out is None:
                break
            assert len(out[2]) <= m.MAX_DATAGRAM
            if out[2][0] == m.REQUEST:
                self.seen = [*self.seen[-30:], m.decode_request(out[2])]
        else:
            raise AssertionError("the client never runs dry")
        while self.client.poll_event() is not None:
            pass

    def end(self) -> None:
        assert len(self.client.drops) < 40
        assert len(list(self.client.channels)) <= 1_000
        for _ in range(300):
            at = self.client.poll_timeout()
            if at is None:
                break
            self.now = Instant(max(self.now, at))
            self.client.handle_timeout(self.now)
            self._hear()


def client_corpus() -> list[bytes]:
    answers = [bytes((6, n)) + m._encoder.encode(each) for each in RESPONSES for n in range(3)]
    pushes = [b"\4\1" + m._encoder.encode(each) for each in PUSHES]
    whole = [b"\0" + m.encode_response(1, each) for each in RESPONSES]
    return (
        answers * 2
        + pushes * 2
        + whole
        + [bytes((1, n)) for n in (1, 16, 120, 255)] * 4
        + [bytes((3, n)) for n in range(6)]
        + [b"\2\0"]
    )


MACHINES = [
    Machine("server", server_corpus, _Server, length=1_000),
    Machine("client", client_corpus, _Client, length=600),
]
