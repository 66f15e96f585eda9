"""Chocolate Doom: its own search finds the server in a room, and the game that joins what it found runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import START_S, Program, environment
from tests.netns.rooms import Room
from tests.programs.homes import SLOW_S, needs, wait_traffic

WAD = Path("/usr/share/games/doom/freedoom1.wad")
PORT = 2342
pytestmark = [pytest.mark.nightly, needs("chocolate-doom", "chocolate-server", str(WAD))]


def test_a_server_is_found_and_joined(room: Room) -> None:
    host, friend = room.members
    env = environment(room.lab.folder / "doom", SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", SDL_RENDER_DRIVER="software")
    Program(room.lab, host.space, "doom-server", ["stdbuf", "-oL", "/usr/games/chocolate-server", "-privateserver"], env=env)
    eventually("the server of Doom", lambda: f":{PORT} " in host.space.run("ss", "-Hlnu").stdout, START_S)

    def run(*words: str) -> str:
        done = friend.space.run("/usr/games/chocolate-doom", "-iwad", WAD, *words, env=env, timeout=SLOW_S, check=False)
        return done.stdout + done.stderr

    assert host.ipv4 in run("-localsearch")
    assert host.ipv4 in run("-query", f"{host.name}.ptunnel")
    player = Program(
        room.lab,
        friend.space,
        "doom-player",
        ["/usr/games/chocolate-doom", "-iwad", str(WAD), "-autojoin", "-nodes", "1", "-window", "-nosound", "-skill", "1"],
        env=env,
    )
    wait_traffic(friend, 20_000)
    assert player.process.poll() is None
