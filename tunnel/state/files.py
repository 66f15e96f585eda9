"""Files that many processes share: read whole, written whole under a lock, never half-written, never followed elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tunnel.errors import StateError
from tunnel.units import Seconds

#: Bytes of the largest state file; 10,000 peers need about half of it.
MAX_FILE_SIZE: Final = 8 << 20
#: How long another process may hold the lock; every holder needs milliseconds.
LOCK_PATIENCE: Final = Seconds(5.0)
LOCK_RETRY: Final = Seconds(0.01)

_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700
_BUSY: Final = frozenset((errno.EAGAIN, errno.EACCES, errno.EDEADLK))
#: What a file system says that may not be written to, or that has no locks, modes or sockets.
INCAPABLE: Final = frozenset(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EOPNOTSUPP),
     errno.ENOSYS)
)  # fmt: skip
_O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_O_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not hang


def explain(error: OSError) -> str:
    """The system's own words, without the number."""
    return os.strerror(error.errno) if error.errno else str(error)


def is_incapable(problem: StateError) -> bool:
    """Whether it is this place that cannot do what was asked, so that another one may serve for what is a convenience."""
    return isinstance(problem.__cause__, OSError) and problem.__cause__.errno in INCAPABLE


def make_private_directory(path: Path) -> None:
    """Make it with mode 0700, parents as usual.  One that exists is taken as it is, unless others own it or may write to it:
    whoever made it could have laid an identity or grants of his own into it.

    Raises StateError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=_PRIVATE_DIRECTORY)
        status = path.stat()
    except OSError as error:
        raise StateError(f"The directory {path} cannot be made: {explain(error)}.") from error
    if not stat.S_ISDIR(status.st_mode):
        raise StateError(f"{path} is not a directory: move it away or set PTUNNEL_HOME to another place.")
    if sys.platform != "win32" and os.geteuid() and status.st_uid not in (0, os.geteuid()):  # root may use anybody's
        raise StateError(f"{path} belongs to somebody else: set PTUNNEL_HOME to another place.")
    if sys.platform != "win32" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateError(f"Other users may write to {path}: run 'chmod go-w {path}' or set PTUNNEL_HOME to another place.")


def read_private(path: Path) -> bytes | None:
    """The whole file, or None when there is none.  A file of ours that others may read is closed to them.

    Raises StateError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _O_NONBLOCK | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} cannot be read: {explain(error)}.") from error
    try:
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StateError(f"{path} is not a regular file: move it away.")
            if sys.platform != "win32" and status.st_mode & 0o077 and status.st_uid == os.geteuid():
                with contextlib.suppress(OSError):  # a read-only file system
                    os.fchmod(descriptor, _PRIVATE_FILE)
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise StateError(f"{path} cannot be read: {explain(error)}.") from error
    if len(data) > MAX_FILE_SIZE:
        raise StateError(f"{path} is larger than any file ptunnel writes: restore it from a backup or move it away.")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Replace the file by one with this content, or leave it as it was.  The caller holds the directory's lock.

    Raises StateError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove_leftovers(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, _PRIVATE_FILE)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {explain(error)}.") from error


def append_private(path: Path, data: bytes, most: int) -> None:
    """Add to a file for people, which begins anew when it would hold more than `most` bytes.  Raises StateError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _O_NOFOLLOW | _O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
    try:
        with open(os.open(path, flags | getattr(os, "O_BINARY", 0), _PRIVATE_FILE), "ab") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StateError(f"{path} is not a regular file: move it away.")
            if status.st_size + len(data) > most:
                file.truncate(0)
            file.write(data)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {explain(error)}.") from error


def _remove_leftovers(path: Path) -> None:
    """Whoever holds the lock is the only writer, so any temporary file belongs to one that died."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _sync_directory(path: Path) -> None:
    """Make the rename itself last through a power cut; where directories cannot be synced there is nothing to do."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FileLock:
    """A lock that dies with its holder: flock, or the first byte locked on Windows.  The file itself stays for ever.

    Where its place cannot be written to or has no locks, `spare()` names the directory in which it lies instead.
    """

    def __init__(self, path: Path, spare: Callable[[], Path] | None = None) -> None:
        self.path = path
        self.trouble = ""  # a sentence, where there can be no lock at all and it counts as ours
        self._spare = spare
        self._descriptor = -1

    def try_acquire(self) -> bool:
        """False: somebody else holds it.  Raises StateError."""
        if self._descriptor >= 0:
            return False
        try:
            return self._try_here()
        except StateError as problem:
            if self._spare is None or not is_incapable(problem) or self._is_of_another(problem):
                raise
            place, self._spare = self._spare, None
            try:
                self.path = place() / self.path.name
                return self._try_here()
            except StateError:
                self.trouble = f"Whether another process of yours does the same cannot be told. {problem}"
                return True

    def _is_of_another(self, problem: StateError) -> bool:
        """It is there and may not be opened: whoever made it, such as root, holds it perhaps."""
        cause = problem.__cause__
        return isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM) and os.path.lexists(self.path)

    def _try_here(self) -> bool:
        try:
            flags = os.O_RDWR | os.O_CREAT | _O_NOFOLLOW | _O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
            descriptor = os.open(self.path, flags, _PRIVATE_FILE)
        except OSError as error:
            raise StateError(f"{self.path} cannot be opened: {explain(error)}.") from error
        try:
            _lock_descriptor(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _BUSY:
                return False
            raise StateError(f"{self.path} cannot be locked: {explain(error)}.") from error
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_note(self) -> str:
        """Return the holder's note about itself: at most 64 characters, for people."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            file.seek(_NOTE_AT)
            return file.read(64).decode("ascii", "replace").strip()
        return ""

    def write_note(self, text: str) -> None:
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, _NOTE_AT)
            os.lseek(self._descriptor, _NOTE_AT, os.SEEK_SET)
            os.write(self._descriptor, text.encode("ascii", "replace")[:64])

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


#: The note stands behind the byte that Windows locks.
_NOTE_AT: Final = 1


def _lock_descriptor(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def exclusive(path: Path, spare: Callable[[], Path] | None = None) -> Iterator[None]:
    """Hold the lock for a few milliseconds of writing.  Raises StateError when another holder does not let go."""
    lock = FileLock(path, spare)
    give_up_at = time.monotonic() + LOCK_PATIENCE
    while not lock.try_acquire():
        if time.monotonic() > give_up_at:
            raise StateError(f"Another program has held {path} for {LOCK_PATIENCE:.0f} s: end it and try again.")
        time.sleep(LOCK_RETRY)
    with lock:
        yield
