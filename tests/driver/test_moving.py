"""A server whose name leads to another address one day, as those of homes do: running programs find it again."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tunnel
from tests.driver.lan import Player
from tests.driver.meeting import Heard, echo, homes, on, shout
from tests.twins.udp import MemoryNetwork
from tunnel.node.peering import CONTROL_SERVER
from tunnel.server_spec import TlsOptions
from tunnel.setup.machine import Machine
from tunnel.setup.moving import MOVE_PAUSE, may_be_there
from tunnel.setup.servers import LOOK_INTERVAL, STRANGER_INTERVAL, OwnHosts
from tunnel.shell.events import CodeReady, Event, Listening, Paired, Trouble
from tunnel.shell.link import MAX_SERVER
from tunnel.shell.serve import RunningServer, serve
from tunnel.shell.servers import LONGEST_LOOK
from tunnel.state.home import Home
from tunnel.transport.connection.events import ControlReceived
from tunnel.units import Instant

NAME = "rv.example.net"
OLD, NEW = "198.18.0.2", "198.18.0.3"
LONG = 15.0  # seconds: three unanswered questions, and a look
NO_TLS = TlsOptions(port=None)


class Names(trio.abc.HostnameResolver):
    """What the name leads to; None: nobody knows."""

    def __init__(self) -> None:
        self.leads_to: str | None = OLD
        self.looks: list[float] = []

    async def getaddrinfo(self, host: Any, port: Any, *_rest: Any, **_options: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        self.looks.append(trio.current_time())
        if self.leads_to is None:
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (self.leads_to, port))]

    async def getnameinfo(self, *_rest: Any) -> Any:
        raise NotImplementedError


class MovingSocket:
    """On whatever address its machine has now, at one port; what comes to an address that is gone is lost."""

    def __init__(self, network: MemoryNetwork, hosts: list[str], port: int) -> None:
        self._network, self._hosts = network, hosts
        self._socket = network.open_socket(hosts[0], port)
        self._port = self._socket.local_address.port
        self._is_closed = False

    def close(self) -> None:
        self._is_closed = True
        self._socket.close()

    def _now(self) -> Any:
        if self._hosts and not self._is_closed and self._socket.local_address.host != self._hosts[0]:
            former, self._socket = self._socket, self._network.open_socket(self._hosts[0], self._port)
            former.close()
        return self._socket

    async def wait_readable(self) -> None:
        while not self._is_closed:  # the machine may get another address meanwhile
            with trio.move_on_after(1.0), suppress(trio.ClosedResourceError):
                await self._now().wait_readable()
                return
        raise trio.ClosedResourceError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)


class World:
    """A network in memory, the names in it, and where the server stands."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(seed=1, delay=0.01)
        self.names = Names()
        trio.socket.set_custom_hostname_resolver(self.names)
        self._scope = trio.CancelScope()
        self._hosts = 10
        self.nursery: trio.Nursery | None = None

    def machine(self) -> Machine:
        """One of its own."""
        self._hosts += 1
        host = f"198.18.0.{self._hosts}"
        return Machine(
            opener=lambda _host, port: self.network.open_socket(host, port),
            bind=("0.0.0.0",),
            hosts=lambda: [host],
            clock=lambda: Instant(trio.current_time()),
        )

    def laptop(self) -> tuple[list[str], Machine]:
        """One that gets another address whenever the list is changed, and a server of its own."""
        hosts = ["198.18.0.60"]
        opened: list[MovingSocket] = []

        def open_socket(_host: str, port: int) -> MovingSocket:
            opened.append(MovingSocket(self.network, hosts, port))
            return opened[-1]

        machine = Machine(
            opener=open_socket,
            bind=("0.0.0.0",),
            hosts=lambda: list(hosts),
            clock=lambda: Instant(trio.current_time()),
        )
        return hosts, machine

    async def start(self, host: str) -> None:
        async def run(*, task_status: trio.TaskStatus[RunningServer]) -> None:
            with trio.CancelScope() as self._scope:
                await serve(
                    [(host, 24_531)],
                    task_status=task_status,
                    clock=lambda: Instant(trio.current_time()),
                    opener=self.network.open_socket,
                )

        assert self.nursery is not None
        await self.nursery.start(run)

    async def stop(self) -> None:
        """As by SIGKILL."""
        self.network.loss = 1.0  # it cannot say goodbye any more
        self._scope.cancel()
        await trio.sleep(0.1)
        self.network.loss = 0.0

    async def move(self, *, tells: bool = True) -> None:
        """The server goes to another address, as when a router gets one, and its name some seconds later."""
        await self.stop()
        await self.start(NEW)
        await trio.sleep(25.0)
        if tells:
            self.names.leads_to = NEW


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    world = World()
    async with trio.open_nursery() as world.nursery:
        await world.start(OLD)
        yield world
        world.nursery.cancel_scope.cancel()


def told(heard: list[Event]) -> list[str]:
    """What was said of the server."""
    said: list[str] = []
    for event in heard:
        if isinstance(event, Trouble) and event.code in ("server_lost", "server_back"):
            said.append(event.message)
    return said


LOST = f"The server {NAME} does not answer any more: still trying. Direct connections are not touched."
BACK = f"The server {NAME} answers again."


def is_back(event: Event) -> bool:
    return isinstance(event, Trouble) and event.code == "server_back"


async def test_expose_and_connect_find_a_server_that_has_moved_and_say_so_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard, friends = Heard(), Heard()
    async with (
        a_world() as world,
        on(
            world.machine(),
            tunnel.expose(["22"], server=NAME, home=exposer, name="home", on_event=heard, handler=echo, keep=True, tls=NO_TLS),
        ),
    ):
        code = await heard.code()
        async with on(world.machine(), tunnel.connect(code, server=NAME, home=connector, on_event=friends, tls=NO_TLS)) as link:
            assert await shout(link, b"hello") == b"hello"
            await world.move()
            with trio.fail_after(LONGEST_LOOK + LONG):
                await heard.wait(is_back)
                await friends.wait(is_back)
            assert await shout(link, b"still here") == b"still here"
        assert told(heard) == told(friends) == [LOST, BACK]
        async with on(world.machine(), tunnel.connect(peer="home", home=connector, tls=NO_TLS)) as link:
            assert await shout(link, b"met at its new address") == b"met at its new address"


async def test_a_code_that_waits_moves_with_the_server_or_a_fresh_one_follows(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    async with (
        a_world() as world,
        on(world.machine(), tunnel.expose(["22"], server=NAME, home=exposer, on_event=heard, handler=echo, tls=NO_TLS)),
    ):
        await heard.code()
        await world.move()
        await heard.wait(is_back)
        await trio.sleep(5.0)
        codes = [event.code for event in heard if isinstance(event, CodeReady)]
        async with on(world.machine(), tunnel.connect(codes[-1], server=NAME, home=connector, tls=NO_TLS)) as link:
            assert await shout(link, b"paired") == b"paired"


async def test_a_room_finds_a_server_that_has_moved(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with a_world() as world:
        anna, ben = (Player(tmp_path / name, NAME, name) for name in ("anna", "ben"))
        async with on(world.machine(), tunnel.lan.create(**anna.options, tls=NO_TLS)) as room:
            await world.move()
            with trio.fail_after(LONGEST_LOOK + LONG):
                await anna.wait(is_back)
            assert told(anna.heard) == [LOST, BACK]
            async with on(world.machine(), tunnel.lan.join(await anna.code(), **ben.options, tls=NO_TLS)):
                assert [member.name for member in room.members()] == ["anna", "ben"]


async def test_who_waits_for_a_server_that_is_not_there_yet_finds_it_where_its_name_leads_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    async with a_world() as world:
        async with (
            on(
                world.machine(),
                tunnel.expose(["22"], server=NAME, home=exposer, name="home", on_event=heard, handler=echo, tls=NO_TLS),
            ),
            on(world.machine(), tunnel.connect(await heard.code(), server=NAME, home=connector, tls=NO_TLS)),
        ):
            await heard.wait(lambda event: isinstance(event, Paired))
        world.names.leads_to = "198.18.0.99"
        late = Heard()
        async with on(world.machine(), tunnel.expose(server=NAME, home=exposer, handler=echo, on_event=late, tls=NO_TLS)):
            await late.wait(lambda event: isinstance(event, Trouble) and event.code == "server_unreachable")
            world.names.leads_to = OLD
            with trio.fail_after(LONGEST_LOOK + LONG):
                await late.wait(lambda event: isinstance(event, Trouble) and event.message == f"The server {NAME} answers now.")
            async with on(world.machine(), tunnel.connect(peer="home", home=connector, tls=NO_TLS)) as link:
                assert await shout(link, b"hello") == b"hello"


async def test_a_kept_room_is_opened_before_there_is_a_network_and_has_a_code_once_there_is(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_world() as world:
        anna, ben = (Player(tmp_path / name, NAME, name) for name in ("anna", "ben"))
        async with (
            on(world.machine(), tunnel.lan.create("game", keep=True, **anna.options, tls=NO_TLS)),
            on(world.machine(), tunnel.lan.join(await anna.code(), keep=True, **ben.options, tls=NO_TLS)),
        ):
            pass
        world.names.leads_to = None
        anna, ben = (Player(tmp_path / name, NAME, name) for name in ("anna", "ben"))
        async with (
            on(world.machine(), tunnel.lan.create("game", **anna.options, tls=NO_TLS)),
            on(world.machine(), tunnel.lan.join(room="game", **ben.options, tls=NO_TLS)),
        ):
            for each in (anna, ben):
                await each.wait(lambda event: isinstance(event, Trouble) and event.code == "server_unreachable")
            assert not any(isinstance(event, CodeReady) for event in anna.heard)
            await trio.sleep(300.0)
            world.names.leads_to = OLD
            with trio.fail_after(LONGEST_LOOK + LONG):
                await anna.member("ben", "online")
                await anna.code()


async def test_a_name_is_looked_up_with_patience_and_only_while_nobody_answers(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        a_world() as world,
        on(world.machine(), tunnel.expose(["22"], server=NAME, home=tmp_path, handler=echo, tls=NO_TLS)),
    ):
        looks = world.names.looks
        await trio.sleep(600.0)
        assert len(looks) == 1
        world.names.leads_to = None
        await world.move(tells=False)
        await trio.sleep(600.0)
        gaps = [after - before for before, after in pairwise(looks[1:])]
        assert gaps[:5] == pytest.approx([2.0, 4.0, 8.0, 16.0, 32.0], abs=0.1)
        assert gaps[5:] == pytest.approx([LONGEST_LOOK] * len(gaps[5:]), abs=0.1)
        assert len(gaps) > 10
        world.names.leads_to = NEW
        await trio.sleep(LONGEST_LOOK + 2.0)
        count = len(looks)
        await trio.sleep(600.0)
        assert len(looks) == count


async def test_a_laptop_that_serves_itself_goes_on_at_its_new_address(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    async with a_world() as world:
        hosts, machine = world.laptop()
        async with on(
            machine, tunnel.expose(["22"], home=exposer, on_event=heard, handler=echo, keep=True, tls=NO_TLS)
        ) as exposure:
            await heard.code()
            assert exposure.server == "198.18.0.60:24531"
            hosts[:] = ["198.18.0.61"]
            assert exposure.driver is not None
            exposure.driver._network_changed()  # as the system says
            with trio.fail_after(LONGEST_LOOK + LONG):
                listening = await heard.wait(lambda event: isinstance(event, Listening) and ".61" in event.bind)
                await heard.wait(is_back)
            assert isinstance(listening, Listening)
            assert exposure.server == listening.bind == "198.18.0.61:24531"
            exposure.new_code()
            await trio.sleep(5.0)
            codes = [event.code for event in heard if isinstance(event, CodeReady)]
            async with on(world.machine(), tunnel.connect(codes[-1], server=listening.bind, home=connector, tls=NO_TLS)) as link:
                assert await shout(link, b"hello") == b"hello"


async def test_a_peer_that_is_connected_while_a_laptop_moves_finds_its_server_after_restarts_of_both(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()

    def remembered() -> list[str | None]:
        return [Home(home).peers()[0].server for home in (exposer, connector)]

    async with a_world() as world:
        hosts, machine = world.laptop()
        async with (
            on(machine, tunnel.expose(["22"], home=exposer, name="home", on_event=heard, handler=echo, tls=NO_TLS)) as exposure,
            on(world.machine(), tunnel.connect(await heard.code(), server="198.18.0.60", home=connector, tls=NO_TLS)) as link,
        ):
            assert await shout(link, b"hello") == b"hello"
            await link.wait_direct()
            for nonsense in (b"1" * (MAX_SERVER + 1), b"\xff:24531"):
                link.handle_event(ControlReceived(bytes((CONTROL_SERVER,)) + nonsense))
            assert link.server is None
            for address in ("198.18.0.61", "198.18.0.62"):
                hosts[:] = [address]
                assert exposure.driver is not None
                exposure.driver._network_changed()  # as the system says
                with trio.fail_after(2 * (LONGEST_LOOK + LONG)):
                    while remembered() != [f"{address}:24531"] * 2:  # noqa: ASYNC110
                        await trio.sleep(0.5)
                await trio.sleep(5.0)
                assert await shout(link, b"still here") == b"still here"
                async with on(world.machine(), tunnel.connect(peer="home", home=connector, tls=NO_TLS)) as another:
                    assert await shout(another, b"met anew") == b"met anew"
        again, machine = world.laptop()
        again[:] = hosts
        async with (
            on(machine, tunnel.expose(home=exposer, handler=echo, tls=NO_TLS)),
            on(world.machine(), tunnel.connect(peer="home", home=connector, tls=NO_TLS)) as link,
        ):
            assert await shout(link, b"after a restart") == b"after a restart"


@pytest.mark.parametrize(
    ("told", "known", "seen", "is_believed"),
    [
        ("192.0.2.7:24531", "192.0.2.6:24531", "192.0.2.7", True),
        ("[2001:db8::7]:24531", "192.0.2.6", "2001:db8::7", True),
        ("192.0.2.8:24531", "192.0.2.6:24531", "192.0.2.7", False),  # where nothing of the peer comes from
        ("192.0.2.7:53", "192.0.2.6:24531", "192.0.2.7", False),  # another port
        ("192.0.2.7:24531", "rv.example.net:24531", "192.0.2.7", False),  # from a server that has a name
        ("rv.example.net:24531", "192.0.2.6:24531", "192.0.2.7", False),
        ("192.0.2.7:24531", None, "192.0.2.7", False),
        ("192.0.2.7:24531", "192.0.2.6:24531", None, False),
        ("nonsense at all", "192.0.2.6:24531", "192.0.2.7", False),
        ("", "192.0.2.6:24531", "192.0.2.7", False),
        # what a person may write for that place, and no peer: what is told is remembered word by word
        ("http://192.0.2.7:24531/a1", "192.0.2.6:24531", "192.0.2.7", False),
        ("http://192.0.2.7:24531/\x1b[2J", "192.0.2.6:24531", "192.0.2.7", False),
        ("\n192.0.2.7:24531", "192.0.2.6:24531", "192.0.2.7", False),
        ("192.0.2.7:24531,tls=off", "192.0.2.6:24531", "192.0.2.7", False),
        ("192.0.2.7", "192.0.2.6:24531", "192.0.2.7", False),
    ],
)
def test_a_peer_moves_its_server_only_to_where_its_own_datagrams_come_from(
    told: str, known: str | None, seen: str | None, is_believed: bool
) -> None:
    assert may_be_there(told, known, seen) == is_believed


async def test_own_addresses_are_looked_at_again_and_those_that_are_gone_are_strangers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    now, looks = ["192.0.2.1"], 0

    def look() -> list[str]:
        nonlocal looks
        looks += 1
        return now

    own = OwnHosts(look)
    assert all("192.0.2.1" in own and "127.0.0.1" in own and "192.0.2.2" not in own for _ in range(100))
    assert looks == 1
    now = ["192.0.2.2"]
    await trio.sleep(STRANGER_INTERVAL)
    assert "192.0.2.2" in own, "what is new is asked for at once"
    assert "192.0.2.1" not in own
    now = []
    await trio.sleep(LOOK_INTERVAL)
    assert "192.0.2.2" not in own
    assert looks == 3


async def test_a_peer_that_another_process_pairs_at_another_server_is_waited_for_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    async with a_world() as world:
        await world.start(NEW)
        async with (
            on(
                world.machine(),
                tunnel.expose(["22"], server=NEW, home=connector, name="friend", on_event=heard, handler=echo, tls=NO_TLS),
            ),
            on(world.machine(), tunnel.connect(await heard.code(), server=NEW, home=exposer, name="home", tls=NO_TLS)),
        ):
            await heard.wait(lambda event: isinstance(event, Paired))
        record = Home(exposer).peers()[0]
        Home(exposer).forget(record.name)
        async with on(world.machine(), tunnel.expose(["22"], server=NAME, home=exposer, handler=echo, tls=NO_TLS)):
            await trio.sleep(1.0)
            Home(exposer).save_peer(record)  # as a `connect` beside it does
            await trio.sleep(3.0)
            async with on(world.machine(), tunnel.connect(peer="home", server=NEW, home=connector, tls=NO_TLS)) as link:
                assert await shout(link, b"hello") == b"hello"


async def test_a_peer_whose_server_moves_all_the_time_is_followed_once_in_a_while(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each move is a write to the disk, whatever a peer with many addresses says."""
    exposer, connector = homes(tmp_path)
    heard = Heard()
    moved: list[tuple[float, str]] = []
    update = Home.update_peer

    def note(home: Home, static: bytes, **changes: Any) -> Any:
        if "server" in changes and home.path == connector:
            moved.append((trio.current_time(), changes["server"]))
        return update(home, static, **changes)

    async def at_once(work: Callable[[], Any], *arguments: Any, **_options: Any) -> Any:
        """Not in a thread: virtual time does not wait for one."""
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(Home, "update_peer", note)
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    async with a_world() as world:
        _hosts, machine = world.laptop()
        async with (
            on(machine, tunnel.expose(["22"], home=exposer, on_event=heard, handler=echo, tls=NO_TLS)),
            on(world.machine(), tunnel.connect(await heard.code(), server="198.18.0.60", home=connector, tls=NO_TLS)) as link,
        ):
            assert await shout(link, b"hello") == b"hello"
            await link.wait_direct()
            for number in range(60):
                monkeypatch.setattr(type(link), "remote_host", f"198.51.100.{number}")
                link.handle_event(ControlReceived(bytes((CONTROL_SERVER,)) + f"198.51.100.{number}:24531".encode()))
                await trio.sleep(1.0)
            assert 3 <= len(moved) <= 60.0 / MOVE_PAUSE + 1
            assert all(round(later - earlier, 6) >= MOVE_PAUSE for (earlier, _), (later, _) in pairwise(moved))
