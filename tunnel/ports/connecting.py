"""tunnel.connect: by a code, or to a remembered peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Unpack

import trio

from tunnel.errors import ConfigurationError, TunnelError, UnreachableError
from tunnel.pairing.code import Purpose, parse_code, require_purpose, split_server
from tunnel.ports.public_link import Link, LinkHandler
from tunnel.settings import GivenPeer, Settings
from tunnel.setup.common import SERVER_PATIENCE, OnEvent, require_trio, single_error
from tunnel.setup.machine import MACHINE
from tunnel.setup.moving import follow_place
from tunnel.setup.nodes import NodeKeeper
from tunnel.setup.servers import Surroundings
from tunnel.setup.store import HomeStore
from tunnel.setup.ways import WayKeeper
from tunnel.shell.endpoint import EndpointDriver, KnownPeer
from tunnel.shell.events import Trouble
from tunnel.shell.lasting import last
from tunnel.shell.link import Link as DriverLink
from tunnel.shell.reports import EndpointEvent, Troubled, closed_exception, to_event, to_exception
from tunnel.state.peers import find


class _Connecting:
    """Waits for the link, or for the reason why there will be none."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self.link: Link | None = None
        self.problem: TunnelError | None = None
        self.done = trio.Event()
        self.driver: EndpointDriver | None = None
        self._on_event = on_event

    def handle_link(self, link: DriverLink) -> None:
        """The link that we asked for.  Another remembered peer may have found our port and come by itself: not to be mistaken."""
        if self.link is None and link.is_connector and isinstance(link, Link):
            self.link = link
            self.done.set()

    def handle_event(self, event: EndpointEvent) -> None:
        if isinstance(event, Troubled) and event.is_final and self.problem is None:
            self.problem = to_exception(event)
            self.done.set()
        if self._on_event is not None and self.driver is not None:
            report = to_event(event, self.driver.clock())
            if report is not None:
                self._on_event(report)

    async def wait(self) -> Link:
        await self.done.wait()
        if self.problem is not None:
            raise self.problem
        assert self.link is not None
        if self.link.close_reason is not None:
            raise closed_exception(self.link, self.link.close_reason)
        return self.link

    async def wait_paired(self) -> Link:
        """The link that a code led to, once the other side has shown that it counts the pairing too."""
        link = await self.wait()
        try:
            await link.ping()
        except UnreachableError:
            if self.problem is not None:
                raise self.problem from None
            raise
        return link


@asynccontextmanager
async def connect(
    code: str | None = None,
    *,
    peer: str | None = None,
    home: Path | str | None = None,
    on_event: OnEvent | None = None,
    handler: LinkHandler | None = None,
    settings: Settings | None = None,
    **given: Unpack[GivenPeer],
) -> AsyncIterator[Link]:
    """Connect by a pairing code, or to the remembered peer `peer` (the only one there is where none is named).

    The link is connected when the block is entered, over the relay at least; it heals by itself until the block is left.
    `server` is host or host:port; None means the remembered peer's, else the one configured.  `home` None means PTUNNEL_HOME.
    `path`: which paths may be used.  `name` is how we introduce ourselves.  `handler(link)` runs beside the block:
    what it raises ends the block and the link, and comes out of it.
    `on_event` is told what happens (tunnel.events), without awaiting.  `qlog`: a folder for a trace of each connection.
    `portmap`: ask the router to forward a port while this runs.
    `tls`: how servers are reached where UDP is blocked, unless their word says.
    What is left out, or None, is as the environment and config.toml say; `settings` stands for all of these once resolved.
    A remembered peer that is not there is waited for: time-outs belong to the caller, around the entry.
    Raises ConfigurationError, StateError, PairingError, ServerUnreachableError, PeerError, UnreachableError.
    """
    require_trio()

    def not_saved(text: str) -> None:
        if on_event is not None:
            on_event(Trouble(code="not_saved", message=text))

    if code is not None:
        code, place = split_server(code)
        given["server"] = place or given.get("server")
    store = HomeStore(home, not_saved, settings=settings, given=given)
    settings, machine = store.settings, MACHINE.get()
    if code is not None:
        require_purpose(parse_code(code), Purpose.PORTS, settings.server or "HOST")
    target: KnownPeer | None = store.choose(peer) if code is None else None
    expected: KnownPeer | None = None
    if code is not None and peer is not None and find(store.home.peers(), peer) is not None:
        expected = store.choose(peer)
    rendezvous = settings.given_server or (target.server if target is not None else None) or settings.server
    if rendezvous is None:
        raise ConfigurationError(
            "No server is configured: name the one that 'ptunnel expose' printed, with --server HOST:PORT (in a program server=)."
        )
    waiting = _Connecting(on_event)
    ways = WayKeeper(store.home)
    driver = EndpointDriver(
        static_key=store.home.identity(),
        name=store.name(),
        peers=store.load(),
        store=store,
        settings=settings,
        on_event=waiting.handle_event,
        on_link=waiting.handle_link,
        traces=store.traces(),
        port_mapping=machine.has_router and settings.wants_port_mapping,
        memory=ways,
        nodes=NodeKeeper(store.home),
        faults=store.faults,
        link_type=Link,
        **machine.options(),
    )
    waiting.driver = driver
    try:
        with single_error():
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(driver.run)
                    nursery.start_soon(store.watch, driver.set_peers)
                    nursery.start_soon(last, driver.faults, "state", "kept what led to peers from being remembered", ways.run)
                    nursery.start_soon(Surroundings(on_event, machine).speak_of_silence, driver, rendezvous)
                    await driver.servers.add(rendezvous)
                    if code is not None:
                        driver.claim_code(rendezvous, code, expected=expected)
                    else:
                        assert target is not None
                        driver.dial(target, rendezvous)
                    await driver.servers.wait_reached(rendezvous, SERVER_PATIENCE)
                    link = await (waiting.wait() if code is None else waiting.wait_paired())
                    nursery.start_soon(store.note_seen, link.peer)
                    follow = partial(follow_place, link, store, driver, rendezvous)
                    nursery.start_soon(last, driver.faults, "server", "kept a peer's server from being followed", follow)
                    if handler is not None:
                        nursery.start_soon(handler, link)
                    yield link
                finally:
                    driver.close("the connecting side has ended")
                    nursery.cancel_scope.cancel()
    finally:
        driver.release()
        ways.close()
        store.finish()
