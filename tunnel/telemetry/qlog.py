"""qlog: traces of connections in the standard schema, one `.sqlog` file each (draft-ietf-quic-qlog-main-schema-13, JSON-SEQ).

The events are those of draft-ietf-quic-qlog-quic-events-12, as far as they fit: our packets are short-header packets to them,
our streams and datagrams are theirs, and what has no word there (the reason of a path change) is an extra member.
The core tells runs; here they become one event for each packet, as viewers expect, by formatting a template.

qvis knows the older names of draft -03 only.  `python -m tunnel.telemetry.qlog FILE > FOR_QVIS.sqlog` gives it those.
A trace holds who was talked to, when and how much, but no payload and no key.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from tunnel.disk import DiskThread
from tunnel.errors import ConfigurationError, StateError
from tunnel.telemetry.writer import TraceWriter
from tunnel.units import Address, Instant

MAX_TRACE: Final = 256 * 1024 * 1024  # bytes of one file; the trace ends there, and says so
MAX_FILES: Final = 1_024  # traces a process begins; a peer that reconnects for ever must not fill the disk
FLUSH_AT: Final = 64 * 1024  # bytes gathered before they are written, ...
FLUSH_AFTER: Final = 1.0  # ... or seconds, so that a trace can be read while it grows
RECORD: Final = "\x1e"  # RFC 7464: before each record
FILE_SCHEMA: Final = "urn:ietf:params:qlog:file:sequential"
EVENT_SCHEMA: Final = "urn:ietf:params:qlog:events:quic-12"
_PACKET: Final = (
    RECORD + '{"time":%.3f,"name":"quic:%s","tuple":"%s",'
    '"data":{"header":{"packet_type":"1RTT","packet_number":%d},"raw":{"length":%d}%s}}\n'
)
_LOST: Final = (
    RECORD + '{"time":%.3f,"name":"quic:packet_lost","tuple":"%s",'
    '"data":{"header":{"packet_type":"1RTT","packet_number":%d},"raw":{"length":%d}}}\n'
)
_STREAM: Final = ',"frames":[{"frame_type":"stream","stream_id":%d,"offset":%d,"length":%d,"fin":%s,"raw":{"payload_length":%d}}]'

#: Our metric -> its name in qlog, and what it is multiplied by (qlog counts in milliseconds, and rates in bits).
_METRICS: Final = {
    "min_rtt": ("min_rtt", 1e3),
    "smoothed_rtt": ("smoothed_rtt", 1e3),
    "latest_rtt": ("latest_rtt", 1e3),
    "rttvar": ("rtt_variance", 1e3),
    "pto_count": ("pto_count", 1),
    "congestion_window": ("congestion_window", 1),
    "ssthresh": ("ssthresh", 1),
    "bytes_in_flight": ("bytes_in_flight", 1),
    "pacing_rate": ("pacing_rate", 8),
}

#: Reason of a drop -> `trigger` of quic:packet_dropped.
_TRIGGERS: Final = {"does not authenticate": "decryption_failure", "replayed": "duplicate"}


class QlogDirectory:
    """A folder that gets a file for every connection.  The `Traces` of the core."""

    def __init__(self, folder: Path | str) -> None:
        """Raises ConfigurationError when nothing can be written there."""
        self._folder = Path(folder)
        self._writer = TraceWriter()
        self._disk = DiskThread()
        self._files = 0
        self._open: list[QlogTrace] = []
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise ConfigurationError(f"--qlog: nothing can be written to {folder}: {error.strerror or error}.") from None

    def open(self, now: Instant, *, peer: str, instance: int, is_initiator: bool) -> QlogTrace | None:
        """The trace of one connection; None when no file can be made any more."""
        if self._files >= MAX_FILES:
            return None
        self._files += 1
        side = "client" if is_initiator else "server"
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"{stamp}-{re.sub('[^A-Za-z0-9_-]', '_', peer)[:32]}-{instance:016x}_{side}.sqlog"
        try:
            file = self._disk.ask(partial(_create, self._folder / name))
        except (OSError, StateError):
            return None
        trace = QlogTrace(file, now, self._writer, peer=peer, instance=instance, is_initiator=is_initiator)
        self._open = [each for each in self._open if not each.is_closed]
        self._open.append(trace)
        return trace

    def close(self) -> None:
        """Write what is still in memory."""
        for trace in self._open:
            trace.close()
        self._open.clear()
        self.finish()

    def finish(self) -> None:
        """Wait for the disk, as long as it goes on."""
        self._writer.finish()


def _create(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


class QlogTrace:
    """One connection's file, begun at `now`.  Writing never raises: a full disk ends the trace, not the connection."""

    def __init__(
        self, file: BinaryIO, now: Instant, writer: TraceWriter, *, peer: str, instance: int, is_initiator: bool
    ) -> None:  # fmt: skip
        self.is_closed = False
        self._file = file
        self._writer = writer
        self._started_at = self._flushed_at = now
        self._lines: list[str] = []
        self._gathered = 0
        self._written = 0
        self._state = ""
        self._mtus: dict[int, int] = {}
        self._said: dict[int, dict[str, float]] = {}  # metrics by path: only what has changed is told
        self._put(_header(peer, instance, is_initiator))

    def event(self, now: Instant, name: str, data: dict[str, Any]) -> None:
        """Called by the core; the names are those of tunnel/transport/connection/tracing.py."""
        if self.is_closed:
            return
        at = (now - self._started_at) * 1e3
        handler = getattr(self, f"_on_{name}", None)
        if handler is None:
            self._event(at, f"ptunnel:{name}", data)
        else:
            handler(at, data)
        if self.is_closed:
            return
        if self._gathered >= FLUSH_AT or now >= self._flushed_at + FLUSH_AFTER:
            self._flushed_at = now
            self._flush()

    def close(self) -> None:
        if not self.is_closed:
            self._flush(is_last=True)

    # one for each name

    def _on_started(self, at: float, data: dict[str, Any]) -> None:
        self._assign(at, data)
        self._event(at, "quic:connection_started", {"local": {}, "remote": _endpoint(data["remote"])})
        self._event(at, "quic:connection_state_updated", {"new": "handshake_complete"})

    def _on_packets_sent(self, at: float, data: dict[str, Any]) -> None:
        first, count, size, last = data["first"], data["count"], data["size"], data["last_size"]
        path, bulk, frames = data["path"], data.get("bulk"), data["frames"]
        lines = []
        for index in range(count):
            text = ""
            if bulk is not None:
                stream, offset, length, step, fin = bulk
                piece = min(step, length - index * step)
                ends = "true" if fin and index == count - 1 else "false"
                text = _STREAM % (stream, offset + index * step, piece, ends, piece)
            elif frames and index == 0:
                text = ',"frames":' + _frames(frames)
            length_here = size if index < count - 1 else last
            lines.append(_PACKET % (at, "packet_sent", path, first + index, length_here, text))
        self._put("".join(lines))

    def _on_packets_received(self, at: float, data: dict[str, Any]) -> None:
        """The frames of a batch stand in its last packet: which of a run carried what is not kept."""
        numbers = [number for first, count in data["runs"] for number in range(first, first + count)]
        size, last, path = data["size"], data["last_size"], data["path"]
        lines = [_PACKET % (at, "packet_received", path, number, size, "") for number in numbers[:-1]]
        text = ',"frames":' + _frames(data["frames"]) if data["frames"] else ""
        lines.append(_PACKET % (at, "packet_received", path, numbers[-1], last, text))
        self._put("".join(lines))

    def _on_packets_lost(self, at: float, data: dict[str, Any]) -> None:
        path, size = data["path"], data["size"]
        numbers = (number for first, count in data["runs"] for number in range(first, first + count))
        self._put("".join(_LOST % (at, path, number, size) for number in numbers))

    def _on_packets_dropped(self, at: float, data: dict[str, Any]) -> None:
        reason = data["reason"]
        found = {"trigger": _TRIGGERS.get(reason, "general"), "details": reason, "count": data["count"]}
        self._event(at, "quic:packet_dropped", found)

    def _on_metrics(self, at: float, data: dict[str, Any]) -> None:
        path = data["path"]
        said = self._said.setdefault(path, {})
        changed: dict[str, float] = {}
        for ours, (theirs, factor) in _METRICS.items():
            value = data[ours] * factor
            if math.isfinite(value) and said.get(theirs) != (value := round(value, 3)):
                said[theirs] = changed[theirs] = value
        if changed:
            self._event(at, "quic:recovery_metrics_updated", changed, path)
        state = "slow_start" if data["in_slow_start"] else "congestion_avoidance"
        if state != self._state:
            old = {"old": self._state} if self._state else {}
            self._state = state
            self._event(at, "quic:congestion_state_updated", {**old, "new": state}, path)

    def _on_timeout(self, at: float, data: dict[str, Any]) -> None:
        kind = "pto" if data["probes"] else "ack"
        found = {"event_type": "expired", "timer_type": kind, "packet_number_space": "application_data"}
        self._event(at, "quic:timer_updated", found, data["path"])

    def _on_path(self, at: float, data: dict[str, Any]) -> None:
        path, mtu = data["path"], data["mtu"]
        self._assign(at, data)
        self._event(at, "quic:migration_state_updated", {"new": "migration_complete", "why": data["why"]}, path)
        if self._mtus.get(path) != mtu:
            old = {"old": self._mtus[path]} if path in self._mtus else {}
            self._mtus[path] = mtu
            self._event(at, "quic:mtu_updated", {**old, "new": mtu}, path)

    def _on_keys(self, at: float, data: dict[str, Any]) -> None:
        for side in ("client", "server"):
            found = {"key_type": f"{side}_1rtt_secret", "trigger": "local_update"}
            self._event(at, "quic:key_updated", found)

    def _on_closed(self, at: float, data: dict[str, Any]) -> None:
        initiator = "remote" if data["by_peer"] else "local"
        found = {"initiator": initiator, "application_error": "unknown", "error_code": data["code"], "reason": data["text"]}
        self._event(at, "quic:connection_closed", found)
        self.close()

    # writing

    def _assign(self, at: float, data: dict[str, Any]) -> None:
        remote = {**_endpoint(data["remote"]), "kind": data["kind"]}
        self._event(at, "quic:tuple_assigned", {"tuple_id": str(data["path"]), "tuple_remote": remote})

    def _event(self, at: float, name: str, data: dict[str, Any], path: int | None = None) -> None:
        record: dict[str, Any] = {"time": round(at, 3), "name": name}
        if path is not None:
            record["tuple"] = str(path)
        record["data"] = data
        self._put(_record(record))

    def _put(self, text: str) -> None:
        self._lines.append(text)
        self._gathered += len(text)

    def _flush(self, *, is_last: bool = False) -> None:
        data = "".join(self._lines).encode()
        self._lines.clear()
        self._gathered = 0
        if self._written + len(data) > MAX_TRACE:
            data = _warning(f"the trace ends here: it has reached {MAX_TRACE} bytes")
            is_last = True
        self._written += len(data)
        self.is_closed = is_last
        self._writer.put(self, data, is_last=is_last)

    def write(self, data: bytes, lost: int, is_last: bool) -> None:
        """In the writer's thread."""
        try:
            rest = memoryview((_warning(f"{lost} bytes are missing here, as the disk was slow") if lost else b"") + data)
            while rest:
                rest = rest[self._file.write(rest) :]
            if is_last:
                self._file.close()
        except (OSError, ValueError):  # ValueError: closed by the error before
            self.is_closed = True
            with contextlib.suppress(OSError):
                self._file.close()


def _warning(text: str) -> bytes:
    return _record({"time": 0, "name": "loglevel:warning", "data": {"message": text}}).encode()


def _header(peer: str, instance: int, is_initiator: bool) -> str:
    """Main schema §5; the members `qlog_version` and `qlog_format` are for readers that know older drafts only."""
    side = "client" if is_initiator else "server"
    wall = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1_000_000 % 1000:03d}Z"
    return _record(
        {
            "file_schema": FILE_SCHEMA,
            "serialization_format": "application/qlog+json-seq",
            "qlog_version": "0.3",
            "qlog_format": "JSON-SEQ",
            "title": f"ptunnel connection with {peer}",
            "trace": {
                "vantage_point": {"name": "ptunnel", "type": side},
                "event_schemas": [EVENT_SCHEMA],
                "common_fields": {
                    "group_id": f"{instance:016x}",
                    "protocol_types": ["PTUNNEL"],
                    "time_format": "relative_to_epoch",
                    "reference_time": {"clock_type": "monotonic", "epoch": "unknown", "wall_clock_time": wall},
                },
            },
        }
    )


def _record(value: dict[str, Any]) -> str:
    return RECORD + json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def _frames(frames: list[dict[str, Any]]) -> str:
    shown = []
    for frame in frames:
        if frame["frame_type"] == "ack":
            frame = {**frame, "ack_delay": round(frame["ack_delay"] * 1e3, 3)}
        elif frame["frame_type"] == "stream":
            frame = {**frame, "raw": {"payload_length": frame["length"]}}
        shown.append(frame)
    return json.dumps(shown, separators=(",", ":"))


def _endpoint(address: Address) -> dict[str, Any]:
    family = "v6" if address.is_ipv6 else "v4"
    return {f"ip_{family}": address.host, f"port_{family}": address.port}


# What qvis reads: qlog 0.3, whose events stood in four categories.

_CATEGORIES: Final = {
    "packet_sent": "transport:packet_sent",
    "packet_received": "transport:packet_received",
    "packet_dropped": "transport:packet_dropped",
    "packet_lost": "recovery:packet_lost",
    "recovery_metrics_updated": "recovery:metrics_updated",
    "congestion_state_updated": "recovery:congestion_state_updated",
    "timer_updated": "recovery:loss_timer_updated",
    "key_updated": "security:key_updated",
    "connection_started": "connectivity:connection_started",
    "connection_state_updated": "connectivity:connection_state_updated",
    "connection_closed": "connectivity:connection_closed",
    "tuple_assigned": "connectivity:path_assigned",
    "migration_state_updated": "connectivity:path_updated",
    "mtu_updated": "connectivity:mtu_updated",
}


def for_qvis(source: TextIO) -> Iterator[str]:
    """The records of a trace as qlog 0.3 has them.  A record cut off by a crash is left out."""
    for line in source:
        try:
            record = json.loads(line.lstrip(RECORD))
        except ValueError:
            continue
        if "trace" in record:
            reference = record["trace"]["common_fields"].pop("reference_time", {})
            record["trace"]["common_fields"].update(time_format="relative", reference_time=0)
            record["trace"]["description"] = f"began {reference.get('wall_clock_time', '')}"
            del record["trace"]["event_schemas"], record["file_schema"], record["serialization_format"]
        else:
            record.pop("tuple", None)
            category, _, name = record["name"].partition(":")
            if category == "quic":
                record["name"] = _CATEGORIES.get(name, record["name"])
        yield _record(record)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tunnel.telemetry.qlog FILE.sqlog > FOR_QVIS.sqlog\n")
        return 2
    with open(arguments[0], encoding="utf-8", newline="\n") as source:
        for record in for_qvis(source):
            sys.stdout.write(record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
