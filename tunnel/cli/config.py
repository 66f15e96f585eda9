"""`ptunnel config`: what config.toml holds, and changes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunnel.cli.options import common, open_home, tell_elsewhere
from tunnel.cli.render import json_line, tell
from tunnel.errors import ConfigurationError
from tunnel.settings import TABLE, is_text, load

if TYPE_CHECKING:
    from tunnel.state.config_file import ConfigFile

IN_FILE = tuple(key for key, row in TABLE.items() if row.is_in_file)
SEEN_BY_OTHERS = (
    "ptunnel: Everybody on this machine could read that secret on the command line, and the shell may keep it: "
    "next time write it into {} with an editor."
)


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [key for key in IN_FILE if key.startswith(incomplete)]


@click.command("config")
@click.argument("setting", required=False, metavar="[SETTING]", shell_complete=_complete)
@click.argument("value", required=False, metavar="[VALUE]")
@click.option("--unset", "is_unset", is_flag=True, help="Take the setting out of the file.")
@common
def command(setting: str | None, value: str | None, is_unset: bool, is_json: bool, verbose: int) -> int:
    """Show what is set in config.toml, or set it.  A flag and a variable go before it; 'ptunnel --help' has them all.

    \b
    Examples:
      ptunnel config                            what is set, and where the file is
      ptunnel config server rv.example.net      from now on without --server
      ptunnel config server --unset
    """
    home = open_home()
    config = home.config()
    if setting is not None:
        setting = setting.replace("-", "_")
        if setting not in IN_FILE:
            raise ConfigurationError(f"There is no setting {setting[:40]!r}: there are {', '.join(sorted(IN_FILE))}.")
    if is_unset and (setting is None or value is not None):
        raise ConfigurationError("Say which setting is to go: 'ptunnel config server --unset'.")
    if setting is not None and (is_unset or value is not None):
        config = home.configure(setting, None if is_unset else _checked(setting, value or ""))
        if TABLE[setting].is_secret and not is_unset and not is_json:
            tell(SEEN_BY_OTHERS.format(home.path / "config.toml"))
    load(config, {})
    shown = [setting] if setting is not None else [key for key in IN_FILE if key in config]
    for key in shown:
        _show(key, config, is_json)
    if not is_json and setting is None:
        _tell_place(home.path / "config.toml", bool(shown))
    return 0


def _checked(setting: str, value: str) -> str:
    """Raises ConfigurationError: no command is to stumble over it later."""
    if not is_text(value):
        raise ConfigurationError(f"config.toml holds UTF-8 text only, which this {setting} is not.")
    load({setting: value}, {})
    return value.strip()


def _show(key: str, config: ConfigFile, is_json: bool) -> None:
    value = None if TABLE[key].is_secret else config.get(key)
    if is_json:
        click.echo(json_line({"event": "setting", "name": key, "value": value, "is_set": key in config}))
    elif key not in config:
        tell(f"{key} is not set.")
    else:
        tell(f"{key} = {'(not shown)' if value is None else value}")


def _tell_place(path: Path, is_set: bool) -> None:
    tell(f"{'Set' if is_set else 'Nothing is set'} in {path}{'' if path.exists() else ', which is not there'}.")
    tell_elsewhere(path)
