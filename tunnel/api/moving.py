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
from typing import Protocol

import trio

from tunnel.api.store import HomeStore
from tunnel.config import parse_server
from tunnel.driver.endpoint import EndpointDriver
from tunnel.driver.link import Link
from tunnel.errors import ConfigurationError, StateError
from tunnel.units import Address


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
        (host, port), former = parse_server(told, "server"), parse_server(known or "", "server")
        return str(ipaddress.ip_address(host)) == seen and bool(ipaddress.ip_address(former[0])) and port == former[1]
    except (ConfigurationError, ValueError):  # a name leads where it leads
        return False


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
    while link.close_reason is None:
        told = link.server
        if told is not None and told != known and link.is_direct and may_be_there(told, known, link.remote_host):
            was, known = known, await _remember(link, store, told)
            if known == told and was == server:
                driver.servers.move(server, [Address(*parse_server(told, "server"))])
        if told is not None and told == known:
            link.tell_server(told)
        await link.wait_changed()


async def _remember(link: Link, store: HomeStore, server: str) -> str | None:
    """Where the peer's server is, as it stands on the disk now."""
    with suppress(StateError):
        peer = await trio.to_thread.run_sync(partial(store.home.update_peer, link.peer.static, server=server))
        return None if peer is None else peer.server
    return link.peer.server
