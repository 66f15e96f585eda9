"""A start before there is a network, or DNS: a laptop that wakes, a unit at boot.  It is waited for, and said once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tunnel
from tests.driver.lan import Player
from tests.driver.meeting import Heard, echo, homes, on, shout
from tests.driver.test_moving import LONG, NAME, NO_TLS, OLD, Names, World, a_world
from tunnel.errors import OfflineError, ServerUnreachableError
from tunnel.setup.machine import Machine
from tunnel.setup.servers import LONGEST_PAUSE
from tunnel.shell.events import Event, Listening, Paired, Trouble
from tunnel.shell.places import has_network, unknown_name
from tunnel.state.home import Home
from tunnel.state.peers import Peer

WHILE = 300.0  # seconds
WAYS = ("expose", "create", "create --to", "join")


def asleep(world: World) -> tuple[list[str], Machine]:
    """A machine that has the addresses of the list, and none yet."""
    hosts: list[str] = []
    return hosts, replace(world.machine(), hosts=lambda: list(hosts))


def troubles(heard: list[Event]) -> list[str]:
    return [event.code for event in heard if isinstance(event, Trouble)]


def starting(way: str, tmp_path: Path, code: str, heard: Heard) -> AbstractAsyncContextManager[Any]:
    """One of the starts that need a server's word."""
    late = tmp_path / "late"
    if way == "expose":
        return tunnel.expose(["22"], server=NAME, home=late, on_event=heard, handler=echo, waits=True, tls=NO_TLS)
    options = Player(late, NAME, "late").options | {"on_event": heard, "waits": True, "tls": NO_TLS}
    if way == "join":
        return tunnel.lan.join(code, **options)
    to: list[str] = []
    if way == "create --to":
        Home(late).save_peer(Peer(name="ben", static=b"\x09" + bytes(31), psk=bytes(32), server=NAME))
        to = ["ben"]
    return tunnel.lan.create("late", to=to, **options)


@pytest.mark.parametrize("way", WAYS)
async def test_what_needs_its_server_waits_for_a_network_and_for_names_and_says_each_once(
    way: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_world() as world:
        anna = Player(tmp_path / "anna", NAME, "anna")
        async with on(world.machine(), tunnel.lan.create(**anna.options, tls=NO_TLS)), trio.open_nursery() as nursery:
            hosts, machine = asleep(world)
            heard, entered = Heard(), trio.Event()

            async def start(code: str) -> None:
                async with on(machine, starting(way, tmp_path, code, heard)):
                    entered.set()
                    await trio.sleep_forever()

            nursery.start_soon(start, await anna.code())
            await trio.sleep(WHILE)
            assert (troubles(heard), entered.is_set()) == (["no_network"], False)
            world.names.leads_to = None
            hosts.append("198.18.0.77")
            await trio.sleep(WHILE)
            assert (troubles(heard), entered.is_set()) == (["no_network", "still_trying"], False)
            world.names.leads_to = OLD
            with trio.fail_after(LONGEST_PAUSE + LONG):
                await entered.wait()
                if way != "join":
                    await heard.code()
            assert troubles(heard) == ["no_network", "still_trying"]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", WAYS)
async def test_what_no_waiting_heals_ends_it_as_before(
    way: str, tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that nobody has, and a server that is silent in a network that works."""

    async def fails(wanted: type[Exception], match: str) -> None:
        heard = Heard()
        with trio.fail_after(LONG), pytest.raises(wanted, match=match):
            async with on(world.machine(), starting(way, tmp_path, await anna.code(), heard)):
                raise AssertionError
        assert not {"no_network", "still_trying"} & set(troubles(heard))

    async with a_world() as world:
        anna = Player(tmp_path / "anna", NAME, "anna")
        async with on(world.machine(), tunnel.lan.create(**anna.options, tls=NO_TLS)):
            world.names.leads_to = "198.18.0.99"
            await fails(ServerUnreachableError, "No ptunnel server answers")

            async def nobody(*_words: Any, **_options: Any) -> Any:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

            monkeypatch.setattr(Names, "getaddrinfo", nobody)
            await fails(ServerUnreachableError, "is unknown")


async def test_without_waiting_the_reason_is_told_at_once(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with a_world() as world:
        world.names.leads_to = None
        with trio.fail_after(1.0), pytest.raises(OfflineError, match="no name server"):
            async with on(world.machine(), tunnel.expose(["22"], server=NAME, home=tmp_path, handler=echo, tls=NO_TLS)):
                raise AssertionError
        world.names.leads_to = OLD
        hosts, machine = asleep(world)
        world.network.loss = 1.0
        with trio.fail_after(LONG), pytest.raises(OfflineError, match="not connected to a network"):
            async with on(machine, tunnel.expose(["22"], server=NAME, home=tmp_path, handler=echo, tls=NO_TLS)):
                raise AssertionError
        assert not hosts


async def test_remembered_peers_of_several_servers_are_waited_for_with_one_word_about_the_network(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    paired = Heard()
    async with a_world() as world:
        async with (
            on(
                world.machine(),
                tunnel.expose(["22"], server=NAME, home=exposer, name="home", on_event=paired, handler=echo, tls=NO_TLS),
            ),
            on(world.machine(), tunnel.connect(await paired.code(), server=NAME, home=connector, tls=NO_TLS)),
        ):
            await paired.wait(lambda event: isinstance(event, Paired))
        grants = [{"protocol": "tcp", "name": None, "host": "127.0.0.1", "first": 22, "last": 22}]
        other = Peer(name="zoe", static=b"\x09" + bytes(31), psk=bytes(32), server="other.example.net", grants=grants)
        Home(exposer).save_peer(other)
        hosts, machine = asleep(world)
        heard = Heard()
        async with on(machine, tunnel.expose(home=exposer, handler=echo, on_event=heard, tls=NO_TLS)):
            await trio.sleep(WHILE)
            assert troubles(heard) == ["no_network"]
            hosts.append("198.18.0.77")
            async with on(world.machine(), tunnel.connect(peer="home", home=connector, tls=NO_TLS)) as link:
                assert await shout(link, b"hello") == b"hello"
            await trio.sleep(WHILE)
            assert troubles(heard) == ["no_network"]


async def test_a_server_of_our_own_stands_again_though_its_address_came_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A small server at home that starts before its network: its own address is no stranger's."""
    async with a_world() as world:
        addresses, laptop = world.laptop()
        grants = [{"protocol": "tcp", "name": None, "host": "127.0.0.1", "first": 22, "last": 22}]
        server = f"{addresses[0]}:24531"
        Home(tmp_path).save_peer(Peer(name="ben", static=b"\x09" + bytes(31), psk=bytes(32), server=server, grants=grants))
        hosts: list[str] = []
        machine = replace(laptop, hosts=lambda: list(hosts))
        heard = Heard()
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                async with on(machine, tunnel.expose(home=tmp_path, handler=echo, on_event=heard, waits=True, tls=NO_TLS)):
                    await trio.sleep_forever()

            nursery.start_soon(start)
            await trio.sleep(WHILE)
            assert troubles(heard) == ["no_network"]
            hosts.extend(addresses)
            with trio.fail_after(LONG):
                found = await heard.wait(lambda event: isinstance(event, Listening))
            assert isinstance(found, Listening)
            assert (found.bind, found.embedded) == (server, True)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("host", "error", "wanted"),
    [
        (NAME, socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), OfflineError),
        ("rv.invalid", socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), ServerUnreachableError),
        (NAME, socket.gaierror(socket.EAI_NONAME, "Name or service not known"), ServerUnreachableError),
        (NAME, OSError("of a resolver"), ServerUnreachableError),
        (NAME, UnicodeError("no name"), ServerUnreachableError),
    ],
)
def test_only_where_nobody_answers_a_name_may_be_found_later(host: str, error: Exception, wanted: type[Exception]) -> None:
    assert type(unknown_name(host, error)) is wanted


@pytest.mark.parametrize(
    ("server", "hosts", "has"),
    [("127.0.0.1:7", list, True), ("localhost", list, True), (NAME, list, False), (NAME, lambda: ["192.0.2.1"], True)],
)
def test_a_server_on_this_machine_needs_no_network(server: str, hosts: Callable[[], list[str]], has: bool) -> None:
    assert has_network(server, hosts) is has
