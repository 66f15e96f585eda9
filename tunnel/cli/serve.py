"""`ptunnel serve`: the rendezvous server."""

from __future__ import annotations

import errno
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from tunnel.cli.options import common, log_json

if TYPE_CHECKING:
    import trio

    from tunnel.cli.render import Output
    from tunnel.cli.running import Ending
    from tunnel.host.notify import ServiceManager
    from tunnel.shell.serve import RunningServer, ServerConfig
    from tunnel.telemetry.scrape import Scrapes

ADDRESS_EVERY: Final = 1.0  # seconds between two looks whether an address of --listen is there, in a service

#: Counters of requests that were turned away, by --access or a limit.
REFUSED: Final = frozenset({"did_denied", "dropped_server_request_rate", "dropped_server_proof_rate"})


@click.command("serve")
@click.option(
    "--listen", "listen", metavar="ADDR[:PORT]", multiple=True,
    help="Where to listen, repeatable; all addresses, port 24531 unless said. The port behind each is used too.",
)  # fmt: skip
@click.option(
    "--tls-cert", metavar="FILE", help="Also serve over TLS, for networks that block UDP: a PEM certificate and its chain."
)
@click.option("--tls-key", metavar="FILE", help="Its key, where the certificate's file does not hold it.")
@click.option(
    "--tls-port", metavar="PORT", type=click.IntRange(0, 65_535), default=443, show_default=True, help="The TCP port for TLS."
)
@click.option("--open-directory", is_flag=True, help="Also answer the plain-text protocol: 'ip ver' gets the others' addresses.")
@click.option("--access", metavar="FILE", help="Serve only the addresses, prefixes and tokens that this file lists.")
@click.option(
    "--limit", "limits", metavar="NAME=NUMBER", multiple=True,
    help="Another limit than usual, repeatable; also [serve] in config.toml. docs/server.md says which there are.",
)  # fmt: skip
@click.option(
    "--metrics", metavar="ADDR[:PORT]",
    help="Give figures to Prometheus there, over HTTP at /metrics; a lone port means this machine alone.",
)  # fmt: skip
@click.option(
    "--fleet", metavar="URL",
    help="Be one of several servers that share this store, and are one service: redis://HOST/ and others; see docs/fleet.md.",
)  # fmt: skip
@click.option("--fleet-key", "fleet_key", metavar="FILE", help="With --fleet: the file with the secret of all its servers.")
@click.option(
    "--advertise", metavar="ADDR[:PORT]", multiple=True,
    help="With --fleet, repeatable: where clients reach this server alone; where it listens, unless said.",
)  # fmt: skip
@click.option(
    "--drain", metavar="SECONDS", type=click.FloatRange(0.0, 3600.0), default=30.0, show_default=True,
    help="With --fleet: how long clients may take to leave for another server when this one is stopped.",
)  # fmt: skip
@click.option("--fleet-status", "is_fleet_status", is_flag=True, help="Say which servers the fleet has, and serve nothing.")
@click.option("--check", "is_check", is_flag=True, help="Say what would keep this server from serving, and serve nothing.")
@click.option(
    "--from", "check_from", metavar="HOST[:PORT]", help="With --check: have this other server try whether the ports are reached."
)
@log_json
@common
def command(
    listen: tuple[str, ...], tls_cert: str | None, tls_key: str | None, tls_port: int, open_directory: bool, access: str | None,
    limits: tuple[str, ...], metrics: str | None, fleet: str | None, fleet_key: str | None, advertise: tuple[str, ...],
    drain: float, is_fleet_status: bool, is_check: bool, check_from: str | None, is_log_json: bool, is_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Run a rendezvous server: it introduces peers to one another and, where no direct path exists, relays sealed
    datagrams that it cannot read.  It keeps nothing on disk but a random secret, in PTUNNEL_HOME, by which codes stay good
    over its restarts.  It goes on when its terminal goes; SIGHUP makes it read the files of --tls-cert, --tls-key and --access
    again.

    \b
    Examples:
      ptunnel serve
      ptunnel serve --listen 203.0.113.5 --listen [2001:db8::5]
      ptunnel serve --tls-cert fullchain.pem --tls-key privkey.pem
      ptunnel serve --open-directory            log and list those who say 'ip ver'
      ptunnel serve --metrics 127.0.0.1:9464
      ptunnel serve --limit max_sessions=200000
      ptunnel serve --check --from rv.example.net
      ptunnel serve --fleet rediss://store.example.net/
      ptunnel serve --fleet-status
    With -v a line for each client that comes and leaves, each pair that meets and ends, and each refusal, with addresses.
    Let UDP ports 24531 and 24532 through the host's firewall, and TCP port 443 where TLS is served.
    docs/server.md sets a server up, from an empty machine to figures in Prometheus.
    """
    from tunnel.cli import fleet as cli_fleet
    from tunnel.cli import json_log
    from tunnel.cli.render import Output
    from tunnel.cli.running import run
    from tunnel.errors import ConfigurationError
    from tunnel.host.collector import tamed
    from tunnel.host.limits import raise_descriptor_limit
    from tunnel.server_spec import DEFAULT_METRICS_PORT, DEFAULT_PORT, split_host_port, split_local_place
    from tunnel.shell.serve import DEFAULT_LISTEN, ServerConfig, TlsConfig, read_access_file

    places = [split_host_port(_address(text), "--listen", DEFAULT_PORT) for text in listen] or list(DEFAULT_LISTEN)
    options: dict[str, Any] = {"open_directory": open_directory}
    if is_log_json:
        json_log.start(verbose)
    elif open_directory and not verbose:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("ptunnel.serve.directory").setLevel(logging.INFO)
    output = Output(is_json=is_json, may_be_live=False)
    if tls_key is not None and tls_cert is None:
        raise ConfigurationError("--tls-key needs its certificate: name it with --tls-cert.")
    tls = None if tls_cert is None else TlsConfig(certificate=tls_cert, key=tls_key, port=tls_port)
    figures = None if metrics is None else split_local_place(metrics, "--metrics", DEFAULT_METRICS_PORT)
    if is_check:
        from tunnel.cli.server_check import Plan, check

        plan = Plan(places=places, tls=tls, access=access, metrics=figures, other=check_from)
        return run(lambda _ending: check(plan, is_json=is_json), is_answer=True)
    if check_from is not None:
        raise ConfigurationError("--from names who tries this server's ports with --check: say --check too.")
    if access is not None:
        options["access"] = read_access_file(access)
    config = _limited(ServerConfig(**options), limits)
    door = cli_fleet.door(fleet, fleet_key, advertise, drain, is_asked=is_fleet_status)
    if door is not None and is_fleet_status:
        return run(lambda _ending: cli_fleet.status(door, is_json=is_json), is_answer=True)
    if tls is not None:
        raise_descriptor_limit()  # one for each connection
    secret = _secret(output)
    told = {"config": config, "tls": tls, "secret": secret, "access_file": access, "fleet": door}
    with tamed():
        return run(lambda ending: _serve(places, told, figures, output, ending), outlives_terminal=True)


def _address(text: str) -> str:
    """A lone port means every IPv4 address."""
    return f"0.0.0.0:{text.lstrip(':')}" if text.lstrip(":").isdecimal() and text.count(":") <= 1 else text


def _limited(config: ServerConfig, limits: tuple[str, ...]) -> ServerConfig:
    """With the limits of config.toml and of --limit, which goes before.  Raises ConfigurationError, StateError."""
    from tunnel.errors import ConfigurationError
    from tunnel.settings import SERVE_TABLE
    from tunnel.shell.serve import with_limits
    from tunnel.state.config_file import ConfigFile
    from tunnel.state.home import Home

    home = Home()
    file = home.config() if home.path.is_dir() else ConfigFile({})
    table = file.get(SERVE_TABLE, {})
    if not isinstance(table, dict):
        raise ConfigurationError(
            f"{file.place(SERVE_TABLE)} {SERVE_TABLE} is a table: write [serve], and a limit on each line behind it."
        )
    config = with_limits(config, table, f"{file.place(SERVE_TABLE)} [serve]")
    said: dict[str, object] = {}
    for text in limits:
        name, _, number = text.partition("=")
        try:
            said[name.strip()] = float(number) if "." in number or "e" in number.lower() else int(number)
        except ValueError:
            raise ConfigurationError(f"--limit {text[:60]!r}: say NAME=NUMBER, as in max_sessions=200000.") from None
    return with_limits(config, said, "--limit")


def _secret(output: Output) -> bytes | None:
    """A server runs without one, too: on a machine that keeps nothing."""
    from tunnel.errors import StateError
    from tunnel.state.home import Home

    try:
        return Home().server_secret()
    except StateError as error:
        text = f"Codes will not outlive a restart of this server: {error}"
        output.warn(text, "not_saved")
        return None


async def _serve(
    places: list[tuple[str, int]], told: dict[str, Any], figures: tuple[str, int] | None, output: Output, ending: Ending
) -> int:
    import os

    import trio

    from tunnel.cli.running import settled
    from tunnel.control.server import Process, serve_control
    from tunnel.host.notify import ServiceManager
    from tunnel.state.home import Home

    manager = ServiceManager.take(os.environ)
    async with trio.open_nursery() as signs:
        signs.start_soon(manager.keep_alive)
        async with trio.open_nursery() as nursery:
            running: RunningServer = await nursery.start(partial(_serve_at_last, places, told, manager, output))
            scrapes = None if figures is None else await _open_scrapes(figures, running)

            def hung_up() -> None:
                manager.reloading()
                running.hung_up()
                manager.ready()

            ending.hung_up = hung_up
            if told["fleet"] is not None:
                ending.stop, ending.patience = running.stop, told["fleet"].drain
            _tell(running, scrapes, output)

            async def reach(server: str) -> list[dict[str, Any]]:
                return [each.to_dict() for each in await running.view_from(server)]

            process = Process(
                role="serve", links=list, close=running.stop, details=lambda: details(running), faults=running.faults,
                notice=output.warn, reach=reach,
            )  # fmt: skip
            async with serve_control(lambda: Home().run_dir(), process), trio.open_nursery() as beside:
                if scrapes is not None:
                    beside.start_soon(scrapes.serve)
                manager.ready(_where(running))
                try:
                    settled()
                    await running.wait_stop()
                finally:
                    manager.stopping()
                beside.cancel_scope.cancel()
        signs.cancel_scope.cancel()
    return 0


async def _serve_at_last(
    places: list[tuple[str, int]], told: dict[str, Any], manager: ServiceManager, output: Output,
    *, task_status: trio.TaskStatus[RunningServer],
) -> None:  # fmt: skip
    """Serve; a service, which may be started before its addresses are there, waits for them."""
    import trio

    from tunnel.errors import ConfigurationError
    from tunnel.shell.serve import serve
    from tunnel.shell.server_log import LogTrace

    is_waiting = False
    while True:
        try:
            return await serve(places, **told, trace=LogTrace(), task_status=task_status)
        except ConfigurationError as error:
            if not manager or not _is_absent(error):
                raise
            text = f"{error} Waiting for it."
        if not is_waiting:
            is_waiting = True
            output.warn(text, "address_absent")
            manager.ready(text)  # the start of the others goes on
        await trio.sleep(ADDRESS_EVERY)


def _is_absent(error: BaseException) -> bool:
    """Whether an address is none of this machine, for now."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRNOTAVAIL


def _where(running: RunningServer) -> str:
    return f"Serving on udp {' and '.join(map(str, running.addresses))}"


async def _open_scrapes(place: tuple[str, int], running: RunningServer) -> Scrapes:
    """Raises ConfigurationError."""
    import time

    from tunnel.telemetry.scrape import open_scrapes

    started = time.monotonic()

    def status() -> dict[str, Any]:
        return {"role": "serve", "uptime_s": time.monotonic() - started, **details(running)}

    return await open_scrapes(place, status, running.faults)


def _tell(running: RunningServer, scrapes: Scrapes | None, output: Output) -> None:
    """Where it listens."""
    for address, second in zip(running.addresses, running.second_addresses, strict=True):
        output.emit({"event": "listening", "bind": str(address), "second": str(second)})
    for address in running.tls_addresses:
        output.emit({"event": "listening", "bind": str(address), "tls": running.tls_fingerprint})
    seconds = sorted({str(each.port) for each in running.second_addresses})
    output.say(
        f"{_where(running)} (and port {' and '.join(seconds)}). Ctrl-C ends it.",
        what="listening",
    )
    if running.tls_addresses:
        output.say(
            f"Over TLS on tcp {' and '.join(map(str, running.tls_addresses))}; the certificate's SHA-256 is", what="listening"
        )
        output.say(f"  {running.tls_fingerprint}", what="certificate")
    output.say("Peers name this host with --server HOST or PTUNNEL_SERVER.")
    if scrapes is not None:
        from tunnel.telemetry.scrape import notice

        for address in scrapes.addresses:
            output.emit({"event": "listening", "bind": str(address), "metrics": True})
        output.say(f"Figures for Prometheus are at http://{scrapes.addresses[0]}/metrics.", what="listening")
        if text := notice(scrapes.addresses):
            output.warn(text, "metrics_public")


def details(running: RunningServer) -> dict[str, Any]:
    """Return the lines that `status` shows of a server."""
    counters = running.counters()
    return {
        "listening": [str(address) for address in (*running.addresses, *running.tls_addresses)],
        "clients": counters["sessions"],
        "relayed_pairs": counters["channels"],
        "relayed_bytes": counters["relayed_bytes"],
        "refused": sum(count for name, count in counters.items() if name in REFUSED),
        "counters": counters,
        **({} if running.fleet is None else {"fleet": running.fleet.status()}),
    }
