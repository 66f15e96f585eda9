"""Keeps UDP ports mapped at the default gateway, as long as there is one and it translates addresses.

Runs beside everything else and delays nothing: whoever wants to know is told when a mapping comes and goes.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from tunnel.faults import Faults
from tunnel.host.clock import boottime
from tunnel.host.gateway import Gateway, default_gateway, is_translated
from tunnel.nat.mapping_states import LookUpPort, MapPort, PortMapping, Protocol, SearchRouter, UnmapPort, UpnpTask
from tunnel.nat.pcp import PORT as MAPPING_PORT
from tunnel.nat.portmap import LIFETIME, PortMapper
from tunnel.shell.lasting import last
from tunnel.shell.upnp import UpnpError, UpnpGateway
from tunnel.units import Address, Instant, Seconds

__all__ = ["PortMapKeeper", "Protocol", "is_behind_translator", "is_reachable_from_everywhere"]

LOOK_INTERVAL: Final = 2.0  # seconds between looks at the default route
LONGEST_SLEEP: Final = 30.0  # seconds; trio's clock stands still in suspend, the lease does not
REMOVAL: Final = 0.8  # seconds for taking mappings back at the end: within the goodbye's second
ANNOUNCEMENTS: Final = ("224.0.0.1", 5350)  # where routers say that they have restarted; RFC 6886 §3.2.1, RFC 6887 §14.1.1


def is_reachable_from_everywhere(external: Address) -> bool:
    """False where the router that maps is behind another translator itself."""
    return not is_translated(external.host)


def is_behind_translator() -> bool:
    """Is there a router that could map ports, and a reason to ask it?  Not where our own address can be reached as it is."""
    gateway = default_gateway()
    return gateway is not None and is_translated(gateway.own)


class PortMapKeeper:
    """Some UDP ports of this machine, mapped at its router.  `run` it; `mappings` says what stands."""

    def __init__(
        self,
        *,
        on_change: Callable[[int, Address | None], None],
        clock: Callable[[], Instant] = boottime,
        gateway: Callable[[], Gateway | None] = default_gateway,
        lifetime: Seconds = LIFETIME,
        protocols: Iterable[Protocol] = tuple(Protocol),
        faults: Faults | None = None,
    ) -> None:
        """`on_change(port, external)` is called when our `port` is mapped to another address than before; None: no longer."""
        self.mappings: dict[int, PortMapping] = {}  # by internal port
        self.trouble = "there is no router that could map a port"
        self._on_change = on_change
        self._clock = clock
        self._gateway = gateway
        self._lifetime = lifetime
        self._protocols = tuple(protocols)
        self._mappers: dict[int, PortMapper] = {}
        self._wakes: dict[int, trio.Event] = {}
        self._look = trio.Event()
        self._is_leaving = False
        self._faults = Faults() if faults is None else faults

    def network_changed(self) -> None:
        """Look at the default route and at the leases now: the host roamed or woke up."""
        self._look.set()
        for wake in self._wakes.values():
            wake.set()

    def why_unmapped(self, port: int) -> str:
        """The end of a sentence, where `port` has no mapping."""
        mapper = self._mappers.get(port)
        return mapper.trouble if mapper is not None else self.trouble

    async def run(self, ports: Sequence[int]) -> None:
        """Until cancelled; then the mappings are taken back, which takes REMOVAL seconds at most."""
        while True:
            gateway = self._gateway()
            if gateway is None or not is_translated(gateway.own):
                await self._wait_look()
                continue
            self._is_leaving = False
            async with trio.open_nursery() as nursery:
                upnp = UpnpGateway(*gateway)
                for port in ports:
                    self._keep_going(nursery, f"interrupted the mapping of port {port}", partial(self._keep, gateway, port, upnp))
                self._keep_going(nursery, "interrupted the listening to the router", partial(self._hear_announcements, gateway))
                while self._gateway() == gateway:
                    await self._wait_look()
                self._is_leaving = True  # that router is out of reach: what it keeps for us will lapse
                nursery.cancel_scope.cancel()

    def _keep_going(self, nursery: trio.Nursery, what: str, task: Callable[[], Awaitable[None]]) -> None:
        nursery.start_soon(last, self._faults, "port mapping", what, task)

    async def _wait_look(self) -> None:
        self._look = trio.Event()
        with trio.move_on_after(LOOK_INTERVAL):
            await self._look.wait()

    async def _keep(self, gateway: Gateway, port: int, upnp: UpnpGateway) -> None:
        """One port, as long as this gateway is the one."""
        mapper = self._mappers[port] = PortMapper(
            own=gateway.own,
            port=port,
            now=self._clock(),
            rng=random.SystemRandom(),
            entropy=os.urandom,
            lifetime=self._lifetime,
            protocols=self._protocols,
        )
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                await sock.bind((gateway.own, 0))
            except OSError:
                return  # the address has just gone; the default route will change too
            try:
                await self._serve(mapper, sock, gateway, port, upnp)
            finally:
                if not self._is_leaving:
                    with trio.move_on_after(REMOVAL, shield=True):
                        mapper.close(self._clock())
                        await self._serve(mapper, sock, gateway, port, upnp)
                del self._mappers[port]
                self._tell(port, None)

    async def _serve(
        self, mapper: PortMapper, sock: trio.socket.SocketType, gateway: Gateway, port: int, upnp: UpnpGateway
    ) -> None:
        """Until cancelled, or until a closed mapper has nothing more to say."""
        clock = self._clock
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, mapper, sock, gateway, port)
            while not mapper.is_finished:
                wake = self._wakes[port] = trio.Event()
                now = clock()
                mapper.handle_timeout(now)
                while (datagram := mapper.poll_transmit(now)) is not None:
                    try:
                        await sock.sendto(datagram, (gateway.address, MAPPING_PORT))
                    except OSError:
                        continue  # as if it were lost
                task = mapper.poll_upnp(now)
                if task is not None:
                    nursery.start_soon(self._do, mapper, task, port, upnp)
                if mapper.mapping != self.mappings.get(port):
                    self._tell(port, mapper.mapping)
                deadline = mapper.poll_timeout()
                delay = LONGEST_SLEEP if deadline is None else min(LONGEST_SLEEP, max(0.0, deadline - clock()))
                with trio.move_on_after(delay):
                    await wake.wait()
            nursery.cancel_scope.cancel()

    async def _receive(self, mapper: PortMapper, sock: trio.socket.SocketType, gateway: Gateway, port: int) -> None:
        while True:
            try:
                data, remote = await sock.recvfrom(2048)
            except OSError:
                await trio.sleep(0.1)
                continue
            if remote == (gateway.address, MAPPING_PORT):
                mapper.handle_datagram(self._clock(), data)
                self._wakes[port].set()

    async def _hear_announcements(self, gateway: Gateway) -> None:
        """A router that has just started says so to the whole network, where the system lets us hear it."""
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                await sock.bind(ANNOUNCEMENTS)
            except OSError:
                return
            while True:
                try:
                    data, remote = await sock.recvfrom(2048)
                except OSError:
                    return
                if remote[0] != gateway.address:
                    continue
                for port, mapper in self._mappers.items():
                    mapper.handle_datagram(self._clock(), data)
                    self._wakes[port].set()

    async def _do(self, mapper: PortMapper, task: UpnpTask, port: int, upnp: UpnpGateway) -> None:
        try:
            match task:
                case SearchRouter():
                    await upnp.search()
                    mapper.upnp_found(self._clock())
                case MapPort(external_port=external_port, lifetime=lifetime):
                    external = await upnp.map(port, external_port, lifetime)
                    mapper.upnp_mapped(self._clock(), external, lifetime)
                case LookUpPort(external_port=external_port):
                    external, entry = await upnp.look_up(external_port)
                    mapper.upnp_looked_up(self._clock(), external, entry)
                case UnmapPort(external_port=external_port):
                    with suppress(UpnpError):
                        await upnp.unmap(external_port)
                    mapper.upnp_removed(self._clock(), external_port)
        except UpnpError as error:
            mapper.upnp_failed(self._clock(), error.code, str(error))
        self._wakes[port].set()

    def _tell(self, port: int, mapping: PortMapping | None) -> None:
        before = self.mappings.pop(port, None)
        if mapping is not None:
            self.mappings[port] = mapping
        if (before.external if before is not None else None) != (mapping.external if mapping is not None else None):
            self._on_change(port, mapping.external if mapping is not None else None)
