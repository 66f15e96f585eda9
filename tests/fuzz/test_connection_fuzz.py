"""A connection against strangers, against an authenticated peer who is hostile, and against chance.

`Hostile` holds the peer's keys and seals whatever frames a test thinks of.  Whatever it sends, the connection under attack either
drops it or closes with a reason: nothing is raised, and what it holds and says stays within the bounds that have names.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.connection.pair import RELAY, SERVER, A, keypairs
from tunnel.errors import PeerError
from tunnel.transport.connection.carried import MaxData, MaxStreamData, MaxStreams, Reset, StopSending
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.control import MAX_MESSAGE, ControlReader
from tunnel.transport.connection.events import ConnectionClosed, ConnectionEvent, PathKind
from tunnel.transport.connection.inflow import MAX_GAPS_IN_ALL
from tunnel.transport.connection.paths import MAX_PATHS, MAX_QUEUED_PROBES
from tunnel.transport.connection.receive import MAX_UNREAD_DATAGRAM_BYTES
from tunnel.transport.connection.records import MOST_PARTS
from tunnel.transport.crypto.handshake import Params
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.transport.packet.header import HEADER, NONCE_PREFIX, TRANSPORT
from tunnel.transport.stream.datagrams import MAX_DATAGRAM, REJOIN_BYTES
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW, MAX_STREAMS
from tunnel.units import Address, Instant, PathKey, SocketId, StreamId

PATH = PathKey(SocketId(0), A, b"")
FLOOD = 100_000_000  # bytes: no flood here may make us hold more (the connection window and what it costs)


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
            remote_static=bytes(32),
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


BREACHES: dict[str, tuple[list[bytes], str]] = {
    "ack of a packet that was never sent": ([ack((0, 1_000_000))], "never sent"),
    "ack up to the largest number there is": ([ack((2**64 - 5, 2**64 - 1))], "never sent"),
    "ack whose range falls below zero": ([frames._ACK_HEAD.pack(Frame.ACK, 0, 0, 3, 4)], "does not parse"),
    "ack with more ranges than fit": ([frames._ACK_HEAD.pack(Frame.ACK, 0, 200, 3, 0)], "does not parse"),
    "more than the stream's window": ([stream(2, INITIAL_STREAM_WINDOW, b"x")], "granted"),
    "the largest offset there is": ([stream(2, 2**64 - 1, b"xy")], "granted"),
    "a reset beyond the window": ([Reset.pack(2, 1, 2**64 - 1)], "impossible final size"),
    "a reset below what was sent": ([stream(2, 0, b"abc"), Reset.pack(2, 1, 2)], "impossible final size"),
    "a final size that moves up": ([stream(2, 0, b"abc", True), stream(2, 3, b"d")], "final size"),
    "a final size that moves down": ([stream(2, 3, b"abc"), stream(2, 0, b"ab", True)], "final size"),
    "a second FIN elsewhere": ([stream(2, 8, b"a", True), stream(2, 3, b"d", True)], "final size"),
    "a stream beyond those granted": ([stream(2 + 2 * MAX_STREAMS, 0, b"x")], "beyond"),
    "the largest stream there is": ([stream(0xFFFF_FFFE, 0, b"x")], "beyond"),
    "a stream that we never opened": ([stream(1, 0, b"x")], "never opened"),
    "credit for a stream that we never opened": ([MaxStreamData.pack(7, 1)], "never opened"),
    "a stop for a stream that we never opened": ([StopSending.pack(7, 1)], "never opened"),
    "an unknown frame": ([b"\x7f"], "unknown frame"),
    "a stream frame cut short": ([stream(2, 0, b"abc")[:-1]], "cut short"),
    "a datagram frame cut short": ([datagram(1, 1, 0, 1, b"abc")[:-1]], "cut short"),
    "a fragment beyond its count": ([datagram(1, 1, 5, 5, b"abc")], "fragment"),
    "a goodbye of 60,000 bytes": ([frames.CLOSE.pack(Frame.CLOSE, 1, 60_000) + b"x" * 900], "does not parse"),
    "a control message that is too long": ([stream(0, 0, (MAX_MESSAGE + 1).to_bytes(2, "big"))], "too long"),
    "gaps in every stream": (
        [
            b"".join(stream(2 + 2 * n, 1 + 2 * gap, b"x") for gap in range(at, at + 60))
            for n in range(12)
            for at in range(0, 6000, 60)
        ],
        "gaps in all streams",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_ends_the_connection_with_a_reason(name: str) -> None:
    bodies, words = BREACHES[name]
    peer = Hostile()
    peer.reads = False
    for body in bodies:
        peer.send(body)
    if peer.victim.close_reason is None:
        pytest.fail("accepted")
    peer.send(stream(2, 0, b"still talking"), b"\x01", frames.encode_close(1, "me too"))
    peer.assert_closed(words)


def test_more_on_all_streams_than_the_connection_was_granted_ends_it() -> None:
    peer = Hostile()
    peer.reads = False
    peer.victim._shared.streams.receive_window.limit = 10 * INITIAL_STREAM_WINDOW  # nobody fills the real one in a test
    for number in range(2, 24, 2):
        peer.send(stream(number, INITIAL_STREAM_WINDOW - 1, b"x"))
    peer.assert_closed("on all streams")


def test_as_many_gaps_as_all_streams_may_have_together_are_kept_and_no_more() -> None:
    peer = Hostile()
    peer.reads = peer.collects = False
    each = MAX_GAPS_IN_ALL // 8
    for number in range(2, 18, 2):
        for at in range(0, each, 64):
            peer.send(b"".join(stream(number, 1 + 2 * gap, b"x") for gap in range(at, at + 64)))
    assert peer.victim.close_reason is None
    peer.collects = True
    peer.send(stream(18, 1, b"x"))
    peer.assert_closed("gaps in all streams")


HARMLESS: dict[str, list[bytes]] = {
    "nothing at all": [b""],
    "padding": [bytes(1000), b"\x00\x01\x00"],
    "every MAX at its largest": [
        MaxData.pack(2**64 - 1) + MaxStreams.pack(2**64 - 1) + MaxStreamData.pack(0, 2**64 - 1) + MaxStreamData.pack(2, 2**64 - 1)
    ],
    "every MAX at zero": [MaxData.pack(0) + MaxStreams.pack(0) + MaxStreamData.pack(0, 0)],
    "overlapping data that disagrees": [stream(2, 5, b"abcde"), stream(2, 0, b"xxxxxxxx"), stream(2, 3, b"yyyyyyyyyy", True)],
    "a reset and a stop of the control stream": [Reset.pack(0, 1, 0) + StopSending.pack(0, 1)],
    "the end of the control stream": [stream(0, 0, b"", True)],
    "a reset and a stop of every stream": [
        Reset.pack(2 * n, 9, 0) + StopSending.pack(2 * n, 9) for n in range(1, MAX_STREAMS + 1)
    ],
    "a stream opened, reset, written again": [
        Reset.pack(2, 1, 10),
        stream(2, 0, b"1234567890", True),
        Reset.pack(2, 2, 10),
    ],
    "answers to challenges never made": [frames.PATH.pack(Frame.PATH_RESPONSE, bytes(8)) * 100],
    "empty messages on the control stream": [stream(0, 0, bytes(1000)), stream(0, 1000, bytes(1000))],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_merely_odd_does_not_end_the_connection(name: str) -> None:
    peer = Hostile()
    peer.send(*HARMLESS[name])
    assert peer.victim.close_reason is None
    mine = peer.victim.open_stream()
    peer.victim.stream_write(mine, b"hello")
    peer.settle()
    peer.pass_time(5)
    assert peer.bytes_out < peer.bytes_in + 150_000


def held_by(action: Iterable[object]) -> int:
    """Bytes of memory that are held after `action` and were not before, at the most."""
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in action:
            pass
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_flood_of_fragments_with_empty_tails_fills_no_more_than_the_named_bound() -> None:
    peer = Hostile()
    peer.collects = False

    def flood() -> Iterable[None]:
        for identifier in range(1000):
            for index in range(54):
                peer.send(datagram(1, identifier & 0xFFFF, index, 55, bytes(1180)))
            peer.send(datagram(1, identifier & 0xFFFF, 54, 55, b""))
            if peer.victim.drops["datagram not taken by the application"]:
                return
            yield

    assert held_by(flood()) < MAX_UNREAD_DATAGRAM_BYTES + REJOIN_BYTES + 2 * MAX_DATAGRAM + 2_000_000
    assert peer.victim.drops["datagram not taken by the application"]
    assert peer.victim.close_reason is None


def test_a_flood_of_streams_and_tiny_frames_stays_within_the_window() -> None:
    peer = Hostile()
    peer.reads = peer.collects = False

    def flood() -> Iterable[None]:
        for number in range(2, 2 * MAX_STREAMS, 2):
            peer.send(stream(number, 0, b"x"))
        for offset in range(1, INITIAL_STREAM_WINDOW - 160, 160):
            peer.send(b"".join(stream(2, at, b"xy") for at in range(offset, offset + 160, 2)))
            yield

    assert held_by(flood()) < 20_000_000
    assert peer.victim.close_reason is None
    assert peer.victim.stats().streams == MAX_STREAMS - 1


def test_a_flood_of_challenges_earns_one_answer_a_packet_and_never_more_bytes() -> None:
    peer = Hostile()
    peer.send(b"\x01")
    peer.pass_time(1)
    peer.bytes_in = peer.bytes_out = 0
    stranger = PathKey(SocketId(0), Address("192.88.99.9", 9), b"")
    for number in range(200):
        peer.send(frames.PATH.pack(Frame.PATH_CHALLENGE, number.to_bytes(8, "big")) * 100, key=stranger)
        peer.send(frames.PATH.pack(Frame.PATH_CHALLENGE, number.to_bytes(8, "big")), key=stranger)
    assert peer.bytes_out <= peer.bytes_in
    assert peer.victim.drops["challenge not worth an answer"] == 200 * 99 + 200
    packets = [peer.seal(frames.PATH.pack(Frame.PATH_CHALLENGE, bytes(8)) + bytes(30)) for _ in range(2000)]
    for packet in packets:
        peer.victim.handle_datagrams(peer.now, stranger, memoryview(packet), 0, len(packet))
    assert len(peer.victim._shared.paths.probes) <= MAX_QUEUED_PROBES
    peer.settle()


def test_optimistic_acks_of_everything_raise_no_more_than_our_own_rate() -> None:
    peer = Hostile(leaves_out_numbers=False)
    peer.send(b"\x01" + MaxData.pack(2**64 - 1))
    mine = peer.victim.open_stream()
    peer.send(MaxStreamData.pack(mine, 2**64 - 1))
    for _ in range(2000):
        peer.victim.stream_write(mine, bytes(1_000_000))
        peer.settle()
        highest = peer.victim._shared.next_number - 1
        peer.send(ack((0, highest)), ack((highest, highest)), ack((0, highest), delay=0xFFFF))
        peer.pass_time(0.0001)
    assert peer.victim.close_reason is None
    assert len(peer.victim._shared.streams.sending[mine].contiguous[0]) <= 8 << 20


def test_a_peer_that_acknowledges_every_other_packet_and_shuffles_its_ranges_is_survived() -> None:
    peer = Hostile(3, leaves_out_numbers=False)
    peer.send(b"\x01" + MaxData.pack(2**40))
    mine = peer.victim.open_stream()
    peer.send(MaxStreamData.pack(mine, 2**40))
    for _ in range(400):
        peer.victim.stream_write(mine, bytes(100_000))
        peer.settle()
        top = peer.victim._shared.next_number - 1
        ranges = []
        while top > 1 and len(ranges) < 33:
            low = max(0, top - peer.rng.randrange(4))
            ranges.append((low, top))
            top = low - 2 - peer.rng.randrange(3)
        if ranges:
            peer.send(ack(*ranges, delay=peer.rng.randrange(65_536)))
        peer.pass_time(peer.rng.random() * 0.05)
    assert peer.victim.close_reason is None


def test_numbers_at_the_end_of_the_world_hurt_only_who_sends_them() -> None:
    peer = Hostile()
    peer.deliver(peer.seal(b"\x01", 2**64 - 1))
    peer.deliver(peer.seal(b"\x01", 2**64 - 3))
    peer.send(b"\x01")
    assert peer.victim.drops["replayed"] == 1
    peer.pass_time(10)
    assert peer.victim.close_reason is None


def test_packets_with_gaps_before_each_do_not_grow_what_we_hold_or_say() -> None:
    peer = Hostile()
    peer.collects = False

    def flood() -> Iterable[None]:
        for number in range(0, 8_000, 2):
            peer.deliver(peer.seal(b"\x01", number))
            yield

    assert held_by(flood()) < 2_000_000
    assert peer.bytes_out < 400 * 4_000


def test_more_paths_than_we_keep_lose_no_byte_of_those_given_up() -> None:
    peer = Hostile()
    peer.send(b"\x01")
    mine = peer.victim.open_stream()
    peer.victim.stream_write(mine, b"x" * 5000)
    shared = peer.victim._shared
    for port in range(1, 3 * MAX_PATHS):
        key = PathKey(SocketId(0), Address("192.88.99.9", port), b"")
        peer.victim.challenge(peer.now, key, PathKind.DIRECT)
        probe = shared.paths.probes[-1]
        peer.settle()
        peer.now = Instant(peer.now + 0.5 / port**2)  # each faster than those before
        peer.send(frames.PATH.pack(Frame.PATH_RESPONSE, probe.data), key=key)
        peer.pass_time(0.05)
        peer.victim.stream_write(mine, b"y" * 5000)
        peer.settle()
    assert len(shared.paths.known) <= MAX_PATHS
    assert not shared.paths.evicted
    covered: set[int] = set()
    for path in shared.paths.known.values():
        for burst in path.recovery.ring:
            for item in burst.content if isinstance(burst.content, list) else [burst.content]:
                if hasattr(item, "offset"):
                    covered |= set(range(item.offset, item.offset + item.length))
    sender = shared.streams.sending[mine]
    for start, stop in sender.lost:
        covered |= set(range(start, stop))
    assert covered >= set(range(sender.base, sender.sent))


# strangers


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_replayed_flipped_truncated_and_foreign_datagrams_change_nothing(data: st.DataObject) -> None:
    peer = Hostile()
    genuine = [peer.seal(stream(2, 10 * n, bytes(10))) for n in range(5)]
    for packet in genuine:
        peer.deliver(packet)
    peer.pass_time(1)
    before = (peer.victim.stats(), peer.victim.poll_timeout(), len(peer.events))
    source = data.draw(st.sampled_from([PATH, PathKey(SocketId(0), SERVER, b""), PathKey(SocketId(0), SERVER, RELAY)]))
    packet = bytearray(data.draw(st.sampled_from(genuine)))
    match data.draw(st.sampled_from(["replay", "flip", "truncate", "random", "extend"])):
        case "replay":
            pass
        case "flip":
            bit = data.draw(st.integers(0, len(packet) * 8 - 1))
            packet[bit // 8] ^= 1 << bit % 8
        case "truncate":
            del packet[data.draw(st.integers(0, len(packet) - 1)) :]
        case "random":
            packet[13:] = data.draw(st.binary(max_size=100))
        case "extend":
            packet += data.draw(st.binary(min_size=1, max_size=50))
    position = peer.deliver(bytes(packet), source)
    after = peer.victim.stats()
    counted = sum(after.drops.values()) - sum(before[0].drops.values())
    assert counted == 1 if position else (counted == 0 and position == 0)
    assert after.packets_received == before[0].packets_received
    assert (after.sent_bytes, after.streams) == (before[0].sent_bytes, before[0].streams)
    assert (peer.victim.poll_timeout(), len(peer.events)) == before[1:]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 50), st.integers(0, 1500))
def test_any_bytes_from_anybody_are_a_drop_or_not_ours(data: bytes, start: int, stride: int) -> None:
    peer = Hostile()
    position = peer.victim.handle_datagrams(peer.now, PATH, memoryview(data), min(start, len(data)), stride)
    assert position <= len(data)
    peer.settle()
    assert not peer.events[1:]


# an authenticated peer who says anything

integers = st.one_of(st.integers(0, 40), st.sampled_from([2**16 - 1, 2**32 - 1, 2**32, 2**62, 2**64 - 1]))


def wide(bits: int) -> st.SearchStrategy[int]:
    return integers.map(lambda value: value & (2**bits - 1))


any_frame = st.one_of(
    st.binary(max_size=40),
    st.builds(stream, wide(32), wide(64), st.binary(max_size=60), st.booleans()),
    st.builds(stream, st.sampled_from([0, 2, 4]), st.integers(0, 100), st.binary(max_size=60), st.booleans()),
    st.builds(lambda *a: Reset.pack(*a), wide(32), wide(16), wide(64)),
    st.builds(lambda *a: StopSending.pack(*a), wide(32), wide(16)),
    st.builds(lambda a: MaxData.pack(a), wide(64)),
    st.builds(lambda a: MaxStreams.pack(a), wide(64)),
    st.builds(lambda *a: MaxStreamData.pack(*a), wide(32), wide(64)),
    st.builds(
        lambda a, b: frames.PATH.pack(a, b), st.sampled_from([Frame.PATH_CHALLENGE, Frame.PATH_RESPONSE]), st.binary(max_size=8)
    ),
    st.builds(datagram, wide(32), wide(16), wide(8), wide(8), st.binary(max_size=60)),
    st.builds(lambda low, more: ack((low, low + more)), st.integers(0, 30), st.integers(0, 10)),
    st.builds(frames.encode_close, wide(16), st.text(max_size=30)),
)


@settings(max_examples=250, deadline=None)
@given(st.lists(st.tuples(st.lists(any_frame, max_size=4), st.booleans(), st.integers(0, 3)), max_size=12), st.booleans())
def test_any_frames_of_an_authenticated_peer_end_in_a_reason_or_in_nothing(
    packets: list[tuple[list[bytes], bool, int]], reads: bool
) -> None:
    peer = Hostile()
    peer.reads = reads
    mine: list[StreamId] = []
    for bodies, elsewhere, act in packets:
        peer.send(b"".join(bodies), key=PathKey(SocketId(1), SERVER, b"") if elsewhere else PATH)
        if act == 1 and not peer.victim.is_closed:
            mine.append(peer.victim.open_stream())
            peer.victim.stream_write(mine[-1], bytes(3000))
            peer.victim.stream_finish(mine[-1])
        if act == 2:
            peer.pass_time(0.3)
        peer.victim.receive_datagrams()
        peer.settle()
    peer.pass_time(4)
    closed = [e for e in peer.events if isinstance(e, ConnectionClosed)]
    assert len(closed) == (peer.victim.close_reason is not None)
    if closed:
        assert peer.events[-1] is closed[0]
        assert peer.victim.is_drained
    assert peer.bytes_out < 40 * peer.bytes_in + 100_000


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=20))
def test_any_bytes_on_the_control_stream_are_messages_or_a_peers_fault(pieces: list[bytes]) -> None:
    reader = ControlReader()
    try:
        for piece in pieces:
            assert all(len(message) <= MAX_MESSAGE for message in reader.feed(piece))
    except PeerError:
        return
    assert len(reader._pending) <= MAX_MESSAGE + 2
