"""The common part of connect and expose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import trio

from tunnel.errors import ConfigurationError, leaves
from tunnel.shell.events import Event

OnEvent: TypeAlias = Callable[[Event], None]
Words: TypeAlias = str | int | Iterable[str | int]  # ports or names: one or several

SERVER_PATIENCE: Final = 10.0  # seconds for a server to answer for the first time; later silence is waited out


def require_trio() -> None:
    """Raises ConfigurationError."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise ConfigurationError("The library runs under trio: trio.run(main).") from None


def words(given: Words) -> tuple[str, ...]:
    """The ports or names that a caller gives: one or several.  A string is one, not its letters; a port may be a number."""
    return (str(given),) if isinstance(given, str | int) else tuple(str(each) for each in given)


@contextmanager
def single_error() -> Iterator[None]:
    """Our nursery is our own affair: the one exception that came out of it is raised as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors = [error for error in leaves(group) if not isinstance(error, trio.Cancelled)]
        if len(errors) != 1:
            raise
        error = errors[0]
        raise error from error.__cause__
