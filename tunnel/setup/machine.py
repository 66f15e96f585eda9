"""The machine that the verbs of the library stand on: this one, unless a test brings another."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from tunnel.shell.places import machine_hosts


@dataclass(frozen=True, slots=True)
class Machine:
    """The parts of the machine that an EndpointDriver uses, by the names of its arguments; None: this machine's own."""

    opener: Any = None
    bind: Any = None
    hosts: Callable[[], list[str]] | None = None
    clock: Any = None
    wall: Callable[[], float] | None = None
    machine: Callable[[], bytes] | None = None

    def options(self, *names: str) -> dict[str, Any]:
        """Of these arguments, or all, those that are not this machine's own."""
        return {name: value for name in names or self.__slots__ if (value := getattr(self, name)) is not None}

    @property
    def has_router(self) -> bool:
        """Whether a router may be asked for something."""
        return self.opener is None

    def look(self) -> list[str]:
        """Its addresses."""
        return (self.hosts or machine_hosts)()


#: What a verb stands on when it is entered.
MACHINE: Final[ContextVar[Machine]] = ContextVar("machine", default=Machine())  # noqa: B039  # frozen
