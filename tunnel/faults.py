"""The wall around every source: what nobody foresaw ends the one thing that met it, and nothing else.

A datagram, a peer, a server, a router's answer, a local program, a file: whatever is raised while something of one of them is
handled is a fault of ours.  It is noted here: counted by place, told to a person once for each thing that it ended, and reported
with its traceback once for each line of code that raised.  Whoever handles something of many sources puts a Wall around each.
"""

from __future__ import annotations

import logging
import platform
import time
import traceback
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final

MAX_TOLD: Final = 64  # things of which a person is told that a fault ended them; later ones are counted only
MAX_REPORTS: Final = 16  # faults reported with their traceback by one process, each once
MAX_REPORT: Final = 16 * 1024  # characters of one report; the end of a traceback says most

logger = logging.getLogger("ptunnel.faults")


class Faults:
    """Of one driver, server or command.  Noting never raises."""

    def __init__(self, tell: Callable[[str], None] | None = None, keep: Callable[[str], str | None] | None = None) -> None:
        """`tell` takes the sentence for a person; `keep` a report, and returns where it lies (None: nowhere)."""
        self.counts: Counter[str] = Counter()  # by place
        self.tell = tell
        self.keep = keep
        self._told: set[str] = set()
        self._reported: dict[str, str] = {}  # where it lies, by what raised and where

    def note(self, place: str, what: str, error: BaseException) -> None:
        """`error` was raised at `place` and `what`, as in `ended the link to ben`; the caller has seen to it that it did."""
        self.counts[place] += 1
        where = self._report(place, what, error)
        if what in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(what)
        text = f"A fault in ptunnel {what}; all else goes on. Please report it: {where or 'details with -v'}."
        try:
            if self.tell is not None:
                logger.info("%s", text)
                self.tell(text)
                return
        except Exception:
            logger.info("while telling", exc_info=True)
        logger.warning("%s", text)  # to standard error, where nothing else was arranged

    def wall(self, place: str, what: str, *passing: type[Exception]) -> Wall:
        """`with` it around what handles something of one source.  `passing` is foreseen, and goes on to whoever deals with it."""
        return Wall(self, place, what, passing)

    def _report(self, place: str, what: str, error: BaseException) -> str:
        """Where the report of this fault lies, once there is one."""
        inner = error
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        frame = traceback.extract_tb(inner.__traceback__)[-1:]
        fault = f"{type(inner).__name__} {frame[0].filename}:{frame[0].lineno}" if frame else type(inner).__name__
        known = self._reported.get(fault)
        if known is not None or len(self._reported) >= MAX_REPORTS:
            return known or ""
        self._reported[fault] = ""
        try:
            logger.info("at %s: %s", place, what, exc_info=error)
            if self.keep is not None:
                self._reported[fault] = self.keep(report(place, what, error)) or ""
        except Exception:
            logger.debug("while reporting", exc_info=True)
        return self._reported[fault]


def report(place: str, what: str, error: BaseException) -> str:
    """Return the report for a developer.  It holds no carried contents, except those that the exception's text quotes."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        ours = version("ptunnel")
    except PackageNotFoundError:
        ours = "unknown"
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    head = f"{at} UTC  ptunnel {ours}  Python {platform.python_version()}  {platform.platform()}\nat {place}: {what}\n"
    return head + "".join(traceback.format_exception(error))[-MAX_REPORT:]


class Wall:
    """Notes what is raised inside, and holds it there; cancellation and the end of the process pass."""

    __slots__ = ("_faults", "_passing", "_place", "_what", "error")

    def __init__(self, faults: Faults, place: str, what: str, passing: tuple[type[Exception], ...]) -> None:
        self._faults = faults
        self._place = place
        self._what = what
        self._passing = passing
        self.error: BaseException | None = None  # what was held

    def __enter__(self) -> Wall:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> bool:
        held, rest = self._split(error)
        if held is None:
            return False
        self.error = held
        self._faults.note(self._place, self._what, held)
        if rest is not None:
            raise rest
        return True

    def _split(self, error: BaseException | None) -> tuple[BaseException | None, BaseException | None]:
        """Split what a nursery raised into what the wall holds and what goes on."""
        if isinstance(error, BaseExceptionGroup):
            return error.split(lambda inner: self._is_held(inner))
        return (error, None) if error is not None and self._is_held(error) else (None, error)

    def _is_held(self, error: BaseException) -> bool:
        return isinstance(error, Exception) and not isinstance(error, (*self._passing, BaseExceptionGroup))
