"""BZFlag: its broadcast finds the server in a room, and a player who joins by that address and by name is heard by the server."""

from __future__ import annotations

import struct
import subprocess

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import START_S, Program, environment
from tests.netns.rooms import Room, open_socket
from tests.programs.homes import SLOW_S, ask, needs

pytestmark = [pytest.mark.nightly, needs("bzfs", "bzadmin")]

PORT = 5154
PING_REQUEST, PING_REPLY = 0x0404, 0x0303  # MsgPingCodeRequest, MsgPingCodeReply of its include/Protocol.h


def search(room: Room, server: Program) -> str:
    """As the game's page "Find Server" does: one datagram to everybody; the answer's sender is the server."""
    with open_socket(room.members[1].space) as sock:
        data, address = ask(sock, struct.pack(">HH", 2, PING_REQUEST) + bytes(2), ("255.255.255.255", PORT), server)
    assert struct.unpack_from(">H", data, 2)[0] == PING_REPLY
    return address


def test_a_server_is_found_and_joined(room: Room) -> None:
    host, friend = room.members
    server = Program(
        room.lab,
        host.space,
        "bzfs",
        ["stdbuf", "-oL", "/usr/games/bzfs", "-ddd", "-disableBots", "-p", str(PORT), "-loadplugin", "logDetail"],
        env=environment(room.lab.folder / "bzfs"),
    )
    eventually("bzfs", lambda: f":{PORT} " in host.space.run("ss", "-Hlnu").stdout, START_S)
    address = search(room, server)
    assert address == host.ipv4
    for number, where in enumerate((address, f"{host.name}.ptunnel")):
        player = Program(
            room.lab,
            friend.space,
            f"bzadmin{number}",
            ["/usr/games/bzadmin", "-ui", "stdboth", f"friend{number}@{where}:{PORT}"],
            env=environment(room.lab.folder / f"bzadmin{number}"),
            stdin=subprocess.PIPE,
        )
        assert player.process.stdin is not None
        player.process.stdin.write(f"hello {number}\n")
        player.process.stdin.flush()
        server.wait_said(f"hello {number}", SLOW_S)
        player.wait_said("hello", SLOW_S)
