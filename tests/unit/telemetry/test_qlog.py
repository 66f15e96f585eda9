"""Traces: what the core tells, what stands in the file, and that neither can do harm."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.unit.connection.pair import Pair
from tunnel.core.trace import Trace
from tunnel.errors import ConfigurationError
from tunnel.telemetry import qlog, writer
from tunnel.telemetry.qlog import QlogDirectory, for_qvis
from tunnel.units import Instant


def records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert all(line.startswith(qlog.RECORD) for line in lines)
    return [json.loads(line[1:]) for line in lines]


def traced_transfer(
    folder: Path, *, loss: float = 0.0, size: int = 400_000, delay: float = 0.010, warm: int = 0
) -> list[list[dict[str, Any]]]:
    """A transfer from `a` to `b`, closed by `a`, after one of `warm` bytes that is not traced; the records of both sides."""
    pair = Pair(seed=3, relayed=False, loss=loss, delay=delay)
    if warm:
        pair.write_all("a", pair.a.open_stream(), bytes(warm))
        pair.run(0.3)
    directory = QlogDirectory(folder)
    for number, connection in enumerate((pair.a, pair.b)):
        trace = directory.open(pair.now, peer="x", instance=number + 1, is_initiator=connection is pair.a)
        connection._shared.trace = trace
    stream = pair.a.open_stream()
    pair.write_all("a", stream, bytes(size))
    pair.run(0.3)
    pair.a.close(pair.now, 0, "done")
    pair.flush()
    pair.run(0.5)
    directory.close()
    return [records(path) for path in sorted(folder.iterdir(), key=lambda path: path.name.endswith("server.sqlog"))]


def of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["name"] == name]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["data"]["header"]["packet_number"] for event in events]


def test_the_parts_of_a_record_are_packets_in_a_trace(tmp_path: Path) -> None:
    size = 2_000_000
    (_, *sent), (_, *received) = traced_transfer(tmp_path, size=size, delay=0.000_1, warm=12_000_000)
    out = numbers(of(sent, "quic:packet_sent"))
    assert out == list(range(out[0], out[0] + len(out)))
    *arrived, _close = numbers(of(received, "quic:packet_received"))
    probes = {n for n, event in zip(out, of(sent, "quic:packet_sent"), strict=True) if event["data"]["raw"]["length"] > 1472}
    assert sorted({*arrived, *probes}) == out
    carried = [
        frame["length"]
        for event in of(received, "quic:packet_received")
        for frame in event["data"].get("frames", ())
        if frame["frame_type"] == "stream" and frame["length"]
    ]
    assert 0.99 * size < sum(carried) <= size  # what shares a packet with other frames is not told
    assert max(carried) > 20_000, "as records"


def test_a_trace_has_every_packet_once_in_the_standard_words(tmp_path: Path) -> None:
    (header, *sent), (_, *received) = traced_transfer(tmp_path)
    assert header["file_schema"] == "urn:ietf:params:qlog:file:sequential"
    assert header["trace"]["vantage_point"]["type"] == "client"
    out = numbers(of(sent, "quic:packet_sent"))
    assert out == list(range(out[0], out[0] + len(out)))
    *arrived, _close = numbers(of(received, "quic:packet_received"))  # CLOSE leaves when the trace has ended
    probes = {n for n, event in zip(out, of(sent, "quic:packet_sent"), strict=True) if event["data"]["raw"]["length"] > 1472}
    assert sorted({*arrived, *probes}) == out
    assert not of(sent, "quic:packet_lost")
    times = [event["time"] for event in sent]
    assert times == sorted(times)
    assert times[0] >= 0
    metrics = of(sent, "quic:recovery_metrics_updated")
    assert 20 <= metrics[0]["data"]["smoothed_rtt"] < 40  # milliseconds
    frames = [frame for event in of(sent, "quic:packet_sent") for frame in event["data"].get("frames", ())]
    streamed = [frame for frame in frames if frame["frame_type"] == "stream" and frame["stream_id"] != 0]
    assert sum(frame["length"] for frame in streamed) == 400_000
    assert streamed[-1]["fin"]
    assert of(sent, "quic:connection_closed")[0]["data"]["initiator"] == "local"
    assert of(received, "quic:connection_closed")[0]["data"]["initiator"] == "remote"


def test_losses_are_told_with_the_packets_that_were_lost(tmp_path: Path) -> None:
    (_, *sent), (_, *received) = traced_transfer(tmp_path, loss=0.05)
    lost = set(numbers(of(sent, "quic:packet_lost")))
    arrived = set(numbers(of(received, "quic:packet_received")))
    assert lost
    assert lost - arrived
    assert set(numbers(of(sent, "quic:packet_sent"))) >= lost | (arrived - {max(arrived)})  # CLOSE
    assert of(sent, "quic:congestion_state_updated")[0]["data"] == {"new": "slow_start"}


def test_qvis_gets_the_names_that_it_knows(tmp_path: Path) -> None:
    traced_transfer(tmp_path, size=20_000)
    with next(tmp_path.glob("*_client.sqlog")).open(encoding="utf-8", newline="\n") as source:
        header, *events = [json.loads(record[1:]) for record in for_qvis(source)]
    assert (header["qlog_version"], header["qlog_format"]) == ("0.3", "JSON-SEQ")
    assert {"transport:packet_sent", "transport:packet_received", "recovery:metrics_updated"} <= {e["name"] for e in events}
    assert not [event for event in events if event["name"].startswith("quic:")]


def test_a_record_that_a_crash_cut_off_is_left_out() -> None:
    whole = qlog.RECORD + '{"time":1,"name":"quic:packet_lost","data":{}}\n'
    assert len(list(for_qvis(io.StringIO(whole + whole[:20])))) == 1


def test_a_trace_ends_at_its_limit_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlog, "MAX_TRACE", 100_000)
    (*_, last), _ = traced_transfer(tmp_path, size=4_000_000)
    assert "ends here" in last["data"]["message"]
    assert all(path.stat().st_size < 110_000 for path in tmp_path.iterdir())


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path) -> None:
    directory = QlogDirectory(tmp_path)
    trace = directory.open(Instant(0.0), peer="../x y", instance=1, is_initiator=True)
    assert trace is not None
    assert "/" not in next(tmp_path.iterdir()).name
    trace._file.close()
    trace._file = open("/dev/full", "wb", buffering=0) if Path("/dev/full").exists() else trace._file  # noqa: SIM115
    for _ in range(5000):
        trace.event(Instant(1.0), "keys", {})
    directory.finish()
    assert trace.is_closed
    directory.close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(ConfigurationError):
        QlogDirectory(taken)


def test_no_more_files_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlog, "MAX_FILES", 2)
    directory = QlogDirectory(tmp_path)
    traces: list[Trace | None] = [directory.open(Instant(0.0), peer="x", instance=n, is_initiator=True) for n in range(3)]
    assert traces[2] is None
    directory.close()


def test_a_disk_that_takes_nothing_holds_up_nobody_and_what_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_UNWRITTEN", most := 300_000)
    directory = QlogDirectory(tmp_path)
    trace = directory.open(Instant(0.0), peer="x", instance=1, is_initiator=True)
    assert trace is not None
    disk = HungFile(trace._file)
    monkeypatch.setattr(trace, "_file", disk)
    for number in range(20_000):
        trace.event(Instant(1.0 + number), "keys", {})
        if not number:
            assert disk.is_asked.wait(20)
    assert directory._writer._held <= most
    disk.is_back.set()
    directory.close()
    _header, *events = records(next(tmp_path.iterdir()))
    missing = of(events, "loglevel:warning")
    assert len(missing) == 1
    assert "bytes are missing here, as the disk was slow" in missing[0]["data"]["message"]
    assert events[-1]["time"] == 1e3 * 20_000, "the newest is kept"
    assert len(events) < 40_000


class HungFile:
    """Takes nothing before `is_back`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.is_asked, self.is_back = threading.Event(), threading.Event()
        self.close = file.close

    def write(self, data: memoryview) -> int:
        self.is_asked.set()
        self.is_back.wait(20)
        return self._file.write(data)
