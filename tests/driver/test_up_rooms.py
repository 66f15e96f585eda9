"""Rooms in `ptunnel up`, over loopback, with interfaces that have no kernel behind them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.lan import FakeInterface, Player
from tests.driver.meeting import a_server
from tests.driver.ups import PATIENCE, configure, until
from tests.schema import schema
from tunnel.cli.status import process_page
from tunnel.control.client import ask_all
from tunnel.control.messages import Ping, Remove, Status
from tunnel.control.server import serve_control
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.errors import ConfigurationError
from tunnel.room.verbs import no_routes
from tunnel.shell.events import Event, MemberReport, PathReport, Trouble
from tunnel.state.home import Home as StateHome
from tunnel.state.rooms import Rooms as KeptRooms
from tunnel.up import rooms
from tunnel.up.home import Home, up


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A room is tried again at once."""
    monkeypatch.setattr(rooms, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(rooms, "LONGEST_PAUSE", 0.1)


class Machine:
    """What interfaces a machine gives; after `most` of them it has no more."""

    def __init__(self, most: int = 9) -> None:
        self.most = most
        self.interfaces: list[FakeInterface] = []
        self.said: list[str] = []
        self.heard: list[Event] = []

    async def open(self, config: InterfaceConfig) -> FakeInterface:
        if len(self.interfaces) >= self.most:
            raise ConfigurationError("An interface needs privilege.")
        self.interfaces.append(FakeInterface(config))
        return self.interfaces[-1]

    def options(self) -> dict[str, Any]:
        return {
            "interfaces": rooms.Interfaces(self.open),
            "routes": no_routes,
            "notice": self.said.append,
            "on_event": self.heard.append,
        }


def wants(*names: str) -> str:
    return "".join(f'[[room]]\nname = "{name}"\n' for name in names)


async def keep(tmp_path: Path, server: str, name: str) -> None:
    """Have anna make this room and ben join it, and both remember it."""
    anna, ben = (Player(tmp_path / each, server, each) for each in ("anna", "ben"))
    made = tunnel.lan.create(name, keep=True, **anna.options)
    async with made, tunnel.lan.join(await anna.code(), keep=True, **ben.options):
        await anna.member("ben", "online")


def online(home: Home, room: str = "friends") -> list[str]:
    """Who is in it, as `status` tells."""
    [found] = [each for each in home.status()["rooms"] if each["room"] == room]
    return [member["peer"] for member in found["members"] if member["online"]]


def why(home: Home) -> dict[str, str]:
    """The rooms, and why each is not open."""
    return {each["room"]: each["why"] for each in home.status()["rooms"]}


async def test_who_made_a_room_and_who_joined_it_meet_in_it_again(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            await keep(tmp_path, server, "friends")
            anna, ben = Machine(), Machine()
            for name in ("anna", "ben"):
                configure(tmp_path / name, wants("Friends"))
            async with up(tmp_path / "anna", **anna.options()) as annas, up(tmp_path / "ben", **ben.options()) as bens:
                await until(lambda: online(annas) == online(bens) == ["anna", "ben"])
                status = annas.status()
                assert schema().problems(status, is_line=False) == []
                [room] = status["rooms"]
                assert (room["creator"], room["why"], room["interface"]) == (True, "", "ptunnel9")
                assert [link["peer"] for link in room["links"]] == ["ben"]
                shown = process_page(status)
                assert any("room friends" in line for line in shown)
                assert any("ben" in line and "direct" in line for line in shown)
                assert status["links"] == [], "they are members, and no peers"
                assert set(anna.interfaces[0].names) == {"anna", "ben"}
                news = [each for each in anna.heard if isinstance(each, MemberReport)]
                assert {each.room for each in news} == {"friends"}
                assert not any(isinstance(each, PathReport) for each in anna.heard)
            assert [each.is_closed for each in (*anna.interfaces, *ben.interfaces)] == [True, True]
            assert anna.said == ben.said == []


async def test_a_room_that_cannot_be_opened_costs_a_sentence_and_nobody_else_and_is_tried_again(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            await keep(tmp_path, server, "friends")
            anna = Machine()
            configure(tmp_path / "anna", wants("others", "friends"))
            player = Player(tmp_path / "anna", server, "anna")
            end = trio.Event()

            async def be_there(*, task_status: trio.TaskStatus[None]) -> None:
                """As another process of this home."""
                async with tunnel.lan.create("friends", **player.options):
                    task_status.started()
                    await end.wait()

            async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
                await nursery.start(be_there)
                home = await stack.enter_async_context(up(tmp_path / "anna", **anna.options()))
                await until(lambda: len(anna.said) == 2)
                assert "'ptunnel lan create others --keep'" in next(each for each in anna.said if "others" in each)
                assert "in this room already" in next(each for each in anna.said if "friends" in each)
                assert {each.code for each in anna.heard if isinstance(each, Trouble)} == {"not_entered"}
                assert schema().problems(home.status(), is_line=False) == []
                await keep(tmp_path, server, "others")
                await until(lambda: online(home, "others") == ["anna"])
                assert why(home)["friends"]
                end.set()
                await until(lambda: online(home) == ["anna"])
            assert len(anna.said) == len(set(anna.said)), "each is said once"


async def test_a_reload_opens_and_closes_rooms_and_leaves_the_others_untouched(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            for name in ("friends", "others"):
                await keep(tmp_path, server, name)
            anna = Machine(most=2)
            configure(tmp_path / "anna", wants("friends"))
            async with up(tmp_path / "anna", **anna.options()) as home:
                await until(lambda: online(home) == ["anna"])
                [before] = home.rooms.status()
                room = home.rooms.find("friends")
                configure(tmp_path / "anna", wants("friends", "others"))
                assert await home.reload() == {"added": 1, "removed": 0}
                await until(lambda: online(home, "others") == ["anna"])
                assert home.rooms.find("friends") is room is not None
                assert home.rooms.status()[0]["version"] == before["version"]
                configure(tmp_path / "anna", wants("friends"))
                assert await home.reload() == {"added": 0, "removed": 1}
                assert list(why(home)) == ["friends"]
                blank = anna.interfaces[1]
                assert (blank.configs[-1].ipv4, blank.names, blank.is_closed) == (None, {}, False)
                configure(tmp_path / "anna", wants("others", "friends"))
                await home.reload()  # no further interface can be had: it is the same one again
                await until(lambda: online(home, "others") == ["anna"])
                assert blank.configs[-1].ipv4 is not None
                assert home.rooms.find("friends") is room
                configure(tmp_path / "anna", wants("friends", "others", "third"))
                await home.reload()
                await until(lambda: any("third" in each for each in anna.said))
                assert "start it anew" in anna.said[-1]
                assert (online(home), online(home, "others")) == (["anna"], ["anna"])


async def test_without_privilege_each_room_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    anna = Machine(most=0)
    with trio.fail_after(3 * PATIENCE):
        configure(tmp_path / "anna", wants("friends"))
        async with up(tmp_path / "anna", **anna.options()) as home:
            await until(lambda: anna.said)
            assert "An interface needs privilege." in anna.said[0]
            assert why(home) == {"friends": "An interface needs privilege."}


async def test_what_the_system_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")

    async def open_one(config: InterfaceConfig, *, drop: bool) -> FakeInterface:
        assert not drop
        return FakeInterface(config)

    interfaces = rooms.Interfaces(refuse)
    assert await interfaces.prepare(1) == 0
    with pytest.raises(ConfigurationError, match="Operation not permitted"):
        interfaces.require()
    monkeypatch.setattr(rooms, "open_on_host", open_one)
    monkeypatch.setattr(rooms, "give_up_privileges", refuse)
    with pytest.raises(ConfigurationError, match="may not give up"):
        await rooms.Interfaces().prepare(1)


async def test_a_room_is_commanded_by_the_control_socket(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = []

    def take(_pid: int, answer: dict[str, Any]) -> None:
        answers.append(answer)

    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            await keep(tmp_path, server, "friends")
            for name in ("anna", "ben"):
                configure(tmp_path / name, wants("friends"))
            anna, ben = Machine(), Machine()
            async with up(tmp_path / "anna", **anna.options()) as annas, up(tmp_path / "ben", **ben.options()) as bens:
                await until(lambda: online(annas) == online(bens) == ["anna", "ben"])
                run_dir = annas.state.run_dir()
                async with serve_control(run_dir, annas.process):
                    await ask_all(run_dir, Ping("ben", 1, 1.0), take)
                    assert answers.pop()["peer"] == "ben"
                    await ask_all(run_dir, Ping("zoe", 1, 1.0), take)
                    assert answers.pop()["event"] == "error"
                    await ask_all(run_dir, Remove("ben", None), take)
                    told = answers.pop()
                    assert (told["event"], told["room"], told["peer"]) == ("removed", "friends", "ben")
                    await ask_all(run_dir, Status(), take)
                    assert [each["peer"] for each in answers.pop()["rooms"][0]["members"]] == ["anna"]
                await until(lambda: any("You were removed" in each for each in ben.said))
                assert KeptRooms(StateHome(tmp_path / "ben")).names() == []


async def test_the_code_of_a_room_that_was_made_here_lets_somebody_in_while_it_runs(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            await keep(tmp_path, server, "friends")
            anna, ben = Machine(), Machine()
            for name in ("anna", "ben"):
                configure(tmp_path / name, wants("friends"))
            async with up(tmp_path / "anna", **anna.options()) as annas, up(tmp_path / "ben", **ben.options()) as bens:
                await until(lambda: annas.rooms._rooms["friends"].code)
                found = annas.rooms.code("friends")
                assert (found["expires_s"], found["server"]) == (None, server)
                assert not any(type(each).__name__ == "CodeReady" for each in anna.heard), "it is for whoever asks, and no log"
                assert found["code"] not in str(annas.status())
                cleo = Player(tmp_path / "cleo", server, "cleo")
                async with tunnel.lan.join(found["code"], **cleo.options):
                    await until(lambda: "cleo" in online(annas))
                await until(lambda: bens.rooms.find("friends"))
                for home, name, text in (
                    (bens, "friends", "created by somebody else"),
                    (bens, "foes", "in no room called 'foes': rooms are friends"),
                ):
                    with pytest.raises(ConfigurationError, match=text):
                        home.rooms.code(name)


async def test_a_room_without_an_interface_is_kept_and_needs_none(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            await keep(tmp_path, server, "friends")
            anna, ben = Machine(most=0), Machine()
            configure(tmp_path / "anna", wants("friends") + "interface = false\nrelay = true\n")
            configure(tmp_path / "ben", wants("friends"))
            async with up(tmp_path / "anna", **anna.options()) as annas, up(tmp_path / "ben", **ben.options()) as bens:
                await until(lambda: online(annas) == online(bens) == ["anna", "ben"])
                status = annas.status()
                assert schema().problems(status, is_line=False) == []
                [room] = status["rooms"]
                assert (room["interface"], room["carried"]["pairs"]) == ("", 0)
            assert anna.said == []
            assert anna.interfaces == []
