"""Routers that speak UPnP, each in its own way: a small one on loopback addresses."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from tunnel.nat import upnp
from tunnel.shell.upnp import HTTP_PATIENCE, MAX_ANSWERS, MAX_OTHER_PLACES, UpnpError, UpnpGateway

OWN = "127.0.0.1"
GATEWAY = "127.0.0.77"
TWIN = "127.0.0.76"  # stands in for the gateway at the same address, and has this one of its own
DEVICE = upnp.SEARCH_TARGETS[0]
IP, PPP = upnp.SERVICES[1], upnp.SERVICES[2]


@dataclass
class Igd:
    """A router with an uplink for each of `uplinks`: service -> address outside, "" for one that answers with an error."""

    uplinks: dict[str, str]
    location: str = GATEWAY  # the host in its answers to a search
    target: str = DEVICE  # what it calls itself there
    head: str = "HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n"
    taken: bytes = b""  # whose every port is already
    asked: list[tuple[str, str]] = field(default_factory=list)  # service, action
    port: int = 0

    def description(self) -> bytes:
        services = "".join(
            f"<service><serviceType>{kind}</serviceType><controlURL>/{number}</controlURL></service>"
            for number, kind in enumerate(self.uplinks)
        )
        return f"<root><device><serviceList>{services}</serviceList></device></root>".encode()

    def act(self, path: str, action: str) -> tuple[int, bytes]:
        kind = list(self.uplinks)[int(path[1:])]
        self.asked.append((kind, action))
        outside = self.uplinks[kind]
        if not outside:
            return 500, b"<errorCode>501</errorCode>"
        if action == "AddPortMapping" and self.taken:
            return 500, b"<errorCode>718</errorCode>"
        if action == "GetSpecificPortMappingEntry":
            return (200, self.taken) if self.taken else (500, b"<errorCode>714</errorCode>")
        return 200, f"<NewExternalIPAddress>{outside}</NewExternalIPAddress>".encode()

    async def serve_http(self, stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some(65_536)
        path = request.split(b" ", 2)[1].decode()
        action = re.search(rb'SOAPAction: "[^#]*#(\w+)"', request)
        status, body = (200, self.description()) if action is None else self.act(path, action[1].decode())
        head = self.head.replace("200", str(status)).format(len(body)).encode()
        tail = b"\r\n0\r\n\r\n" if "chunked" in self.head.lower() else b""
        await stream.send_all(head + body + tail)
        await stream.aclose()

    async def serve_search(self, sock: trio.socket.SocketType, speaker: trio.socket.SocketType) -> None:
        while True:
            _, remote = await sock.recvfrom(2048)
            answer = f"HTTP/1.1 200 OK\r\nST: {self.target}\r\nLOCATION: http://{self.location}:{self.port}/\r\n\r\n"
            await speaker.sendto(answer.encode(), remote)


@asynccontextmanager
async def router(uplinks: dict[str, str], *, answers_from: str = GATEWAY, **ways: Any) -> AsyncIterator[tuple[Igd, UpnpGateway]]:
    igd = Igd(uplinks, **ways)
    listeners = await trio.open_tcp_listeners(0, host=GATEWAY)
    igd.port = listeners[0].socket.getsockname()[1]
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock, trio.fail_after(60):
        await sock.bind((GATEWAY, upnp.SSDP_PORT))
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as other:
            await other.bind((answers_from, 0))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, igd.serve_http, listeners)
                nursery.start_soon(igd.serve_search, sock, sock if answers_from == GATEWAY else other)
                yield igd, UpnpGateway(GATEWAY, OWN)
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("uplinks", "kind"),
    [
        ({IP: "203.0.113.9"}, IP),
        ({IP: "0.0.0.0", PPP: "203.0.113.9"}, PPP),  # the ethernet's uplink is down, the modem's is up
        ({IP: "", PPP: "203.0.113.9"}, PPP),
        ({IP: "192.168.100.2", PPP: "203.0.113.9"}, PPP),  # one leads through another translator
        ({IP: "203.0.113.9", PPP: "203.0.113.10"}, IP),
        ({PPP: "0.0.0.0", IP: "192.168.100.2"}, IP),
    ],
)
async def test_the_uplink_that_lives_is_asked(uplinks: dict[str, str], kind: str) -> None:
    async with router(uplinks) as (igd, gateway):
        await gateway.search()
        mapped = await gateway.map(40_000, 40_001, 3600)
        assert mapped == (uplinks[kind], 40_001)
        assert [each for each, action in igd.asked if action == "AddPortMapping"] == [kind]


async def test_a_router_without_an_address_outside_is_asked_for_no_port() -> None:
    async with router({IP: "0.0.0.0", PPP: "0.0.0.0"}) as (igd, gateway):
        await gateway.search()
        with pytest.raises(UpnpError, match="no address outside"):
            await gateway.map(40_000, 40_001, 3600)
        assert not [action for _, action in igd.asked if action == "AddPortMapping"]


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\ncontent-length: {}\n\n",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nCONNECTION: Close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-Encoding: CHUNKED\r\n\r\n{:x}\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
    ],
)
async def test_routers_write_their_answers_in_many_ways(head: str) -> None:
    async with router({IP: "203.0.113.9"}, head=head) as (_igd, gateway):
        await gateway.search()
        assert await gateway.map(40_000, 40_001, 3600) == ("203.0.113.9", 40_001)


@pytest.mark.parametrize(
    ("answers_from", "location"),
    [(GATEWAY, "router.lan"), (GATEWAY, "[fe80::1]"), (GATEWAY, TWIN), (TWIN, TWIN), (TWIN, GATEWAY)],
)
async def test_whatever_address_an_answer_comes_from_and_names_the_gateway_alone_is_asked(
    answers_from: str, location: str
) -> None:
    """Of two routers that share the gateway's address (VRRP), each answers from an address of its own."""
    async with router({IP: "203.0.113.9"}, answers_from=answers_from, location=location) as (igd, gateway):
        await gateway.search()
        assert await gateway.map(40_000, 40_001, 3600) == ("203.0.113.9", 40_001)
        assert igd.asked[-1] == (IP, "AddPortMapping")  # it listens at the gateway's address only


async def test_what_is_no_router_is_not_taken_for_the_gateways_twin() -> None:
    """Television sets answer the search for root devices."""
    async with router({IP: "203.0.113.9"}, answers_from=TWIN, target="upnp:rootdevice") as (igd, gateway):
        with pytest.raises(UpnpError, match="does not speak UPnP"):
            await gateway.search()
        assert not igd.asked


async def test_so_many_places_of_others_are_asked_for_at_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def describe(_gateway: UpnpGateway, place: upnp.Place) -> upnp.Service:
        await trio.lowlevel.checkpoint()
        asked.append(place.port)
        raise UpnpError(0, "nothing there")

    async def listen(_gateway: UpnpGateway, _sock: object, others: list[upnp.Place]) -> None:
        await trio.lowlevel.checkpoint()
        others += [upnp.Place(port, "/") for port in range(1, 60)]

    monkeypatch.setattr(UpnpGateway, "_describe", describe)
    monkeypatch.setattr(UpnpGateway, "_listen", listen)
    with pytest.raises(UpnpError):
        await UpnpGateway(GATEWAY, OWN).search()
    assert asked == list(range(1, 1 + MAX_OTHER_PLACES))


async def test_whose_a_port_is_that_the_router_refuses() -> None:
    fields = {"NewInternalPort": "40000", "NewInternalClient": OWN, "NewLeaseDuration": "9"}
    ours = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    async with router({IP: "203.0.113.9"}, taken=ours.encode()) as (igd, gateway):
        await gateway.search()
        with pytest.raises(UpnpError) as refusal:
            await gateway.map(40_000, 40_001, 3600)
        assert refusal.value.code == upnp.CONFLICT
        assert await gateway.look_up(40_001) == (("203.0.113.9", 40_001), upnp.Entry(OWN, 40_000, 9))
        igd.taken = b""
        assert await gateway.look_up(40_001) == (("203.0.113.9", 40_001), None)


async def test_so_many_answers_are_looked_at_in_one_search() -> None:
    class Crowd:
        """Everybody on the network answers, and nobody of them is the router."""

        def __init__(self) -> None:
            self.read = 0

        async def recvfrom(self, _size: int) -> tuple[bytes, tuple[str, int]]:
            await trio.lowlevel.checkpoint()
            self.read += 1
            return b"HTTP/1.1 200 OK\r\n\r\n", (("127.0.0.9", GATEWAY)[self.read % 2], upnp.SSDP_PORT)

    crowd: Any = Crowd()
    with trio.fail_after(10):
        assert await UpnpGateway(GATEWAY, OWN)._listen(crowd, []) is None
    assert crowd.read == MAX_ANSWERS


async def test_a_router_that_accepts_and_says_nothing_is_waited_for_so_long(autojump_clock: trio.testing.MockClock) -> None:
    [listener] = await trio.open_tcp_listeners(0, host=GATEWAY)
    async with listener:
        place = upnp.Place(listener.socket.getsockname()[1], "/")
        began = trio.current_time()
        with pytest.raises(UpnpError):
            await UpnpGateway(GATEWAY, OWN)._ask(place, upnp.Exchange(GATEWAY, place))
        assert trio.current_time() - began == pytest.approx(HTTP_PATIENCE)
