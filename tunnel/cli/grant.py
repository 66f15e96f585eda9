"""`ptunnel grant`: let a remembered peer reach more."""

from __future__ import annotations

from typing import Any

import click

from tunnel.cli.options import common, complete_peer, open_home
from tunnel.cli.render import json_line, listing, tell
from tunnel.cli.resident import NOT_RUNNING, ask_up, saves


@click.command("grant")
@click.argument("peer", shell_complete=complete_peer)
@click.argument("what", nargs=-1, required=True, metavar="[PORT | PORT/udp | NAME=HOST:PORT]...")
@saves
@common
def command(peer: str, what: tuple[str, ...], saves: bool, is_json: bool, verbose: int) -> int:
    """Let PEER reach ports of this machine, from now on; it is remembered with the peer.  'ptunnel revoke' takes it back.

    'ptunnel up' or 'ptunnel expose' serves it, at once where one runs.

    \b
    Examples:
      ptunnel grant friend 9090
      ptunnel grant friend 53/udp nas=192.168.1.5:445
      ptunnel grant friend 9090 --save           in config.toml, in the place of the peer's record
    """
    from tunnel.control.messages import Give
    from tunnel.errors import UnreachableError
    from tunnel.pairing.grants import GrantSet
    from tunnel.ports.granting import grant

    home = open_home()
    parsed = GrantSet.parse(*what)
    name = home.peer(peer).name

    def say(answer: dict[str, Any]) -> None:
        if is_json:
            click.echo(json_line(answer))
        else:
            tell(f"{answer['peer']} may reach {listing(answer['grants'])} of this machine from now on.")

    if ask_up(home, Give(name, [*what], saves), say):
        return 0
    if saves:
        raise UnreachableError(NOT_RUNNING)
    for each in grant(home, [name], parsed):  # whatever process exposes sees it within a second
        say({"event": "granted", "peer": each.peer, "grants": list(each.grants)})
    return 0
