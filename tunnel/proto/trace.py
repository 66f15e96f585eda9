"""What the core reports to.  The core never logs: it counts drops by name, always, and traces when someone listens."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from tunnel.units import Instant


class Trace(Protocol):
    """A listener: qlog, the shell's log, or a test that asserts on what it heard."""

    def event(self, now: Instant, name: str, data: dict[str, Any]) -> None: ...


class Drops(Counter[str]):
    """How often something was thrown away, by reason.  Nothing is lost silently: every drop has a name here."""
