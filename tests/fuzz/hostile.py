"""A hostile peer on one connection: it says what it likes, with good keys."""

from __future__ import annotations

import random

from tests.unit.connection.pair import A, keypairs
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import ConnectionClosed, ConnectionEvent, PathKind
from tunnel.transport.connection.records import MOST_PARTS
from tunnel.transport.crypto.params import Params
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.transport.packet.header import HEADER, NONCE_PREFIX, TRANSPORT
from tunnel.units import Instant, PathKey, SocketId

PATH = PathKey(SocketId(0), A, b"")


class Hostile:
    """One side's keys in the wrong hands: the initiator's, unless `victim_initiates`.  On top of `victim` all is honest."""

    def __init__(self, seed: int = 1, *, victim_initiates: bool = False, leaves_out_numbers: bool = True) -> None:
        self.rng = random.Random(seed)
        self.keys, key = keypairs(self.rng)[:: -1 if victim_initiates else 1]
        self.now = Instant(1000.0)
        params = [
            Params(instance=n, name=f"peer{n}", aeads=(1, 2), receive_buffer=1 << 20, record_parts=MOST_PARTS) for n in (1, 2)
        ]
        self.victim = Connection(
            is_initiator=victim_initiates,
            keypair=key,
            local=params[1],
            remote=params[0],
            path=PATH,
            path_kind=PathKind.DIRECT,
            now=self.now,
            rng=random.Random(seed),
        )
        if not leaves_out_numbers:  # so that any number may be acknowledged
            self.victim._shared._skip_at = 1 << 62
        self.number = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.out = bytearray(65_536)
        self.events: list[ConnectionEvent] = []
        self.reads = True
        self.collects = True

    def seal(self, body: bytes, number: int | None = None) -> bytes:
        if number is None:
            number, self.number = self.number, self.number + 1
        head = HEADER.pack(TRANSPORT, self.keys.remote_index, number)
        return head + self.keys.send.encrypt(NONCE_PREFIX + number.to_bytes(8, "big"), body, head)

    def deliver(self, datagram: bytes, key: PathKey = PATH) -> int:
        self.bytes_in += len(datagram)
        position = self.victim.handle_datagrams(self.now, key, memoryview(datagram), 0, max(len(datagram), 1))
        self.settle()
        return position

    def send(self, *bodies: bytes, key: PathKey = PATH) -> None:
        for body in bodies:
            self.deliver(self.seal(body), key)

    def settle(self) -> None:
        """What the driver does after every input; it must come to an end."""
        for _ in range(20_000):
            transmit = self.victim.poll_transmit(self.now, self.out)
            if transmit is None:
                break
            assert 0 < len(transmit.buffer) <= 65_507
            self.bytes_out += len(transmit.buffer)
        else:
            raise AssertionError("poll_transmit never runs dry")
        while (event := self.victim.poll_event()) is not None:
            if self.collects:
                self.events.append(event)
            stream_id = getattr(event, "stream_id", None)
            if stream_id is not None and self.reads:
                self.victim.stream_read(stream_id, now=self.now)

    def pass_time(self, seconds: float) -> None:
        """Follow the deadlines.  A deadline that handle_timeout does not move would spin a processor for ever."""
        until = self.now + seconds
        idle = 0
        while (at := self.victim.poll_timeout()) is not None and at <= until:
            idle = idle + 1 if at <= self.now else 0
            assert idle < 20, "poll_timeout stays in the past"
            self.now = Instant(max(self.now, at))
            self.victim.handle_timeout(self.now)
            self.settle()
        self.now = Instant(max(self.now, until))

    def assert_closed(self, words: str) -> None:
        assert self.victim.close_reason is not None, "still open"
        assert words in self.victim.close_reason.text
        assert sum(isinstance(e, ConnectionClosed) for e in self.events) == 1
        assert isinstance(self.events[-1], ConnectionClosed)
        self.pass_time(3)
        assert self.victim.is_drained
        assert self.victim.poll_timeout() is None


def stream(number: int, offset: int, data: bytes, fin: bool = False) -> bytes:
    return frames.STREAM.pack(Frame.STREAM_FIN if fin else Frame.STREAM, number, offset, len(data)) + data


def ack(*ranges: tuple[int, int], delay: int = 0) -> bytes:
    low, high = ranges[0]
    body = frames._ACK_HEAD.pack(Frame.ACK, delay, len(ranges) - 1, high, high - low)
    for below, above in ranges[1:]:
        body += frames._ACK_RANGE.pack(low - above - 1, above - below + 1)
        low = below
    return body


def datagram(flow: int, identifier: int, index: int, count: int, data: bytes) -> bytes:
    return frames.DATAGRAM.pack(Frame.DATAGRAM, flow, identifier, index, count, len(data)) + data
