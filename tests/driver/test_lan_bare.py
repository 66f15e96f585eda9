"""Rooms whose creator has no interface, and full ones, over loopback."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.lan import until
from tests.driver.meeting import a_server
from tests.driver.test_lan_rooms import LIMIT, people
from tunnel.errors import PermissionDeniedError
from tunnel.room.core import creator as creators
from tunnel.shell.events import Trouble


async def test_who_finds_a_room_full_is_told_so_and_so_is_its_creator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creators, "MAX_MEMBERS", 2)
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben, late = people(tmp_path, server, "anna", "ben", "late")
            async with tunnel.lan.create(**anna.options), tunnel.lan.join(await anna.code(), **ben.options):
                with pytest.raises(PermissionDeniedError, match="The room is full"):
                    async with tunnel.lan.join(await anna.code(), **late.options):
                        pass
                await until(lambda: any(isinstance(each, Trouble) and each.code == "room_full" for each in anna.heard))


async def test_a_creator_without_an_interface_keeps_the_room_and_lets_others_in(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben, cleo = people(tmp_path, server, "anna", "ben", "cleo")
            options = {**anna.options, "interface": tunnel.lan.no_interface, "routes": None}
            async with (
                tunnel.lan.create(relay=True, **options) as room,
                tunnel.lan.join(await anna.code(), **ben.options),
                tunnel.lan.join(await anna.code(), **cleo.options),
            ):
                await ben.member("cleo", "online")
                await ben.member("anna", "online")
                assert room.status()["interface"] == ""
                assert room.status()["carried"] == {"pairs": 0, "datagrams": 0, "bytes": 0}
                addresses = {member.name: bytes(map(int, member.address.split("."))) for member in room.members()}
                packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, addresses["ben"], addresses["anna"])
                total = sum(struct.unpack("!10H", packet))
                packet = (
                    packet[:10]
                    + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
                    + packet[12:]
                    + struct.pack("!HHHH", 5, 5, 8, 0)
                )
                assert ben.interface.device.send_from_host(bytes(22) + b"\x08\x00" + packet)
                await until(lambda: room.status()["drops"]["interface"] == {"there is no interface": 1})
                assert room.remove("cleo") == "cleo"
                await ben.member("cleo", "removed")
