"""What nobody foresaw is held, counted, told once for each thing that it ended, and reported once for each line that raised."""

from __future__ import annotations

import logging
from typing import NoReturn

import pytest
import trio

from tunnel.errors import PeerError
from tunnel.faults import MAX_REPORT, MAX_REPORTS, MAX_TOLD, Faults, report


def broken() -> None:
    raise KeyError("no such thing")


def test_a_wall_holds_what_nobody_foresaw_and_lets_pass_what_somebody_did() -> None:
    faults = Faults()
    with faults.wall("stream", "ended a stream") as wall:
        broken()
    assert isinstance(wall.error, KeyError)
    assert faults.counts == {"stream": 1}
    with pytest.raises(PeerError), faults.wall("stream", "ended a stream", PeerError):
        raise PeerError("foreseen")
    for ending in (KeyboardInterrupt, SystemExit):
        with pytest.raises(ending), faults.wall("stream", "ended a stream"):
            raise ending
    assert faults.counts == {"stream": 1}


def test_what_comes_out_of_a_nursery_is_held_but_for_what_passes() -> None:
    faults = Faults()
    with faults.wall("stream", "ended a stream") as wall:
        raise ExceptionGroup("a nursery", [KeyError(1), ExceptionGroup("another", [ValueError(2)])])
    assert isinstance(wall.error, ExceptionGroup)
    with pytest.raises(BaseExceptionGroup) as passed, faults.wall("stream", "ended a stream") as wall:
        raise BaseExceptionGroup("a nursery", [KeyError(1), KeyboardInterrupt()])
    assert [type(each) for each in passed.value.exceptions] == [KeyboardInterrupt]
    assert isinstance(wall.error, ExceptionGroup)
    assert faults.counts == {"stream": 2}


async def test_cancellation_passes_a_wall_also_beside_a_fault() -> None:
    faults = Faults()

    async def fails_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            broken()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def walled() -> None:
                with faults.wall("task", "ended a task"):
                    async with trio.open_nursery() as inner:
                        inner.start_soon(fails_when_cancelled)
                        inner.start_soon(trio.sleep_forever)

            nursery.start_soon(walled)
            nursery.start_soon(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert faults.counts == {"task": 1}


def test_a_person_is_told_once_for_each_thing_that_was_ended_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    faults = Faults(told.append)
    for _ in range(3):
        with faults.wall("link", "ended the link to ben"):
            broken()
    assert told == ["A fault in ptunnel ended the link to ben; all else goes on. Please report it: details with -v."]
    for number in range(2 * MAX_TOLD):
        with faults.wall("link", f"ended the link to {number}"):
            broken()
    assert len(told) == MAX_TOLD
    assert faults.counts["link"] == 3 + 2 * MAX_TOLD
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # nothing besides on standard error


def test_the_report_is_made_once_for_each_line_that_raised_and_says_where_it_lies(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    kept: list[str] = []

    def keep(text: str) -> str:
        kept.append(text)
        return "faults.log"

    faults = Faults(told.append, keep)
    with caplog.at_level(logging.INFO, "ptunnel.faults"):
        for name in ("anna", "ben"):
            with faults.wall("link", f"ended the link to {name}"):
                broken()
        with faults.wall("link", "ended the link to carl"):
            raise ValueError
    assert [text.rpartition(": ")[2] for text in told] == ["faults.log."] * 3
    assert len(kept) == 2
    assert [words in kept[0] for words in ("KeyError: 'no such thing'", "in broken", "ended the link to anna")] == [True] * 3
    assert sum(record.exc_info is not None for record in caplog.records) == 2
    for number in range(2 * MAX_REPORTS):
        error = type(f"Error{number}", (Exception,), {})
        with faults.wall("link", "ended the link to carl"):
            raise error
    assert len(kept) == MAX_REPORTS


def test_what_cannot_be_told_or_kept_is_said_on_standard_error(caplog: pytest.LogCaptureFixture) -> None:
    def full(_: str) -> NoReturn:
        raise OSError("no space")

    faults = Faults(full, full)
    with faults.wall("link", "ended the link to ben"):
        broken()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "A fault in ptunnel ended the link to ben; all else goes on. Please report it: details with -v."
    ]


def test_a_report_is_short_and_keeps_the_end_which_says_most() -> None:
    def deep(count: int) -> None:
        if count:
            deep(count - 1)
        else:
            raise ValueError("x" * MAX_REPORT + "the end")

    with pytest.raises(ValueError, match="the end") as caught:
        deep(5)
    text = report("link", "ended the link to ben", caught.value)
    assert len(text) < MAX_REPORT + 300
    assert text.endswith("the end\n")
