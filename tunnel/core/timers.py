"""One optional deadline per named timer; the owner matches on the names that are due.  Shape: quinn-proto's TimerTable."""

from __future__ import annotations

from enum import Enum
from typing import Generic, TypeVar

from tunnel.units import Instant

Name = TypeVar("Name", bound=Enum)


class TimerTable(Generic[Name]):
    """Deadlines by name.  Nothing else in the core knows about waiting."""

    __slots__ = ("_deadlines",)

    def __init__(self) -> None:
        self._deadlines: dict[Name, Instant] = {}

    def set(self, name: Name, at: Instant) -> None:
        self._deadlines[name] = at

    def clear(self, name: Name) -> None:
        self._deadlines.pop(name, None)

    def get(self, name: Name) -> Instant | None:
        return self._deadlines.get(name)

    def next(self) -> Instant | None:
        """The earliest deadline, or None."""
        return min(self._deadlines.values(), default=None)

    def expired(self, now: Instant) -> list[Name]:
        """Remove and return the names whose deadline has come, earliest first."""
        if not self._deadlines or min(self._deadlines.values()) > now:
            return []
        due = sorted((at, name.value, name) for name, at in self._deadlines.items() if at <= now)
        for _, _, name in due:
            del self._deadlines[name]
        return [name for _, _, name in due]


def earliest(*deadlines: Instant | None) -> Instant | None:
    """The first of several optional deadlines."""
    first: Instant | None = None
    for at in deadlines:
        if at is not None and (first is None or at < first):
            first = at
    return first
