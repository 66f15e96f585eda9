"""The clocks: one for ages and deadlines, which runs on in suspend, the calendar for people and for files, and one for work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from tunnel.units import Instant

_TIMEX_BYTES: Final = 512  # more than struct timex has anywhere
_TIME_ERROR: Final = 5  # the clock is not synchronised (adjtimex(2))


def _pick_clock() -> int | None:
    """CLOCK_BOOTTIME on Linux; on macOS CLOCK_MONOTONIC runs on in sleep.  Windows' time.monotonic does so by itself."""
    if sys.platform == "win32":
        return None
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None and sys.platform == "darwin":
        clock = time.CLOCK_MONOTONIC
    if clock is not None:
        try:
            time.clock_gettime(clock)
        except OSError:
            return None
    return clock


def _make_clock() -> Callable[[], float]:
    clock = _pick_clock()
    if clock is None or sys.platform == "win32":
        return time.monotonic
    return partial(time.clock_gettime, clock)


#: Seconds since some moment before we started; never goes back, and counts the time spent in suspend.  Read for every batch, so
#: it is no function of ours.
boottime: Final = cast("Callable[[], Instant]", _make_clock())


def wall_ns() -> int:
    """Nanoseconds since 1970.  May jump: only for time stamps that strangers' clocks are compared with, and for files."""
    return time.time_ns()


def unix_time() -> int:
    """The calendar in whole seconds; 0 where it stands before 1970, or beyond what the rendezvous protocol can say."""
    now = int(time.time())
    return now if 0 < now < 1 << 40 else 0


def is_synchronised() -> bool | None:
    """Whether something keeps the calendar right, as the kernel says (adjtimex(2)); None where it does not say."""
    if sys.platform != "linux":
        return None
    import ctypes

    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # its first word, modes, is 0: nothing is changed
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def processor_time() -> float:
    """Seconds that a processor has worked for this thread: what others take of it meanwhile does not count."""
    return time.thread_time()
