"""`ptunnel serve --fleet`: what a server of a fleet is given, and what `--fleet-status` says."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tunnel.cli.options import open_home
from tunnel.cli.render import json_line, put_row
from tunnel.errors import ConfigurationError, StateError
from tunnel.server_spec import split_host_port
from tunnel.settings import load
from tunnel.state.config_file import ConfigFile

if TYPE_CHECKING:
    from tunnel.fleet.door import Door

OLD: Final = 10  # seconds since a server's last word, after which it counts as gone
MISSING: Final = "--fleet needs the package coredis: install ptunnel[fleet], as in 'pip install ptunnel[fleet]'."


def door(url: str | None, key_file: str | None, advertise: Sequence[str], drain: float, *, is_asked: bool = False) -> Door | None:
    """None where no fleet is configured.  `is_asked`: it must be.  Raises ConfigurationError."""
    settings = load(_of_config(), os.environ, {"fleet": url})
    if settings.fleet is None:
        if advertise or key_file or is_asked:
            raise ConfigurationError("Name the store that the servers share: --fleet redis://HOST/, or PTUNNEL_FLEET.")
        return None
    key = settings.fleet_key if key_file is None else _read(key_file)
    if key is None:
        raise ConfigurationError(
            "A fleet needs a secret key that all its servers have: 'openssl rand -hex 32' makes one; set PTUNNEL_FLEET_KEY to "
            "it, or fleet_key in config.toml, or name a file with --fleet-key."
        )
    try:
        from tunnel.fleet.door import Door
        from tunnel.fleet.store import Store
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"coredis", "anyio"}:
            raise
        raise ConfigurationError(MISSING) from None
    from tunnel.shell.server_log import logger
    from tunnel.units import Seconds

    places = tuple(_place(text) for text in advertise)
    store = Store(settings.fleet, lambda text: logger.warning("%s", text, extra={"facts": {"what": "store"}}))
    return Door(store=store, key=key.encode(), advertised=places, drain=Seconds(drain))


def _place(text: str) -> tuple[str, int]:
    """An address for clients; port 0: the one that the server listens on."""
    host, port = split_host_port(text, "--advertise", 0)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        raise ConfigurationError(f"--advertise takes an address, such as 203.0.113.5, not {text[:80]!r}.") from None


def _of_config() -> ConfigFile:
    """Of config.toml what is about a fleet: a server runs, too, where it cannot be read, and whatever else is in it."""
    try:
        config = open_home().config()
    except StateError:
        return ConfigFile({})
    for key in [key for key in config if key not in {"fleet", "fleet_key"}]:
        del config[key]
    return config


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"The key file {path} cannot be read: {reason}.") from None


async def status(fleet: Door, *, is_json: bool) -> int:
    """The servers of the fleet, as the store has them.  Raises ServerUnreachableError."""
    from tunnel.fleet.status import servers as look

    servers = await look(fleet)
    if is_json:
        click.echo(json_line({"event": "fleet", "servers": servers}))
        return 0
    for each in servers:
        put_row(row(each))
    if not servers:
        put_row("No server has written to this store under this key.")
    return 0


def row(server: dict[str, Any]) -> str:
    """One server, for a person."""
    said = [
        f"{server['clients']:,} clients",
        f"{server['codes']:,} codes",
        f"{server['relayed_pairs']:,} pairs",
        f"{server['relayed_bytes']:,} bytes relayed",
    ]
    if server["drains"]:
        said.append("drains")
    if server["age_s"] > OLD:
        said.append(f"silent for {server['age_s']:,} s")
    where = " and ".join(server["addresses"])
    return f"{server['index']:>2}  {where}  load {server['load']:.0%}  {', '.join(said)}"
