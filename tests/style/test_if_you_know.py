"""docs/if-you-know.md: each command is one that ptunnel takes, and what one side asks for the other shares."""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

import click
import pytest

from tests.style.source import ROOT
from tunnel.cli.main import group
from tunnel.pairing.grants import GrantSet
from tunnel.ports.remote import parse_remotes
from tunnel.ports.spec import parse_forwards, parse_target

PAGE = ROOT / "docs" / "if-you-know.md"
COMMAND = re.compile(r"(?:sudo )?ptunnel ([^`]+)|ssh -o ProxyCommand='ptunnel ([^']+)'.*")


class Row(NamedTuple):
    known: str
    there: list[list[str]]
    here: list[list[str]]


def commands(cell: str) -> list[list[str]]:
    """The words of each command of ours in a cell."""
    found = [COMMAND.fullmatch(text) for text in re.findall(r"`([^`]+)`", cell)]
    return [shlex.split((each[1] or each[2]).replace("FILE", "access")) for each in found if each]


def rows() -> list[Row]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    return [Row(known, commands(there), commands(here)) for known, there, here in cells if there != "there"]


def taken(words: list[str]) -> dict[str, Any]:
    """The options of one command line, as click reads them; `name` is the command's."""
    context = click.Context(group, info_name="ptunnel")
    while isinstance(context.command, click.Group):
        name, found, words = context.command.resolve_command(context, words)
        assert found is not None, words
        context = click.Context(found, parent=context, info_name=name)
    return {**context.command.make_context(context.info_name, words, parent=context.parent).params, "name": context.info_name}


def shared_by(words: list[str]) -> GrantSet:
    """What one `expose` lets the peer reach."""
    options = taken(words)
    nets, remotes = (f"net/{each}" for each in options["nets"]), (f"remote/{each}" for each in options["remotes"])
    return GrantSet.parse(*options["grants"], *nets, *remotes)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.known)
def test_what_a_row_asks_for_here_is_what_it_shares_there(row: Row) -> None:
    assert row.there or row.here, "a row without a command of ours"
    commands = [*map(taken, row.there), *map(taken, row.here)]
    grants = [shared_by(words) for words in row.there if words[0] == "expose"]
    for options in commands:
        if options["name"] != "connect":
            continue
        targets = [(forward.protocol, forward.target) for forward in parse_forwards(options["forwards"])]
        if options["stdio"] is not None:
            targets.append(("tcp", parse_target(options["stdio"])))
        remotes = parse_remotes(options["remotes"])
        [shared] = grants
        assert [each for each in targets if shared.find(*each) is None] == []
        assert [each for each in remotes if not shared.lets_listen(each.host, each.port)] == []
        assert options["socks"] is None or any(grant.kind == "net" for grant in shared)
        assert targets or remotes or options["socks"]


def test_every_program_of_the_page_has_rows() -> None:
    assert len(rows()) > 30
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        assert section.count("\n| ") >= 2, section.split("\n")[0]
