"""`ptunnel man`: the manual page, made from --help, so that it is never older than the program.

ptunnel man > ptunnel.1       scripts/install does that
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click


@click.command("man", hidden=True)
def command() -> None:
    """Print the manual page (troff)."""
    from tunnel.cli.main import group

    click.echo(page(group), nl=False)


def page(group: click.Group) -> str:
    """Of a program and its commands, for man(7)."""
    from importlib.metadata import version

    lines = [
        f'.TH PTUNNEL 1 "" "ptunnel {version("ptunnel")}" "User Commands"',
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
        context = click.Context(each, info_name=f"ptunnel {name}")
        usage = " ".join(each.collect_usage_pieces(context))
        lines += [".SS " + _plain(f"ptunnel {name} {usage}".strip()), *_text(each.help or "")]
        for option in each.get_params(context):
            record = option.get_help_record(context) if isinstance(option, click.Option) else None
            if record is not None and "--help" not in option.opts:
                lines += [".TP", f".B {_plain(record[0])}", _plain(record[1])]
        if each.epilog:
            lines += [".PP", *_text(each.epilog)]
    lines += [".SH REFERENCE", *_text(group.epilog or "")]
    return "\n".join(lines) + "\n"


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
