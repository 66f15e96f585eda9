"""The events that the library hands to `on_event`: one frozen class for each, and `Event`, any of them."""

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
