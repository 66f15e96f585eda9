"""The file of remembered peers: what it keeps, what it refuses, and psks that came after the pairing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.state.remembered import peer, secret
from tunnel.errors import ConfigurationError, StateError
from tunnel.state import peers
from tunnel.state.home import Home
from tunnel.state.peers import MAX_KEPT, MAX_NAME, MAX_PEERS, Kept, Peer


def test_a_peer_comes_back_as_it_was_saved(home: Home) -> None:
    saved = peer("наш сервер", server="rv.example.net:24531", grants=[{"protocol": "tcp", "ports": [22, 22]}], version=3)
    assert home.save_peer(saved) == saved
    assert Home(home.path).peers() == [saved]
    assert home.peer("НАШ СЕРВЕР") == home.find_static(saved.static) == saved
    assert repr(saved.psk) not in repr(saved)


def test_machines_of_a_peer_are_kept_and_a_file_of_before_has_none(home: Home) -> None:
    home.save_peer(peer())
    before = (home.path / "peers.json").read_text(encoding="utf-8")
    assert "machines" not in before, "an older version can read what it knows"
    home.update_peer(peer().static, machines=(b"abc", b"def"))
    assert home.peers()[0].machines == (b"abc", b"def")
    text = (home.path / "peers.json").read_text(encoding="utf-8")
    for wrong in ('"61626"', '"6162"', '"no hex!!"', "5", '"616263", "616263", "616263", "616263"'):
        (home.path / "peers.json").write_text(text.replace('"616263"', wrong), encoding="utf-8")
        with pytest.raises(StateError):
            home.peers()


def test_a_newcomer_never_takes_a_name(home: Home) -> None:
    first = home.save_peer(peer("nas", 1))
    assert [home.save_peer(peer(name, key)).name for key, name in ((2, "nas"), (3, "NAS"), (4, "x" * MAX_NAME))] == [
        "nas-2",
        "NAS-3",
        "x" * MAX_NAME,
    ]
    assert home.save_peer(peer("x" * MAX_NAME, 5)).name == "x" * (MAX_NAME - 2) + "-2"
    assert home.peer("nas") == first


def test_pairing_again_keeps_the_name_a_person_gave(home: Home) -> None:
    home.save_peer(peer("laptop", 1))
    home.rename("laptop", "Anna")
    again = home.save_peer(peer("laptop", 1, psk=b"n" * 32, created=9.0))
    assert (again.name, again.psk, again.created) == ("Anna", b"n" * 32, 1.0)
    assert home.peers() == [again]


def test_updating_changes_what_is_named_and_forgets_nothing(home: Home) -> None:
    saved = home.save_peer(peer())
    assert home.update_peer(saved.static, last_seen=9.0, grants=[{"a": 1}]) == peer(last_seen=9.0, grants=[{"a": 1}])
    assert home.update_peer(b"?" * 32, last_seen=9.0) is None


def test_forgetting_and_renaming(home: Home) -> None:
    home.save_peer(peer("a", 1))
    home.save_peer(peer("b", 2))
    assert home.rename("a", "A").name == "A"
    for wrong in ("b", "B", "", " c", "c\x1b[0m", "x" * 65):
        with pytest.raises(ConfigurationError):
            home.rename("A", wrong)
    assert [gone.static for gone in home.forget("b")] == [bytes([2]) * 32]
    with pytest.raises(ConfigurationError, match="known are A"):
        home.forget("b")
    assert [known.name for known in home.peers()] == ["A"]


def test_many_are_forgotten_all_or_none(home: Home) -> None:
    for key, name in enumerate("abc", 1):
        home.save_peer(peer(name, key))
    before = (home.path / "peers.json").read_bytes()
    with pytest.raises(ConfigurationError, match="'x'"):
        home.forget("a", "x")
    assert (home.path / "peers.json").read_bytes() == before
    assert [gone.name for gone in home.forget("a", "C", "a")] == ["a", "c"]
    assert [known.name for known in home.peers()] == ["b"]


def test_grants_change_for_all_who_are_named_or_for_none(home: Home) -> None:
    for key, name in enumerate("abc", 1):
        home.save_peer(peer(name, key, grants=[{"of": name}]))
    before = (home.path / "peers.json").read_bytes()

    def refuse(record: Peer) -> list[dict[str, Any]]:
        if record.name == "b":
            raise ConfigurationError("no")
        return []

    for names, change in ((("a", "b"), refuse), (("a", "x"), lambda record: [])):
        with pytest.raises(ConfigurationError):
            home.change_grants(names, change)
        assert (home.path / "peers.json").read_bytes() == before
    changed = home.change_grants(("A", "c"), lambda record: [*record.grants, {"more": 1}])
    assert [(each.name, len(each.grants)) for each in changed] == [("a", 2), ("c", 2)]
    assert [len(each.grants) for each in home.peers()] == [2, 1, 2]


def test_a_pairing_that_came_to_nothing_leaves_the_file_as_it_was(home: Home) -> None:
    home.save_peer(peer("a", 1, grants=[{"of": "a"}]))
    home.save_peer(peer("b", 2))
    before = (home.path / "peers.json").read_bytes()
    known = home.find_static(bytes([1]) * 32)
    again = home.save_peer(peer("a", 1, psk=bytes([9]) * 32))
    new = home.save_peer(peer("c", 3))
    assert home.unpair(new.static, new.psk, None) is None
    assert home.unpair(again.static, again.psk, known) == known
    assert (home.path / "peers.json").read_bytes() == before


def test_a_later_pairing_with_the_same_peer_is_not_taken_back(home: Home) -> None:
    home.save_peer(peer("a", 1))
    later = home.save_peer(peer("a", 1, psk=bytes([9]) * 32))
    assert home.unpair(later.static, bytes([7]) * 32, None) == later
    assert home.peers() == [later]


def test_what_cannot_be_changed_makes_nothing(home: Home) -> None:
    attempts: list[Callable[[], Any]] = [
        lambda: home.rename("a", "b"),
        lambda: home.forget("a"),
        lambda: home.change_grants(("a",), lambda record: []),
        lambda: home.save_peer(peer(name="")),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigurationError):
            attempt()
    assert home.update_peer(bytes(32), last_seen=1.0) is None
    assert not home.path.exists()


@pytest.mark.parametrize("wrong", [{"static": b"short"}, {"psk": b""}, {"name": ""}, {"name": "two\nlines"}])
def test_what_could_not_be_read_back_is_not_saved(home: Home, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        home.save_peer(peer(**wrong))
    assert home.peers() == []


def test_the_stamp_differs_after_every_change(home: Home) -> None:
    stamps = {home.peers_stamp()}
    home.save_peer(peer("a", 1))
    stamps.add(home.peers_stamp())
    home.rename("a", "b")
    stamps.add(home.peers_stamp())
    home.forget("b")
    stamps.add(home.peers_stamp())
    assert len(stamps) == 4


def test_so_many_peers_are_remembered_and_the_next_is_told_what_to_do() -> None:
    known = [
        Peer(name=f"p{number}", static=number.to_bytes(32, "big"), psk=bytes(32), created=1.0) for number in range(MAX_PEERS)
    ]
    after, _ = peers.add(known[:-1], known[-1])
    assert len(after) == MAX_PEERS
    with pytest.raises(ConfigurationError, match="forget some with"):
        peers.add(known, peer("newcomer", 99))
    after, saved = peers.add(known, replace(known[7], last_seen=9.0))  # who is known already may still be met
    assert (len(after), saved.last_seen) == (MAX_PEERS, 9.0)


def test_a_server_that_could_not_be_read_again_is_not_remembered(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.save_peer(peer("friend", 1))
    with pytest.raises(ConfigurationError, match="its server"):
        home.update_peer(peer("friend", 1).static, server="192.0.2.7:24531\x1b[2J")
    assert [each.name for each in Home(home.path).peers()] == ["friend"]


def test_a_psk_is_kept_and_later_noted_as_shown(home: Home) -> None:
    home.save_peer(peer(grants=[{"name": "22"}]))
    saved = home.keep_psk(bytes([1]) * 32, secret(7), is_shown=False)
    assert saved is not None
    assert (saved.kept, saved.is_hybrid) == ((Kept(secret(7), False),), False)
    home.keep_psk(bytes([1]) * 32, secret(8), is_shown=False)
    home.keep_psk(bytes([1]) * 32, secret(7), is_shown=True)
    home.keep_psk(bytes([1]) * 32, secret(7), is_shown=False)  # what was shown stays so
    (found,) = home.peers()
    assert set(found.kept) == {Kept(secret(7), True), Kept(secret(8), False)}
    assert found.is_hybrid
    assert found.grants == [{"name": "22"}]
    assert secret(7).hex() not in repr(found)
    assert repr(secret(7)) not in repr(found)


def test_psks_are_few_and_none_that_was_shown_goes(home: Home) -> None:
    home.save_peer(peer())
    for number in range(MAX_KEPT + 3):
        assert home.keep_psk(bytes([1]) * 32, secret(number), is_shown=number == 1)
    (found,) = home.peers()
    assert len(found.kept) == MAX_KEPT
    assert Kept(secret(1), True) in found.kept
    assert found.kept[-1] == Kept(secret(MAX_KEPT + 2), False)
    for each in found.kept:
        home.keep_psk(bytes([1]) * 32, each.psk, is_shown=True)
    assert home.keep_psk(bytes([1]) * 32, secret(200), is_shown=True) is None  # no room
    assert len(home.peers()[0].kept) == MAX_KEPT


def test_nothing_is_kept_of_a_peer_that_was_forgotten(home: Home) -> None:
    home.save_peer(peer())
    home.forget("nas")
    assert home.keep_psk(bytes([1]) * 32, secret(1), is_shown=True) is None
    assert not home.peers()


def test_other_changes_leave_the_psks_and_a_new_pairing_begins_without(home: Home) -> None:
    home.save_peer(peer())
    home.keep_psk(bytes([1]) * 32, secret(1), is_shown=True)
    home.update_peer(bytes([1]) * 32, last_seen=9.0)
    home.rename("nas", "store")
    (found,) = home.peers()
    assert (found.kept, found.is_hybrid) == ((Kept(secret(1), True),), True)
    home.save_peer(peer(psk=bytes(32)))
    (found,) = home.peers()
    assert (found.kept, found.is_hybrid, found.name) == ((), False, "store")


def test_a_file_is_written_in_the_oldest_format_that_can_say_it(home: Home) -> None:
    """So that an older program tells who goes back to it that a newer one was here, and only where it would lose something."""
    path = home.path / "peers.json"
    home.save_peer(peer())
    assert json.loads(path.read_text())["version"] == 1
    home.keep_psk(bytes([1]) * 32, secret(1), is_shown=False)
    assert json.loads(path.read_text())["version"] == 2
    home.forget("nas")
    assert json.loads(path.read_text())["version"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kept", {}),
        ("kept", [1]),
        ("kept", [{"psk": "AAAA", "shown": True}]),
        ("kept", [{"psk": 5, "shown": True}]),
        ("kept", [{"psk": "A" * 43 + "=", "shown": 1}]),
        ("kept", [{"psk": "A" * 43 + "="}]),
        ("kept", [{"psk": "A" * 43 + "=", "shown": True}] * (MAX_KEPT + 1)),
        ("hybrid", 1),
        ("hybrid", None),
    ],
)
def test_psks_that_make_no_sense_are_refused(field: str, value: Any) -> None:
    record = peers.encode_peers([peer()])
    record["peers"][0][field] = value
    with pytest.raises(ValueError, match=r".*"):
        peers.decode_peers(record)
