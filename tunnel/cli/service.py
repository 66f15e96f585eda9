"""`ptunnel service install` and `service remove`: have systemd run `ptunnel up`, now and from each start of the machine on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from tunnel.cli.habits import Subcommands
from tunnel.cli.options import common, load_settings, open_home
from tunnel.cli.render import json_line, tell
from tunnel.errors import ConfigurationError

_which = (
    click.option("--user", "kind", flag_value="user", default="user", help="For you alone; the default."),
    click.option("--system", "kind", flag_value="system", help="For the whole machine; it runs as you do, and starts at boot."),
)


@click.group("service", cls=Subcommands)
@common
def command(is_json: bool, verbose: int) -> None:
    """Have systemd run 'ptunnel up', now and from each start on.

    \b
    Examples:
      ptunnel service install
      sudo ptunnel service install --system      at boot, before anybody has logged in
      ptunnel service remove
    """


@command.command("install")
@_which[0]
@_which[1]
@common
def install(kind: str, is_json: bool, verbose: int) -> None:
    """Write the unit of 'ptunnel up' and start it.  config.toml is checked first."""
    from tunnel.state.home import Home
    from tunnel.up import service
    from tunnel.up.config import read_wishes

    _require_linux(kind)
    owner, folder = _owner()
    home = Home(folder) if kind == "system" and folder is not None else open_home()
    load_settings(home)
    has_room = read_wishes(home.config()).interfaces > 0
    is_usual = "PTUNNEL_HOME" not in os.environ
    text = service.unit_text(home.path, owner, is_system=kind == "system", is_usual=is_usual, has_room=has_room)
    if kind == "system":
        service.make_home(home.path, owner)
    path = service.install(text, is_system=kind == "system")
    if is_json:
        click.echo(json_line({"event": "service", "state": "installed", "unit": str(path)}))
        return
    tell(f"'ptunnel up' runs, and starts with {'this machine' if kind == 'system' else 'your session'}: {path}.")
    if kind == "user":
        tell("'loginctl enable-linger' has it start at boot, before you log in.")
    if kind == "user" and has_room:
        tell("The rooms of config.toml stay closed: their interfaces need 'sudo ptunnel service install --system'.")


@command.command("remove")
@_which[0]
@_which[1]
@common
def remove(kind: str, is_json: bool, verbose: int) -> None:
    """Stop 'ptunnel up' and take its unit away."""
    from tunnel.up import service

    _require_linux(kind)
    path = service.remove(is_system=kind == "system")
    if is_json:
        click.echo(json_line({"event": "service", "state": "removed", "unit": str(path)}))
    else:
        tell(f"'ptunnel up' has ended, and does not start any more: {path} is gone.")


def _require_linux(kind: str) -> None:
    if sys.platform != "linux":
        raise ConfigurationError("Services are for Linux with systemd: have your system start 'ptunnel up' in its own way.")
    if kind == "system" and os.geteuid() != 0:
        raise ConfigurationError("Only root installs services of the machine: put sudo in front, or leave --system out.")


def _owner() -> tuple[str, Path | None]:
    """The user as whom it runs, with sudo whoever has typed that; and that one's PTUNNEL_HOME, unless it is said."""
    import pwd

    typed = os.environ.get("SUDO_USER")
    if typed is None or typed == "root":
        return pwd.getpwuid(os.geteuid()).pw_name, None
    try:
        home = Path(pwd.getpwnam(typed).pw_dir) / ".local" / "state" / "ptunnel"
    except KeyError:
        raise ConfigurationError(
            f"There is no user {typed!r} here, who has typed sudo: set PTUNNEL_HOME, and leave sudo out."
        ) from None
    return typed, None if "PTUNNEL_HOME" in os.environ else home
