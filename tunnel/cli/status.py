"""`ptunnel status`: what the running commands of this home do, asked over their control sockets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from tunnel.cli.options import common, complete_peer, open_home
from tunnel.cli.render import hanging, is_terminal, json_line, put_row, screen_width, tell

NO_PROCESS: Final = "No ptunnel command of this home runs: start 'ptunnel expose' or 'ptunnel connect' first."
AS_ROOT: Final = "What was started with sudo is shown by 'sudo ptunnel status'."
NO_SOCKETS: Final = "Running commands cannot be asked here: that needs UNIX sockets, which Python does not have on Windows."
MAX_DIGITS: Final = 10  # of a process's number
WATCH_S: Final = 1.0  # seconds between two looks


@click.command("status")
@click.argument("peer", required=False, shell_complete=complete_peer)
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@click.option("--check", type=click.Choice(["direct"]), help="Exit code 0 if every path is direct, else 5 and a sentence why.")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 86_400), default=0.0, metavar="SECONDS",
              help="With --check: wait so long for it.")  # fmt: skip
@common
def command(peer: str | None, watch: bool, check: str | None, wait_s: float, is_json: bool, verbose: int) -> int:
    """Show the links of every running 'expose', 'connect' and 'lan' of this user: path, rtt, loss, rates, streams; and of a
    'serve' how many clients it has, and what it relays.

    \b
    Examples:
      ptunnel status --watch
      ptunnel status --json | jq .links
      ptunnel status --check direct --wait 10 && echo punched
    """
    from tunnel.cli.running import run
    from tunnel.errors import ConfigurationError

    if check and watch:
        raise ConfigurationError("--check looks once and --watch for ever: leave one of them out.")
    run_dir = open_home().run_dir()
    if check:
        return run(lambda _ending: _check(run_dir, peer, wait_s, is_json), is_answer=True)
    if watch:
        return run(lambda _ending: _watch(run_dir, peer, is_json))
    return run(lambda _ending: _once(run_dir, peer, is_json), is_answer=True)


def no_process() -> str:
    """Why nobody answers, in a sentence or two."""
    from tunnel.control.sockets import has_control_sockets

    if not has_control_sockets():
        return NO_SOCKETS
    return NO_PROCESS if os.geteuid() == 0 else f"{NO_PROCESS} {AS_ROOT}"


def require_asked(asked: int, errors: Mapping[str, str]) -> None:
    """Raises TunnelError where no process was asked, or the question could not be put to one."""
    from tunnel.errors import ConfigurationError, TunnelError, UnreachableError

    if not asked:
        raise UnreachableError(no_process())
    if "several_peers" in errors:
        raise ConfigurationError(errors["several_peers"])
    if "internal" in errors:
        raise TunnelError(errors["internal"])


async def _ask(run_dir: Path, peer: str | None) -> list[dict[str, Any]]:
    from tunnel.control.client import ask_all
    from tunnel.control.messages import Status

    answers: list[dict[str, Any]] = []

    def take(_pid: int, answer: dict[str, Any]) -> None:
        if answer["event"] == "status" and peer is not None:
            answer["links"] = [link for link in answer["links"] if peer in (link["peer"], link["fingerprint"])]
        answers.append(answer)

    await ask_all(run_dir, Status(), take)
    return sorted(answers, key=lambda answer: str(answer.get("pid", "")).rjust(MAX_DIGITS))


async def _once(run_dir: Path, peer: str | None, is_json: bool) -> int:
    answers = await _ask(run_dir, peer)
    if is_json:
        for answer in answers:  # that one process does not answer is not the end of the command
            click.echo(json_line({**answer, "event": "warning"} if answer["event"] == "error" else answer))
    elif not answers:
        tell(no_process())
    else:
        for line in page(answers):
            put_row(line)
    return 0


async def _watch(run_dir: Path, peer: str | None, is_json: bool) -> int:
    import sys

    import trio

    from tunnel.cli.render import is_in_front

    if is_json or not is_terminal(sys.stdout):
        while True:
            await _once(run_dir, peer, is_json)
            sys.stdout.flush()
            await trio.sleep(WATCH_S)
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False, screen=False) as live:
        while True:
            if is_in_front():
                lines = page(await _ask(run_dir, peer)) or [no_process()]
                text = "\n".join(row for line in lines for row in hanging(line, screen_width()))
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            await trio.sleep(WATCH_S)


async def _check(run_dir: Path, peer: str | None, wait_s: float, is_json: bool) -> int:
    from tunnel.control.client import ask_all
    from tunnel.control.messages import Check
    from tunnel.errors import UnreachableError

    found: list[dict[str, Any]] = []
    asked = await ask_all(run_dir, Check(peer, wait_s), lambda _pid, answer: found.append(answer))
    links = [answer for answer in found if answer["event"] == "check"]
    for link in links:
        if is_json:
            click.echo(json_line(link))
        else:
            put_row(f"{link['peer']}: {link['kind'] or 'no path'}  udp {link['remote']}")
    if not links:
        raise UnreachableError(f"There is no link to {peer or 'anybody'}." if asked else no_process())
    relayed = [link for link in links if not link["direct"]]
    if relayed:
        why = str(relayed[0]["why"]).rstrip(".")
        raise UnreachableError(f"The path to {relayed[0]['peer']} is not direct{f': {why}' if why else ''}.")
    return 0


def page(answers: list[dict[str, Any]]) -> list[str]:
    """Return the page for people: a line for each process, then its links and forwards."""
    lines: list[str] = []
    for answer in answers:
        try:
            lines += process_page(answer)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            lines.append(f"process {answer.get('pid', '?')} says what this ptunnel does not understand: is it another version?")
    return lines


def process_page(answer: Mapping[str, Any]) -> list[str]:
    from tunnel.cli.render import duration, is_silent, path_line, rate, traffic

    if answer["event"] != "status":
        return [str(answer.get("message", answer))]
    links: list[Mapping[str, Any]] = answer["links"]
    if answer["role"] == "lan":
        return room_page(answer)
    if answer["role"] == "serve":
        return server_page(answer)
    head = f"{answer['role']}  process {answer['pid']}  for {duration(answer['uptime_s'])}"
    lines = [head if links else f"{head}  no link yet", *server_lines(answer)]
    for link in links:
        keys = "" if link.get("post_quantum", True) else "  keys not post-quantum"
        head = path_line(link) if is_silent(link) else f"{link['peer']}  {path_line(link)}"
        lines.append(f"  {head}  {traffic(link)}{keys}")
        if link["kind"] == "relay" and link["why"] and not is_silent(link):
            lines.append(f"    {link['why']}")
        if link["kind"] == "relay":
            lines += relay_lines(link)
    limits = [("", answer["rate"])] if answer.get("rate") else []
    limits += [(f"{local}: ", each) for local, each in answer.get("rates", {}).items()]
    whom = "each peer " if answer["role"] == "expose" else ""
    lines += [f"    {local}at most {rate(each)} {whom}each way" for local, each in limits[:32]]
    lines += [f"    {each['bind']} -> {each['target']}{_limit_of(each)}" for each in answer.get("forwards", [])[:32]]
    lines += [_remote_line(each) for each in answer.get("remotes", [])[:32]]
    for room in answer.get("rooms", []):
        lines.append(f"  room {room['room']}  {room['why'] or room.get('subnet', '')}".rstrip())
        lines += [] if room["why"] else [f"  {line}" for line in members_of(room)]
    return lines


def relay_lines(link: Mapping[str, Any]) -> list[str]:
    """By which of several servers a link goes, and which stands by."""
    relays: list[Mapping[str, Any]] = link.get("relays", [])
    if len(relays) < 2:
        return []
    roles = {"carries": "carries", "stands_by": "stands by"}
    return [f"    {each['server']} {roles[each['role']]}: {each['why']}" for each in relays if each["role"] in roles]


def server_lines(answer: Mapping[str, Any]) -> list[str]:
    """Where others meet it: which server is in use, and of several, which stand by."""
    servers: list[Mapping[str, Any]] = answer.get("servers", [])
    roles = {"in_use": "in use", "stands_by": "stands by", "ends": "ends", "silent": "silent"}
    if len(servers) == 1 and servers[0]["role"] == "in_use" and answer["links"]:
        return []  # as most have it
    shown = [each for each in servers if each["role"] in roles]
    return [f"    server {each['server']} {roles[each['role']]}: {each['why']}" for each in shown[:32]]


def _remote_line(each: Mapping[str, Any]) -> str:
    """A port at which a peer listens for us."""
    state = "" if each["listening"] else "  not yet"
    return f"    {each['bind']} of {each['peer']} -> {each['target']} here{_limit_of(each)}{state}"


def _limit_of(each: Mapping[str, Any]) -> str:
    from tunnel.cli.render import rate

    return f"  at most {rate(each['rate'])} each way" if each.get("rate") else ""


def server_page(answer: Mapping[str, Any]) -> list[str]:
    """The same for a server: how much it has to do, and where it listens."""
    from tunnel.cli.render import duration, size

    parts = [
        f"serve  process {answer['pid']}  for {duration(answer['uptime_s'])}",
        f"{answer['clients']} client{'' if answer['clients'] == 1 else 's'}",
        f"{answer['relayed_pairs']} relayed pair{'' if answer['relayed_pairs'] == 1 else 's'}",
        f"{size(answer['relayed_bytes'])} relayed",
        f"{answer['refused']} refused",
    ]
    return ["  ".join(parts), *(f"    {each}" for each in answer["listening"][:32])]


def room_page(answer: Mapping[str, Any]) -> list[str]:
    """The same for a room: a line for each member."""
    from tunnel.cli.render import duration

    head = (
        f"lan {answer.get('room', '')}  process {answer['pid']}  for {duration(answer['uptime_s'])}  {answer.get('subnet', '')}"
    )
    return [head.rstrip(), *members_of(answer)]


def members_of(room: Mapping[str, Any]) -> list[str]:
    """The lines of a room's members, with the figures of its links."""
    from tunnel.cli.members import table

    links = {link["peer"]: link for link in room["links"]}
    members = [{**links.get(member["peer"], {}), **member} for member in room.get("members", ())]
    return [f"  {line}" for line in (table(members) if members else ("entering the room",))]
