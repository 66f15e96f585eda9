"""A connection against strangers, against an authenticated peer who is hostile, and against chance.

`Hostile` holds the peer's keys and seals whatever frames a test thinks of.  Whatever it sends, the connection under attack either
drops it or closes with a reason: nothing is raised, and what it holds and says stays within the bounds that have names.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import pytest

from tests.fuzz.hostile import Hostile, ack, datagram, stream
from tunnel.transport.connection.carried import BulkRun, MaxData, MaxStreamData, MaxStreams, Reset, StopSending, StreamChunk
from tunnel.transport.connection.control import MAX_MESSAGE
from tunnel.transport.connection.events import PathKind
from tunnel.transport.connection.inflow import MAX_GAPS_IN_ALL
from tunnel.transport.connection.paths import MAX_PATHS, MAX_QUEUED_PROBES
from tunnel.transport.connection.receive import MAX_UNREAD_DATAGRAM_BYTES
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.transport.stream.datagrams import MAX_DATAGRAM, REJOIN_BYTES
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW, MAX_STREAMS
from tunnel.units import Address, Instant, PathKey, SocketId

FLOOD = 100_000_000  # bytes: no flood here may make us hold more (the connection window and what it costs)


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
        ranges: list[tuple[int, int]] = []
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
                if isinstance(item, BulkRun | StreamChunk):
                    covered |= set(range(item.offset, item.offset + item.length))
    sender = shared.streams.sending[mine]
    for start, stop in sender.lost:
        covered |= set(range(start, stop))
    assert covered >= set(range(sender.base, sender.sent))
