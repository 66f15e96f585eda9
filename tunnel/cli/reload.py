"""`ptunnel reload`: have the running `ptunnel up` go by config.toml as it is now."""

from __future__ import annotations

from typing import Any

import click

from tunnel.cli.options import common, load_settings, open_home
from tunnel.cli.render import json_line, tell
from tunnel.cli.resident import require_up


@click.command("reload")
@common
def command(is_json: bool, verbose: int) -> int:
    """Apply an edited config.toml.  What did not change in it is not touched; one that cannot be read changes nothing.

    \b
    Examples:
      ptunnel reload
      ptunnel reload --json                how many forwards were added and removed
    """
    from tunnel.control.messages import Reload
    from tunnel.up.config import read_wishes

    home = open_home()
    load_settings(home)
    read_wishes(home.config())

    def say(answer: dict[str, Any]) -> None:
        if is_json:
            click.echo(json_line(answer))
        else:
            tell(f"config.toml was read again: {answer['added']} forwards added, {answer['removed']} removed.")

    require_up(home, Reload(), say)
    return 0
