"""An embedded server whose machine has another address: peers that are connected are told, and meet there from now on.

The exposing side says where its server is, on each link to a peer that knows it elsewhere.  The other side believes that only of
the address from which the peer's own datagrams come, and only of the port that it knew; it says the same back once that is
remembered, and then the exposing side goes by it too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

import trio

from tunnel.errors import ConfigurationError, StateError
from tunnel.server_spec import parse_server
from tunnel.setup.store import HomeStore
from tunnel.shell.endpoint import EndpointDriver
from tunnel.shell.link import Link
from tunnel.units import Address, Seconds

MOVE_PAUSE: Final = Seconds(10.0)  # between two moves of a peer's server that are followed: each is a write to the disk


class Place(Protocol):
    """Where an embedded server is."""

    @property
    def server(self) -> str | None:
        """host:port, now."""

    @property
    def places(self) -> Collection[str]:
        """By which peers may know it."""


def may_be_there(told: str, known: str | None, seen: str | None) -> bool:
    """Whether a peer whose datagrams come from the host `seen` may move its server from `known` to `told`, both host:port."""
    try:
        host, port = parse_server(known or "", "server")
        ipaddress.ip_address(host)
    except (ConfigurationError, ValueError):  # a name leads where it leads
        return False
    return seen is not None and told == str(Address(seen, port))  # as we write it: what is remembered is ours, not the peer's


async def tell_place(link: Link, store: HomeStore, place: Place) -> None:
    """The exposing side, until the link is closed."""
    known = link.peer.server
    while link.close_reason is None:
        if place.server is not None and known in place.places and known != place.server:
            link.tell_server(place.server)
            if link.server == place.server:
                known = await _remember(link, store, place.server)
        await link.wait_changed()


async def follow_place(link: Link, store: HomeStore, driver: EndpointDriver, server: str) -> None:
    """The connecting side, until the link is closed; `server` is the word by which the driver knows the server."""
    known = link.peer.server
    is_ours = known == server
    while link.close_reason is None:
        told, has_moved = link.server, False
        if told is not None and told != known and link.is_direct and may_be_there(told, known, link.remote_host):
            known, has_moved = await _remember(link, store, told), True
            if known == told and is_ours:
                driver.servers.move(server, [Address(*parse_server(told, "server"))])
        if told is not None and told == known:
            link.tell_server(told)
        if has_moved:
            await _rest(link)
        else:
            await link.wait_changed()


async def _rest(link: Link) -> None:
    """MOVE_PAUSE, or until the link is closed."""
    with trio.move_on_after(MOVE_PAUSE):
        while link.close_reason is None:
            await link.wait_changed()


async def _remember(link: Link, store: HomeStore, server: str) -> str | None:
    """Where the peer's server is, as it stands on the disk now."""
    with suppress(StateError, ConfigurationError):
        update = partial(store.home.update_peer, link.peer.static, server=server)
        peer = await trio.to_thread.run_sync(update, limiter=store.writers, abandon_on_cancel=True)
        return None if peer is None else peer.server
    return link.peer.server
