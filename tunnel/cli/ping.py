"""`ptunnel ping`: round trips through the tunnel, asked of the command that holds the link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel.cli.options import common, complete_peer, open_home
from tunnel.cli.render import json_line, put_row


@click.command("ping")
@click.argument("peer", required=False, shell_complete=complete_peer)
@click.option("-c", "--count", type=click.IntRange(1, 1_000_000), default=4, show_default=True, metavar="N", help="How many.")
@click.option("-i", "--interval", type=click.FloatRange(0.01, 3_600), default=1.0, show_default=True, metavar="SECONDS",
              help="Between two of them.")  # fmt: skip
@click.option("--until-direct", is_flag=True, help="End at the first round trip over a direct path.")
@click.option("--limit", type=click.FloatRange(0, 86_400), default=60.0, show_default=True, metavar="SECONDS",
              help="With --until-direct: give up after so long (exit code 5).")  # fmt: skip
@common
def command(peer: str | None, count: int, interval: float, until_direct: bool, limit: float, is_json: bool, verbose: int) -> int:
    """Measure round trips to PEER (the only one linked, unless named) through a running command.

    \b
    Examples:
      ptunnel ping
      ptunnel ping home --until-direct
    """
    from tunnel.cli.running import run
    from tunnel.control.messages import Ping

    request = Ping(peer, count, interval, until_direct, limit)
    run_dir = open_home().run_dir()
    return run(lambda _ending: _ping(run_dir, request, is_json), is_answer=True)


async def _ping(run_dir: Path, request: Any, is_json: bool) -> int:
    from tunnel.cli.render import milliseconds
    from tunnel.cli.status import require_asked
    from tunnel.control.client import ask_all
    from tunnel.errors import UnreachableError

    answered = lost = 0
    errors: dict[str, str] = {}
    direct = False

    def take(_pid: int, answer: dict[str, Any]) -> None:
        nonlocal answered, lost, direct
        if answer["event"] == "error":
            errors[answer["code"]] = answer["message"]
            return
        if answer["event"] != "ping":
            return
        rtt = answer["rtt_s"]
        answered += rtt is not None
        lost += rtt is None
        direct = direct or answer["kind"] == "direct"
        if is_json:
            click.echo(json_line(answer))
        else:
            took = "no answer" if rtt is None else milliseconds(rtt)
            put_row(f"{answer['peer']}  {took}  {answer['kind'] or 'no path'}  udp {answer['remote']}")

    asked = await ask_all(run_dir, request, take)
    require_asked(asked, errors)
    if request.until_direct and direct:
        return 0
    if "not_direct" in errors:
        raise UnreachableError(errors["not_direct"])
    if not answered:
        told = next((text for code, text in errors.items() if code != "no_link"), None)
        whom = request.peer or "anybody"
        raise UnreachableError(told or (f"All {lost} pings were lost." if lost else f"No running command has a link to {whom}."))
    return 0
