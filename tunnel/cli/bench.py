"""`ptunnel bench`: what a link can carry, asked of the command that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel.cli.options import common, complete_peer, open_home
from tunnel.cli.render import json_line, put_row


@click.command("bench")
@click.argument("peer", required=False, shell_complete=complete_peer)
@click.option("-t", "--time", "seconds", type=click.FloatRange(0.1, 30), default=3.0, show_default=True, metavar="SECONDS",
              help="For each of the four transfers.")  # fmt: skip
@common
def command(peer: str | None, seconds: float, is_json: bool, verbose: int) -> int:
    """Measure what the link to PEER (the only one, unless named) carries, while 'expose' or 'connect' runs.

    Round trips, idle and under load, loss, the largest datagram (MTU), one TCP-like stream each way and 1200-byte
    datagrams each way, as fast as the path takes them.  'up' is from here to PEER.  The other side's ptunnel takes part
    by itself: it offers this to its paired peers, one measurement at a time, of at most 30 seconds and 16 GiB.
    Over a relay this costs the server's traffic.

    \b
    Examples:
      ptunnel bench
      ptunnel bench home --time 10
      ptunnel bench home --json | jq 'select(.what == "stream")'
    """
    from tunnel.cli.running import run
    from tunnel.control.messages import Bench

    request = Bench(peer, seconds)
    run_dir = open_home().run_dir()
    return run(lambda _ending: _bench(run_dir, request, is_json), is_answer=True)


async def _bench(run_dir: Path, request: Any, is_json: bool) -> int:
    from tunnel.cli.status import require_asked
    from tunnel.control.client import ask_all
    from tunnel.errors import UnreachableError

    errors: dict[str, str] = {}
    results = 0

    def take(_pid: int, answer: dict[str, Any]) -> None:
        nonlocal results
        if answer["event"] == "error":
            errors[answer["code"]] = answer["message"]
        elif answer["event"] == "bench":
            results += 1
            click.echo(json_line(answer)) if is_json else put_row(row(answer))

    asked = await ask_all(run_dir, request, take)
    require_asked(asked, errors)
    told = next((text for code, text in errors.items() if code != "no_link"), None)
    if told is not None or not results:
        raise UnreachableError(told or f"No running command has a link to {request.peer or 'anybody'}.")
    return 0


def row(result: dict[str, Any]) -> str:
    """One line of the table; what another version calls otherwise, as it came."""
    try:
        return _row(result)
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return json_line(result)


def _row(result: dict[str, Any]) -> str:
    match result["what"]:
        case "path":
            why = f"  ({result['why']})" if result["kind"] == "relay" and result["why"] else ""
            return f"{'path':<16}{result['kind'] or 'none'}  udp {result['remote']}  mtu {result['mtu']}  {result['peer']}{why}"
        case "rtt":
            trips = [_time(result[key]) for key in ("min_s", "median_s", "max_s")]
            return f"{'round trip':<16}{trips[1]:>12}   from {trips[0]} to {trips[2]}, {result['lost']} of {result['pings']} lost"
        case "stream":
            lost = "" if result["lost_percent"] is None else f", {result['lost_percent']:g} % of packets lost"
            load = f"round trip {_time(result['rtt_median_s'])} meanwhile"
            return f"{'stream ' + result['way']:<16}{result['mbit_s']:>8,.1f} Mbit/s   {load}{lost}, mtu {result['mtu']}"
        case "datagrams":
            rate = f"{result['datagrams_s']:,} a second of {result['size']} bytes"
            return (
                f"{'datagrams ' + result['way']:<16}{result['mbit_s']:>8,.1f} Mbit/s   {rate}, {result['lost_percent']:g} % lost"
            )
    return json_line(result)


def _time(seconds: float | None) -> str:
    from tunnel.cli.render import milliseconds

    return "no answer" if seconds is None else milliseconds(seconds)
