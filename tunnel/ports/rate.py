"""A limit of the bytes that forwards carry, each way by itself: of one forward, or of all that lead to or from one peer.

TCP waits: what may not go yet stays with the local program, or with the peer by the stream's own credit, so that other streams
of the link go on.  UDP has nobody to wait for: what is too much is dropped, as a narrow line would.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from tunnel.ends import UNIX, read_rate
from tunnel.errors import ConfigurationError
from tunnel.ports.access import Access
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.link import Stream
from tunnel.ports.spec import Forward

BURST_TIME: Final = 0.1  # seconds of the rate that may go at once after a silence
MIN_BURST: Final = 65_536  # bytes of it at least: one of the largest datagrams
TURN: Final = 16_384  # bytes that one connection takes before the next one's turn; or what comes in a quarter of BURST_TIME
MAX_LIMITED: Final = 1_024  # peers whose limit is remembered; the one longest unused is forgotten


class Pace:
    """One direction: a token bucket, in bytes.  Whoever waits is served in turn."""

    __slots__ = ("_at", "_burst", "_left", "_rate", "_turn", "_turns")

    def __init__(self, rate: float) -> None:
        self._rate = rate  # bytes per second
        self._burst = max(rate * BURST_TIME, MIN_BURST)
        self._turn = max(1, min(TURN, int(rate * BURST_TIME / 4)))
        self._left = self._burst
        self._at = trio.current_time()
        self._turns = trio.Lock()

    async def take(self, most: int) -> int:
        """How many of `most` bytes may go now, at least one; waits until some may."""
        async with self._turns:
            count = min(most, self._turn)
            if (left := self._refilled()) < count:
                await trio.sleep((count - left) / self._rate)
                self._refilled()
            self._left -= count
            return count

    def give_back(self, count: int) -> None:
        """Bytes that were taken and did not go after all."""
        self._left += count

    def admits(self, size: int) -> bool:
        """Whether a datagram may go now."""
        if self._refilled() < size:
            return False
        self._left -= size
        return True

    def _refilled(self) -> float:
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return self._left


class Limit:
    """`up` towards the peer, `down` from it; `beyond` is a wider limit, which counts as well."""

    __slots__ = ("beyond", "down", "rate", "up")

    def __init__(self, rate: float, beyond: Limit | None = None) -> None:
        """`rate` in bytes per second."""
        self.rate = rate
        self.up, self.down = Pace(rate), Pace(rate)
        self.beyond = beyond

    async def take_up(self, most: int) -> int:
        return await _take([each.up for each in self._all()], most)

    async def take_down(self, most: int) -> int:
        return await _take([each.down for each in self._all()], most)

    def give_back_up(self, count: int) -> None:
        for each in self._all():
            each.up.give_back(count)

    def admitted_up(self, batch: list[bytes], counters: ForwardCounters) -> list[bytes]:
        """Those datagrams that may go to the peer; the others are counted."""
        return _admitted([each.up for each in self._all()], batch, counters)

    def admitted_down(self, batch: list[bytes], counters: ForwardCounters) -> list[bytes]:
        return _admitted([each.down for each in self._all()], batch, counters)

    def _all(self) -> list[Limit]:
        return [self] if self.beyond is None else [self, *self.beyond._all()]


class PeerLimits:
    """The same rate for each peer, over all its links."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._of: OrderedDict[str, Limit] = OrderedDict()

    def of(self, peer: str) -> Limit:
        limit = self._of.pop(peer, None) or Limit(self.rate)
        self._of[peer] = limit
        if len(self._of) > MAX_LIMITED:
            self._of.popitem(last=False)
        return limit


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of `connect --rate`, in bytes per second: for all forwards together, and for some by their local end."""

    of_all: float | None = None
    of_one: Mapping[str, float] = field(default_factory=dict)  # local port or path -> rate

    @classmethod
    def parse(cls, texts: Iterable[str], forwards: Iterable[Forward]) -> Rates:
        """`10M`, `8080=1M`.  Raises ConfigurationError, also for a forward that there is not."""
        of_all: float | None = None
        of_one: dict[str, float] = {}
        local = {_local(forward) for forward in forwards}
        for text in texts:
            end, equals, rate = text.rpartition("=")
            if not equals:
                of_all = read_rate(rate)
                continue
            if end.removeprefix(UNIX) not in local:
                raise ConfigurationError(f"--rate {text}: there is no --forward with {end or 'nothing'} as its end here.")
            of_one[end.removeprefix(UNIX)] = read_rate(rate)
        return cls(of_all, of_one)

    def told(self) -> dict[str, Any]:
        """As `status --json` has it."""
        told: dict[str, Any] = {} if self.of_all is None else {"rate": self.of_all}
        return told | ({"rates": dict(self.of_one)} if self.of_one else {})

    def limit(self) -> Limit | None:
        """That of all together."""
        return None if self.of_all is None else Limit(self.of_all)

    def limits(self, forwards: Iterable[Forward], limit: Limit | None = None) -> list[Limit | None]:
        """That of each forward; `limit`: that of all together, where others have it too."""
        beyond = limit or self.limit()
        ones = {local: Limit(rate, beyond) for local, rate in self.of_one.items()}
        return [ones.get(_local(forward), beyond) for forward in forwards]


def _local(forward: Forward) -> str:
    return forward.path or str(forward.local)


async def _take(paces: list[Pace], most: int) -> int:
    taken: list[tuple[Pace, int]] = []
    try:
        for pace in paces:
            most = await pace.take(most)
            taken.append((pace, most))
    except BaseException:
        most = 0
        raise
    finally:
        for pace, count in taken:
            pace.give_back(count - most)
    return most


def _admitted(paces: list[Pace], batch: list[bytes], counters: ForwardCounters) -> list[bytes]:
    kept = []
    for data in batch:
        for index, pace in enumerate(paces):
            if not pace.admits(len(data)):
                for other in paces[:index]:
                    other.give_back(len(data))
                break
        else:
            kept.append(data)
    counters.udp_rate_dropped += len(batch) - len(kept)
    return kept


async def upload_paced(sock: socket.socket, stream: Stream, limit: Limit, access: Access) -> None:
    """From a local program to the peer, to its end of file.  Raises OSError, TunnelError."""
    while True:
        await trio.lowlevel.wait_readable(sock)  # first: who has nothing to say takes nothing from the others
        await stream.wait_send_space()
        allowed = await limit.take_up(TURN)
        count = 0
        try:
            space = await stream.wait_send_space()
            try:
                count = sock.recv_into(space[:allowed])
            except BlockingIOError:
                continue
        finally:
            limit.give_back_up(allowed - count)
        if not count:
            return
        stream.commit(count)
        access.sent += count


async def write_paced(write: Callable[[list[bytes]], Awaitable[int]], chunks: list[bytes], limit: Limit) -> int:
    """Hand the peer's bytes to `write`, and return how many.  Raises what that raises."""
    size = 0
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            stop = start + await limit.take_down(len(chunk) - start)
            size += await write([chunk[start:stop]])
            start = stop
    return size
