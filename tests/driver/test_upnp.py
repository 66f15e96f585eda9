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
from tunnel.shell.upnp import HTTP_PATIENCE, MAX_ANSWERS, UpnpError, UpnpGateway

OWN = "127.0.0.1"
GATEWAY = "127.0.0.77"
IP, PPP = upnp.SERVICES[1], upnp.SERVICES[2]


@dataclass
class Igd:
    """A router with an uplink for each of `uplinks`: service -> address outside, "" for one that answers with an error."""

    uplinks: dict[str, str]
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
        return 200, f"<NewExternalIPAddress>{outside}</NewExternalIPAddress>".encode()

    async def serve_http(self, stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some(65_536)
        path = request.split(b" ", 2)[1].decode()
        action = re.search(rb'SOAPAction: "[^#]*#(\w+)"', request)
        status, body = (200, self.description()) if action is None else self.act(path, action[1].decode())
        await stream.send_all(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await stream.aclose()

    async def serve_search(self, sock: trio.socket.SocketType) -> None:
        while True:
            _, remote = await sock.recvfrom(2048)
            await sock.sendto(b"HTTP/1.1 200 OK\r\nLOCATION: http://%s:%d/\r\n\r\n" % (GATEWAY.encode(), self.port), remote)


@asynccontextmanager
async def router(uplinks: dict[str, str]) -> AsyncIterator[tuple[Igd, UpnpGateway]]:
    igd = Igd(uplinks)
    listeners = await trio.open_tcp_listeners(0, host=GATEWAY)
    igd.port = listeners[0].socket.getsockname()[1]
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock, trio.fail_after(10):
        await sock.bind((GATEWAY, upnp.SSDP_PORT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, igd.serve_http, listeners)
            nursery.start_soon(igd.serve_search, sock)
            gateway = UpnpGateway(GATEWAY, OWN)
            await gateway.search()
            yield igd, gateway
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
        mapped = await gateway.map(40_000, 40_001, 3600)
        assert mapped == (uplinks[kind], 40_001)
        assert [each for each, action in igd.asked if action == "AddPortMapping"] == [kind]


async def test_a_router_without_an_address_outside_is_asked_for_no_port() -> None:
    async with router({IP: "0.0.0.0", PPP: "0.0.0.0"}) as (igd, gateway):
        with pytest.raises(UpnpError, match="no address outside"):
            await gateway.map(40_000, 40_001, 3600)
        assert not [action for _, action in igd.asked if action == "AddPortMapping"]


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
        assert await UpnpGateway(GATEWAY, OWN)._listen(crowd) is None
    assert crowd.read == MAX_ANSWERS


async def test_a_router_that_accepts_and_says_nothing_is_waited_for_so_long(autojump_clock: trio.testing.MockClock) -> None:
    [listener] = await trio.open_tcp_listeners(0, host=GATEWAY)
    async with listener:
        place = upnp.Place(listener.socket.getsockname()[1], "/")
        began = trio.current_time()
        with pytest.raises(UpnpError):
            await UpnpGateway(GATEWAY, OWN)._ask(place, upnp.encode_get(GATEWAY, place))
        assert trio.current_time() - began == pytest.approx(HTTP_PATIENCE)
