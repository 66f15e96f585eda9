"""Counters and traces of the core.  The core never logs: it always counts drops by name, and traces for a listener."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from tunnel.units import Instant


class Trace(Protocol):
    """A listener: qlog, the shell's log, or a test that asserts on what it heard."""

    def event(self, now: Instant, name: str, data: dict[str, Any]) -> None: ...


class Traces(Protocol):
    """Gives each connection a listener of its own."""

    def open(self, now: Instant, *, peer: str, instance: int, is_initiator: bool) -> Trace | None:
        """For a connection to `peer` that begins now; `instance` is our number of it.  None: nobody listens to this one."""


class Drops(Counter[str]):
    """How often something was thrown away, by reason.  Nothing is lost silently: every drop has a name here."""
