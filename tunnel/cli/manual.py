"""`ptunnel man`: the manual pages, made from --help, so that they are never older than the program.

ptunnel man > ptunnel.1                 all in one
ptunnel man --into FOLDER               and one for each command, as scripts/install and the package have them
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from tunnel.errors import ConfigurationError

SUMMARY: Final = 120  # characters of what a command is for, in one line


@click.command("man", hidden=True)
@click.option("--into", metavar="FOLDER", help="Write a page for each command there instead, and one for all of them.")
def command(into: str | None) -> None:
    """Print the manual page (troff)."""
    from tunnel.cli.main import group

    if into is None:
        click.echo(page(group), nl=False)
        return
    for name, text in pages(group):
        try:
            (Path(into) / f"{name}.1").write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{into} takes no manual page: {error.strerror}.") from None


def pages(group: click.Group) -> Iterator[tuple[str, str]]:
    """The name of each manual page, and what is in it: one of the program, one of each command with those inside it."""
    context = click.Context(group)
    shown = [name for name, _ in commands(group) if " " not in name]
    yield "ptunnel", page(group) + _also(f"ptunnel-{name}" for name in shown)
    for name in shown:
        each = group.get_command(context, name)
        assert each is not None
        lines = [
            _title(f"ptunnel-{name}"),
            ".SH NAME",
            f"ptunnel\\-{_plain(name)} \\- {_plain(each.get_short_help_str(limit=SUMMARY))}",
            ".SH SYNOPSIS",
            f".B ptunnel {_plain(name)}",
            _plain(" ".join(each.collect_usage_pieces(click.Context(each)))),
            ".SH DESCRIPTION",
            *_entry(each, f"ptunnel {name}"),
        ]
        for inner, found in commands(each, f"{name} ") if isinstance(each, click.Group) else ():
            lines += _section(inner, found)
        yield f"ptunnel-{name}", "\n".join(lines) + "\n" + _also(["ptunnel"])


def _also(names: Iterable[str]) -> str:
    return ".SH SEE ALSO\n" + ",\n".join(f".BR {_plain(name)} (1)" for name in names) + "\n"


def _title(name: str) -> str:
    from importlib.metadata import version

    return f'.TH {name.upper()} 1 "" "ptunnel {version("ptunnel")}" "User Commands"'


def page(group: click.Group) -> str:
    """Of a program and its commands, for man(7)."""
    lines = [
        _title("ptunnel"),
        ".SH NAME",
        r"ptunnel \- reach a port of one computer from another, both behind home routers",
        ".SH SYNOPSIS",
        ".B ptunnel",
        r"\fICOMMAND\fR ...",
        ".SH DESCRIPTION",
        *_text(group.help or ""),
        ".SH COMMANDS",
    ]
    for name, each in commands(group):
        lines += _section(name, each)
    lines += [".SH REFERENCE", *_text(group.epilog or "")]
    return "\n".join(lines) + "\n"


def _section(name: str, each: click.Command) -> list[str]:
    """A command among others."""
    usage = " ".join(each.collect_usage_pieces(click.Context(each, info_name=f"ptunnel {name}")))
    return [".SS " + _plain(f"ptunnel {name} {usage}".strip()), *_entry(each, f"ptunnel {name}")]


def _entry(each: click.Command, name: str) -> list[str]:
    """Its help and that of its options."""
    context = click.Context(each, info_name=name)
    lines = _text(each.help or "")
    for option in each.get_params(context):
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record is not None and "--help" not in option.opts:
            lines += [".TP", f".B {_plain(record[0])}", _plain(record[1])]
    return [*lines, ".PP", *_text(each.epilog)] if each.epilog else lines


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each command that is shown, with its whole name; those of a group behind it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if found is None or found.hidden:
            continue
        yield f"{prefix}{name}", found
        if isinstance(found, click.Group):
            yield from commands(found, f"{prefix}{name} ")


def paragraphs(text: str) -> Iterator[tuple[list[str], bool]]:
    """Lines of each paragraph as click knows them, and whether they stand as they are: one that begins with a backspace does."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        first, _, rest = part.partition("\n")
        if first.strip() == "\b":
            yield [line.rstrip() for line in rest.split("\n")], True
        elif part:
            yield [line.strip() for line in part.split("\n")], False


def _text(text: str) -> list[str]:
    lines: list[str] = []
    for found, is_fixed in paragraphs(text):
        lines += [".PP", *([".nf"] if is_fixed else []), *map(_plain, found), *([".fi"] if is_fixed else [])]
    return lines


def _plain(text: str) -> str:
    """Nothing in it is troff's: no line begins with its control characters."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped
