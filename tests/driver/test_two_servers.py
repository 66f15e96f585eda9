"""One name with two addresses, at which two servers stand that know nothing of each other: the library finds a code at either."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, echo, homes, shout
from tunnel.errors import PairingError
from tunnel.shell.places import ADDRESSES_A_FAMILY, Names
from tunnel.shell.serve import RunningServer, serve

NAME = "rv.two.example"


class Resolver(trio.abc.HostnameResolver):
    """Names the addresses in the order that it was last told."""

    def __init__(self) -> None:
        self.order: tuple[str, ...] = ("127.0.0.2", "127.0.0.3")

    async def getaddrinfo(self, host: bytes | None, port: bytes | str | int | None, *_: int, **__: int) -> Any:
        found = self.order if host == NAME.encode() else ((host or b"").decode(),)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, int(port or 0))) for address in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def start(nursery: trio.Nursery, host: str, port: int) -> RunningServer:
    async def run(*, task_status: trio.TaskStatus[RunningServer]) -> None:
        await serve([(host, port)], secret=host.encode() * 4, task_status=task_status)

    running = await nursery.start(run)
    assert isinstance(running, RunningServer)
    return running


async def test_a_code_is_found_at_either_server_of_the_name_and_one_that_neither_has_is_told_so(tmp_path: Path) -> None:
    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            one = await start(nursery, "127.0.0.2", 0)
            port = one.addresses[0].port
            other = await start(nursery, "127.0.0.3", port)
            name = f"{NAME}:{port}"
            resolver.order = ("127.0.0.3",)  # where the exposer's network leads to
            async with tunnel.expose(["22"], server=name, home=exposer, name="home", on_event=heard, handler=echo):
                code = await heard.code()
                resolver.order = ("127.0.0.2", "127.0.0.3")
                async with tunnel.connect(code, server=name, home=connector) as link:
                    assert await shout(link, b"found") == b"found"
                with pytest.raises(PairingError, match=r"both sides name the same server|Nobody waits under this code"):
                    async with tunnel.connect("123456789-abandon-ability", server=name, home=connector):
                        pass
            assert one.counters()["sessions"] <= 2
            for running in (one, other):
                running.stop()


async def test_a_server_is_found_at_the_last_of_many_addresses_of_its_name(tmp_path: Path) -> None:
    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    dead = [f"127.0.0.{number}" for number in range(20, 19 + ADDRESSES_A_FAMILY)]
    heard = Heard()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            running = await start(nursery, "127.0.0.2", 0)
            name = f"{NAME}:{running.addresses[0].port}"
            resolver.order = (*dead, "127.0.0.2", "127.0.0.3")
            async with tunnel.expose(["22"], server=name, home=tmp_path, name="home", on_event=heard, handler=echo):
                assert await heard.code()
            assert len(await Names(name).look()) == ADDRESSES_A_FAMILY >= 8
            running.stop()
