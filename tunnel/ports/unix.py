"""Unix sockets at either end of a forward: one that is made here for local programs, and connections to one that is exposed.

What is made belongs to its owner alone, and is gone when the forward ends.  A socket that nobody listens on any more is replaced;
one that somebody listens on, or a file, is not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Final

import trio

from tunnel.errors import ConfigurationError
from tunnel.ports.loops import OWN

OWNER_ONLY: Final = 0o600  # mode of a socket: unix(7) asks for write permission to connect
BUSY_PAUSE: Final = 0.05  # seconds before the next try at a socket whose queue is full (EAGAIN of connect(2))


class UnixListener(socket.socket):
    """A listening socket that takes its path away when it is closed, unless somebody else has put another one there."""

    _made: tuple[int, int] | None = None  # device and inode

    def listen_at(self, path: str, backlog: int) -> None:
        """Raises OSError."""
        self.bind(path)
        found = os.stat(path)
        self._made = (found.st_dev, found.st_ino)
        os.chmod(path, OWNER_ONLY)  # before it listens: until then nobody can connect
        self.listen(backlog)

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            path = self.getsockname()
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == made:
                    os.unlink(path)
        super().close()


def open_unix_listener(path: str, backlog: int) -> socket.socket:
    """Raises ConfigurationError with one sentence."""
    family = _family()
    _replace_stale(path)
    sock = UnixListener(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.listen_at(path, backlog)
    except OSError as error:
        sock.close()
        raise ConfigurationError(_explain(path, error)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_unix(path: str) -> socket.socket:
    """A connected, non-blocking socket; its mark is noted.  Raises OSError.  The caller bounds the time."""
    sock = socket.socket(_family(), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        OWN.note_path(sock, path)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await trio.sleep(BUSY_PAUSE)
                continue
            await trio.lowlevel.checkpoint()
            return sock
    except BaseException:
        OWN.forget(sock)
        sock.close()
        raise


def listens_at(path: str) -> bool:
    """Whether there is a socket at all; whether a program answers is seen when one connects."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def say_of(path: str, error: OSError) -> str:
    """Return the sentence for the exposer of a socket that could not be reached; "" if only the peer is told."""
    match error.errno:
        case errno.ECONNREFUSED | errno.ENOENT | errno.ENOTDIR:
            return f"nothing listens at {path}."
        case errno.EACCES | errno.EPERM:
            return f"this user may not open {path}: give it write permission, or run ptunnel as the user of that program."
        case errno.EPROTOTYPE:
            return f"{path} is no stream socket."
        case _:
            return ""


def _family() -> int:
    """Raises ConfigurationError."""
    family: int | None = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise ConfigurationError("This system has no Unix sockets: use a port.")
    return family


def _replace_stale(path: str) -> None:
    """Raises ConfigurationError where something stands there that is not to be taken away."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(_explain(path, error)) from None
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} is no socket but a file, and is left alone: choose another path.")
    with socket.socket(_family(), socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except OSError as error:
            if not isinstance(error, BlockingIOError) and error.errno != errno.EPROTOTYPE:
                raise ConfigurationError(_explain(path, error)) from None
            raise ConfigurationError(_taken(path)) from None
        else:
            raise ConfigurationError(_taken(path))
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigurationError(_explain(path, error)) from None


def _taken(path: str) -> str:
    return f"Another program listens at {path}: choose another path."


def _explain(path: str, error: OSError) -> str:
    folder = os.path.dirname(path) or "/"
    match error.errno:
        case errno.EADDRINUSE:
            return _taken(path)
        case errno.ENOENT | errno.ENOTDIR:
            return f"There is no folder {folder} for the socket {path}: make it, or choose another path."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"This user may not make or replace the socket {path}: choose another path."
        case _:
            return f"Cannot listen at {path}: {error.strerror or error}."
