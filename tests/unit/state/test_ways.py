"""ways.json: bounded, only of remembered peers, and gone with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tunnel.errors import StateError
from tunnel.state.documents import BadContent
from tunnel.state.home import Home
from tunnel.state.peers import Peer
from tunnel.state.ways import MAX_WAYS, Way, decode_ways, encode_ways, merge

WAY = Way(
    network=b"n" * 16, static=b"a" * 32, host="192.88.99.9", port=5000, kind=2, technique="birthday", opened=True, keepalive=15.0,
    used=1.5,
)  # fmt: skip


def home_of(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.save_peer(Peer(name="home", static=b"a" * 32, psk=b"b" * 32))
    return home


def test_ways_come_back_as_they_were(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    assert home.ways() == []
    other = replace(WAY, network=b"m" * 16, host="2001:db8::9", used=9.0)
    home.remember_ways([WAY, other])
    assert Home(tmp_path).ways() == [other, WAY]
    home.remember_ways([replace(WAY, port=1)], [(other.network, other.static)])
    assert home.ways() == [replace(WAY, port=1)]
    assert (tmp_path / "ways.json").stat().st_mode & 0o077 == 0


def test_nothing_is_kept_of_strangers_and_of_forgotten_peers(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    home.remember_ways([WAY, replace(WAY, static=b"x" * 32)])
    assert home.ways() == [WAY]
    home.forget("home")
    assert home.ways() == []


def test_the_oldest_make_room() -> None:
    ways = [replace(WAY, network=number.to_bytes(16, "big"), used=float(number)) for number in range(MAX_WAYS + 10)]
    kept = merge(ways[:100], ways[100:], [])
    assert len(kept) == MAX_WAYS
    assert min(way.used for way in kept) == 10.0
    assert decode_ways(encode_ways(kept)) == kept


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "AAAA"), ("static", ""), ("host", "rv.example.net"), ("host", "192.088.99.9"), ("host", 4), ("port", 0),
        ("port", 65_536), ("port", "1"), ("kind", -1), ("kind", 256), ("technique", "x" * 33), ("technique", None),
        ("opened", 1), ("keepalive", -1.0), ("keepalive", 3_601), ("used", "now"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_belong_there_is_refused(field: str, value: object) -> None:
    content = encode_ways([WAY])
    content["ways"][0][field] = value
    with pytest.raises(BadContent):
        decode_ways(content)


def test_a_damaged_file_is_named_and_peers_can_still_be_forgotten(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    (tmp_path / "ways.json").write_text("{", encoding="ascii")
    with pytest.raises(StateError, match=r"ways\.json is damaged"):
        home.ways()
    assert [gone.name for gone in home.forget("home")] == ["home"]
