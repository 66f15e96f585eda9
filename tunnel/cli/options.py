"""What several sub-commands share: their common options, PTUNNEL_HOME, the log, and the names of peers for completion."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tunnel.config import Settings
    from tunnel.state.home import Home

Function = TypeVar("Function", bound=Callable[..., Any])


def common(function: Function) -> Function:
    """--json and -v, on every command."""
    function = click.option("--json", "is_json", is_flag=True, help="Print one JSON object a line on stdout.")(function)
    return click.option(
        "-v", "--verbose", count=True, callback=_start_log, expose_value=True, help="Log details on stderr; -vv for more."
    )(function)


def network(function: Function) -> Function:
    """What everything shares that meets peers."""
    for option in (
        click.option(
            "--path",
            type=click.Choice(["auto", "direct", "relay"]),
            help="Which paths may be used; the stricter of both sides wins. With relay the other side never learns this address.",
        ),
        click.option(
            "--qlog", metavar="DIR", help="Write a trace of each connection into this folder (qlog, for qvis and others)."
        ),
        click.option(
            "--no-portmap", "portmap", flag_value="off", help="Do not ask the router to forward a port to this program."
        ),
        click.option(
            "--server",
            metavar="HOST[:PORT]",
            help="The rendezvous server, or 'none'. Also PTUNNEL_SERVER or config.toml; else the one of last time.",
        ),
    ):
        function = option(function)
    return tls(function)


def tls(function: Function) -> Function:
    """How a server is reached where UDP is blocked."""
    function = click.option(
        "--tls-fingerprint",
        metavar="SHA256",
        help="The server's certificate, as 'ptunnel serve' prints it; without it public authorities vouch for its name.",
    )(function)
    return click.option(
        "--tls-port", metavar="PORT|off", help="TCP port of the server for networks that block UDP; 443 unless said."
    )(function)


def meeting(function: Function) -> Function:
    """What `expose` and `connect` share."""
    named = click.option("--name", metavar="NAME", help="How to introduce this machine to a new peer; its host name unless said.")
    return network(named(function))


def _start_log(_context: click.Context, _parameter: click.Parameter, verbosity: int) -> int:
    if verbosity:
        level = logging.INFO if verbosity == 1 else logging.DEBUG
        logging.basicConfig(level=level, format="%(asctime)s %(name)s %(message)s", force=True)
    return verbosity


def open_home() -> Home:
    """PTUNNEL_HOME, of which nothing was read or made yet."""
    from tunnel.state.home import Home

    return Home()


def load_settings(home: Home, **flags: str | None) -> Settings:
    """Raises ConfigurationError, StateError."""
    from tunnel.config import load

    return load(home.config(), os.environ, prefix="--", tls=None, **flags)


def with_last_server(home: Home, settings: Settings) -> tuple[Settings, str]:
    """Where no server is said or configured, the one where a peer was met last; and a sentence about it, or "".

    A server of this machine's own, which ran for one code, is none.  Raises StateError.
    """
    if settings.server is not None or settings.is_server_refused:
        return settings, ""
    from tunnel.api.servers import were_ours

    peers = sorted(home.peers(), key=lambda peer: -peer.last_seen)
    servers = [peer.server for peer in peers if peer.server]
    ours = set(were_ours(servers, None))
    last = next((server for server in servers if server not in ours), None)
    if last is None:
        return settings, ""
    return replace(settings, server=last), f"Using the server {last}, as last time (--server none: only in this network)."


def with_server_of(code: str | None, settings: Settings) -> tuple[str | None, Settings]:
    """The code alone, and the settings with the server that it carries.  Raises ConfigurationError."""
    from tunnel.config import parse_server, with_tls_options
    from tunnel.driver.vocabulary import split_server

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
