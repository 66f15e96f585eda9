"""The send ring against a naive model: bytes in a string, and sets of what is under way, lost and acknowledged."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.transport.stream.send import SMALLEST_RING, SendStream
from tunnel.units import StreamId

RING = 2 * SMALLEST_RING


def taken(stream: SendStream, offset: int, length: int) -> bytes:
    out = memoryview(bytearray(length))
    stream.copy_to(out, 0, offset, length)
    return bytes(out)


verbs = st.lists(
    st.tuples(
        st.sampled_from(["write", "space", "send", "send", "ack", "ack", "lose", "late", "credit", "finish"]),
        st.integers(0, 2**16),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(verbs)
def test_the_ring_behaves_as_a_string_with_sets(verbs: list[tuple[str, int]]) -> None:
    stream = SendStream(StreamId(2), 50_000)
    text = bytearray()
    rng = random.Random(1)
    flying: list[tuple[int, int, bool]] = []
    gone: list[tuple[int, int, bool]] = []  # declared lost; an ACK may still come
    acked: set[int] = set()
    lost: set[int] = set()
    fin_acked = False
    for verb, number in verbs:
        match verb:
            case "write":
                data = rng.randbytes(number % 20_000)
                done = stream.write(memoryview(data), RING)
                assert done == (0 if stream.finished else min(len(data), RING - (len(text) - stream.base)))
                text += data[:done]
            case "space":
                room = stream.space(RING)
                assert bool(len(room)) == (not stream.finished and len(text) - stream.base < RING)
                data = rng.randbytes(min(len(room), number % 5000))
                room[: len(data)] = data
                stream.commit(len(data))
                text += data
            case "send" if stream.has_work(number % 7 > 0):
                most, credit = 1 + number % 3000, number % 7 * 1000
                offset, length, fin, new = stream.next_range(most, credit)
                assert length <= most
                assert bool(length or fin)
                if new:
                    assert offset == stream.sent
                    assert length <= credit
                    assert offset + length <= min(stream.limit, len(text))
                else:
                    assert set(range(offset, offset + length)) <= lost
                assert not fin or (stream.finished and offset + length == len(text))
                assert taken(stream, offset, length) == text[offset : offset + length]
                stream.mark_sent(offset, length, fin, new)
                lost -= set(range(offset, offset + length))
                flying.append((offset, length, fin))
            case "ack" | "late" if flying if verb == "ack" else gone:
                source = flying if verb == "ack" else gone
                piece = source.pop(number % len(source))
                stream.on_acked(*piece)
                acked |= set(range(piece[0], piece[0] + piece[1]))
                lost -= acked
                fin_acked |= piece[2]
            case "lose" if flying:
                piece = flying.pop(number % len(flying))
                gone.append(piece)
                stream.on_lost(*piece)
                lost |= set(range(piece[0], piece[0] + piece[1])) - acked
            case "credit":
                stream.limit = max(stream.limit, number * 2)
            case "finish":
                stream.finish()
            case _:
                continue
        base = next(n for n in range(len(text) + 1) if n not in acked)
        assert stream.base == base <= stream.sent <= stream.written == len(text)
        assert {n for a, b in stream.lost for n in range(a, b)} == lost
        assert stream.is_done == (fin_acked and base == len(text))
        assert taken(stream, base, len(text) - base) == text[base:]
    # Whatever happened, a faithful network gets everything across.
    stream.finish()
    stream.limit = 1 << 40
    for piece in flying:
        stream.on_lost(*piece)
    while stream.has_work():
        offset, length, fin, new = stream.next_range(1200, 1 << 30)
        assert taken(stream, offset, length) == text[offset : offset + length]
        stream.mark_sent(offset, length, fin, new)
        stream.on_acked(offset, length, fin)
    assert stream.is_done


def test_a_reset_frees_the_ring_and_announces_what_was_sent() -> None:
    stream = SendStream(StreamId(2), 1000)
    stream.write(memoryview(bytes(5000)), RING)
    stream.mark_sent(*stream.next_range(700, 10_000))
    stream.reset(4)
    assert stream.final_size == 700
    assert not stream.has_work()
    assert len(stream.space(RING)) == 0
    stream.on_lost(0, 700, False)
    assert not stream.has_work()
    stream.on_reset_acked()
    assert stream.is_done


def test_a_reset_after_everything_was_acknowledged_says_nothing() -> None:
    stream = SendStream(StreamId(2), 1000)
    stream.finish()
    stream.mark_sent(*stream.next_range(700, 10_000))
    stream.on_acked(0, 0, True)
    stream.reset(4)
    assert stream.reset_code is None
    assert stream.is_done
