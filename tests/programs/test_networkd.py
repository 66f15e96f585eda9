"""systemd-networkd: it configures the ethernet beside a room, and leaves the room alone when it starts and restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import Program, environment, is_real_root
from tests.netns.rooms import Room
from tests.programs.homes import SLOW_S, needs

NETWORKD = Path("/lib/systemd/systemd-networkd")
pytestmark = [
    pytest.mark.nightly,
    needs(str(NETWORKD), "networkctl"),
    pytest.mark.skipif(not is_real_root(), reason="it changes its user, and there is one user only"),
]

SETTINGS = """[Match]
Name=eth0
[Network]
Address=%s/24
Gateway=%s.1
LinkLocalAddressing=ipv6
"""


def test_a_room_goes_on_while_it_starts_and_restarts(room: Room) -> None:
    host, friend = room.members
    address = friend.site.addresses[0]
    folder = friend.etc / "systemd" / "network"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-eth0.network").write_text(SETTINGS % (address, address.rpartition(".")[0]), encoding="ascii")
    friend.space.run("mount", "-o", "remount,bind,ro", "/sys")  # as in a container: it waits for no udev
    before = friend.space.run("ip", "-o", "address", "show", "dev", friend.interface).stdout
    for number in range(2):
        networkd = Program(
            room.lab,
            friend.space,
            f"networkd{number}",
            [NETWORKD],
            env=environment(room.lab.folder / "networkd", SYSTEMD_LOG_TARGET="console", SYSTEMD_LOG_LEVEL="debug"),
        )
        networkd.wait_said("eth0: State changed: configuring -> configured", SLOW_S)
        eventually("the room is reached", lambda: friend.reaches(host.ipv4), SLOW_S)
        assert host.reaches(friend.ipv4, wait=20)
        networkd.end()
        eventually("the room is reached after it has ended", lambda: friend.reaches(host.ipv4), SLOW_S)
    assert friend.space.run("ip", "-o", "address", "show", "dev", friend.interface).stdout == before
    assert friend.program is not None
    assert "warning" not in friend.program.kinds()
