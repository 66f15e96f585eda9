"""`ptunnel invite`: a code from the running `ptunnel up`."""

from __future__ import annotations

from typing import Any

import click

from tunnel.cli.options import common, open_home
from tunnel.cli.render import json_line, tell
from tunnel.cli.resident import require_up


@click.command("invite")
@click.argument("what", nargs=-1, metavar="[PORT | PORT/udp | NAME=HOST:PORT]...")
@click.option("--room", metavar="NAME", help="The code of this room, which 'ptunnel up' has created: good for everybody.")
@common
def command(what: tuple[str, ...], room: str | None, is_json: bool, verbose: int) -> int:
    """Print a code for one new peer of the running 'ptunnel up', who may reach WHAT from then on; or that of a room.

    \b
    Examples:
      ptunnel invite 22
      ptunnel invite                       a peer that may reach nothing yet: 'ptunnel grant' later
      ptunnel invite --room friends        for new members of a room
    """
    from tunnel.cli.offers import all_in_one, other_command, short_server
    from tunnel.control.messages import Invite
    from tunnel.errors import ConfigurationError
    from tunnel.pairing.grants import GrantSet

    if room is not None and what:
        raise ConfigurationError("--room goes alone: members of a room reach each other.")
    grants = list(GrantSet.parse(*what))

    def say(answer: dict[str, Any]) -> None:
        if is_json:
            click.echo(json_line(answer))
            return
        server = str(answer["server"])
        if room is not None:
            tell(f"Each friend runs:               sudo ptunnel lan join --server {short_server(server)}")
            tell(f"and types the code:             {answer['code']}")
            return
        tell(f"On the other computer run:      {other_command(server, grants)}")
        tell(f"and type the code:              {answer['code']}")
        tell(f"or, in one line for a chat:     {all_in_one(str(answer['code']), server, grants)}")
        tell(f"The code works once, for {max(1, round(answer['expires_s'] / 60))} minutes.")

    require_up(open_home(), Invite([*what], room), say)
    return 0
