"""Minetest: it has no search, so its player types the name of the server's member, and is given the world.

The client takes the first address of a name alone, and the server listens on IPv4 alone.
"""

from __future__ import annotations

import re

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import Program, environment
from tests.netns.rooms import Room
from tests.netns.screen import Screen
from tests.programs.homes import SLOW_S, needs, wait_traffic

GAME = "/usr/games/minetest"
PORT = 30_000
SETTINGS = "enable_sound = false\nscreen_w = 640\nscreen_h = 480\nviewing_range = 40\nserver_announce = false\n"
pytestmark = [pytest.mark.nightly, pytest.mark.time_limit(300), needs("minetest", "Xvfb")]


def test_a_server_is_joined_by_its_name(room: Room) -> None:
    host, friend = room.members
    settings = room.lab.folder / "minetest.conf"
    settings.write_text(SETTINGS, encoding="ascii")
    world = room.lab.folder / "world"
    server = Program(
        room.lab,
        host.space,
        "minetest-server",
        [GAME, "--server", "--world", world, "--gameid", "minetest", "--port", str(PORT), "--config", settings],
        env=environment(room.lab.folder / "minetest-server"),
    )
    eventually("the server of Minetest", lambda: f":{PORT} " in host.space.run("ss", "-Hlnu").stdout, SLOW_S)
    screen = Screen(room.lab, friend.space, "minetest-room")
    with screen.shown():
        where = ["--address", f"{host.name}.ptunnel", "--port", str(PORT), "--name", "friend", "--password", "secret"]
        player = Program(
            room.lab,
            friend.space,
            "minetest",
            [GAME, "--go", *where, "--config", settings],
            env=screen.environment(room.lab.folder / "minetest"),
        )
        server.wait_said("joins game", 2 * SLOW_S)
        wait_traffic(friend, 10_000)
    assert player.process.poll() is None
    found = re.search(r"friend \[([^\]]+)\] joins game", server.said())
    assert found is not None, server.said()
    assert found[1].removeprefix("::ffff:") == friend.ipv4
