"""Rendezvous servers as the library finds them: resolved and greeted, or embedded where none is configured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from tunnel.api.common import SERVER_PATIENCE, OnEvent
from tunnel.api.machine import Machine
from tunnel.driver.endpoint import EndpointDriver
from tunnel.driver.events import Trouble
from tunnel.driver.lasting import last
from tunnel.driver.rendezvous import RunningServer, ServerConfig, serve
from tunnel.driver.servers import Lookup
from tunnel.errors import ConfigurationError, ServerUnreachableError
from tunnel.faults import Faults
from tunnel.host.interfaces import source_address
from tunnel.server_spec import DEFAULT_PORT, parse_server
from tunnel.units import Address

RESOLVE_AGAIN: Final = 30.0  # seconds before a server name that was unknown is looked up again
MAPPING_PATIENCE: Final = 0.4  # seconds that the address of an embedded server waits for the router, to be told at once
ANYWHERE: Final = "192.0.2.1"  # some address that a default route leads to; nothing is sent there (RFC 5737)
LOOK_INTERVAL: Final = 5.0  # seconds between two looks at the addresses of this machine, which change while a server runs ...
STRANGER_INTERVAL: Final = 0.5  # ... and where one seems to be none of them, as it may be new
LOOPBACK: Final = frozenset(("127.0.0.1", "::1"))


class OwnHosts:
    """The addresses of this machine as they are now."""

    def __init__(self, look: Callable[[], Iterable[str]]) -> None:
        self._look = look
        self._looked_at = -math.inf
        self._hosts: frozenset[str] = frozenset()

    def __contains__(self, host: object) -> bool:
        now = trio.current_time()
        if now - self._looked_at >= (LOOK_INTERVAL if host in self._hosts else STRANGER_INTERVAL):
            self._looked_at = now
            self._hosts = LOOPBACK | frozenset(self._look())
        return host in self._hosts


def found_here(server: str, machine: Machine, moved: Callable[[str], None]) -> Lookup:
    """Looks where our embedded server is reached now; `moved` hears of it when it is elsewhere than before."""
    port, told = parse_server(server, "server")[1], server

    async def look() -> list[Address]:
        nonlocal told
        address = Address(_best_host(machine.look()), port)
        if address.host not in LOOPBACK and str(address) != told:
            told = str(address)
            moved(told)
        return [address]

    return look


def _best_host(hosts: Iterable[str]) -> str:
    """Of the addresses of this machine, the one that others are told."""
    hosts = list(hosts)
    best = source_address(ANYWHERE)
    return best if best is not None and best in hosts else next((each for each in hosts if ":" not in each), "127.0.0.1")


async def embed(nursery: trio.Nursery, machine: Machine, before: Sequence[str], *, has_guests: bool = False) -> str | None:
    """A server of our own on the LAN, for our own codes and peers.  Returns host:port as others reach it.

    `before` are servers that peers remember.  One of them that was ours is opened again, at the port they know; None when that
    port is taken, which is then a server of its own.  `has_guests`: whoever was led to us may wait there for others too.
    """
    hosts = list(machine.look())
    own = ServerConfig(own_hosts=OwnHosts(machine.look), has_guests=has_guests)
    extra = machine.options("opener", "clock")

    async def run(port: int, *, task_status: trio.TaskStatus[RunningServer]) -> None:
        await serve([("0.0.0.0", port)], config=own, task_status=task_status, **extra)

    for server in before:
        host, port = parse_server(server, "server")
        if host in hosts:
            try:
                await nursery.start(run, port)
            except ConfigurationError:
                return None
            return server
    try:
        running: RunningServer = await nursery.start(run, DEFAULT_PORT)
    except ConfigurationError:
        running = await nursery.start(run, 0)
    return str(Address(_best_host(hosts), running.addresses[0].port))


async def map_server(nursery: trio.Nursery, set_public: Callable[[str | None], None], server: str, faults: Faults) -> None:
    """Have the router forward a port to the embedded server; go on without after a moment, and tell when it comes."""
    from tunnel.driver.portmap import PortMapKeeper, is_behind_translator, is_reachable_from_everywhere

    answered = trio.Event()

    def changed(_port: int, external: Address | None) -> None:
        is_public = external is not None and is_reachable_from_everywhere(external)
        if not nursery.cancel_scope.cancel_called:
            set_public(str(external) if is_public else None)
        answered.set()

    keeper = PortMapKeeper(on_change=changed, faults=faults)
    run = partial(keeper.run, (parse_server(server, "server")[1],))
    nursery.start_soon(last, faults, "port mapping", "interrupted port mapping", run)
    if is_behind_translator():
        with trio.move_on_after(MAPPING_PATIENCE):
            await answered.wait()


async def resolve(driver: EndpointDriver, server: str, tell: OnEvent, lookup: Lookup | None = None) -> None:
    """Until the name is known: the network may not be up yet."""
    what = f"interrupted the search for the server {server.partition(',')[0]}"
    await last(driver.faults, "server", what, partial(_resolve, driver, server, tell, lookup))


async def _resolve(driver: EndpointDriver, server: str, tell: OnEvent, lookup: Lookup | None) -> None:
    while True:
        try:
            await driver.servers.add(server, lookup)
            await driver.servers.wait_reached(server, SERVER_PATIENCE)
        except ServerUnreachableError as error:
            tell(Trouble(code="server_unreachable", message=f"{error} Trying on."))
            if driver.core.has_server(server):
                await driver.servers.wait_reached(server)  # its client goes on by itself
                tell(Trouble(code="server_back", message=f"The server {server.partition(',')[0]} answers now."))
                return
            await trio.sleep(RESOLVE_AGAIN)
        except ConfigurationError as error:
            tell(Trouble(code="server_unreachable", message=str(error)))
            return
        else:
            return


def were_ours(servers: Iterable[str | None], machine: Machine) -> list[str]:
    """Those that stood on this machine: embedded ones of an earlier run."""
    hosts = set(machine.look())
    found = set()
    for server in servers:
        with suppress(ConfigurationError):  # remembered by an older version, which read anything
            if server is not None and parse_server(server, "server")[0] in hosts:
                found.add(server)
    return sorted(found)
