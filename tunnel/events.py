"""What `on_event` of the library is told: one frozen value for each event, and `Event`, any of them."""

from __future__ import annotations

from tunnel.shell.events import Closed, CodeReady, Event, Listening, MemberReport, Paired, PathReport, Serving, Trouble

__all__ = [
    "Closed",
    "CodeReady",
    "Event",
    "Listening",
    "MemberReport",
    "Paired",
    "PathReport",
    "Serving",
    "Trouble",
]
