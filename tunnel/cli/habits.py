"""Names that other programs have for our commands, and the answer to a word that is no command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import click

from tunnel.errors import ConfigurationError

#: A word that is no command -> the command that is meant, by the group in which it was typed.
HABITS: Final = {
    "ptunnel": {
        "add": "connect", "create": "lan create", "delete": "peers forget", "dial": "connect", "forget": "peers forget",
        "kick": "lan remove", "list": "peers", "listen": "expose",
        "ls": "peers", "open": "expose", "party": "lan create", "recv": "connect", "remove": "lan remove",
        "rename": "peers rename", "rm": "peers forget", "room": "lan", "run": "exec", "send": "expose", "server": "serve",
        "share": "expose", "ssh": "connect", "start": "expose", "test": "doctor", "unshare": "revoke",
    },
    "lan": {
        "delete": "lan forget", "enter": "lan join", "host": "lan create", "kick": "lan remove", "ls": "lan list",
        "make": "lan create", "new": "lan create", "open": "lan create", "rm": "lan forget", "show": "lan list",
        "start": "lan create", "status": "lan list",
    },
    "peers": {
        "delete": "peers forget", "del": "peers forget", "ls": "peers list", "mv": "peers rename", "remove": "peers forget",
        "rm": "peers forget", "show": "peers list",
    },
}  # fmt: skip

#: What people type to end something: no command does it.
ENDS: Final = frozenset(("leave", "quit", "exit", "end", "stop", "close", "disconnect"))
HOW_TO_END: Final = "Ctrl-C in its window ends a command, and 'ptunnel status' shows which run."


def unknown(word: str, group: str, known: Iterable[str]) -> ConfigurationError:
    """The error for `word`, which `group` does not have: with the command that is meant, or with all that there are."""
    import difflib

    prefix = "" if group == "ptunnel" else f"{group} "
    known = list(known)
    near = [f"{prefix}{each}" for each in difflib.get_close_matches(word.lower(), known, n=1)]
    habit = HABITS.get(group, {}).get(word.lower())
    if word.lower() in ENDS:
        return ConfigurationError(f"There is no command {prefix + word[:40]!r}; {HOW_TO_END}")
    meant = near[0] if near and near[0] != habit and habit is None else habit
    if meant is not None:
        hint = f"did you mean 'ptunnel {meant}'?"
    else:
        hint = f"there are {', '.join(known)}."
    return ConfigurationError(f"There is no command {prefix + word[:40]!r}; {hint}")


class Subcommands(click.Group):
    """A group that says what was meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown(args[0], self.name or "", self.commands)
        if args and ctx.params.get("is_json"):  # said before the word, and meant for what it does
            args = [args[0], "--json", *args[1:]]
        return super().resolve_command(ctx, args)


class WithMore(click.Command):
    """A command whose first argument may be a code with blanks in it, typed without quotes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, joined_code(args))


def joined_code(words: list[str]) -> list[str]:
    """`731 garden violin`, which a shell takes for three words, as one."""
    for start, word in enumerate(words):
        if not word.isdecimal() or (start and words[start - 1].startswith("--")):
            continue
        end = start + 1
        while end < len(words) and words[end].isalpha():
            end += 1
        if end - start < 3:
            continue
        from tunnel.pairing.code import looks_like_code

        code = " ".join(words[start:end])
        if looks_like_code(code):
            return [*words[:start], code, *words[end:]]
    return words


def is_code(word: str) -> bool:
    """Whether a person would take it for one."""
    if not any(character.isdecimal() for character in word):
        return False
    from tunnel.pairing.code import looks_like_code

    return looks_like_code(word)


def misplaced_forwards(words: Iterable[Any]) -> list[str]:
    """Those of `words` that read as forwards: `2222:22`, `8080`, `5353:53/udp`; no names of peers."""
    from tunnel.notation import read_forward

    found = []
    for word in words:
        if not str(word)[:1].isdecimal() and ":" not in str(word):
            continue
        try:
            read_forward(str(word))
        except ConfigurationError:
            continue
        found.append(str(word))
    return found
