"""A list of servers: names that nobody tells cost no wait, and who was met by one server is met by the list."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, echo, homes, shout
from tests.driver.test_two_servers import start
from tunnel.errors import ServerUnreachableError
from tunnel.shell.places import Names
from tunnel.state.home import Home
from tunnel.units import Address


class Resolver(trio.abc.HostnameResolver):
    """Knows the names that it was told, has never heard of others, and is silent about one."""

    def __init__(self, **known: str) -> None:
        self.known = known

    async def getaddrinfo(self, host: bytes | None, port: bytes | str | int | None, *_: int, **__: int) -> Any:
        name = (host or b"").decode()
        if name == "silent.example":
            await trio.sleep_forever()
        address = self.known.get(name.partition(".")[0])
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, int(port or 0)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_names_that_nobody_tells_cost_the_others_no_wait_and_stay_where_they_were(autojump_clock: trio.abc.Clock) -> None:
    resolver = Resolver(one="192.0.2.1", two="192.0.2.2")
    trio.socket.set_custom_hostname_resolver(resolver)
    names = Names("silent.example,one.example:5,unknown.example,two.example,one.example:5")
    assert names.are_several
    begun = trio.current_time()
    assert await names.look() == [Address("192.0.2.1", 5), Address("192.0.2.2", 24_531)]
    assert trio.current_time() - begun < 1.0
    assert not names.are_known
    resolver.known = {"two": "192.0.2.3"}
    assert await names.look() == [Address("192.0.2.1", 5), Address("192.0.2.3", 24_531)]


async def test_a_list_of_names_that_are_all_unknown_is_told() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    with pytest.raises(ServerUnreachableError, match="is unknown"):
        await Names("one.example,two.example").look()


async def test_who_were_paired_at_one_server_meet_by_the_list_when_that_is_gone_and_other_names_are_unknown(
    tmp_path: Path,
) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            servers = [await start(nursery, host, 0) for host in ("127.0.0.2", "127.0.0.3")]
            one, two = (str(server.addresses[0]) for server in servers)
            async with (
                tunnel.expose(["22"], server=one, home=exposer, name="home", on_event=heard, handler=echo),
                tunnel.connect(await heard.code(), server=one, home=connector) as link,
            ):
                assert await shout(link, b"paired") == b"paired"
            (Path(exposer) / "config.toml").write_text(f'server = ["{one}", "{two}"]\n')
            (Path(connector) / "config.toml").write_text(f'server = ["silent.example", "{one}", "unknown.example", "{two}"]\n')
            servers[0].stop()
            async with (
                tunnel.expose(home=exposer, name="home", on_event=heard, handler=echo),
                tunnel.connect(peer="home", home=connector) as link,
            ):
                assert await shout(link, b"met") == b"met"
            assert [peer.server for peer in Home(connector).peers()] == [one]  # what is on the disk stays
            servers[1].stop()
