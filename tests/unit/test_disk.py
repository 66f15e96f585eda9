"""A disk that is slow or does not answer: whoever asks it waits for a moment, once."""

from __future__ import annotations

import threading
import time

import pytest

from tunnel.disk import DISK_PATIENCE, MAX_LATE_JOBS, DiskThread
from tunnel.errors import StateError
from tunnel.units import Seconds

PATIENCE_S = 20.0


def test_what_the_disk_says_comes_back_and_what_it_raises_too() -> None:
    thread = DiskThread(Seconds(PATIENCE_S))
    assert thread.ask(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        thread.ask(lambda: 1 // 0)
    assert thread.ask(lambda: 8) == 8


def test_a_disk_that_does_not_answer_is_waited_for_once_and_what_matters_is_done_when_it_does() -> None:
    thread = DiskThread(Seconds(0.01))
    gone, back = threading.Event(), threading.Event()
    done: list[int] = []

    def hang() -> None:
        gone.set()
        back.wait(PATIENCE_S)

    with pytest.raises(StateError, match="has not answered"):
        thread.ask(hang)
    assert gone.wait(PATIENCE_S)
    waits: list[float | None] = []
    original = threading.Event.wait

    def counted(event: threading.Event, timeout: float | None = None) -> bool:
        waits.append(timeout)
        return original(event, timeout)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Event, "wait", counted)
        for number in range(MAX_LATE_JOBS + 3):
            with pytest.raises(StateError, match="as soon as it does"):
                thread.ask(lambda number=number: done.append(number), also_late=True)  # type: ignore[misc]
            with pytest.raises(StateError):
                thread.ask(lambda: done.append(-1))
    assert waits == []
    assert done == []
    back.set()
    end = time.monotonic() + PATIENCE_S
    while len(done) < MAX_LATE_JOBS and time.monotonic() < end:
        time.sleep(0.01)
    assert done == list(range(MAX_LATE_JOBS))
    while time.monotonic() < end:
        try:
            assert thread.ask(lambda: "again") == "again"
            return
        except StateError:
            time.sleep(0.01)
    raise AssertionError("it stayed late")


def test_the_loop_waits_for_half_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _event, timeout=None: waits.append(timeout) or False)
    back = threading.Lock()
    with back, pytest.raises(StateError):
        DiskThread().ask(lambda: back.acquire(timeout=PATIENCE_S))
    assert waits[-1] == DISK_PATIENCE == 0.5


def test_where_there_are_no_threads_it_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert DiskThread().ask(lambda: 7) == 7
