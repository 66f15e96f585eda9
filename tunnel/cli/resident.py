"""Asks `ptunnel up` of this home to change what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from tunnel.errors import CODES, ConfigurationError, StateError, UnreachableError, error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.control.messages import Request
    from tunnel.state.home import Home

NOT_RUNNING: Final = (
    "'ptunnel up' does not run for this home: start it, or have the system do that with 'ptunnel service install'."
)
_OURS: Final = frozenset({code for _kind, code in CODES} | {"busy", "process_silent"})

saves = click.option("--save", "saves", is_flag=True, help="In config.toml, too: it is so after a restart.")


def require_size(request: Request) -> None:
    """Raises ConfigurationError."""
    from tunnel.control.messages import MAX_REQUEST, encode_line

    if len(encode_line(request)) > MAX_REQUEST:
        raise ConfigurationError("That is too much for one command: give some of it to another one, or use ranges.")


def ask_up(home: Home, request: Request, on_answer: Callable[[dict[str, Any]], None]) -> bool:
    """Hand `on_answer` what `up` says; False where none runs.  Raises what it says has failed: nothing has changed then."""
    import trio

    from tunnel.control.client import ask_all

    require_size(request)
    found: list[dict[str, Any]] = []
    trio.run(ask_all, home.run_dir(), request, lambda _pid, answer: found.append(answer))
    answers = [answer for answer in found if answer["event"] != "error"]
    for answer in answers:
        on_answer(answer)
    for answer in found:
        if answer["event"] == "error" and answer.get("code") in _OURS and not answers:
            raise error_of(str(answer["code"]), str(answer["message"]))
    return bool(answers)


def require_up(home: Home, request: Request, on_answer: Callable[[dict[str, Any]], None]) -> None:
    """The same.  Raises UnreachableError where none runs, with what to do."""
    if not ask_up(home, request, on_answer):
        raise UnreachableError(NOT_RUNNING)


def find_up(home: Home) -> int | None:
    """The process that is `up` of this home; None where there is none, or no place for the sockets by which it could be asked."""
    import trio

    from tunnel.control.client import ask_all
    from tunnel.control.messages import Status

    found: list[dict[str, Any]] = []
    try:
        run_dir = home.run_dir()
    except StateError:
        return None
    trio.run(ask_all, run_dir, Status(), lambda _pid, answer: found.append(answer))
    return next((int(each["pid"]) for each in found if each.get("role") == "up"), None)
