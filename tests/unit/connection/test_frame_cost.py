"""A frame costs its bytes and nothing else, whatever an authenticated peer has opened, sent or held back before.

Counted in instructions of the interpreter, see tests/work.py; tests/bench/frames.py has the same rows in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

import pytest

from tests.fuzz.hostile import PATH, ack, datagram, stream
from tests.unit.connection.test_records import Foe
from tests.work import instructions
from tunnel.transport.connection.carried import OWED_FRAMES, MaxData, MaxStreamData, MaxStreams, Reset, StopSending
from tunnel.transport.connection.records import MOST_PARTS
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.transport.recovery.reordering import MAX_PACKET_THRESHOLD
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW, MAX_STREAMS
from tunnel.units import StreamId

#: Instructions for each byte of the datagrams that bring the frames, the answers to them included: about 2 us.  The dearest is
#: STOP_SENDING, with 7 bytes for a stream that is made, told, reset and forgotten.
MOST_A_BYTE: Final = 160
FULL: Final = 1_350  # bytes of frames in a large datagram
ROOM: Final = 45_000  # bytes of frames in a record of 32 datagrams


class Crowd(Foe):
    """A peer whose victim has `count` streams of either side open, with bytes to send."""

    def __init__(self, count: int, *, victim_initiates: bool = False, blocked: bool = False) -> None:
        super().__init__(victim_initiates=victim_initiates, leaves_out_numbers=False)
        self.reads = self.collects = False
        self.count = count
        self.oldest = 0  # of the victim's packets that are neither acknowledged nor lost
        self.theirs = [StreamId(2 * n + (1 if victim_initiates else 2)) for n in range(MAX_STREAMS)]
        self.send(b"\x01")
        for at in range(0, count, 80):
            self.send(b"".join(stream(number, 0, b"x") for number in self.theirs[at : min(at + 80, count)]))
        self.ours = [self.victim.open_stream() for _ in range(count)]
        credit = self.victim._shared.streams.send_credit
        if blocked:
            credit.limit = credit.used
        self.credit = credit.limit
        for number in self.ours:
            self.victim.stream_write(number, bytes(1_000))
        self.settle()

    @property
    def last(self) -> int:
        """The number of the victim's last packet."""
        return self.victim._shared.next_number - 1

    def fill(self) -> None:
        """Open the victim's window, and let it have hundreds of packets under way, of a bulk and then small ones by themselves.

        Many are lost, as far as it knows, and it has learnt that the path reorders widely.
        """
        bulk, small = self.ours[:2]
        self.send(MaxData.pack(2**50) + stream_limit(bulk, 2**50) + stream_limit(small, 2**50))
        for turn in range(80):
            self.victim.stream_write(bulk, bytes(2_000_000 if turn < 60 else 0))
            self.settle()
            self.send(ack((0, self.last)))
            self.pass_time(0.02)
        self.victim._shared.paths.current.recovery._reordering.packet_threshold = MAX_PACKET_THRESHOLD
        first = self.last + 1
        for _ in range(400):
            self.victim.stream_write(small, bytes(30))
            self.settle()
        self.send(ack((first + 300, first + 300)))
        self.victim.stream_write(bulk, bytes(8_000_000))
        self.settle()
        ring = self.victim._shared.paths.current.recovery.ring
        self.oldest = ring.bursts[ring.base].first


Bodies: TypeAlias = Callable[[Crowd], Iterable[bytes]]


class Row(NamedTuple):
    """What a peer may try with one type of frame.  `fresh`: it has no stream open yet; `flight`: see Crowd.fill."""

    what: str
    bodies: Bodies
    fresh: bool = False
    blocked: bool = False
    record: bool = False
    flight: bool = False


def full(make: Callable[[Crowd, int], bytes], datagrams: int = 3, size: int = FULL) -> Bodies:
    """As many frames as a datagram holds, `make(crowd, index)` each."""

    def bodies(crowd: Crowd) -> Iterable[bytes]:
        count = max(1, size // len(make(crowd, 0)))
        return [b"".join(make(crowd, at * count + n) for n in range(count)) for at in range(datagrams)]

    return bodies


def alone(make: Callable[[Crowd, int], bytes], datagrams: int = 20) -> Bodies:
    """One frame a datagram."""
    return full(make, datagrams, 1)


def record(make: Callable[[Crowd, int], bytes]) -> Bodies:
    """As many frames as a record holds."""
    return full(make, 1, ROOM)


def stop(number: int) -> bytes:
    return StopSending.pack(number, 1)


def reset(number: int) -> bytes:
    return Reset.pack(number, 1, 0)


def stream_limit(number: int, value: int) -> bytes:
    return MaxStreamData.pack(number, value)


def every_other(crowd: Crowd) -> Iterable[bytes]:
    """33 packets in each ACK: the gaps make losses, and the streams' bytes fall to pieces."""
    tops = range(crowd.last - 480, crowd.last, 66)
    return [ack(*((n, n) for n in range(top, top - 66, -2))) for top in tops]


def repeat(number: int, body: bytes) -> bytes:
    return frames.REPEAT.pack(Frame.REPEAT, number, len(body)) + body


def left_out(body: bytes) -> Bodies:
    """Copies of what packets held that were never sent."""

    def bodies(crowd: Crowd) -> Iterable[bytes]:
        first, crowd.number = crowd.number, crowd.number + 1_000
        return full(lambda _, n: repeat(first + n, body))(crowd)

    return bodies


ROWS: Final[dict[int, list[Row]]] = {
    Frame.PADDING: [
        Row("a row to the end", lambda _: [bytes(FULL)]),
        Row("in front of every other byte", full(lambda _c, _n: b"\x00\x01")),
    ],
    Frame.PING: [Row("many", full(lambda _c, _n: b"\x01")), Row("one", alone(lambda _c, _n: b"\x01"))],
    Frame.ACK: [
        Row("what was told before", full(lambda c, _: ack((0, c.last)))),
        Row(
            "all but the oldest, in other pieces each time",
            full(lambda c, n: ack((c.oldest + 1 + n % 3, c.oldest + 250))),
            flight=True,
        ),
        Row(
            "many pieces, shuffled",
            full(lambda c, n: ack(*((k - n % 3, k) for k in range(c.last, c.last - 640, -20)))),
            flight=True,
        ),
        Row("every other packet", every_other, flight=True),
        Row("in a record", record(lambda c, n: ack((c.oldest + 1 + n % 3, c.oldest + 250))), record=True, flight=True),
    ],
    Reset.TYPE: [
        Row("opens and ends each stream", full(lambda c, n: reset(c.theirs[n])), fresh=True),
        Row("of the last stream", lambda c: [reset(c.theirs[-1])], fresh=True),
        Row("of one stream, again and again", full(lambda c, _: reset(c.theirs[0])), fresh=True),
    ],
    StopSending.TYPE: [
        Row("opens and ends each stream", full(lambda c, n: stop(c.theirs[n])), fresh=True),
        Row("opens every other one, the last first", full(lambda c, n: stop(c.theirs[-1 - 2 * n])), fresh=True),
        Row("of the last stream", lambda c: [stop(c.theirs[-1])], fresh=True),
        Row("of one stream, again and again", full(lambda c, _: stop(c.theirs[0]))),
        Row("of all", full(lambda c, n: stop(c.theirs[n]))),
    ],
    Frame.STREAM: [
        Row("opens each stream and says nothing", full(lambda c, n: stream(c.theirs[n], 0, b"")), fresh=True),
        Row("opens each stream with a byte", full(lambda c, n: stream(c.theirs[n], 0, b"x")), fresh=True),
        Row("opens the last", lambda c: [stream(c.theirs[-1], 0, b"")], fresh=True),
        Row("leaves a gap before every byte", full(lambda c, n: stream(c.theirs[0], 2 * n + 2, b"x"), 20)),
        Row("the same backwards", full(lambda c, n: stream(c.theirs[0], INITIAL_STREAM_WINDOW - 2 * n - 2, b"x"), 20)),
        Row(
            "fills many gaps at once",
            lambda c: [*full(lambda c, n: stream(c.theirs[0], 2 * n + 2, b"x"))(c), stream(c.theirs[0], 1, bytes(600))],
        ),
        Row("a byte for each in turn", full(lambda c, n: stream(c.theirs[n], 1, b"y"))),
        Row("gaps in a record", record(lambda c, n: stream(c.theirs[n % 2], n * 2 + 2, b"x")), record=True),
    ],
    Frame.STREAM_FIN: [
        Row("opens and ends each stream", full(lambda c, n: stream(c.theirs[n], 0, b"", True)), fresh=True),
        Row("of one stream, again and again", full(lambda c, _: stream(c.theirs[0], 1, b"", True))),
    ],
    MaxData.TYPE: [
        Row("each a byte more", full(lambda c, n: MaxData.pack(c.credit + n + 1))),
        Row("each a byte more, while all streams wait", full(lambda c, n: MaxData.pack(c.credit + n + 1)), blocked=True),
        Row("one byte more at a time, while all wait", alone(lambda c, n: MaxData.pack(c.credit + n + 1)), blocked=True),
        Row("in a record", record(lambda c, n: MaxData.pack(c.credit + n + 1)), blocked=True, record=True),
    ],
    MaxStreamData.TYPE: [
        Row("of each stream that waits", full(lambda c, n: stream_limit(c.ours[n % c.count], 2**40 + n)), blocked=True),
        Row("each a byte more", full(lambda c, n: stream_limit(c.ours[0], INITIAL_STREAM_WINDOW + n + 1))),
        Row("opens each stream", full(lambda c, n: stream_limit(c.theirs[n], 2**40)), fresh=True),
        Row("opens the last", lambda c: [stream_limit(c.theirs[-1], 2**40)], fresh=True),
    ],
    MaxStreams.TYPE: [
        Row("each one more", full(lambda _, n: MaxStreams.pack(MAX_STREAMS + n + 1))),
        Row("in a record", record(lambda _, n: MaxStreams.pack(MAX_STREAMS + n + 1)), record=True),
    ],
    Frame.PATH_CHALLENGE: [
        Row("many in a packet", full(lambda _, n: frames.PATH.pack(Frame.PATH_CHALLENGE, n.to_bytes(8, "big")))),
        Row("one, worth an answer", alone(lambda _, n: frames.PATH.pack(Frame.PATH_CHALLENGE, n.to_bytes(8, "big")) + bytes(19))),
    ],
    Frame.PATH_RESPONSE: [Row("to nothing", full(lambda _, n: frames.PATH.pack(Frame.PATH_RESPONSE, n.to_bytes(8, "big"))))],
    Frame.CLOSE: [Row("many long ones", lambda _: [frames.encode_close(1, "x" * 200) * 6])],
    Frame.DATAGRAM: [
        Row("empty", full(lambda _, n: datagram(1, n & 0xFFFF, 0, 1, b""))),
        Row("first pieces", full(lambda _, n: datagram(1, n & 0xFFFF, 0, 255, b""))),
        Row("empty pieces", full(lambda _, n: datagram(1, n // 255 & 0xFFFF, n % 255, 255, b""))),
    ],
    Frame.PACKET: [
        Row("empty", alone(lambda _c, _n: frames.PACKET.pack(Frame.PACKET, 0, 0, 0, 0))),
        Row("segments of a byte", alone(lambda _, n: frames.PACKET.pack(Frame.PACKET, 0, n & 0xFF, 0, 1) + b"x")),
        Row("pieces", alone(lambda _, n: frames.PACKET.pack(Frame.PACKET, 4, n % 255, 255, n // 255), 300)),
    ],
    Frame.REPEAT: [
        Row("of what has come", full(lambda _c, _n: repeat(0, b""))),
        Row("of numbers that were left out", left_out(b"")),
        Row("of datagrams that did not come", left_out(datagram(1, 1, 0, 1, b""))),
        Row("of first pieces", left_out(datagram(1, 1, 0, 255, b""))),
        Row("of packets that did not come", left_out(frames.PACKET.pack(Frame.PACKET, 0, 0, 0, 0))),
    ],
}

NAMES: Final = {int(frame): frame.name for frame in Frame} | {kind.TYPE: kind.NAME for kind in OWED_FRAMES.values()}
CASES: Final = [pytest.param(row, id=f"{NAMES[kind]} {row.what}") for kind, rows in ROWS.items() for row in rows]


def prepare(row: Row, count: int, *, victim_initiates: bool) -> tuple[Crowd, list[list[bytes]]]:
    """The victim, and the datagrams for it, those of a record together."""
    count = 0 if row.fresh else 2 if row.flight else count  # the fewer streams, the more a single one may hold
    crowd = Crowd(count, victim_initiates=victim_initiates, blocked=row.blocked)
    if row.flight:
        crowd.fill()
    return crowd, [crowd.record(body, MOST_PARTS) if row.record else [crowd.seal(body)] for body in row.bodies(crowd)]


def deliver(row: Row, crowd: Crowd, batches: list[list[bytes]]) -> None:
    for batch in batches:
        crowd.victim.handle_datagrams(crowd.now, PATH, memoryview(b"".join(batch)), 0, len(batch[0]))
        if not row.flight:  # then what the window lets out is the application's
            crowd.settle()


def measure(row: Row, count: int, *, victim_initiates: bool) -> float:
    """Instructions a byte."""
    crowd, batches = prepare(row, count, victim_initiates=victim_initiates)
    work = instructions(lambda: deliver(row, crowd, batches))
    reason = crowd.victim.close_reason
    assert reason is None or reason.by_peer, reason
    return work / sum(len(datagram) for batch in batches for datagram in batch)


def test_every_frame_has_a_row() -> None:
    assert set(ROWS) == set(NAMES)
    assert all(ROWS.values())


@pytest.mark.parametrize("victim_initiates", [False, True])
@pytest.mark.parametrize("row", CASES)
def test_a_frame_costs_its_bytes_with_two_thousand_streams_open(row: Row, victim_initiates: bool) -> None:
    assert measure(row, MAX_STREAMS, victim_initiates=victim_initiates) < MOST_A_BYTE
