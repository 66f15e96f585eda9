"""Questions to a person at a terminal: for a code (Tab completes its words), or for the peer that is meant."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import click

from tunnel.cli.render import tell
from tunnel.errors import ConfigurationError

T = TypeVar("T")
ATTEMPTS: Final = 5  # mistyped answers, then it is an error


def can_ask() -> bool:
    """Somebody sits at the terminal.  Standard output may be a file."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def ask_code() -> str:
    """A well-formed code.  Raises ConfigurationError, KeyboardInterrupt."""
    from tunnel.pairing.code import complete, parse_code

    def check(answer: str) -> str:
        parse_code(answer)
        return answer

    return _ask(f"Code (the other computer shows it{'; Tab completes' if _completes() else ''}): ", check, complete)


def _completes() -> bool:
    """Whether Tab is ours: not where the standard output goes elsewhere, nor on Windows."""
    import importlib.util

    return sys.stdout.isatty() and importlib.util.find_spec("readline") is not None


def ask_peer(names: Sequence[str]) -> tuple[str | None, str | None]:
    """(peer, code): one of the names by itself or its number, or a code of somebody new.  Raises ConfigurationError."""
    from tunnel.pairing.code import complete, looks_like_code, parse_code

    click.echo("Connect to which peer?", err=True)
    for number, name in enumerate(names, 1):
        click.echo(f"  {number}  {name}", err=True)

    def check(answer: str) -> tuple[str | None, str | None]:
        for name in names:
            if name.casefold() == answer.casefold():
                return name, None
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1], None
        if looks_like_code(answer):
            parse_code(answer)
            return None, answer
        raise ConfigurationError(f"{answer[:40]!r} is none of them: type a name, its number, or a code to meet somebody new.")

    def candidates(prefix: str) -> list[str]:
        return [name for name in names if name.casefold().startswith(prefix.casefold())] or complete(prefix)

    return _ask("Name, number or code: ", check, candidates)


def _ask(prompt: str, check: Callable[[str], T], candidates: Callable[[str], list[str]]) -> T:
    for _ in range(ATTEMPTS):
        answer = _read_line(prompt, candidates).strip()
        if not answer:
            continue
        try:
            return check(answer)
        except ConfigurationError as problem:
            tell(str(problem))
    raise ConfigurationError("No usable answer was given: run the command again.")


def _read_line(prompt: str, candidates: Callable[[str], list[str]]) -> str:
    """Raises KeyboardInterrupt at the end of the input: whoever presses Ctrl-D wants out."""
    try:
        if sys.stdout.isatty():
            with _completion(candidates):
                return input(prompt)
        click.echo(prompt, err=True, nl=False)  # input() would write the prompt among the data
        line = sys.stdin.readline()
    except EOFError:
        raise KeyboardInterrupt from None
    if not line:
        raise KeyboardInterrupt
    return line


@contextlib.contextmanager
def _completion(candidates: Callable[[str], list[str]]) -> Iterator[None]:
    try:
        import readline
    except ImportError:  # Windows
        yield
        return

    def complete(text: str, state: int) -> str | None:
        found = candidates(text)
        return found[state] if state < len(found) else None

    old, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims("")  # the hyphens of a code are part of the word
    readline.set_auto_history(False)  # a code is a secret
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(old)
        readline.set_completer_delims(delimiters)
        readline.set_auto_history(True)
