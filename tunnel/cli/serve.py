"""`ptunnel serve`: the rendezvous server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.options import common

if TYPE_CHECKING:
    from tunnel.cli.render import Output
    from tunnel.driver.rendezvous import RunningServer


@click.command("serve")
@click.option(
    "--listen", "listen", metavar="ADDR[:PORT]", multiple=True,
    help="Where to listen, repeatable; all addresses, port 24531 unless said. The port behind each is used too.",
)  # fmt: skip
@click.option("--open-directory", is_flag=True, help="Also answer the plain-text protocol: `ip ver` gets the others' addresses.")
@click.option("--access", metavar="FILE", help="Serve only the addresses, prefixes and tokens that this file lists.")
@common
def command(listen: tuple[str, ...], open_directory: bool, access: str | None, is_json: bool, verbose: int) -> int:
    """Run a rendezvous server: it introduces peers to one another and, where no direct path exists, relays sealed
    datagrams that it cannot read.  It keeps nothing on disk.

    \b
    Examples:
      ptunnel serve
      ptunnel serve --listen 203.0.113.5 --listen [2001:db8::5]
      ptunnel serve --open-directory            log and list those who say `ip ver`
    Let UDP ports 24531 and 24532 through the host's firewall.
    """
    from tunnel.cli.render import Output
    from tunnel.cli.running import run
    from tunnel.config import DEFAULT_PORT, split_host_port
    from tunnel.driver.rendezvous import DEFAULT_LISTEN, ServerConfig, read_access_file

    places = [split_host_port(_address(text), "--listen", DEFAULT_PORT) for text in listen] or list(DEFAULT_LISTEN)
    options: dict[str, Any] = {"open_directory": open_directory}
    if access is not None:
        options["access"] = read_access_file(access)
    if open_directory and not verbose:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("ptunnel.serve").setLevel(logging.INFO)
    output = Output(is_json=is_json, may_be_live=False)
    config = ServerConfig(**options)
    return run(lambda _ending: _serve(places, config, output))


def _address(text: str) -> str:
    """A lone port means every IPv4 address."""
    return f"0.0.0.0:{text.lstrip(':')}" if text.lstrip(":").isdecimal() and text.count(":") <= 1 else text


async def _serve(places: list[tuple[str, int]], config: Any, output: Output) -> int:
    import trio

    from tunnel.driver.rendezvous import LogTrace, serve

    async with trio.open_nursery() as nursery:
        running: RunningServer = await nursery.start(
            lambda task_status: serve(places, config=config, trace=LogTrace(), task_status=task_status)
        )
        for address in running.addresses:
            output.emit({"event": "listening", "bind": str(address)})
        output.say(
            f"Serving on udp {' and '.join(map(str, running.addresses))}"
            f" (and {' and '.join(str(each.port) for each in running.second_addresses)}). Ctrl-C ends it."
        )
        output.say("Peers name this host with --server HOST or PTUNNEL_SERVER.")
    return 0
