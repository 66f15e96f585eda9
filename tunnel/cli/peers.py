"""`ptunnel peers`: whom we remember."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.habits import Subcommands
from tunnel.cli.options import common, complete_peer, open_home
from tunnel.cli.render import json_line, tell

if TYPE_CHECKING:
    from tunnel.state.peers import Peer


@click.group("peers", cls=Subcommands, invoke_without_command=True)
@common
@click.pass_context
def command(context: click.Context, is_json: bool, verbose: int) -> None:
    """List, rename and forget remembered peers.  Alone, lists them.

    \b
    Examples:
      ptunnel peers
      ptunnel peers rename home-2 office
      ptunnel peers forget friend          its open connections are cut within a second
    """
    if context.invoked_subcommand is None:
        show(is_json)


@command.command("list")
@common
def list_command(is_json: bool, verbose: int) -> None:
    """Show each peer, its fingerprint, its server and what it may reach here."""
    show(is_json)


@command.command("rename")
@click.argument("old", shell_complete=complete_peer)
@click.argument("new")
@common
def rename_command(old: str, new: str, is_json: bool, verbose: int) -> None:
    """Call the peer OLD by the name NEW from now on."""
    from tunnel.errors import ConfigurationError
    from tunnel.pairing.code import looks_like_code

    if looks_like_code(new) or new.startswith("-"):
        raise ConfigurationError(f"{new[:40]!r} looks like a code or an option: choose another name.")
    peer = open_home().rename(old, new)
    if is_json:
        _emit({"event": "renamed", "old": old, "peer": peer.name})
    else:
        tell(f"'{old}' is called '{peer.name}' now.")


@command.command("forget")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_peer)
@common
def forget_command(names: tuple[str, ...], is_json: bool, verbose: int) -> None:
    """Forget peers and what they may reach, and cut what is open with them."""
    import trio

    from tunnel.control.client import ask_all
    from tunnel.control.messages import Forget

    home = open_home()
    for name in names:
        home.peer(name)
    run_dir = home.run_dir()  # before anything is written: what fails has forgotten nobody
    for forgotten in home.forget(*names):
        cut = 0

        def count(_pid: int, answer: dict[str, Any]) -> None:
            nonlocal cut
            cut += int(answer.get("links", 0)) if answer["event"] == "forgotten" else 0

        trio.run(ask_all, run_dir, Forget(forgotten.name), count)
        if is_json:
            _emit({"event": "forgotten", "peer": forgotten.name, "links": cut})
        else:
            ending = f"; {cut} open link{'' if cut == 1 else 's'} cut" if cut else ""
            tell(f"'{forgotten.name}' is forgotten{ending}.")


def show(is_json: bool) -> None:
    """The list, as data on stdout."""
    peers = open_home().peers()
    if is_json:
        for peer in peers:
            _emit(_describe(peer))
        return
    if not peers:
        tell("No peer is remembered yet: 'ptunnel expose PORT' and 'ptunnel connect' make two meet.")
        return
    from tunnel.cli.render import columns, is_terminal, screen_width

    rows = [("NAME", "MAY REACH HERE", "LAST SEEN", "KEYS", "SERVER", "FINGERPRINT")]
    for peer in peers:
        grants = ", ".join(_grants(peer)) or "-"
        keys = "post-quantum" if peer.is_hybrid else "older"
        rows.append((peer.name, grants, _ago(peer.last_seen), keys, peer.server or "-", _fingerprint(peer)))
    lines = columns(rows)
    if is_terminal(sys.stdout) and max(map(len, lines)) > screen_width():  # then the long ones get lines of their own
        short = columns([row[:-1] for row in rows])
        lines = [short[0], *(f"{line}\n  {row[-1]}" for line, row in zip(short[1:], rows[1:], strict=True))]
    for line in lines:
        click.echo(line)


def _describe(peer: Peer) -> dict[str, Any]:
    return {
        "event": "peer",
        "peer": peer.name,
        "fingerprint": _fingerprint(peer),
        "server": peer.server,
        "grants": _grants(peer),
        "created": peer.created,
        "last_seen": peer.last_seen,
        "post_quantum": peer.is_hybrid,
    }


def _grants(peer: Peer) -> list[str]:
    from tunnel.pairing.grants import GrantSet

    return [str(grant) for grant in GrantSet.from_dicts(peer.grants)]


def _fingerprint(peer: Peer) -> str:
    from tunnel.pairing.identity import fingerprint

    return fingerprint(peer.static)


def _ago(unix_time: float) -> str:
    from tunnel.cli.render import duration

    return f"{duration(max(0.0, time.time() - unix_time))} ago" if unix_time else "never"


def _emit(event: dict[str, Any]) -> None:
    click.echo(json_line(event))
