"""Speaks UPnP-IGD with the gateway: a search by UDP, then one short HTTP connection for each question, all bounded in time."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from tunnel.errors import MalformedPacket
from tunnel.host.gateway import is_translated
from tunnel.nat import upnp
from tunnel.units import Address

SEARCH_AT: Final = (0.0, 0.3, 1.0)  # seconds; a search is two datagrams, and any may be lost
SEARCH_PATIENCE: Final = 3.0  # seconds; MX is one
SEARCH_HOLDS: Final = 10.0  # seconds: later the router may have restarted with another description
HTTP_PATIENCE: Final = 3.0  # seconds for one question
MAX_ANSWERS: Final = 64  # datagrams looked at in one search
MAX_PLACES: Final = 4  # descriptions fetched in one search
MAX_OTHER_PLACES: Final = 2  # then asked for at the gateway, of those that answers from elsewhere name
MAX_SERVICES: Final = 4  # asked which of them has an address outside


class UpnpError(Exception):
    """`code` is UPnP's, 0 where there was no answer."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class UpnpGateway:
    """The gateway at one address, and what it offers once `search` found it."""

    def __init__(self, gateway: str, own: str) -> None:
        self._gateway = gateway
        self._own = own
        self._service: upnp.Service | None = None
        self._found_at = -math.inf
        self._lock = trio.Lock()  # several ports share one search

    async def search(self) -> None:
        """Raises UpnpError when the gateway has no such service."""
        async with self._lock:
            if trio.current_time() >= self._found_at + SEARCH_HOLDS:
                self._service = None
                with suppress(OSError):
                    self._service = await self._search()
                self._found_at = trio.current_time()
            if self._service is None:
                raise UpnpError(0, "the router does not speak UPnP")

    async def map(self, internal_port: int, external_port: int, lifetime: int) -> Address:
        """Where our port can be reached.  Raises UpnpError."""
        service = self._known()
        external = Address(await self._external(service), external_port)  # first: a port that nobody can reach is not asked for
        if ipaddress.IPv4Address(external.host).is_unspecified:
            raise UpnpError(0, "the router has no address outside just now")
        exchange = upnp.add_mapping(self._gateway, service, self._own, internal_port, external_port, lifetime)
        code = upnp.decode_error(await self._ask(service.place, exchange))
        if code:
            raise UpnpError(code, f"asked for a port by UPnP, the router refuses with error {code}")
        return external

    async def _external(self, service: upnp.Service) -> str:
        """The router's address outside, as this service tells it.  Raises UpnpError."""
        answer = await self._ask(service.place, upnp.get_external(self._gateway, service))
        try:
            return upnp.decode_external(answer)
        except MalformedPacket as error:
            raise UpnpError(0, str(error)) from None

    async def look_up(self, external_port: int) -> tuple[Address, upnp.Entry | None]:
        """Where that port is reached, and whose it is; None where the router does not tell.  Raises UpnpError."""
        service = self._known()
        external = Address(await self._external(service), external_port)
        with suppress(MalformedPacket, UpnpError):
            answer = await self._ask(service.place, upnp.get_mapping(self._gateway, service, external_port))
            return external, upnp.decode_entry(answer)
        return external, None

    async def unmap(self, external_port: int) -> None:
        """Raises UpnpError."""
        service = self._known()
        await self._ask(service.place, upnp.delete_mapping(self._gateway, service, external_port))

    def _known(self) -> upnp.Service:
        if self._service is None:
            raise UpnpError(0, "the router does not speak UPnP")
        return self._service

    async def _search(self) -> upnp.Service | None:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.bind((self._own, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(self._own))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)  # UDA 1.1 §1.3.2
            found: upnp.Service | None = None
            others: list[upnp.Place] = []
            with trio.move_on_after(SEARCH_PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._call, sock)
                    found = await self._listen(sock, others)
                    nursery.cancel_scope.cancel()
        # One of two routers that share the gateway's address (VRRP) answers from an address of its own.  The answer may as well
        # come from any neighbour: ask the gateway alone, and believe what it says.
        for place in others[:MAX_OTHER_PLACES]:
            if found is None:
                with suppress(MalformedPacket, UpnpError):
                    found = await self._describe(place)
        return found

    async def _call(self, sock: trio.socket.SocketType) -> None:
        before = 0.0
        for at in SEARCH_AT:
            await trio.sleep(at - before)
            before = at
            for target in upnp.SEARCH_TARGETS:
                for host in (upnp.SSDP_GROUP, self._gateway):  # some answer only the group, some networks carry none
                    try:
                        await sock.sendto(upnp.encode_search(target), (host, upnp.SSDP_PORT))
                    except OSError:
                        continue

    async def _listen(self, sock: trio.socket.SocketType, others: list[upnp.Place]) -> upnp.Service | None:
        """The gateway's service.  `others` gets the places that answers from elsewhere name."""
        tried: set[upnp.Place] = set()
        for _ in range(MAX_ANSWERS):
            try:
                data, remote = await sock.recvfrom(upnp.MAX_SEARCH_ANSWER + 1)
            except OSError:
                continue  # an ICMP error of a search; the count above bounds these too
            with suppress(MalformedPacket, UpnpError):
                place = upnp.decode_search_answer(data)
                if remote[0] != self._gateway:
                    if upnp.is_of_a_gateway(data) and place not in others:
                        others.append(place)
                elif place not in tried and len(tried) < MAX_PLACES:
                    tried.add(place)
                    return await self._describe(place)
        return None

    async def _describe(self, place: upnp.Place) -> upnp.Service:
        """Raises MalformedPacket and UpnpError."""
        answer = await self._ask(place, upnp.Exchange(self._gateway, place))
        return await self._living(upnp.decode_description(answer.body, place))

    async def _living(self, services: Sequence[upnp.Service]) -> upnp.Service:
        """The best service whose uplink has an address: one that the world reaches before one behind another translator."""
        if len(services) == 1:
            return services[0]
        inner: upnp.Service | None = None
        for service in services[:MAX_SERVICES]:
            try:
                address = ipaddress.IPv4Address(await self._external(service))
            except UpnpError:
                continue
            if address.is_unspecified or address.is_loopback:
                continue
            if not is_translated(str(address)):
                return service
            inner = service if inner is None else inner
        return services[0] if inner is None else inner

    async def _ask(self, place: upnp.Place, exchange: upnp.Exchange) -> upnp.HttpAnswer:
        """One HTTP exchange with the gateway.  Raises UpnpError."""
        try:
            with trio.fail_after(HTTP_PATIENCE):
                stream = await trio.open_tcp_stream(self._gateway, place.port)
                async with stream:
                    await stream.send_all(exchange.request)
                    while data := await stream.receive_some(16_384):
                        if exchange.feed(data):
                            break
            return exchange.answer()
        except (OSError, trio.TooSlowError, trio.BrokenResourceError):
            raise UpnpError(0, "the router does not answer") from None
        except MalformedPacket as error:
            raise UpnpError(0, f"the router's answer makes no sense: {error}") from None
