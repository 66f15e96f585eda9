"""A connection whose authenticated peer says anything, in packets and in records, on this path and on others, at any time."""

from __future__ import annotations

import contextlib

from tests.fuzz.engine import Machine
from tests.fuzz.hostile import PATH, Hostile, ack, datagram, stream
from tests.fuzz.test_connection_fuzz import BREACHES, HARMLESS
from tests.unit.connection.pair import RELAY, SERVER
from tunnel.errors import StreamLimitError
from tunnel.transport.connection.carried import MaxData, MaxStreamData, Reset, StopSending
from tunnel.transport.connection.events import ConnectionClosed, PathKind
from tunnel.transport.connection.records import MOST_PARTS, RECORD, RECORD_HEADER
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.transport.packet.header import NONCE_PREFIX
from tunnel.units import Address, Instant, PathKey, SocketId

ELSEWHERE = (
    PathKey(SocketId(0), Address("192.88.99.9", 9), b""),
    PathKey(SocketId(1), SERVER, b""),
    PathKey(SocketId(0), SERVER, RELAY),
)
SENT_BESIDE = 400_000  # bytes that a connection may say by itself in an episode, beyond what it was sent


class _Connection:
    """Inputs: what is done, with what, and the frames.  A connection that is closed is followed by the next."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.peer = Hostile(seed)
        self.rounds = 0

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        peer, rest = self.peer, data[2:]
        victim = peer.victim
        match data[0] % 16:
            case 0 | 1 | 2 | 3 | 4 | 5:
                peer.send(rest[:1_400])
            case 6:
                peer.send(rest[:1_400], key=ELSEWHERE[data[1] % len(ELSEWHERE)])
            case 7 | 8:
                self._record(data[1], rest)
            case 9 if not victim.is_closed:
                with contextlib.suppress(StreamLimitError):
                    mine = victim.open_stream()
                    victim.stream_write(mine, rest * 20)
                    if data[1] & 1:
                        victim.stream_finish(mine)
                peer.settle()
            case 10:
                peer.pass_time(data[1] ** 2 / 4_000)
            case 11:
                victim.receive_datagrams()
                peer.reads = bool(data[1] & 1)
                victim.send_datagrams(peer.now, data[1], [rest])
                peer.settle()
            case 12:
                peer.deliver(rest)
            case 13 if not victim.is_closed:
                victim.challenge(peer.now, ELSEWHERE[data[1] % len(ELSEWHERE)], PathKind.DIRECT)
                peer.settle()
            case 14 if not victim.is_closed:
                victim.send_control(rest[:200])
                peer.settle()
            case 15:
                datagram = bytearray(peer.seal(rest[:1_400]))
                datagram[data[1] % len(datagram)] ^= 1 << data[1] % 8
                peer.deliver(bytes(datagram))
            case _:
                pass
        if victim.close_reason is not None:
            self._part()

    def _record(self, shape: int, plain: bytes) -> None:
        """Cut into parts as it belongs, and then not quite."""
        peer = self.peer
        parts = 1 + shape % MOST_PARTS
        number, peer.number = peer.number, peer.number + parts
        plain = plain[:30_000]
        plain += bytes(-(len(plain) + 16) % parts)
        head = RECORD_HEADER.pack(RECORD, peer.keys.remote_index, number, 0, parts)
        sealed = peer.keys.send.encrypt(NONCE_PREFIX + number.to_bytes(8, "big"), plain, head)
        body = len(sealed) // parts
        datagrams = [
            RECORD_HEADER.pack(RECORD, peer.keys.remote_index, number + index, index, parts)
            + sealed[index * body : (index + 1) * body]
            for index in range(parts)
        ]
        if shape & 0x20:
            peer.rng.shuffle(datagrams)
        if shape & 0x40:
            del datagrams[peer.rng.randrange(parts)]
        if shape & 0x80:
            datagrams += datagrams[:2]
        if not datagrams:
            return
        whole = b"".join(datagrams)
        peer.bytes_in += len(whole)
        position, stride = 0, len(datagrams[0])
        while position < len(whole):
            after = peer.victim.handle_datagrams(peer.now, PATH, memoryview(whole), position, stride)
            position = after if after > position else position + stride
        peer.settle()

    def _part(self) -> None:
        peer = self.peer
        peer.pass_time(3)
        closed = [event for event in peer.events if isinstance(event, ConnectionClosed)]
        assert len(closed) == 1
        assert peer.victim.is_drained
        assert peer.victim.poll_timeout() is None
        self._weigh()
        self.rounds += 1
        self.peer = Hostile(self.seed + self.rounds, victim_initiates=bool(self.rounds & 1))

    def _weigh(self) -> None:
        assert self.peer.bytes_out < 40 * self.peer.bytes_in + SENT_BESIDE + 40 * (self.peer.now - 1000.0) * 1_400
        assert len(self.peer.victim.drops) < 60

    def end(self) -> None:
        self.peer.pass_time(5)
        self._weigh()
        self.peer.now = Instant(self.peer.now + 50_000)
        self.peer.pass_time(10)
        assert self.peer.victim.close_reason is not None  # of silence at the latest


def corpus() -> list[bytes]:
    bodies = [body for group, _ in BREACHES.values() for body in group[:20]] + [
        body for group in HARMLESS.values() for body in group[:20]
    ]
    bodies += [
        stream(0, 0, b"\0\5hello"),
        stream(2, 0, b"hello", True),
        stream(2, 0, b"x" * 1_200),
        stream(4, 100, b"late"),
        ack((0, 3)),
        ack((2, 5), (0, 0), delay=9),
        datagram(7, 1, 0, 1, b"hello"),
        datagram(7, 2, 0, 3, b"x" * 900),
        datagram(7, 2, 1, 3, b"x" * 900),
        datagram(7, 2, 2, 3, b"y"),
        Reset.pack(2, 1, 5),
        StopSending.pack(1, 1),
        MaxData.pack(10_000_000),
        MaxStreamData.pack(1, 9_000_000),
        frames.PATH.pack(Frame.PATH_CHALLENGE, b"c" * 8) + bytes(1_200),
        frames.PATH.pack(Frame.PATH_RESPONSE, b"c" * 8),
        b"\1",
        frames.PACKET.pack(Frame.PACKET, 2, 0, 20, 0) + b"E" * 60,
        frames.PACKET.pack(Frame.PACKET, 4, 0, 2, 9) + b"E" * 60,
        frames.PACKET.pack(Frame.PACKET, 0, 1, 20, 100) + b"E" * 120,
        frames.encode_close(8, "the end \x1b[2J"),
    ]
    said = [bytes((number % 6, number % 251)) + body[:2_000] for number, body in enumerate(bodies)]
    elsewhere = [bytes((6, number % 251)) + body[:2_000] for number, body in enumerate(bodies[-21:])]
    records = [bytes((7, number * 9 % 256)) + body * (1 + number % 9) for number, body in enumerate(bodies[-21:])]
    acts = [bytes((9, n)) + b"w" * 100 for n in range(2)] + [bytes((10, n)) for n in (1, 20, 60, 120, 255)]
    acts += [
        b"\x0b\0" + b"d" * 50,
        b"\x0b\1",
        b"\x0d\0",
        b"\x0d\1",
        b"\x0e\0" + b"control",
        b"\x0f\x20" + stream(2, 0, b"flipped"),
    ]
    return said + elsewhere + records + acts * 3


MACHINES = [Machine("connection", corpus, _Connection, length=500)]
