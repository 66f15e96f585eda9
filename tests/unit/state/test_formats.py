"""Files that another version wrote: of before, with what is to come, and what a version of before makes of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunnel.errors import StateError
from tunnel.state import documents, peers, rooms, ways
from tunnel.state.home import Home
from tunnel.state.peers import Peer
from tunnel.state.rooms import Rooms, SavedRoom
from tunnel.state.ways import Way
from tunnel.units import Hex

#: A home that ptunnel 0.1 wrote, before these files were read by msgspec.
OLD = Path(__file__).with_name("files_of_0_1")
PEERS = [
    Peer(
        name="nas", static=b"a" * 32, psk=b"b" * 32, server="rv.example.net:24531", grants=[{"protocol": "tcp", "port": 22}],
        created=1.5, last_seen=2.0,
    ),
    Peer(name="наш", static=b"c" * 32, psk=b"d" * 32, version=3),
]  # fmt: skip
WAY = Way(
    network=b"n" * 16, static=b"a" * 32, host="2001:db8::1", port=5000, kind=2, technique="birthday", opened=True, keepalive=15.0,
    used=1.5,
)  # fmt: skip
GAME = SavedRoom(
    name="game", member_name="Anna", room=b"r" * 32, private_key=b"k" * 32, secret=b"s" * 32, epoch=3, roster=b"signed",
    psks={Hex(b"a" * 32): b"p" * 32}, former=((Hex(b"f" * 32), 7),), highest=9, server="rv.example.net", saved_at=12.5,
)  # fmt: skip
OTHER = SavedRoom(
    name="other", member_name="Ben", room=b"r" * 32, private_key=None, secret=b"s" * 32, epoch=1, roster=b"signed", psks={},
    former=(), highest=1, server="rv.example.net", saved_at=0.0,
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    for path in sorted(OLD.rglob("*")):  # nobody else may write there, whatever this checkout's modes are
        copy = tmp_path / "home" / path.relative_to(OLD)
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        if path.is_file():
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o600)
    return Home(tmp_path / "home")


def document(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    return content


def test_what_version_0_1_wrote_is_read(home: Home) -> None:
    assert len(home.identity()) == 32
    assert home.peers() == PEERS
    assert home.ways() == [WAY]
    assert Rooms(home).all() == [GAME, OTHER]


def test_what_is_written_says_the_same_in_the_same_fields(home: Home) -> None:
    """Version 0.1 refuses a file with a field more or less, so that it can read ours again."""
    home.rename("nas", "store")
    home.rename("store", "nas")
    home.remember_ways([WAY])
    for room in Rooms(home).all():
        Rooms(home).save(room)
    for old in OLD.rglob("*.json"):
        assert document(home.path / old.relative_to(OLD)) == document(old)


@pytest.mark.parametrize("name", ["peers.json", "ways.json", "rooms/game.json"])
def test_a_field_of_a_later_version_is_passed_over(home: Home, name: str) -> None:
    path = home.path / name
    found = document(path)
    kind, version, content = found["ptunnel"], found["version"], found["content"]
    records = content[kind] if kind != "room" else [content]
    for record in [content, *records]:
        record["later"] = {"more": [1, None]}
    found.update(checksum=documents._checksum(kind, version, content), much_later=True)
    path.write_text(json.dumps(found), encoding="ascii")
    assert (home.peers(), home.ways(), Rooms(home).all()) == (PEERS, [WAY], [GAME, OTHER])


def test_a_secret_of_a_wrong_size_is_told_with_the_file_and_what_to_do(home: Home) -> None:
    content = {"private_key": "AAAA"}
    documents.write_document(home.path / "identity.json", "identity", 1, content)
    with pytest.raises(StateError, match=r"identity\.json is damaged or was edited by hand: restore it from a backup"):
        home.identity()


def test_keys_that_are_shown_as_digits_are_written_as_such_whatever_they_are_given_as() -> None:
    machines = peers.encode_peers([Peer(name="a", static=bytes(32), psk=bytes(32), machines=(Hex(b"abc"),))])["peers"][0][
        "machines"
    ]
    assert list(machines) == ["616263"]
    content = rooms.encode_room(GAME)
    assert (list(content["psks"]), content["former"][0][0]) == (["61" * 32], "66" * 32)
    assert list(ways.encode_ways([WAY])["ways"][0]) == list(document(OLD / "ways.json")["content"]["ways"][0])
