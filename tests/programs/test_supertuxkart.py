"""SuperTuxKart: its broadcast finds the server in a room, and karts without a driver join and race."""

from __future__ import annotations

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import Program, environment
from tests.netns.rooms import Room, open_socket
from tests.programs.homes import SLOW_S, ask, needs, wait_traffic

SEARCH_PORT, PORT = 2757, 2759
QUESTION = b"\x0astk-server"  # a string behind its length
NAME = "ptunnel laboratory"
GAME = "/usr/games/supertuxkart"
pytestmark = [pytest.mark.nightly, pytest.mark.time_limit(300), needs("supertuxkart")]


def test_a_server_is_found_and_joined(room: Room) -> None:
    host, friend = room.members
    server = Program(
        room.lab,
        host.space,
        "stk-server",
        ["stdbuf", "-oL", GAME, "--no-graphics", f"--lan-server={NAME}", f"--port={PORT}", "--owner-less", "--min-players=1"],
        env=environment(room.lab.folder / "stk-server"),
    )
    eventually("the server of SuperTuxKart", lambda: f":{SEARCH_PORT} " in host.space.run("ss", "-Hlnu").stdout, 2 * SLOW_S)
    with open_socket(friend.space) as sock:
        data, address = ask(sock, QUESTION, ("255.255.255.255", SEARCH_PORT), server)
    assert NAME.encode() in data
    assert address == host.ipv4
    player = Program(
        room.lab,
        friend.space,
        "stk-player",
        ["stdbuf", "-oL", GAME, "--no-graphics", f"--connect-now={address}:{PORT}", "--network-ai=2"],
        env=environment(room.lab.folder / "stk-player"),
    )
    server.wait_said("New player", 2 * SLOW_S)
    server.wait_said("Starting the race", 2 * SLOW_S)
    wait_traffic(friend, 20_000)
    assert player.process.poll() is None
