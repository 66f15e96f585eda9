"""Rooms that are kept: private files, whole or refused, and one process for each."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tunnel.errors import AlreadyRunningError, ConfigurationError, StateError
from tunnel.state.documents import BadContent
from tunnel.state.home import Home
from tunnel.state.rooms import Rooms, SavedRoom, decode_room, encode_room, is_room_name
from tunnel.units import Hex

ROOM = SavedRoom(
    name="game",
    member_name="Anna",
    room=b"r" * 32,
    private_key=b"k" * 32,
    secret=b"s" * 32,
    epoch=3,
    roster=b"signed" * 20,
    psks={Hex(b"a" * 32): b"p" * 32},
    former=((Hex(b"f" * 32), 7),),
    highest=9,
    server="rv.example.net",
    saved_at=12.5,
)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return Rooms(Home(tmp_path / "home"))


def test_a_room_is_kept_privately_and_read_again(rooms: Rooms, tmp_path: Path) -> None:
    assert rooms.names() == []
    rooms.save(ROOM)
    member = replace(ROOM, name="other", private_key=None, room=b"o" * 32, psks={})
    rooms.save(member)
    assert rooms.all() == [ROOM, member]
    assert (ROOM.is_creator, member.is_creator) == (True, False)
    path = tmp_path / "home" / "rooms" / "game.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    rooms.save(replace(ROOM, epoch=4))
    assert rooms.room("game").epoch == 4


def test_secrets_stay_out_of_repr() -> None:
    assert "kkk" not in repr(ROOM)
    assert "sss" not in repr(ROOM)
    assert "ppp" not in repr(ROOM)


def test_what_is_not_kept_is_said_with_what_is(rooms: Rooms) -> None:
    with pytest.raises(ConfigurationError, match="none is kept yet"):
        rooms.room("game")
    rooms.save(ROOM)
    with pytest.raises(ConfigurationError, match="kept are game"):
        rooms.room("../game")
    with pytest.raises(ConfigurationError, match="kept are game"):
        rooms.forget("other")
    rooms.forget("game")
    assert rooms.names() == []


def test_a_name_that_another_room_has_gets_a_number(rooms: Rooms) -> None:
    rooms.save(ROOM)
    assert rooms.free_name("game", ROOM.room) == "game"
    assert rooms.free_name("game", b"x" * 32) == "game-2"
    assert rooms.free_name("fresh", b"x" * 32) == "fresh"


def test_one_process_is_in_a_room_at_a_time_and_leaves_no_lock_behind(rooms: Rooms, tmp_path: Path) -> None:
    lock = rooms.hold(ROOM.room)
    with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}"):
        rooms.hold(ROOM.room)
    rooms.hold(b"another room" * 3).release()
    lock.release()
    rooms.hold(ROOM.room).release()
    assert not list((tmp_path / "home" / "rooms").iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"name": "Game"},
        {"member_name": 5},
        {"room": "AAAA"},
        {"private_key": ""},
        {"secret": None},
        {"epoch": 0},
        {"epoch": True},
        {"roster": "?" * 8},
        {"roster": "A" * 20_000},
        {"psks": {"zz": "AAAA"}},
        {"psks": []},
        {"former": [["aa", 1]]},
        {"former": [[("ab" * 32), 255]]},
        {"former": [1]},
        {"highest": 255},
        {"server": None},
        {"saved_at": "now"},
        {"psks": {"aa": "A" * 43 + "="}},
    ],
    ids=str,
)
def test_content_that_no_room_has_is_refused(changes: dict[str, Any]) -> None:
    content = {**encode_room(ROOM), **changes}
    with pytest.raises(BadContent):
        decode_room(content)
    assert decode_room(json.loads(json.dumps(encode_room(ROOM)))) == ROOM


def test_a_damaged_file_is_refused_by_name_and_can_be_forgotten(rooms: Rooms, tmp_path: Path) -> None:
    rooms.save(ROOM)
    path = tmp_path / "home" / "rooms" / "game.json"
    for text in (path.read_text().replace('"epoch": 3', '"epoch": 4'), "{", ""):
        path.write_text(text)
        with pytest.raises(StateError, match=r"game\.json is damaged"):
            rooms.find("game")
    rooms.forget("game")
    rooms.save(ROOM)
    path.rename(path.with_name("moved.json"))
    with pytest.raises(StateError, match=r"moved\.json is damaged"):
        rooms.find("moved")


@pytest.mark.parametrize(
    ("text", "fits"), [("game", True), ("a-b", True), ("-a", False), ("a" * 63, True), ("a" * 64, False), ("", False)]
)
def test_names_of_rooms_are_labels(text: str, fits: bool) -> None:
    assert is_room_name(text) is fits
