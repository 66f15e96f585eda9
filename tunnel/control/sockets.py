"""Where control sockets lie, who may speak on them, and how a line is read."""

from __future__ import annotations

import os
import re
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from tunnel.errors import MalformedPacket

LONGEST_PATH: Final = 100  # bytes; sun_path holds 108 on Linux, 104 on macOS (unix(7))
_NAME = re.compile(r"([0-9]{1,10})\.sock\Z")


def has_control_sockets() -> bool:
    """False on Windows, where CPython has no UNIX sockets."""
    return hasattr(socket, "AF_UNIX")


def socket_path(run_dir: Path, pid: int) -> Path:
    return run_dir / f"{pid}.sock"


def listed(run_dir: Path) -> list[int]:
    """The pids that have a socket there, dead ones too."""
    try:
        names = os.listdir(run_dir)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.match(name)))


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A spelling of `path` that fits a socket address: on Linux a long one goes through a descriptor of its directory."""
    text = str(path)
    if len(os.fsencode(text)) <= LONGEST_PATH or not os.path.isdir("/proc/self/fd"):
        yield text
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path) -> socket.socket:
    """A connection to the process behind `path`.  Raises OSError: ConnectionRefusedError when nobody listens any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with short_path(path) as spelling:
            sock.connect(spelling)
    except BaseException:
        sock.close()
        raise
    return sock


def sweep(run_dir: Path) -> list[int]:
    """Remove the sockets on which nobody listens; the pids that remain.

    A socket appears under its name only once it listens, so a refusal means that its process is gone, even where another
    one has the same pid now.
    """
    alive = []
    for pid in listed(run_dir):
        path = socket_path(run_dir, pid)
        try:
            connect(path).close()
        except ConnectionRefusedError:
            with suppress(OSError):  # a read-only file system
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError:
            alive.append(pid)  # busy, or not ours: it is there
        else:
            alive.append(pid)
    return alive


def leave(run_dir: Path) -> None:
    """Take a directory away that stands among the temporary files, unless another process has its socket there."""
    with suppress(OSError):
        if run_dir.parent == Path(tempfile.gettempdir()):
            run_dir.rmdir()


def is_ours(sock: socket.socket) -> bool:
    """Whether the process at the other end runs as us or as root.  Where the kernel does not tell, mode 0600 has decided."""
    return _peer_uid(sock) in (None, 0, os.geteuid())


def may_ask(sock: socket.socket, run_dir: Path) -> bool:
    """The same for who asks: root may ask the process of whoever owns `run_dir`, as of a service."""
    return is_ours(sock) or (os.geteuid() == 0 and _peer_uid(sock) == run_dir.stat().st_uid)


def _peer_uid(sock: socket.socket) -> int | None:
    """The user at the other end; None where the kernel does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


class Lines:
    """Lines from a stream, each of at most `limit` bytes."""

    def __init__(self, stream: trio.abc.ReceiveStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._data = bytearray()

    async def next(self) -> bytes | None:
        """Without its newline; None at the end.  Raises MalformedPacket for a line that is too long or torn off."""
        searched = 0
        while (end := self._data.find(b"\n", searched)) < 0:
            searched = len(self._data)
            if searched > self._limit:
                raise MalformedPacket(f"a line of more than {self._limit} bytes")
            chunk = await self._stream.receive_some()
            if not chunk:
                if searched:
                    raise MalformedPacket("the last line was torn off")
                return None
            self._data += chunk
        if end > self._limit:
            raise MalformedPacket(f"a line of more than {self._limit} bytes")
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line
