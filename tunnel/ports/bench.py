"""A measurement of a link: a sink and a source that every ptunnel offers to its paired peers, and the client of both.

Granted to any paired peer, so bounded: one at a time for each peer, open.MAX_BENCH_SECONDS and MAX_BYTES each, and
MAX_BYTES_AN_HOUR in all.  What the source sends is zeros; what the sink gets is counted and thrown away.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio

from tunnel.errors import MalformedPacket, TunnelError, UnreachableError
from tunnel.ports.link import Flows, Stream
from tunnel.ports.open import Bench, Measured, Opened, decode_measured, decode_opened, encode, read_message
from tunnel.shell.stream import StreamCode, StreamResetError

MAX_BYTES: Final = 16 * 1024**3  # of one measurement
MAX_BYTES_AN_HOUR: Final = 64 * 1024**3  # of all measurements that one peer asks for, over whatever links
MAX_PEERS: Final = 1_024  # whose measurements are remembered; who has measured longest ago is forgotten
GRACE: Final = 5.0  # seconds beyond its time after which a measurement is cut
ANSWER_TIMEOUT: Final = 10.0  # seconds for the other side to agree
STRAGGLERS: Final = 0.25  # seconds for datagrams that are still on their way when the last was sent
DATAGRAM: Final = 1200  # bytes of payload
LARGEST_BATCH: Final = 64  # datagrams queued at once
PINGS: Final = 10
PING_TIMEOUT: Final = 5.0  # seconds until one counts as lost
PING_SPACING: Final = 0.05
CUT_SHORT: Final = "The other side cut the measurement short."
_ZEROS: Final = bytes(1024 * 1024)

#: Takes one result as a dict.
Say: TypeAlias = "Callable[[dict[str, Any]], Awaitable[None]]"


# ---------------------------------------------------------------- the side that is asked


class Allowance:
    """The amount that one peer may still measure."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_busy = False
        self._hour_began = clock()
        self._used = 0

    def begin(self) -> int:
        """Bytes that the measurement that begins now may take; 0 when there can be none."""
        now = self._clock()
        if now - self._hour_began >= 3600:
            self._hour_began, self._used = now, 0
        left = 0 if self._is_busy else min(MAX_BYTES, MAX_BYTES_AN_HOUR - self._used)
        self._is_busy = self._is_busy or left > 0
        return max(0, left)

    def end(self, used: int) -> None:
        self._is_busy = False
        self._used += used


class Allowances:
    """Those of all peers, by fingerprint: a peer that comes with another link, or comes back, begins no new hour."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: OrderedDict[str, Allowance] = OrderedDict()

    def of(self, fingerprint: str) -> Allowance:
        found = self._of.get(fingerprint)
        if found is None:
            if len(self._of) >= MAX_PEERS:
                self._of.popitem(last=False)
            found = self._of[fingerprint] = Allowance(self._clock)
        self._of.move_to_end(fingerprint)
        return found


#: Of this process.
ALLOWANCES: Final = Allowances()


async def serve_bench(stream: Stream, early: list[bytes], wanted: Bench, *, flows: Flows, allowance: Allowance) -> None:
    """One measurement, as asked.  Never raises for what the peer did."""
    limit = allowance.begin()
    if not limit:
        stream.reset(StreamCode.DENIED)
        stream.stop(StreamCode.DENIED)
        return
    counted = _Counted()
    try:
        with trio.move_on_after(wanted.seconds + GRACE):
            await stream.send_all(encode(Opened()))
            match wanted.do:
                case "source":
                    await _send_stream(stream, wanted.seconds, limit, counted)
                    stream.finish()
                    await stream.wait_acked()
                case "sink":
                    await _count_stream(stream, early, limit, counted)
                    await stream.send_all(encode(counted.measured()))
                    stream.finish()
                    await stream.wait_acked()
                case "datagram source":
                    await _send_datagrams(flows, wanted.flow, wanted.size, wanted.seconds, limit, counted)
                    await stream.send_all(encode(counted.measured()))
                    stream.finish()
                    await stream.wait_acked()
                case "datagram sink":
                    await _count_datagrams(stream, flows, wanted.flow, limit, counted)
                    await stream.send_all(encode(counted.measured()))
                    stream.finish()
                    await stream.wait_acked()
    except TunnelError:
        pass
    finally:
        allowance.end(counted.bytes)
        stream.reset(StreamCode.CANCELLED)
        stream.stop(StreamCode.CANCELLED)


class _Counted:
    """Bytes and datagrams, and from when to when."""

    def __init__(self) -> None:
        self.bytes = self.datagrams = 0
        self._first = self._last = 0.0

    def add(self, size: int, datagrams: int = 0) -> None:
        self._last = trio.current_time()
        if not self._first:
            self._first = self._last
        self.bytes += size
        self.datagrams += datagrams

    def measured(self) -> Measured:
        return Measured(self.bytes, self.datagrams, round(self._last - self._first, 6))


async def _send_stream(stream: Stream, seconds: float, limit: int, counted: _Counted) -> None:
    ends = trio.current_time() + seconds
    while trio.current_time() < ends and counted.bytes < limit:
        space = await stream.wait_send_space()
        count = min(len(space), len(_ZEROS), limit - counted.bytes)
        space[:count] = _ZEROS[:count]
        stream.commit(count)
        counted.add(count)
        await trio.lowlevel.checkpoint()


async def _count_stream(stream: Stream, early: list[bytes], limit: int, counted: _Counted) -> None:
    chunks = early or await stream.receive_chunks()
    while chunks and counted.bytes < limit:
        counted.add(sum(map(len, chunks)))
        chunks = await stream.receive_chunks()
        await trio.lowlevel.checkpoint()


async def _send_datagrams(flows: Flows, flow: int, size: int, seconds: float, limit: int, counted: _Counted) -> None:
    """As many as the path takes: the next batch is queued when the one before has left, so that none grows stale in line."""
    ends = trio.current_time() + seconds
    data, batch = bytes(size), 8
    while trio.current_time() < ends and counted.bytes < limit:
        sent = flows.send(flow, [data] * batch)
        flows.flush()
        counted.add(sent * size, sent)
        if flows.backlog:
            batch = max(1, batch - 1)
            await _drained(flows, ends)
        else:
            batch = min(LARGEST_BATCH, batch + 1)
            await trio.lowlevel.checkpoint()


async def _drained(flows: Flows, ends: float) -> None:
    while flows.backlog and trio.current_time() < ends:  # noqa: ASYNC110  # the core tells nobody when a datagram leaves
        await trio.sleep(0.0005)


async def _count_datagrams(stream: Stream, flows: Flows, flow: int, limit: int, counted: _Counted) -> None:
    """Until the stream beside them ends."""

    def take(batch: list[bytes]) -> None:
        if counted.bytes < limit:
            counted.add(sum(map(len, batch)), len(batch))

    flows.register(flow, take)
    try:
        while await stream.receive_chunks():
            pass
        await trio.sleep(STRAGGLERS)
    finally:
        flows.unregister(flow)


# ---------------------------------------------------------------- the side that asks


async def measure(link: Any, seconds: float, say: Say) -> None:
    """All there is to measure on `link` (a driver Link), `seconds` for each of four transfers; results as they come.

    Raises UnreachableError when the link closes or the other side's ptunnel does not take part.
    """
    await say({"what": "path", **{key: getattr(link.status(), key) for key in ("kind", "remote", "mtu", "why")}})
    await say({"what": "rtt", "load": "idle", **await _pings(link, PINGS)})
    for way in ("up", "down"):
        await say({"what": "stream", "way": way, **await _stream(link, seconds, way)})
    for way in ("up", "down"):
        await say({"what": "datagrams", "way": way, **await _datagrams(link, seconds, way)})


async def _pings(link: Any, count: float) -> dict[str, Any]:
    """`count` of them, or as many as there is time for until cancelled: see `_under_load`."""
    times: list[float] = []
    lost = 0
    while len(times) + lost < count:
        with trio.move_on_after(PING_TIMEOUT) as limit:
            times.append(await link.ping())
        lost += limit.cancelled_caught
        await trio.sleep(PING_SPACING)
    return _round_trips(times, lost)


def _round_trips(times: list[float], lost: int) -> dict[str, Any]:
    import statistics

    if not times:
        return {"min_s": None, "median_s": None, "max_s": None, "pings": lost, "lost": lost}
    low, middle, high = min(times), statistics.median(times), max(times)
    rounded = {"min_s": round(low, 6), "median_s": round(middle, 6), "max_s": round(high, 6)}
    return {**rounded, "pings": len(times) + lost, "lost": lost}


async def _stream(link: Any, seconds: float, way: str) -> dict[str, Any]:
    """Throughput of one stream, what it does to round trips, and how many packets of ours it lost."""
    before = link.status()
    counted = _Counted()
    loaded: list[float] = []
    found: Measured | None = None
    problem = UnreachableError(CUT_SHORT)
    async with trio.open_nursery() as nursery:

        async def ping() -> None:
            with contextlib.suppress(TunnelError):  # the link has closed, and the transfer says so
                while True:
                    await trio.sleep(PING_SPACING)
                    loaded.append(await link.ping())

        nursery.start_soon(ping)
        try:
            found = await _transfer(link, seconds, way, counted)
        except UnreachableError as error:  # the nursery would wrap it in a group
            problem = error
        except TunnelError:  # the other side gave up one of the stream's halves
            pass
        nursery.cancel_scope.cancel()
    if found is None:
        raise problem
    after = link.status()
    sent, lost = after.packets_sent - before.packets_sent, after.packets_lost - before.packets_lost
    trip = _round_trips(loaded, 0)
    return {
        "mbit_s": _mbit(found),
        "bytes": found.bytes,
        "seconds": found.seconds,
        "lost_percent": round(100 * lost / max(1, sent), 3) if way == "up" else None,
        "rtt_median_s": trip["median_s"],
        "rtt_max_s": trip["max_s"],
        "mtu": after.mtu,
    }


async def _transfer(link: Any, seconds: float, way: str, counted: _Counted) -> Measured:
    """One stream one way.  Raises TunnelError."""
    if way == "up":
        stream, _rest = await _ask(link, Bench("sink", seconds))
        with trio.move_on_after(seconds + GRACE):  # the other side may take nothing
            await _send_stream(stream, seconds, MAX_BYTES, counted)
        stream.finish()
        found = await _verdict(stream)
    else:
        stream, rest = await _ask(link, Bench("source", seconds))
        with trio.move_on_after(seconds + GRACE):
            await _count_stream(stream, rest, MAX_BYTES, counted)
        found = counted.measured()
    await stream.aclose()
    return found


async def _datagrams(link: Any, seconds: float, way: str) -> dict[str, Any]:
    flow = link.flows.allocate()
    counted = _Counted()
    if way == "up":
        stream, _rest = await _ask(link, Bench("datagram sink", seconds, DATAGRAM, flow))
        await _send_datagrams(link.flows, flow, DATAGRAM, seconds, MAX_BYTES, counted)
        stream.finish()
        arrived = await _verdict(stream)
        sent = counted.datagrams
    else:
        link.flows.register(flow, lambda batch: counted.add(sum(map(len, batch)), len(batch)))
        try:
            stream, _rest = await _ask(link, Bench("datagram source", seconds, DATAGRAM, flow))
            sent = (await _verdict(stream, _rest, seconds)).datagrams
            await trio.sleep(STRAGGLERS)
        finally:
            link.flows.unregister(flow)
        arrived = counted.measured()
    await stream.aclose()
    return {
        "size": DATAGRAM,
        "datagrams_s": round(arrived.datagrams / arrived.seconds) if arrived.seconds else 0,
        "mbit_s": _mbit(arrived),
        "sent": sent,
        "received": arrived.datagrams,
        "lost_percent": round(100 * max(0, sent - arrived.datagrams) / max(1, sent), 3),
    }


def _mbit(found: Measured) -> float:
    return round(found.bytes * 8 / found.seconds / 1e6, 2) if found.seconds else 0.0


async def _ask(link: Any, wanted: Bench) -> tuple[Any, list[bytes]]:
    """A stream that the other side has agreed to measure on, and what it has sent already."""
    try:
        with trio.fail_after(ANSWER_TIMEOUT):
            stream = await link.open_stream(encode(wanted))
            body, rest = await read_message(stream)
        decode_opened(body)
    except StreamResetError as refused:
        why = "cannot measure: its ptunnel is older than this one"
        if refused.code == StreamCode.DENIED:
            why = "measures no more now: another measurement runs, or an hour's share is used"
        raise UnreachableError(f"{link.peer_name} {why}.") from None
    except (trio.TooSlowError, MalformedPacket):
        raise UnreachableError(f"{link.peer_name} does not answer: its ptunnel may be older than this one.") from None
    return stream, rest


async def _verdict(stream: Any, early: list[bytes] | None = None, seconds: float = 0.0) -> Measured:
    """Return the count of the other side.  Raises UnreachableError."""
    if early:
        stream.push_back(b"".join(early))
    try:
        with trio.fail_after(seconds + GRACE):
            body, _rest = await read_message(stream)
        return decode_measured(body)
    except (trio.TooSlowError, MalformedPacket, StreamResetError):
        raise UnreachableError(CUT_SHORT) from None
