"""`ptunnel forward`: add, remove and list the forwards of `ptunnel up`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from tunnel.cli.options import common, complete_peer, open_home
from tunnel.cli.render import json_line, put_row, tell
from tunnel.cli.resident import NOT_RUNNING, require_up, saves

SPEC: Final = "[BIND:]LOCAL[:REMOTE] | socks:[BIND:]PORT | remote:[BIND:]PORT:[HOST:]PORT"


@click.group("forward", invoke_without_command=True)
@common
@click.pass_context
def command(context: click.Context, is_json: bool, verbose: int) -> None:
    """Add, remove and list the forwards of the running 'ptunnel up'.  Alone, lists them.

    \b
    Examples:
      ptunnel forward add office 8080:80
      ptunnel forward add office 5353:53/udp --save        in config.toml, too
      ptunnel forward add office socks:1080                a SOCKS 5 door, as 'connect --socks' opens it
      ptunnel forward add office remote:8080:3000          their port 8080 leads to port 3000 here: 'connect --remote'
      ptunnel forward remove office 8080:80                what is open through it ends
    """
    if context.invoked_subcommand is None:
        show(is_json)


@command.command("add")
@click.argument("peer", shell_complete=complete_peer)
@click.argument("spec", metavar=SPEC)
@saves
@common
def add(peer: str, spec: str, saves: bool, is_json: bool, verbose: int) -> None:
    """Forward a port to the remembered peer PEER, as 'connect' does with --forward, --socks or --remote."""
    from tunnel.control.messages import AddForward
    from tunnel.up.config import Wish

    home = open_home()
    home.peer(peer)
    _ = Wish(peer, spec).key  # which says what is wrong with it
    require_up(home, AddForward(peer, spec, saves), lambda answer: _say(answer, is_json))


@command.command("remove")
@click.argument("peer", shell_complete=complete_peer)
@click.argument("spec", metavar=SPEC)
@saves
@common
def remove(peer: str, spec: str, saves: bool, is_json: bool, verbose: int) -> None:
    """End a forward, and what is open through it."""
    from tunnel.control.messages import RemoveForward
    from tunnel.up.config import Wish

    _ = Wish(peer, spec).key  # which says what is wrong with it
    require_up(open_home(), RemoveForward(peer, spec, saves), lambda answer: _say(answer, is_json))


@command.command("list")
@common
def list_command(is_json: bool, verbose: int) -> None:
    """Show each forward."""
    show(is_json)


def show(is_json: bool) -> None:
    """Raises UnreachableError where `up` does not run."""
    import trio

    from tunnel.control.client import ask_all
    from tunnel.control.messages import Status
    from tunnel.errors import UnreachableError

    found: list[dict[str, Any]] = []
    trio.run(ask_all, open_home().run_dir(), Status(), lambda _pid, answer: found.append(answer))
    ups = [each for each in found if each.get("role") == "up"]
    if not ups:
        raise UnreachableError(NOT_RUNNING)
    rows = [("forward", each) for each in ups[0]["forwards"]] + [("remote", each) for each in ups[0].get("remotes", ())]
    for event, each in rows:
        if is_json:
            click.echo(json_line({"event": event, **{key: each[key] for key in ("bind", "target", "peer")}}))
        else:
            put_row(_row(event, each))
    if not rows and not is_json:
        tell("Nothing is forwarded.")


def _say(answer: dict[str, Any], is_json: bool) -> None:
    if is_json:
        click.echo(json_line(answer))
    elif answer["event"] in ("forward", "remote"):
        tell(_row(answer["event"], answer))
    else:
        again = " config.toml has it still: --save takes it out there." if answer.get("again") else ""
        tell(f"{answer['spec']} of {answer['peer']} is not forwarded any more.{again}")


def _row(event: str, each: Mapping[str, Any]) -> str:
    if event == "remote":
        return f"{each['bind']} of {each['peer']} -> {each['target']} here"
    return f"{each['bind']} -> {each['peer']} {each['target']}"
