"""PTUNNEL_HOME: made private, shared by many processes, never written over when it is not understood."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tunnel.errors import AlreadyRunningError, ConfigurationError, StateError
from tunnel.state import files, peers
from tunnel.state.home import MAX_REPORTS, MAX_RUN_PATH, Home, default_path
from tunnel.state.peers import MAX_KEPT, MAX_NAME, MAX_PEERS, VERSION, Kept, Peer

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")


def peer(name: str = "nas", key: int = 1, **changes: Any) -> Peer:
    fields: dict[str, Any] = {"static": bytes([key]) * 32, "psk": bytes([key + 100]) * 32, "created": 1.0, "last_seen": 2.5}
    return Peer(name=name, **{**fields, **changes})


@pytest.fixture
def home() -> Iterator[Home]:
    """Not under tmp_path, whose length may be too much for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="pt") as folder:
        yield Home(Path(folder) / "state" / "ptunnel")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
def test_a_home_that_somebody_else_has_made_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.identity()
    owner = home.path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1 if owner else 1)
    if not owner:  # what root has made for us is ours to use
        try:
            os.chown(home.path, 4242, -1)
        except OSError:
            return  # a user namespace in which no second user exists
    with pytest.raises(StateError, match="belongs to somebody else"):
        home.lock_expose()


@posix
def test_root_with_a_persons_home_keeps_its_own_state_and_makes_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sudo -E` does, and `sudo` of older systems."""
    import pwd

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("PTUNNEL_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    owners = {tmp_path: 4242}
    stat_of = Path.stat

    def owned(path: Path, **options: Any) -> os.stat_result:
        found = list(stat_of(path, **options))
        found[4] = owners.get(path, 0)
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", owned)
    inside = default_path()
    assert not inside.is_relative_to(tmp_path)
    assert inside.is_relative_to(pwd.getpwuid(0).pw_dir)
    monkeypatch.setenv("PTUNNEL_HOME", str(tmp_path / "chosen"))
    assert default_path() == tmp_path / "chosen", "a person's word counts"
    monkeypatch.delenv("PTUNNEL_HOME")
    owners[tmp_path] = 0
    assert default_path().is_relative_to(tmp_path), "root's own"
    owners[tmp_path] = 4242
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert default_path().is_relative_to(tmp_path)


# -- identity


def test_the_identity_is_made_once_and_stays(home: Home) -> None:
    private_key = home.identity()
    assert len(private_key) == 32
    assert Home(home.path).identity() == private_key
    assert Home(home.path.with_name("other")).identity() != private_key


def test_a_servers_secret_is_made_once_stays_and_is_not_the_identity(home: Home) -> None:
    secret = home.server_secret()
    assert len(secret) == 32
    assert Home(home.path).server_secret() == secret != home.identity()
    (home.path / "server.json").write_text("{}")
    with pytest.raises(StateError, match=r"server\.json is damaged"):
        home.server_secret()


@posix
def test_nobody_else_can_read_what_was_made(home: Home) -> None:
    os.umask(os.umask(0o000))
    home.save_peer(peer())
    home.server_secret()
    home.lock_expose().release()
    assert mode(home.path) == mode(home.run_dir()) == 0o700
    assert {mode(path) for path in home.path.iterdir() if path.is_file()} == {0o600}


@posix
def test_a_file_of_ours_that_others_could_read_is_closed_to_them(home: Home) -> None:
    home.identity()
    path = home.path / "identity.json"
    path.chmod(0o644)
    home.identity()
    assert mode(path) == 0o600


@posix
def test_a_home_that_others_may_write_to_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="chmod go-w"):
        Home(tmp_path).identity()
    assert list(tmp_path.iterdir()) == []


def test_reading_an_absent_home_makes_nothing(home: Home) -> None:
    assert home.peers() == []
    assert home.config() == {}
    assert home.peers_stamp() == (0, 0, 0)
    assert not home.path.exists()


def test_a_home_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    for attempt in (Home(path).identity, Home(path).peers, Home(path / "below").identity, Home(path).run_dir):
        with pytest.raises(StateError):
            attempt()
    assert path.read_text() == "mine"


def test_the_place_is_ptunnel_home_or_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTUNNEL_HOME", str(tmp_path))
    assert Home().path == tmp_path
    monkeypatch.delenv("PTUNNEL_HOME")
    assert default_path({}).name == "ptunnel"
    assert default_path({"PTUNNEL_HOME": "/x"}) == Path("/x")


# -- peers


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number: no HOME, no entry in the list of users."""

    def nobody(*_: object) -> Any:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    for environ in ({}, {"PTUNNEL_HOME": "~/tunnel"}):
        with pytest.raises(StateError, match="set PTUNNEL_HOME"):
            default_path(environ)
    assert default_path({"PTUNNEL_HOME": "/somewhere"}) == Path("/somewhere")


def test_a_configuration_with_a_byte_order_mark_is_read(home: Home) -> None:
    """Editors of Windows begin a file with one."""
    home.identity()
    (home.path / "config.toml").write_bytes(b'\xef\xbb\xbfserver = "rv.example.net"\n')
    assert home.config() == {"server": "rv.example.net"}


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


# -- damage


def test_a_newer_format_is_left_alone_and_says_so(home: Home) -> None:
    home.save_peer(peer())
    path = home.path / "peers.json"
    document = json.loads(path.read_text())
    document["version"] = VERSION + 1
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    for attempt in (home.peers, lambda: home.save_peer(peer("b", 2)), lambda: home.forget("nas")):
        with pytest.raises(StateError, match="newer ptunnel"):
            attempt()
    assert path.read_bytes() == before


def test_a_damaged_identity_stops_every_write(home: Home) -> None:
    home.identity()
    path = home.path / "identity.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StateError, match="damaged"):
        home.identity()
    with pytest.raises(StateError, match="damaged"):
        home.save_peer(peer())
    assert not (home.path / "peers.json").exists()


def test_a_failed_write_leaves_the_old_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.save_peer(peer())
    before = (home.path / "peers.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        home.save_peer(peer("b", 2))
    assert (home.path / "peers.json").read_bytes() == before
    assert not list(home.path.glob(".*.tmp"))


def test_what_a_dead_writer_left_behind_is_removed(home: Home) -> None:
    home.identity()
    leftover = home.path / ".peers.json.4194303.tmp"
    leftover.write_text("half")
    home.save_peer(peer())
    assert not leftover.exists()


@posix
def test_a_fifo_in_the_place_of_a_file_does_not_hang(home: Home) -> None:
    home.identity()
    os.mkfifo(home.path / "peers.json")
    with pytest.raises(StateError, match="not a regular file"):
        home.peers()


def test_a_broken_config_names_the_line(home: Home) -> None:
    home.identity()
    path = home.path / "config.toml"
    path.write_text('server = "rv.example.net:24531"\n')
    assert home.config() == {"server": "rv.example.net:24531"}
    path.write_text("server = \n")
    with pytest.raises(StateError, match="line 1"):
        home.config()
    path.write_bytes(b"name = '\xff'\n")
    with pytest.raises(StateError, match="UTF-8"):
        home.config()


# -- many processes


def test_a_second_exposer_is_told_which_process_runs(home: Home) -> None:
    lock = home.lock_expose()
    with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}"):
        Home(home.path).lock_expose()
    lock.release()
    lock.release()
    with home.lock_expose():
        pass


def test_a_lock_dies_with_its_process(home: Home) -> None:
    code = "import sys; from tunnel.state.home import Home; Home(sys.argv[1]).lock_expose(); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunningError, match=f"process {other.pid}"):
            home.lock_expose()
        other.kill()
        other.wait()
    home.lock_expose().release()


def test_processes_that_save_at_once_lose_nothing(home: Home) -> None:
    code = """if True:
        import sys
        from tunnel.state.home import Home
        from tunnel.state.peers import Peer
        home, number = Home(sys.argv[1]), int(sys.argv[2])
        for turn in range(10):
            home.save_peer(Peer(name="friend", static=bytes([number, turn]) * 16, psk=bytes(32)))
        print(home.identity().hex())
    """
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(home.path), str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    identities = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert identities == {home.identity().hex() + "\n"}
    assert len(home.peers()) == 40
    assert len({known.name for known in home.peers()}) == 40


def test_a_holder_that_never_lets_go_is_a_sentence(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.identity()
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.02)
    with files.exclusive(home.path / "lock"), pytest.raises(StateError, match="has held"):
        home.save_peer(peer())


# -- the directory of control sockets


@posix
def test_a_home_too_long_for_a_socket_gets_a_short_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = Home(tmp_path / ("x" * 100))
    if sys.platform == "linux":
        assert home.run_dir() == home.path / "run", "there the system knows a short way to it"
    monkeypatch.setattr("tunnel.state.home.OPEN_DIRECTORIES", str(tmp_path / "none"))
    path = home.run_dir()
    assert path == Home(home.path).run_dir() != Home(str(home.path) + "y").run_dir()
    assert path.parent == tmp_path
    assert mode(path) == 0o700
    assert len(os.fsencode(Home("/h").path / "run")) <= MAX_RUN_PATH


@posix
def test_a_run_directory_that_is_a_link_is_refused(home: Home, tmp_path: Path) -> None:
    home.identity()
    (home.path / "run").symlink_to(tmp_path)
    with pytest.raises(StateError, match="somebody else"):
        home.run_dir()


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


def test_reports_of_faults_fill_a_file_of_so_many_bytes_which_then_begins_anew(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for _ in range(3):
        path = Path(home.keep_report("x" * (MAX_REPORTS // 2 - 1)))
    assert path.stat().st_size == MAX_REPORTS // 2
    home.keep_report("y" * (MAX_REPORTS // 2 - 1))
    assert path.stat().st_size == MAX_REPORTS
    home.keep_report("z")
    assert path.read_text(encoding="ascii") == "z\n"


# -- psks that came after the pairing


def secret(number: int) -> bytes:
    return bytes([number]) * 32


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
