"""Homes on odd ground: what cannot be written to, or has no locks, sockets or modes, serves for what needs none of these."""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunnel.control.sockets import leave, short_path, sweep
from tunnel.errors import AlreadyRunningError, StateError
from tunnel.state import files
from tunnel.state.home import Home
from tunnel.state.peers import Peer
from tunnel.state.rooms import Rooms

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the errors are those of POSIX systems")


def failing(real: Callable[..., Any], number: int, where: Path) -> Callable[..., Any]:
    """`real`, but for what would be made or written below `where`."""

    opens = real is os.open

    def call(path: Any, *rest: Any, **more: Any) -> Any:
        flags = rest[0] if opens else os.O_RDWR
        if str(path).startswith(str(where)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *rest, **more)

    return call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """With an identity and a peer; the directory for temporary files is another one."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    home = Home(tmp_path / "home")
    home.save_peer(Peer(name="ben", static=bytes(31) + b"\1", psk=bytes(32), created=1.0))
    return home


@pytest.fixture
def read_only(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The same on a file system that can only be read."""
    monkeypatch.setattr(os, "open", failing(os.open, errno.EROFS, home.path))
    real_mkdir, real_access = Path.mkdir, os.access

    def mkdir(path: Path, *arguments: Any, **more: Any) -> None:
        if str(path).startswith(str(home.path)) and not path.exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        real_mkdir(path, *arguments, **more)

    def access(path: Any, mode: int) -> bool:
        return False if mode & os.W_OK and str(path).startswith(str(home.path)) else real_access(path, mode)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(os, "access", access)
    return home


def test_a_home_that_can_only_be_read_is_read_held_and_asked(read_only: Home) -> None:
    assert read_only.identity() == read_only.identity()
    assert [peer.name for peer in read_only.peers()] == ["ben"]
    lock = read_only.lock_expose()
    assert lock.trouble == ""
    with pytest.raises(AlreadyRunningError, match=rf"process {os.getpid()}"):
        Home(read_only.path).lock_expose()
    lock.release()
    read_only.lock_expose().release()
    assert read_only.run_dir() == read_only.spare_dir() == Home(read_only.path).run_dir()
    assert oct(read_only.run_dir().stat().st_mode)[-3:] == "700"
    held = Rooms(read_only).hold(b"room" * 8)
    with pytest.raises(AlreadyRunningError):
        Rooms(read_only).hold(b"room" * 8)
    held.release()


def test_what_would_have_to_be_written_there_says_so_in_one_sentence(read_only: Home) -> None:
    with pytest.raises(StateError, match=r"peers\.json cannot be written: Read-only file system\.$"):
        read_only.save_peer(Peer(name="cleo", static=bytes(31) + b"\2", psk=bytes(32), created=1.0))
    assert [peer.name for peer in read_only.peers()] == ["ben"]


def test_where_nothing_at_all_can_be_written_a_lock_is_no_condition(read_only: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(read_only.path / "temporary"))
    lock = read_only.lock_expose()
    assert lock.trouble.startswith("Whether another process of yours does the same cannot be told. ")
    assert lock.trouble.endswith("expose.lock cannot be opened: Read-only file system.")
    lock.release()
    with pytest.raises(StateError, match="Read-only file system"):
        read_only.run_dir()


def test_a_system_without_any_place_for_temporary_files_holds_up_nothing(
    read_only: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python looks for one that can be written to, and refuses where there is none: a container whose root is read-only."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setenv("TMPDIR", str(read_only.path / "temporary"))
    read_only.lock_expose().release()
    held = Rooms(read_only).hold(b"room" * 8)
    assert held.trouble.startswith("Whether another process of yours does the same cannot be told. ")
    held.release()
    with pytest.raises(StateError, match="Read-only file system"):
        read_only.run_dir()
    leave(read_only.path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_has_its_locks_elsewhere(home: Home, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = files._lock_descriptor

    def lock_descriptor(descriptor: int) -> None:
        if any(os.path.samestat(os.fstat(descriptor), path.stat()) for path in home.path.glob("*lock")):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(files, "_lock_descriptor", lock_descriptor)
    home.save_peer(Peer(name="cleo", static=bytes(31) + b"\2", psk=bytes(32), created=1.0))
    assert [peer.name for peer in home.peers()] == ["ben", "cleo"]
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.02)
    with home.exclusive(), pytest.raises(StateError, match="has held"):
        home.forget("cleo")
    with home.lock_expose(), pytest.raises(AlreadyRunningError):
        Home(home.path).lock_expose()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_sockets_has_them_elsewhere(home: Home, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Socket(socket.socket):
        def bind(self, address: Any, /) -> None:
            if str(address).startswith(str(home.path)):
                raise OSError(number, os.strerror(number))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Socket)
    assert home.run_dir() == home.spare_dir() == Home(home.path).run_dir()
    assert not (home.path / "run").exists()


def test_a_file_system_without_modes_has_its_sockets_elsewhere(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat: a directory is open to be read by others, and stays so."""
    (home.path / "run").mkdir(mode=0o755)
    monkeypatch.setattr(Path, "chmod", failing(Path.chmod, errno.EPERM, home.path))
    assert home.run_dir() == home.spare_dir()


def test_a_spare_directory_that_somebody_else_has_made_is_not_used(read_only: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only.spare_dir().rmdir()
    elsewhere = read_only.path.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(read_only.path.parent / "temporary"))
    spare = read_only.spare_dir()
    spare.rmdir()
    spare.symlink_to(elsewhere)
    with pytest.raises(StateError, match="belongs to somebody else"):
        read_only.spare_dir()
    monkeypatch.setattr(os, "open", failing(os.open, errno.EROFS, read_only.path))
    assert read_only.lock_expose().trouble != ""
    assert list(elsewhere.iterdir()) == []


def test_a_dead_socket_that_cannot_be_removed_is_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as sock, short_path(tmp_path / "4242.sock") as spelling:
        sock.bind(spelling)
    monkeypatch.setattr(Path, "unlink", failing(Path.unlink, errno.EROFS, tmp_path))
    assert sweep(tmp_path) == []
