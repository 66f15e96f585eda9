"""One sort of quotes in everything that people read on a screen: 'so'."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import click
import pytest

from tests.style.source import modules
from tunnel.cli.main import COMMANDS, group

TYPOGRAPHIC = "“”„‘’«»‹›`"
#: A value between double quotes, in what an f-string makes.
FILLED = re.compile(r'"\x00|\x00"')
#: What is no sentence: formats of other programs, and what is taken away from around a code.
NOT_SENTENCES = (
    "tunnel/pairing/code.py", "tunnel/nat/upnp.py", "tunnel/rendezvous/directory.py", "tunnel/telemetry/",
    "tunnel/errors.py", "tunnel/cli/manual.py", "tunnel/host/hosts.py",
)  # fmt: skip


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text but docstrings; what an f-string fills in is a null."""
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in ast.walk(node)}
            yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "\x00" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def test_sentences_have_one_sort_of_quotes() -> None:
    wrong = [
        f"{module.relative}:{line}: {text!r}"
        for module in modules()
        if not module.relative.startswith(NOT_SENTENCES)
        for line, text in texts(module.tree)
        if " " in text and (FILLED.search(text) or any(mark in text for mark in TYPOGRAPHIC))
    ]
    assert "\n".join(wrong) == ""


def everything() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        found = group.get_command(click.Context(group), name)
        assert found is not None
        yield name, found
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in found.commands.items())


@pytest.mark.parametrize(
    ("name", "command"), [("", group), *everything()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_help_has_the_same_quotes(name: str, command: click.Command) -> None:
    page = command.get_help(click.Context(command, info_name=f"ptunnel {name}".strip()))
    found = [line for line in page.splitlines() if any(mark in line for mark in TYPOGRAPHIC)]
    assert found == []
