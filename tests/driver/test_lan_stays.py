"""A room goes on: when all others end, when its creator is away, when the server restarts, when the network goes and comes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tunnel
from tests.driver.lan import Player
from tests.driver.meeting import on
from tests.driver.test_moving import NAME, NO_TLS, OLD, World, a_world
from tunnel.cli.lan import Playing
from tunnel.cli.render import Output
from tunnel.room.session import LanRoom
from tunnel.settings import Settings
from tunnel.shell.events import MemberReport, Trouble
from tunnel.state.home import Home

AWAY = 600.0  # seconds
SOON = 90.0  # seconds: LONGEST_LOOK for a server, and a round of meetings


class Machine:
    """One home, and its process in the room."""

    def __init__(self, world: World, tmp_path: Path, name: str) -> None:
        self.player = Player(tmp_path / name, NAME, name)
        self.name = name
        self.world = world
        self.room: LanRoom | None = None
        self.end = trio.Event()
        self.problem: Exception | None = None

    async def run(self, entry: dict[str, Any], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """In the room until `end` is set; what ends it before is kept."""
        self.end = trio.Event()
        enter = tunnel.lan.create if self.name == "anna" else tunnel.lan.join
        entering = on(self.world.machine(), enter(**entry, **self.player.options, tls=NO_TLS))
        async with entering as self.room, trio.open_nursery() as nursery:

            async def watch() -> None:
                assert self.room is not None
                try:
                    await self.room.run()
                except tunnel.TunnelError as problem:
                    self.problem = problem

            nursery.start_soon(watch)
            task_status.started()
            await self.end.wait()
            nursery.cancel_scope.cancel()

    @property
    def seen(self) -> dict[str, str]:
        """How each other member was told last."""
        reports = [event for event in self.player.heard if isinstance(event, MemberReport) and not event.is_me]
        return {event.peer: event.state for event in reports}

    async def sees(self, **states: str) -> None:
        with trio.fail_after(SOON):
            while self.seen != states:  # noqa: ASYNC110 - what it looks at has no event
                await trio.sleep(0.1)
        assert self.problem is None

    def troubles(self) -> list[str]:
        return [event.code for event in self.player.heard if isinstance(event, Trouble)]


@pytest.mark.parametrize("what", ["all others end", "the creator ends", "the server restarts", "the network goes"])
async def test_whoever_is_in_a_room_stays_says_who_is_away_and_meets_the_others_again(
    what: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_world() as world, trio.open_nursery() as nursery:
        anna, ben, cleo = everybody = [Machine(world, tmp_path, name) for name in ("anna", "ben", "cleo")]
        await nursery.start(anna.run, {"name": "game", "keep": True})
        code = await anna.player.code()
        for each in (ben, cleo):
            await nursery.start(each.run, {"code": code, "keep": True})
        all_there = {each: {other.name: "online" for other in everybody if other is not each} for each in everybody}
        for each, wanted in all_there.items():
            await each.sees(**wanted)
        if what == "all others end":
            for each in (ben, cleo):
                each.end.set()
            await anna.sees(ben="offline", cleo="offline")
            await trio.sleep(AWAY)
            for each in (ben, cleo):
                await nursery.start(each.run, {"room": "game"})
        elif what == "the creator ends":
            anna.end.set()
            for each, other in ((ben, cleo), (cleo, ben)):
                await each.sees(**{"anna": "offline", other.name: "online"})
            await trio.sleep(AWAY)
            await nursery.start(anna.run, {"name": "game"})
        elif what == "the server restarts":
            world._scope.cancel()
            await trio.sleep(AWAY)
            for each in everybody:
                assert each.seen == all_there[each], "who is connected needs no server"
                assert each.troubles() == ["server_lost"]
            await world.start(OLD)
            dora = Machine(world, tmp_path, "dora")
            with trio.fail_after(SOON):
                while anna.troubles()[-1] != "server_back":  # noqa: ASYNC110 - what it looks at has no event
                    await trio.sleep(0.1)
            await nursery.start(dora.run, {"code": await anna.player.code(), "keep": True})
            await dora.sees(anna="online", ben="online", cleo="online")
            dora.end.set()
            all_there = {each: {**wanted, "dora": "offline"} for each, wanted in all_there.items()}
        else:
            world.network.loss = 1.0
            for each in everybody:
                await each.sees(**dict.fromkeys(all_there[each], "offline"))
            await trio.sleep(AWAY)
            world.network.loss = 0.0
        for each, wanted in all_there.items():
            await each.sees(**wanted)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("others", [0, 1])
async def test_a_room_that_is_opened_again_says_that_nobody_is_there_yet(
    others: int, tmp_path: Path, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a unit at boot does, whose log has no table."""
    async with a_world() as world:
        anna, ben = (Machine(world, tmp_path, name) for name in ("anna", "ben"))
        async with AsyncExitStack() as stack:
            creating = tunnel.lan.create("game", keep=True, **anna.player.options, tls=NO_TLS)
            await stack.enter_async_context(on(world.machine(), creating))
            if others:
                code = await anna.player.code()
                joining = tunnel.lan.join(code, keep=True, **ben.player.options, tls=NO_TLS)
                await stack.enter_async_context(on(world.machine(), joining))
        playing = Playing(Home(tmp_path / "anna"), Settings(), Output(), None)
        async with on(world.machine(), tunnel.lan.create("game", **anna.player.options, tls=NO_TLS)) as room:
            playing._room = room
            playing._introduce(room)
            assert playing._absent("ben") == (
                "ben is a member of the room 'game', and away: it has no connection just now." if others else None
            )
            assert playing._absent("anna") == "anna is this machine, in the room 'game': name another member."
    assert ("None of them is there yet" in capsys.readouterr().err) is bool(others)
