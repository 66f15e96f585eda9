"""Events of a connection for its Trace, in the core's own words: one for a run of packets, never one per packet.

Called only when someone listens.  `tunnel.telemetry.qlog` puts these events into the words of the qlog drafts; names, and
what their data hold:

    started          remote, kind
    packets_sent     path, first, count, size, last_size (bytes of UDP payload), frames; `bulk` (stream, offset, length, step,
                     fin) stands for the STREAM frames of a run, `step` bytes in each packet but the last
    packets_received path, runs ((first, count), ...), size, last_size, frames (of the whole batch)
    packets_lost     path, runs, size
    packets_dropped  reason, count
    metrics          path and what recovery knows, durations in seconds
    timeout          path, probes, pto_count
    path             path, remote, kind, mtu, why: data goes here from now on
    keys             local_index, remote_index
    closed           code, text, by_peer
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tunnel.core.trace import Trace
from tunnel.transport.connection.carried import BulkRun, TracedFrame
from tunnel.transport.connection.events import CloseReason
from tunnel.transport.connection.paths import Path
from tunnel.transport.connection.shared import Shared
from tunnel.transport.crypto.keys import Keypair
from tunnel.transport.recovery.loss import Recovery
from tunnel.transport.recovery.sent import Marked
from tunnel.units import Instant

Ranges = Sequence[tuple[int, int]]


def started(trace: Trace, now: Instant, path: Path) -> None:
    trace.event(now, "started", {"path": path.number, "remote": path.key.remote, "kind": path.kind.value})


def packets_sent(
    shared: Shared,
    now: Instant,
    path: int | None,
    first: int,
    count: int,
    sizes: tuple[int, int],
    content: object,
    ack: Ranges = (),
) -> None:
    """A burst has just been sealed.  `sizes` is of each packet and of the last; `content` as it is filed in SentBurst."""
    data: dict[str, Any] = {"path": path, "first": first, "count": count, "size": sizes[0], "last_size": sizes[1]}
    frames: list[TracedFrame] = [ack_frame(ack)] if ack else []
    if isinstance(content, BulkRun):
        data["bulk"] = (content.stream.stream_id, content.offset, content.length, content.step, content.fin)
    elif content is not None:
        frames += [item.trace(shared) for item in content]  # type: ignore[attr-defined]  # a list of items, see send.py
    data["frames"] = frames
    assert shared.trace is not None
    shared.trace.event(now, "packets_sent", data)


def packet_sent(trace: Trace, now: Instant, path: Path | None, number: int, size: int, frame: str) -> None:
    """One packet outside the flow of bursts: a path challenge or its answer, a probe of the MTU, CLOSE."""
    data = {"path": None if path is None else path.number, "first": number, "count": 1, "size": size, "last_size": size}
    trace.event(now, "packets_sent", {**data, "frames": [{"frame_type": frame}]})


def packets_received(
    trace: Trace, now: Instant, path: Path | None, runs: list[tuple[int, int]], sizes: tuple[int, int], frames: list[TracedFrame]
) -> None:
    data = {"path": None if path is None else path.number, "runs": runs, "size": sizes[0], "last_size": sizes[1]}
    trace.event(now, "packets_received", {**data, "frames": frames})


def packets_dropped(trace: Trace, now: Instant, reason: str, count: int) -> None:
    trace.event(now, "packets_dropped", {"reason": reason, "count": count})


def settled(trace: Trace, now: Instant, path: Path, lost: Iterable[Marked]) -> None:
    """An ACK or a timer told something about `path`: what is lost, and how recovery stands now."""
    for burst, mask in lost:
        trace.event(now, "packets_lost", {"path": path.number, "runs": list(_runs(burst.first, mask)), "size": burst.size})
    trace.event(now, "metrics", {"path": path.number, **_metrics(path.recovery)})


def timed_out(trace: Trace, now: Instant, path: Path, probes: int) -> None:
    trace.event(now, "timeout", {"path": path.number, "probes": probes, "pto_count": path.recovery.pto_count})


def path_changed(trace: Trace, now: Instant, path: Path, why: str) -> None:
    remote = path.key.remote
    data = {"path": path.number, "remote": remote, "kind": path.kind.value, "mtu": path.mtu, "why": why}
    trace.event(now, "path", data)


def keys_updated(trace: Trace, now: Instant, keypair: Keypair) -> None:
    trace.event(now, "keys", {"local_index": keypair.local_index, "remote_index": keypair.remote_index})


def closed(trace: Trace, now: Instant, reason: CloseReason) -> None:
    trace.event(now, "closed", {"code": reason.code, "text": reason.text, "by_peer": reason.by_peer})


def ack_frame(ranges: Ranges, delay: float = 0.0) -> TracedFrame:
    """`delay` in seconds; the newest range is the last, as qlog has it."""
    return {"frame_type": "ack", "ack_delay": delay, "acked_ranges": [[low, high] for low, high in reversed(ranges)]}


def _runs(first: int, mask: int) -> Iterator[tuple[int, int]]:
    while mask:
        skip = (mask & -mask).bit_length() - 1
        mask >>= skip
        first += skip
        run = (~mask & (mask + 1)).bit_length() - 1
        yield first, run
        mask >>= run
        first += run


def _metrics(recovery: Recovery) -> dict[str, Any]:
    rtt, congestion = recovery.rtt, recovery.congestion
    return {
        "min_rtt": rtt.min_rtt,
        "smoothed_rtt": rtt.smoothed_rtt,
        "latest_rtt": rtt.latest_rtt,
        "rttvar": rtt.rttvar,
        "pto_count": recovery.pto_count,
        "congestion_window": congestion.window,
        "ssthresh": congestion.ssthresh,
        "in_slow_start": congestion.in_slow_start,
        "bytes_in_flight": recovery.bytes_in_flight,
        "pacing_rate": recovery.pacing_rate(),  # bytes a second
    }
