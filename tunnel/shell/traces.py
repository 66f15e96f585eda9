"""Whoever listens to connections, behind a wall: a fault there ends the trace, not the connection."""

from __future__ import annotations

from typing import Any

from tunnel.core.trace import Trace, Traces
from tunnel.faults import Faults
from tunnel.units import Instant


class WalledTraces:
    """`Traces` for the core."""

    def __init__(self, traces: Traces, faults: Faults) -> None:
        self._traces = traces
        self._faults = faults

    def open(self, now: Instant, *, peer: str, instance: int, is_initiator: bool) -> Trace | None:
        with self._faults.wall("trace", f"kept the link to {peer} from being traced"):
            trace = self._traces.open(now, peer=peer, instance=instance, is_initiator=is_initiator)
            return None if trace is None else _WalledTrace(trace, peer, self._faults)
        return None


class _WalledTrace:
    def __init__(self, trace: Trace, peer: str, faults: Faults) -> None:
        self._trace: Trace | None = trace
        self._peer = peer
        self._faults = faults

    def event(self, now: Instant, name: str, data: dict[str, Any]) -> None:
        if self._trace is None:
            return
        try:
            self._trace.event(now, name, data)
        except Exception as error:
            self._trace = None
            self._faults.note("trace", f"ended the trace of the link to {self._peer}", error)
