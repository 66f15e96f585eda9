"""The log of use of the forwards: each connection and each flow, when it opens and when it has closed.

A flood of them is counted, and told as a sum.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import trio

MAX_ACCESSES: Final = 120  # connections of one peer that are told, opened or closed, in a WINDOW: a web page with its pictures
WINDOW: Final = 60.0  # seconds, after which the rest is told as a sum


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionReport:
    """A connection or flow has opened, or has closed after `duration_s`; bytes are what was carried of the programs' own."""

    peer: str
    target: str  # as tcp/22
    number: int  # counted from 1 in this process
    duration_s: float | None = None  # None: it has opened
    sent_bytes: int = 0  # to the peer
    received_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As the machine interface has it."""
        state = "open" if self.duration_s is None else "closed"
        told = {"event": "connection", "peer": self.peer, "target": self.target, "state": state, "number": self.number}
        if self.duration_s is None:
            return told
        figures = {"duration_s": round(self.duration_s, 3), "sent_bytes": self.sent_bytes, "received_bytes": self.received_bytes}
        return told | figures


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsReport:
    """So many more of one peer have opened and closed within WINDOW than were told one by one."""

    peer: str
    opened: int
    closed: int
    sent_bytes: int  # of the closed ones
    received_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As the machine interface has it."""
        names = ("peer", "opened", "closed", "sent_bytes", "received_bytes")
        return {"event": "connections", **{name: getattr(self, name) for name in names}}


Report: TypeAlias = ConnectionReport | ConnectionsReport


@dataclass(slots=True)
class _Window:
    ends: float
    lines: int = 0
    beyond: Counter[str] = field(default_factory=Counter)


class LineLimit:
    """At most so many lines about one subject in a window; what is beyond is counted, and told when the window is over."""

    def __init__(
        self, most: int, sum_up: Callable[[str, Counter[str]], None], clock: Callable[[], float] = trio.current_time
    ) -> None:
        """`sum_up` takes the subject and the amounts that were not told."""
        self._most = most
        self._sum_up = sum_up
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._has_more = trio.Event()

    def admits(self, subject: str, **amounts: int) -> bool:
        """Whether this may be told; if not, `amounts` are added to the sum."""
        now = self._clock()
        window = self._windows.get(subject)
        if window is None or now >= window.ends:
            self._end(now)
            window = self._windows[subject] = _Window(now + WINDOW)
        if window.lines < self._most:
            window.lines += 1
            return True
        for name, amount in amounts.items():  # Counter.update asks first what it was given
            window.beyond[name] += amount
        self._has_more.set()
        return False

    async def run(self) -> None:
        """Tell the sums in time, and when this is cancelled."""
        try:
            while True:
                await self._has_more.wait()
                self._has_more = trio.Event()
                while ends := [window.ends for window in self._windows.values() if window.beyond]:
                    await trio.sleep(max(0.0, min(ends) - self._clock()))
                    self._end(self._clock())
        finally:
            self._end(float("inf"))

    def _end(self, now: float) -> None:
        over = {subject: window for subject, window in self._windows.items() if now >= window.ends}
        for subject, window in over.items():
            del self._windows[subject]
            if window.beyond:
                self._sum_up(subject, window.beyond)


class AccessLog:
    """Of one command, over all its links."""

    def __init__(self, tell: Callable[[Report], None] | None = None, clock: Callable[[], float] = trio.current_time) -> None:
        self._tell = tell
        self.clock = clock
        self._limit = LineLimit(MAX_ACCESSES, self._sum_up, clock)
        self._numbers = itertools.count(1)

    def access(self, peer: str, target: str) -> Access:
        """One connection or flow, not open yet."""
        return Access(self, peer, target)

    def next_number(self) -> int:
        return next(self._numbers)

    def note(self, peer: str, target: str, number: int, duration: float | None = None, sent: int = 0, received: int = 0) -> None:
        """One has opened, or closed after `duration` seconds."""
        if self._tell is None:
            return
        if duration is None:
            is_told = self._limit.admits(peer, opened=1)
        else:
            is_told = self._limit.admits(peer, closed=1, sent=sent, received=received)
        if is_told:
            self._tell(
                ConnectionReport(
                    peer=peer, target=target, number=number, duration_s=duration, sent_bytes=sent, received_bytes=received
                )
            )

    async def run(self) -> None:
        """Until cancelled."""
        await self._limit.run()

    def _sum_up(self, peer: str, beyond: Counter[str]) -> None:
        assert self._tell is not None
        self._tell(
            ConnectionsReport(
                peer=peer,
                opened=beyond["opened"],
                closed=beyond["closed"],
                sent_bytes=beyond["sent"],
                received_bytes=beyond["received"],
            )
        )


class Access:
    """One connection or flow.  Whoever carries it adds to `sent` and `received`, in bytes."""

    __slots__ = ("_began", "_log", "_number", "_peer", "_target", "received", "sent")

    def __init__(self, log: AccessLog | None = None, peer: str = "", target: str = "") -> None:
        """Without a log it only counts."""
        self._log = log
        self._peer = peer
        self._target = target
        self._number = 0  # until it is open
        self._began = 0.0
        self.sent = 0  # to the peer
        self.received = 0  # from the peer

    def opened(self) -> None:
        """The program at the far end has accepted it."""
        log = self._log
        if log is not None:
            self._began = log.clock()
            self._number = log.next_number()
            log.note(self._peer, self._target, self._number)

    def closed(self) -> None:
        """It is over.  One that never opened is told by its refusal."""
        log = self._log
        if log is not None and self._number:
            log.note(self._peer, self._target, self._number, log.clock() - self._began, self.sent, self.received)
