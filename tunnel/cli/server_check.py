"""`ptunnel serve --check`: gathers what was found out, here and by a server that runs already, and says it a line each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.options import open_home
from tunnel.cli.render import json_line, put_row
from tunnel.errors import ConfigurationError, StateError, TunnelError

if TYPE_CHECKING:
    from tunnel.shell.outside import View
    from tunnel.shell.serve import TlsConfig
    from tunnel.shell.server_check import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The server that is meant, by its options."""

    places: list[tuple[str, int]]
    tls: TlsConfig | None
    access: str | None
    metrics: tuple[str, int] | None
    other: str | None  # a server that tries the ports


async def check(plan: Plan, *, is_json: bool) -> int:
    """Exit code 0, or 2 where something keeps the server from serving as asked.  Raises ServerUnreachableError (its name)."""
    from tunnel.shell.server_check import State

    found = await look(plan)
    failed = sum(each.state is State.FAILED for each in found)
    for each in found:
        if is_json:
            click.echo(json_line(each.to_dict()))
        else:
            put_row(f"{each.state.value:<9}{each.message}")
    if not is_json:
        click.echo(
            "Nothing that can be seen from here keeps it from serving." if not failed else f"{failed} of these to be mended."
        )
    return 2 if failed else 0


async def look(plan: Plan) -> list[Finding]:
    """Everything, the ports first."""
    from tunnel.shell import server_check as checks
    from tunnel.shell.outside import servers_named, view_from

    servers = None if plan.other is None else await servers_named(plan.other, "--from")
    ours = await _ours()
    ports = await checks.check_udp(plan.places, ours)
    views: list[View] | None = None
    try:
        found = list(ports.found)
        machine = checks.check_machine(ports.sockets, plan.tls is not None)
        if servers is not None and plan.other is not None:
            views = await view_from(ports.sockets, servers)
            for pid in sorted(ports.pids):
                views += await _views_of(pid, plan.other)
    finally:
        for each in ports.sockets:
            each.close()
    named = "HOST"
    if plan.tls is not None:
        found += checks.check_tls(plan.tls, [host for host, _ in plan.places], ours, time.time())
    if plan.access is not None:
        found.append(checks.check_access(plan.access))
    if plan.metrics is not None and not ours:
        found.append(await _check_metrics(*plan.metrics))
    found += [checks.check_clock(views or ()), *machine]
    found += checks.check_outside(views, named)
    if plan.tls is not None:
        found.append(checks.check_tls_outside(plan.tls.port, named))
    return found


async def _check_metrics(host: str, port: int) -> Finding:
    from tunnel.shell.server_check import Finding, State
    from tunnel.telemetry.scrape import Scrapes

    scrapes = Scrapes(bytes)
    try:
        await scrapes.open(host, port)
    except ConfigurationError as error:
        return Finding(what="metrics_port", state=State.FAILED, message=str(error))
    await scrapes.close()
    return Finding(what="metrics_port", state=State.OK, message=f"TCP port {port} of {host} is free for figures.")


def _run_dir() -> Path | None:
    try:
        return open_home().run_dir()
    except StateError:
        return None


async def _ours() -> dict[str, int]:
    """Where servers of this user listen, with their processes."""
    from tunnel.control.client import ask_all
    from tunnel.control.messages import Status

    ours: dict[str, int] = {}

    def take(pid: int, answer: dict[str, Any]) -> None:
        if answer["event"] == "status" and answer["role"] == "serve":
            ours.update(dict.fromkeys(answer["listening"], pid))

    run_dir = _run_dir()
    if run_dir is not None:
        await ask_all(run_dir, Status(), take)
    return ours


async def _views_of(pid: int, other: str) -> list[View]:
    """The view that another server has of one that runs.  Raises TunnelError."""
    from tunnel.control.client import ask
    from tunnel.control.messages import Reach
    from tunnel.shell.outside import View

    answers: list[Mapping[str, Any]] = []
    run_dir = _run_dir()
    if run_dir is None:
        return []
    await ask(run_dir, pid, Reach(server=other), answers.append)
    for each in answers:
        if each["event"] == "error":
            old = each.get("code") == "bad_request"
            raise TunnelError(
                f"Process {pid} is an older ptunnel, which cannot be tried from outside." if old else each["message"]
            )
    return [View(**{name: each[name] for name in View._fields}) for each in answers if each["event"] == "view"]
