"""sessions.json: what a process that was killed leaves to the one that comes after it, and to nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnel.errors import StateError
from tunnel.setup.sessions import SessionKeeper
from tunnel.state import documents
from tunnel.state.home import Home
from tunnel.state.sessions import KIND, MAX_FORMER, MAX_SERVERS, VERSION, SessionFile

SERVER = "rv.example.net"


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


def file_of(tmp_path: Path, place: bytes = b"here") -> SessionFile:
    return SessionFile(tmp_path / "sessions.json", place)


def keeper_of(tmp_path: Path) -> SessionKeeper:
    return SessionKeeper(Home(tmp_path), lambda _place: file_of(tmp_path))


def start(tmp_path: Path, number: int) -> SessionKeeper:
    """A process that has the session of that number, and is killed as soon as this is written."""
    keeper = keeper_of(tmp_path)
    keeper.note(SERVER, session(number))
    keeper._write(keeper._sessions)
    return keeper


def test_the_next_process_hears_of_those_that_were_killed_the_newest_first(tmp_path: Path) -> None:
    for number in range(MAX_FORMER + 3):
        start(tmp_path, number)
    former = keeper_of(tmp_path).former(SERVER)
    assert list(former) == [session(number) for number in range(MAX_FORMER + 2, 2, -1)]
    assert keeper_of(tmp_path).former("another.example.net") == ()
    assert (tmp_path / "sessions.json").stat().st_mode & 0o077 == 0


def test_nothing_is_left_by_a_process_that_has_said_goodbye(tmp_path: Path) -> None:
    start(tmp_path, 1).close()
    assert not (tmp_path / "sessions.json").exists()
    assert keeper_of(tmp_path).former(SERVER) == ()
    keeper_of(tmp_path).close()


def test_a_copy_of_the_home_says_goodbye_for_nobody(tmp_path: Path) -> None:
    """The process that it would be said for may run, and is another one."""
    start(tmp_path, 1)
    assert file_of(tmp_path, b"there").read() == {}
    assert file_of(tmp_path, b"").read() == {}
    file_of(tmp_path, b"").write({SERVER: [session(2)]})
    assert file_of(tmp_path).read() == {SERVER: (session(1),)}


def test_a_file_that_is_damaged_costs_nothing_but_what_it_said(tmp_path: Path) -> None:
    path = tmp_path / "sessions.json"
    path.write_text("{", encoding="ascii")
    with pytest.raises(StateError, match="damaged"):
        file_of(tmp_path).read()
    start(tmp_path, 1)
    assert file_of(tmp_path).read() == {SERVER: (session(1),)}


@pytest.mark.parametrize("sessions", [["00" * 15], ["00" * 17], ["x" * 32], [1], ["00" * 16] * (MAX_FORMER + 1), "00" * 16])
def test_what_is_no_session_is_refused(tmp_path: Path, sessions: object) -> None:
    documents.write_document(tmp_path / "sessions.json", KIND, VERSION, {"place": "00" * 16, "servers": {SERVER: sessions}})
    with pytest.raises(StateError, match="damaged"):
        file_of(tmp_path).read()


def test_more_servers_than_are_remembered_lose_those_that_came_first(tmp_path: Path) -> None:
    servers = {f"{number}.example.net": [session(number)] for number in range(MAX_SERVERS + 2)}
    file_of(tmp_path).write(servers)
    assert list(file_of(tmp_path).read()) == list(servers)[2:]
