"""Parts that several sub-commands share: common options, PTUNNEL_HOME, the log, and names of peers for completion."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import click

from tunnel.server_spec import DHT
from tunnel.settings import TABLE, Kind, Settings, choices_of, flag_of, load

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.shell.events import Event
    from tunnel.state.home import Home

Function = TypeVar("Function", bound=Callable[..., Any])
Flags: TypeAlias = Mapping[str, str | None]  # setting -> what its flag says


def common(function: Function) -> Function:
    """--json and -v, on every command."""
    function = click.option("--json", "is_json", is_flag=True, help="Print one JSON object a line on stdout.")(function)
    return click.option(
        "-v",
        "--verbose",
        count=True,
        callback=_start_log,
        expose_value=True,
        help="Say each thing that happens on stderr, with its time; -vv for details.",
    )(function)


def log_json(function: Function) -> Function:
    """--log-json, on commands that run as a service; the command calls json_log.start."""
    text = "Write the log and all else on stderr as one JSON object a line, with what -v says."
    return click.option("--log-json", "is_log_json", is_flag=True, help=text)(function)


def tls(function: Function) -> Function:
    """The settings of a command that asks a server."""
    return _with_settings(function, "tls")


def network(function: Function) -> Function:
    """The settings of a command that meets peers."""
    return _with_settings(function, "tls", "network")


def meeting(function: Function) -> Function:
    """The settings of a command that introduces this machine to new peers."""
    return _with_settings(function, "tls", "network", "peer")


def _with_settings(function: Function, *kinds: Kind) -> Function:
    """A flag for each setting of these kinds; the command is called with `flags`, for load_settings."""
    rows = {key: row for key, row in TABLE.items() if row.kind in kinds}

    @wraps(function)
    def command(**arguments: Any) -> Any:
        flags = {key: arguments.pop(key) for key in rows}
        return function(flags=flags, **arguments)

    wrapped = cast("Function", command)
    for key, row in reversed(rows.items()):
        choices = choices_of(key)
        wrapped = click.option(
            flag_of(key) or "",
            key,
            flag_value=row.flag_value,
            is_flag=row.flag_value is not None,
            type=click.Choice(choices) if choices and row.flag_value is None else None,
            metavar=row.metavar,
            help=row.help,
        )(wrapped)
    return wrapped


def once(function: Function) -> Function:
    """Of whatever waits for a network at its start."""
    return click.option(
        "--once", "is_once", is_flag=True, help="End where there is no network or no DNS yet; else they are waited for."
    )(function)


def _start_log(_context: click.Context, _parameter: click.Parameter, verbosity: int) -> int:
    if verbosity:
        if verbosity == 1:
            from tunnel.cli.render import FoldedLines, is_terminal, time_format

            handler = logging.StreamHandler()
            kind = FoldedLines if is_terminal(sys.stderr) else logging.Formatter
            handler.setFormatter(kind("%(asctime)s  %(message)s", time_format()))
            logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        else:
            logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s", force=True)
    return verbosity


def open_home() -> Home:
    """PTUNNEL_HOME, of which nothing was read or made yet."""
    from tunnel.state.home import Home

    return Home()


def load_settings(home: Home, flags: Flags | None = None) -> Settings:
    """Raises ConfigurationError, StateError."""
    tell_elsewhere(home.path / "config.toml")
    return load(home.config(), os.environ, flags)


def tell_elsewhere(config: Path) -> None:
    """Say that a file is not read which stands where other programs have theirs; whoever names PTUNNEL_HOME knows its place."""
    from tunnel.state.config_file import elsewhere

    other = None if os.environ.get("PTUNNEL_HOME") else elsewhere(config)
    if other is not None:
        from tunnel.cli.render import tell

        tell(f"{other} is not read: move it to {config}.")


def with_last_server(home: Home, settings: Settings) -> tuple[Settings, str]:
    """Where no server is said or configured, the one where a peer was met last; and a sentence about it, or "".

    A server of this machine's own, which ran for one code, is none.  Raises StateError.
    """
    if settings.server is not None or settings.is_server_refused:
        return settings, ""
    from tunnel.setup.machine import Machine
    from tunnel.setup.servers import were_ours

    peers = sorted(home.peers(), key=lambda peer: -peer.last_seen)
    servers = [peer.server for peer in peers if peer.server]
    ours = set(were_ours(servers, Machine()))
    last = next((server for server in servers if server not in ours), None)
    if last is None:
        return settings, ""
    what = "Meeting over the DHT" if last == DHT else f"Using the server {last}"
    return replace(settings, server=last), f"{what}, as last time (--server none: only in this network)."


async def settle_server(
    home: Home, given: Settings, handle: Callable[[Event], None] | None, *, waits: bool
) -> tuple[Settings, str]:
    """As `with_last_server`, as soon as it can be told from a server of this machine's own.

    That takes an address of this machine, so with `waits` a network is waited for (`handle` hears of it).  Raises StateError.
    """
    guess, said = with_last_server(home, given)
    if not said:
        return guess, said
    from tunnel.setup.machine import Machine
    from tunnel.setup.servers import Surroundings, may_be_ours

    around = Surroundings(handle, Machine())
    if not waits or not may_be_ours(guess.server) or around.has_network():
        return guess, said
    await around.wait_network()
    return with_last_server(home, given)


def with_server_of(code: str | None, settings: Settings) -> tuple[str | None, Settings]:
    """The code alone, and the settings with the server that it carries.  Raises ConfigurationError."""
    from tunnel.pairing.code import split_server
    from tunnel.server_spec import parse_server, with_tls_options

    if code is None:
        return None, settings
    code, server = split_server(code)
    if server is None:
        return code, settings
    place = "the server behind the @ of the code"
    parse_server(server, place)
    server = with_tls_options(server, settings.tls, place)
    return code, replace(settings, server=server, is_server_given=True, is_server_refused=False)


def complete_peer(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """For the shell.  Says nothing where the state cannot be read."""
    from tunnel.errors import TunnelError

    try:
        return [peer.name for peer in open_home().peers() if peer.name.startswith(incomplete)]
    except TunnelError:
        return []


def complete_room(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """For the shell: rooms that are kept."""
    from tunnel.errors import TunnelError
    from tunnel.state.rooms import Rooms

    try:
        return [name for name in Rooms(open_home()).names() if name.startswith(incomplete)]
    except TunnelError:
        return []
