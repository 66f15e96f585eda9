"""`ptunnel join`: have the running `ptunnel up` pair by a code."""

from __future__ import annotations

from typing import Any

import click

from tunnel.cli.options import common, open_home
from tunnel.cli.render import json_line, tell
from tunnel.cli.resident import require_up, saves


@click.command("join")
@click.argument("code", metavar="CODE[@SERVER]")
@click.option("--forward", "-L", "forwards", metavar="SPEC", multiple=True,
              help="A forward to the new peer, as 'connect --forward' has it; repeatable.")  # fmt: skip
@saves
@common
def command(code: str, forwards: tuple[str, ...], saves: bool, is_json: bool, verbose: int) -> int:
    """Have the running 'ptunnel up' pair by a CODE that another home gave, and forward ports to that peer.

    \b
    Examples:
      ptunnel join 731-garden-violin@rv.example.net --forward 2222:22
      ptunnel join 731-garden-violin -L 8080 --save
    """
    from tunnel.control.messages import Join
    from tunnel.ports.spec import parse_forwards

    parse_forwards(forwards)

    def say(answer: dict[str, Any]) -> None:
        if is_json:
            click.echo(json_line(answer))
        elif answer["event"] == "paired":
            tell(f"Paired with '{answer['peer']}'.")
        else:
            tell(f"{answer['bind']} -> {answer['peer']} {answer['target']}")

    require_up(open_home(), Join(code, [*forwards], saves), say)
    return 0
