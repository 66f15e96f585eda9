"""PTUNNEL_HOME: made private, shared by many processes, never written over when it is not understood."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.state.remembered import peer
from tunnel.errors import AlreadyRunningError, StateError
from tunnel.state import files
from tunnel.state.home import MAX_REPORTS, MAX_RUN_PATH, Home, default_path
from tunnel.state.peers import VERSION

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")


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

    monkeypatch.setattr(os, "fsync", full)
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


def test_reports_of_faults_fill_a_file_of_so_many_bytes_which_then_begins_anew(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for _ in range(3):
        path = Path(home.keep_report("x" * (MAX_REPORTS // 2 - 1)))
    assert path.stat().st_size == MAX_REPORTS // 2
    home.keep_report("y" * (MAX_REPORTS // 2 - 1))
    assert path.stat().st_size == MAX_REPORTS
    home.keep_report("z")
    assert path.read_text(encoding="ascii") == "z\n"


@posix
def test_root_who_looks_at_somebodys_home_makes_nothing_there_that_its_owner_cannot_use(home: Home) -> None:
    """`sudo PTUNNEL_HOME=... ptunnel status` of a service that has not begun: it would have no control socket afterwards."""
    home.path.mkdir(mode=0o700, parents=True)
    somebody = 65_534
    try:
        os.chown(home.path, somebody, -1)
    except OSError:
        pytest.skip("only root of a whole system can give files away")
    assert home.run_dir().stat().st_uid == somebody
    assert home.run_dir() == home.path / "run"  # and what is there already may be used
    os.chown(home.path / "run", somebody - 1, -1)
    with pytest.raises(StateError, match="belongs to somebody else"):
        home.run_dir()
