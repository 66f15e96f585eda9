"""Rendezvous servers as the library finds them: resolved and greeted, or embedded where none is configured."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import ConfigurationError, OfflineError, ServerUnreachableError
from tunnel.faults import Faults
from tunnel.host.interfaces import ANYWHERE, source_address
from tunnel.server_spec import DEFAULT_PORT, DHT, parse_server
from tunnel.setup.common import SERVER_PATIENCE, OnEvent
from tunnel.setup.machine import Machine
from tunnel.shell.endpoint import EndpointDriver
from tunnel.shell.events import Trouble
from tunnel.shell.lasting import last
from tunnel.shell.places import NO_NETWORK, has_network
from tunnel.shell.servers import Lookup
from tunnel.units import Address

if TYPE_CHECKING:
    from tunnel.shell.serve import ServerConfig

FIRST_PAUSE: Final = 1.0  # seconds before a server that was not found is looked for again, doubling ...
LONGEST_PAUSE: Final = 30.0  # ... up to this
NETWORK_LOOK: Final = 1.0  # seconds between two looks for a network
SERVER_WORD: Final = 3.0  # seconds without an answer of a server, after which it is said what is waited for
MAPPING_PATIENCE: Final = 0.4  # seconds that the address of an embedded server waits for the router, to be told at once
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


class Surroundings:
    """The surroundings that a start waits for; a person is told once what is missing."""

    def __init__(self, on_event: OnEvent | None, machine: Machine) -> None:
        self._on_event = on_event
        self._hosts = machine.hosts
        self._told = ""

    def has_network(self, server: str = "") -> bool:
        return has_network(server, self._hosts)

    async def wait_network(self, server: str = "") -> None:
        """Until this machine has a way to anywhere."""
        while not self.has_network(server):
            self.tell("no_network", f"{NO_NETWORK[:-1]}: waiting for one.")
            await trio.sleep(NETWORK_LOOK)

    async def speak_of_silence(self, driver: EndpointDriver, server: str) -> None:
        """Once, while a server is waited for that has not answered: a person may see sooner than we what is wrong."""
        await trio.sleep(SERVER_WORD)
        is_known = driver.core.has_server(server)
        if not self.has_network(server) or (is_known and driver.core.has_answered(server)):
            return
        host, port = parse_server(server, "server")
        whose = "the nodes by which the DHT is entered lead" if server == DHT else f"the server name {host} leads"
        text = f"Nobody has told yet where {whose}: is the network slow, or its DNS?"
        if is_known and server == DHT:
            text = "No node of the DHT answers yet: does this network block UDP, or are those gone that are asked first?"
        elif is_known:
            text = (
                f"No answer from the server {host} yet: is that its address, and does 'ptunnel serve' run there, "
                f"at UDP port {port}?"
            )
        self.tell("server_slow", f"{text} Waiting.")

    def tell(self, code: str, text: str) -> None:
        """Once, until something else is told."""
        if text != self._told and self._on_event is not None:
            self._told = text
            self._on_event(Trouble(code=code, message=text))


async def reach(driver: EndpointDriver, server: str, around: Surroundings, lookup: Lookup | None = None, *, waits: bool) -> None:
    """Add a server that has to answer; with `waits` once there is a network, and somebody who knows names.

    Raises ConfigurationError, ServerUnreachableError.
    """
    pause = FIRST_PAUSE
    while True:
        if waits:
            await around.wait_network(server)
        try:
            await driver.servers.add(server, lookup)
            await driver.servers.wait_reached(server, SERVER_PATIENCE)
        except ServerUnreachableError as error:
            is_offline = isinstance(error, OfflineError) or not around.has_network(server)
            if not waits and not around.has_network(server):
                raise OfflineError(NO_NETWORK) from None
            if not waits or not is_offline:
                raise
            around.tell("still_trying", f"{error} Still trying.")
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            return


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
    best = source_address(ANYWHERE[False])
    return best if best is not None and best in hosts else next((each for each in hosts if ":" not in each), "127.0.0.1")


def embedded_config(own_hosts: Container[str], guests: int = 0) -> ServerConfig:
    """The settings of a server for the codes of `own_hosts` alone, and for so many who meet there, all of them at one place."""
    from tunnel.shell.serve import ServerConfig  # most commands have no server of their own

    usual = ServerConfig()
    channels = max(usual.channels_per_address, guests * guests // 2)  # a channel for each two
    return replace(usual, own_hosts=own_hosts, has_guests=guests > 0, channels_per_address=channels)


async def embed(nursery: trio.Nursery, machine: Machine, before: Sequence[str], *, guests: int = 0) -> str | None:
    """A server of our own on the LAN, for our own codes and peers.  Returns host:port as others reach it.

    `before` are servers that peers remember.  One of them that was ours is opened again, at the port they know; None when that
    port is taken, which is then a server of its own.  `guests`: of whoever was led to us so many may wait there for each other.
    """
    from tunnel.shell.serve import RunningServer, serve

    hosts = list(machine.look())
    own = embedded_config(OwnHosts(machine.look), guests)
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
    from tunnel.shell.portmap import PortMapKeeper, is_behind_translator, is_reachable_from_everywhere

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


async def resolve(driver: EndpointDriver, server: str, tell: OnEvent, around: Surroundings, lookup: Lookup | None = None) -> None:
    """Until the name is known: the network may not be up yet."""
    what = f"interrupted the search for the server {server.partition(',')[0]}"
    await last(driver.faults, "server", what, partial(_resolve, driver, server, tell, around, lookup))


async def _resolve(driver: EndpointDriver, server: str, tell: OnEvent, around: Surroundings, lookup: Lookup | None) -> None:
    pause, told = FIRST_PAUSE, ""
    while True:
        await around.wait_network(server)
        try:
            await driver.servers.add(server, lookup)
            await driver.servers.wait_reached(server, SERVER_WORD)
        except ServerUnreachableError as error:
            if (text := f"{error} Trying on.") != told:
                told = text
                tell(Trouble(code="server_unreachable", message=text))
            if driver.core.has_server(server):
                await driver.servers.wait_reached(server)  # its client goes on by itself
                who = "The DHT" if server == DHT else f"The server {server.partition(',')[0]}"
                tell(Trouble(code="server_back", message=f"{who} answers now."))
                return
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        except ConfigurationError as error:
            tell(Trouble(code="server_unreachable", message=str(error)))
            return
        else:
            return


def may_be_ours(server: str | None) -> bool:
    """Whether that depends on the addresses which this machine has: it is told by an address, not by a name."""
    host = (server or "").partition(",")[0].rpartition(":")[0].strip("[]")
    with suppress(ValueError):
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def were_ours(servers: Iterable[str | None], machine: Machine) -> list[str]:
    """Those that stood on this machine: embedded ones of an earlier run."""
    hosts = set(machine.look())
    found = set()
    for server in servers:
        with suppress(ConfigurationError):  # remembered by an older version, which read anything
            if server is not None and parse_server(server, "server")[0] in hosts:
                found.add(server)
    return sorted(found)
