"""Any bytes from strangers, and any frames of an authenticated peer, end in a drop or in a reason."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.hostile import PATH, Hostile, ack, datagram, stream
from tests.unit.connection.pair import RELAY, SERVER
from tunnel.errors import PeerError
from tunnel.transport.connection.carried import MaxData, MaxStreamData, MaxStreams, Reset, StopSending
from tunnel.transport.connection.control import MAX_MESSAGE, ControlReader
from tunnel.transport.connection.events import ConnectionClosed
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.units import PathKey, SocketId, StreamId

# strangers


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_replayed_flipped_truncated_and_foreign_datagrams_change_nothing(data: st.DataObject) -> None:
    peer = Hostile()
    genuine = [peer.seal(stream(2, 10 * n, bytes(10))) for n in range(5)]
    for each in genuine:
        peer.deliver(each)
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
