"""Routes to servers beside UDP: kinds are tried in turn, and a person hears of the one that carries."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from tunnel.errors import ServerUnreachableError
from tunnel.faults import Faults
from tunnel.node.pool import CloseRoute, OpenRoute
from tunnel.server_spec import TlsOptions
from tunnel.shell.routes import FIRST_PAUSE, STEADY, Route, Routes
from tunnel.units import Address, SocketId

SERVER = "rv.example.net"
THERE = Address("192.0.2.1", 443)


class Connection:
    """A socket of a route."""

    remote = THERE

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def run_writer(self) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        self.ended.set()


class Kinds:
    """Two kinds of route, of which a test says what they do; `tried` is when."""

    def __init__(self) -> None:
        self.tried: list[tuple[str, float]] = []
        self.works = ""  # the key of the one that connects
        self.takes: dict[str, float] = {}  # seconds to connect, or to fail
        self.stood: list[Connection] = []

    def kind(self, key: str, is_allowed: bool = True) -> Route:
        async def dial(host: str, _options: TlsOptions) -> Any:
            assert host == SERVER
            self.tried.append((key, trio.current_time()))
            await trio.sleep(self.takes.get(key, 0.0))
            if key != self.works:
                raise ServerUnreachableError(f"no {key} here.")
            self.stood.append(Connection())
            return self.stood[-1]

        return Route(key, f"a {key}", lambda _options: is_allowed, dial)


def routes_of(kinds: Kinds, *made: Route) -> tuple[Routes, dict[SocketId, Any], list[Any]]:
    sockets: dict[SocketId, Any] = {}
    told: list[Any] = []

    async def serve(socket_id: SocketId) -> None:
        await sockets[socket_id].ended.wait()

    ours = Routes(
        sockets,
        options=lambda _server: TlsOptions(),
        serve=serve,
        up=lambda *arguments: told.append(("up", *arguments)),
        down=lambda *arguments: told.append(("down", *arguments)),
        faults=Faults(),
        kinds=made,
    )
    return ours, sockets, told


async def test_kinds_are_tried_in_turn_at_once_and_again_after_a_pause(autojump_clock: object) -> None:
    kinds = Kinds()
    ours, sockets, told = routes_of(kinds, kinds.kind("first"), kinds.kind("never", is_allowed=False), kinds.kind("second"))
    async with trio.open_nursery() as nursery:
        ours.nursery = nursery
        began = trio.current_time()
        ours.fulfil(OpenRoute(SERVER))
        await trio.sleep(FIRST_PAUSE / 2)
        assert kinds.tried == [("first", began), ("second", began)]
        assert ours.troubles == {SERVER: "over a second: no second here."}
        kinds.works = "second"
        await trio.sleep(FIRST_PAUSE)
        assert [key for key, _ in kinds.tried[2:]] == ["first", "second"]
        assert kinds.tried[2][1] == began + FIRST_PAUSE
        ((socket_id, connection),) = sockets.items()
        assert told == [("up", SERVER, socket_id, THERE, "a second")]
        assert ours.name_of(socket_id) == f"second {THERE}"
        assert ours.troubles == {}
        await trio.sleep(STEADY)
        connection.close()  # what has carried is tried first
        await trio.sleep(2 * FIRST_PAUSE)
        assert [key for key, _ in kinds.tried[4:]] == ["second"]
        assert len(kinds.stood) == 2
        ours.fulfil(CloseRoute(SERVER))
        await trio.testing.wait_all_tasks_blocked()
        assert told[-1] == ("down", socket_id)
        assert not sockets
        nursery.cancel_scope.cancel()


async def test_a_kind_that_takes_long_to_fail_keeps_no_other_from_being_tried(autojump_clock: object) -> None:
    kinds = Kinds()
    kinds.takes["first"], kinds.works = 2 * STEADY, "second"
    ours, sockets, _ = routes_of(kinds, kinds.kind("first"), kinds.kind("second"))
    async with trio.open_nursery() as nursery:
        ours.nursery = nursery
        ours.fulfil(OpenRoute(SERVER))
        await trio.sleep(2 * STEADY + FIRST_PAUSE)
        assert [key for key, _ in kinds.tried] == ["first", "second"]
        assert len(sockets) == 1
        nursery.cancel_scope.cancel()


async def test_a_server_that_no_kind_leads_to_has_no_route(autojump_clock: object) -> None:
    kinds = Kinds()
    ours, _, told = routes_of(kinds, kinds.kind("first", is_allowed=False))
    assert not ours.allows(SERVER)
    async with trio.open_nursery() as nursery:
        ours.nursery = nursery
        ours.fulfil(OpenRoute(SERVER))
        await trio.sleep(60.0)
        nursery.cancel_scope.cancel()
    assert kinds.tried == told == []
