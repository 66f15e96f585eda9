"""`ptunnel doctor`: what this network is, what that means for reaching others, and why a path is direct or relayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from tunnel.cli.options import common, complete_peer, load_settings, open_home, tls
from tunnel.cli.render import json_line, tell
from tunnel.server_spec import DHT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.cli.options import Flags
    from tunnel.server_spec import TlsOptions
    from tunnel.settings import Settings
    from tunnel.shell.doctor import Examination
    from tunnel.state.home import Home

MEET_S: Final = 15.0  # seconds to meet a peer to whom no running command has a link
TITLE: Final = len("round trip to the server") + 2  # columns of the table's first column
DIRECT_S: Final = 10.0  # seconds for a direct path to be found then


@click.command("doctor")
@click.argument("peer", required=False, shell_complete=complete_peer)
@click.option("--server", metavar="HOST[:PORT]|dht", help="Whom to ask; else PEER's server, or the configured one.")
@tls
@common
def command(peer: str | None, server: str | None, flags: Flags, is_json: bool, verbose: int) -> int:
    """Examine this network, and with PEER the path to it; some five seconds.

    A rendezvous server is asked what it sees of this machine: how the router maps and filters, over IPv4 and IPv6,
    whether it maps ports on request, how large packets may be, whether TLS gets through and is trusted, and what its clock
    says.  One sentence each says what that means and what would help.
    With --server dht nodes of the BitTorrent Mainline DHT are asked instead, a dozen of different networks: strangers' machines,
    which see this one's address; no server of one's own is needed.
    With PEER, a remembered one or a member of the running room: whether the path is direct or relayed, why, and what would
    change it; where no running command has a link to PEER, the doctor makes one for a few seconds.

    \b
    Examples:
      ptunnel doctor
      ptunnel doctor home
      ptunnel doctor --server rv.example.net --json | jq .ipv4.kind
      ptunnel doctor --server dht
    """
    from tunnel.cli.running import run

    home = open_home()
    settings = load_settings(home, {**flags, "server": server})
    return run(lambda _ending: _doctor(home, peer, server, settings, is_json), is_answer=True)


def choose_server(home: Home, peer: str | None, given: str | None) -> str:
    """Given, the peer's, the configured one, or that of the peer seen last.  Raises ConfigurationError."""
    from tunnel.errors import ConfigurationError

    remembered = home.peer(peer).server if peer is not None else None
    found = given or remembered or load_settings(home).server
    if found is None:
        servers = [each.server for each in sorted(home.peers(), key=lambda each: -each.last_seen) if each.server]
        found = servers[0] if servers else None
    if found is None:
        raise ConfigurationError("The doctor asks a server what it sees of this machine: name one with --server HOST[:PORT].")
    return str(found)


async def _examine(server: str, settings: Settings, is_quiet: bool) -> Examination:
    """Raises ConfigurationError, ServerUnreachableError."""
    if server != DHT:
        from tunnel.server_spec import members
        from tunnel.shell.doctor import examine_all

        if not is_quiet:
            tell(f"Asking {server} what it sees of this machine, for some five seconds ...")
        return await examine_all(members(server), tls=settings.tls)
    from tunnel.shell.dht import examine_dht

    if not is_quiet:
        tell("Asking nodes of the DHT, which are strangers' machines, where they see this one ...")
    return await examine_dht(settings.dht_bootstrap)


async def _doctor(home: Home, peer: str | None, given: str | None, settings: Settings, is_json: bool) -> int:
    from tunnel.errors import ServerUnreachableError, UnreachableError
    from tunnel.shell.doctor import advise

    options = settings.tls

    known = await _running(home, peer) if peer is not None else Known()
    link = known.link
    server = given or known.server or choose_server(home, peer, given)
    found = await _examine(server, settings, is_json)
    absent = known.absent
    said: list[str] = []  # of the peer's clock
    if peer is not None and link is None and found.can_meet and (not absent or _is_remembered(home, peer)):
        try:
            link = await _own_link(home, peer, server, options, said, (lambda _text: None) if is_json else tell)
        except UnreachableError as error:
            absent = absent or str(error)
    advice: list[str] = []
    if link is not None:
        nat = link["nat"]
        words = (nat.get("ours", ""), nat.get("theirs", ""), nat.get("technique", ""))
        advice = advise(str(link["kind"]), str(link["why"]).rstrip("."), *words)
    if is_json:
        answer = {"event": "doctor", **found.to_dict()}
        if peer is not None:
            answer["peer"] = {"peer": peer, "link": link, "sentences": [*(advice or [absent]), *said]}
        click.echo(json_line(answer))
    else:
        _show(home, found, link, advice + said)
    if link is None and peer is not None and found.can_meet:
        raise UnreachableError(absent or f"There is no link to {peer}.")
    if not found.can_meet:
        raise ServerUnreachableError(_why_silent(found))
    return 0


def _why_silent(found: Examination) -> str:
    if found.server == DHT:
        return found.summary
    if not found.has_network:
        return "This computer is not connected to a network."
    if found.is_refused:
        return f"No ptunnel server listens at {found.server}."
    if found.is_udp_blocked:
        without = "" if found.tls is None else f" TLS does not help: {found.tls.trouble}"
        return f"UDP does not get through to {found.server}, TCP does: this network blocks UDP, or no server runs there.{without}"
    return f"{found.server} does not answer over UDP: no server runs there, or a firewall drops UDP."


def _show(home: Home, found: Examination, link: dict[str, Any] | None, advice: list[str]) -> None:
    from tunnel.cli.render import path_line

    for line in table(found):
        click.echo(line)
    for line in (*below(found, home), "", *found.sentences()):
        tell(line, is_answer=True)
    if link is not None:
        click.echo("")
        for line in (f"{link['peer']}: {path_line(link)}", *advice):
            tell(line, is_answer=True)


def below(found: Examination, home: Home) -> list[str]:
    """Return the lines below the tables: findings of no address family, and where ptunnel keeps its files."""
    from tunnel.state.files import explain

    rows = []
    if found.tls is not None:
        rows.append((f"TLS on tcp {found.tls.port}", found.tls.words))
    rows.append(("state", str(home.path)))
    config = home.path / "config.toml"
    try:
        there = "" if config.is_file() else ", which is not there"
    except OSError as error:
        there = f", which cannot be read: {explain(error)}"
    rows.append(("settings", f"{config}{there}"))
    return [f"{title:<{TITLE}}{text}" for title, text in rows]


def table(found: Examination) -> list[str]:
    """A row a property, a column an address family."""
    from tunnel.cli.render import columns, milliseconds

    families = [found.ipv4.to_dict(), found.ipv6.to_dict()]

    def row(title: str, key: str) -> list[str]:
        cells = []
        for each in families:
            value = each[key]
            if value is None or value == "unknown":
                cells.append("-")
            elif isinstance(value, bool):
                cells.append("yes" if value else "no")
            elif isinstance(value, float):
                cells.append(milliseconds(value))
            else:
                cells.append(str(value))
        return [title, *cells]

    rows = [
        ["", "IPv4", "IPv6"],
        row("network", "kind"),
        row("own address", "own"),
        row(f"seen by the {found.asked} as", "seen"),
        row("mapping", "mapping"),
        row("filtering", "filtering"),
        row("external ports", "ports"),
        row("hairpins", "hairpins"),
        row("largest packet", "mtu"),
        row(f"round trip to the {found.asked}", "rtt_s"),
    ]
    mapped = found.portmap
    if mapped is not None:
        rows.append(["port mapping", f"{mapped.protocol} {mapped.external}" if mapped.external is not None else "none", "-"])
    return columns(rows)


class Known(NamedTuple):
    """A running command's report about the peer."""

    link: dict[str, Any] | None = None
    server: str | None = None  # where the peer is met, if a command waits there itself
    absent: str = ""  # why there is no link, of a member of its room


async def _running(home: Home, peer: str) -> Known:
    """Ask all running commands; a link is better than the word of a room."""
    from tunnel.cli.members import why_no_link
    from tunnel.control.client import ask_all
    from tunnel.control.messages import Status

    found: list[Known] = []

    def take(_pid: int, answer: dict[str, Any]) -> None:
        if answer["event"] != "status":
            return
        server = answer.get("server")
        for link in answer["links"]:
            if peer in (link["peer"], link["fingerprint"]) and link["kind"]:
                found.insert(0, Known(link, server))
        for member in answer.get("members", ()):
            if member["peer"] == peer:
                why = why_no_link(peer, str(answer["room"]), is_me=member["self"], is_online=member["online"])
                found.append(Known(server=server, absent=why if member["self"] else f"{why} Run 'ptunnel doctor' there."))

    await ask_all(home.run_dir(), Status(), take)
    return found[0] if found else Known()


def _is_remembered(home: Home, peer: str) -> bool:
    """Whether it could be met by a command of its own, too."""
    from tunnel.state.peers import find

    return find(home.peers(), peer) is not None


async def _own_link(
    home: Home, peer: str, server: str, options: TlsOptions, said: list[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Meet the peer, give a direct path some time, and leave; `said` gets what came of its clock.  Raises UnreachableError."""
    import trio

    from tunnel.errors import UnreachableError
    from tunnel.ports.connecting import connect
    from tunnel.shell.events import Event, Trouble

    known = ""

    def hear(event: Event) -> None:
        nonlocal known
        if not isinstance(event, Trouble):
            return
        if event.code == "clock_off":
            said.extend([event.message] if event.message not in said else ())
        else:
            known = event.message.removesuffix(" Waiting.")

    say(f"Meeting {peer}, for {MEET_S:g} seconds at most ...")
    scope = trio.CancelScope(deadline=trio.current_time() + MEET_S)
    with scope:
        async with connect(peer=peer, server=server, home=home.path, name=None, tls=options, on_event=hear) as link:
            scope.deadline = trio.current_time() + DIRECT_S
            if link.status().kind != "direct":
                say(f"Waiting for a direct path, for {DIRECT_S:g} seconds at most ...")
            with trio.move_on_after(DIRECT_S - 1.0):
                await link.wait_direct()
            await link.ping()
            return link.status().to_dict()
    raise UnreachableError(known or f"{peer} was not reached within {MEET_S:g} seconds.")
