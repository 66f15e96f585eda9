"""The twin in memory behaves as a TAP does: whole frames, would-block on both sides, closed means closed."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.twins.tap import MemoryTap
from tunnel.doors.tun.tap import HEADROOM, MAX_FRAME
from tunnel.units import Buffer

FRAME = bytes(range(HEADROOM)) + b"an IP packet"


def test_it_is_a_tap() -> None:
    tap = MemoryTap("tap7", offloads=1)
    assert (tap.name, tap.offloads, tap.fileno()) == ("tap7", 1, -1)


def test_a_frame_of_the_host_is_read_whole_and_once() -> None:
    tap = MemoryTap()
    view = memoryview(bytearray(MAX_FRAME))
    assert tap.read_into(view) == 0
    tap.send_from_host(FRAME)
    assert tap.read_into(view) == len(FRAME)
    assert bytes(view[: len(FRAME)]) == FRAME
    assert tap.read_into(view) == 0
    assert tap.reads == 1


def test_a_view_too_small_cuts_the_frame_off() -> None:
    tap = MemoryTap()
    tap.send_from_host(FRAME)
    view = memoryview(bytearray(30))
    assert tap.read_into(view) == 30
    assert bytes(view) == FRAME[:30]


def test_pieces_are_one_frame_at_the_host() -> None:
    tap = MemoryTap()
    pieces: list[Buffer] = [FRAME[:10], bytearray(FRAME[10:24]), memoryview(FRAME)[24:]]
    assert tap.writev(pieces)
    assert list(tap.written) == [FRAME]


def test_a_frame_too_short_is_counted_as_the_kernel_would_name_it() -> None:
    tap = MemoryTap()
    assert tap.writev([bytes(HEADROOM)])
    assert not tap.written
    assert tap.errors == {"EINVAL": 1}


def test_what_the_queue_does_not_hold_is_dropped_and_counted() -> None:
    tap = MemoryTap(queue_length=2)
    assert [tap.send_from_host(FRAME) for _ in range(3)] == [True, True, False]
    assert tap.errors == {"overrun": 1}


async def test_a_reader_sleeps_until_the_host_sends() -> None:
    tap = MemoryTap()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tap.wait_readable)
        await trio.testing.wait_all_tasks_blocked()
        tap.send_from_host(FRAME)


async def test_a_writer_sleeps_until_the_host_takes_frames_again() -> None:
    tap = MemoryTap()
    tap.set_writable(False)
    assert not tap.writev([FRAME])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tap.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        tap.set_writable(True)
    assert tap.writev([FRAME])
    assert await tap.receive_at_host() == FRAME


async def test_closing_wakes_both_and_ends_everything() -> None:
    tap = MemoryTap()
    tap.set_writable(False)
    ended = []

    async def expect(wait: object) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait()  # type: ignore[operator]
        ended.append(wait)

    async with trio.open_nursery() as nursery:
        for wait in (tap.wait_readable, tap.wait_writable, tap.receive_at_host):
            nursery.start_soon(expect, wait)
        await trio.testing.wait_all_tasks_blocked()
        tap.close()
        tap.close()
    assert len(ended) == 3
    with pytest.raises(trio.ClosedResourceError):
        tap.read_into(memoryview(bytearray(100)))
    with pytest.raises(trio.ClosedResourceError):
        tap.writev([FRAME])
