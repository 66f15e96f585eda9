"""OpenArena: its search by broadcast and multicast finds the server in a room, and a player enters the game."""

from __future__ import annotations

import socket

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import Program, environment
from tests.netns.rooms import Room, open_socket
from tests.netns.screen import Screen
from tests.programs.homes import SLOW_S, ask, needs, wait_traffic

PORT = 27960
GROUP = "ff04::696f:7175:616b:6533"  # to which ioquake3 sends its search
pytestmark = [pytest.mark.nightly, pytest.mark.time_limit(300), needs("openarena", "openarena-server", "Xvfb")]


def test_a_server_is_found_and_joined(room: Room) -> None:
    host, friend = room.members
    words = ["/usr/games/openarena-server", "+set", "net_enabled", "3"]  # both families
    server = Program(
        room.lab,
        host.space,
        "openarena-server",
        [*words, "+set", "sv_pure", "0", "+set", "sv_master1", "", "+map", "oa_dm1"],
        env=environment(room.lab.folder / "openarena-server"),
    )
    eventually("the server of OpenArena", lambda: f":{PORT} " in host.space.run("ss", "-Hlnu").stdout, SLOW_S)
    for family, everybody, expected in (
        (socket.AF_INET, "255.255.255.255", host.ipv4),
        (socket.AF_INET6, GROUP, host.ipv6),
    ):
        with open_socket(friend.space, family) as sock:
            data, address = ask(sock, b"\xff\xff\xff\xffgetinfo xxx", (everybody, PORT), server)
        assert data.startswith(b"\xff\xff\xff\xffinfoResponse")
        assert address == expected
    screen = Screen(room.lab, friend.space, "openarena-room")
    with screen.shown():
        player = Program(
            room.lab,
            friend.space,
            "openarena",
            ["/usr/games/openarena", "+set", "r_fullscreen", "0", "+set", "r_mode", "3", "+connect", host.ipv4],
            env=screen.environment(room.lab.folder / "openarena"),
        )
        server.wait_said("ClientBegin", 2 * SLOW_S)
        wait_traffic(friend, 4_000)  # a picture without a graphics card is slow, and each is a datagram
    assert player.process.poll() is None
