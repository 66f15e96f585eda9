"""Forwards that lead to themselves: `expose 8080` and `--forward 8080` on one machine, where nothing else listens.

The exposer's connection to its own port is then accepted by the forward, which opens a stream for it, for which the exposer
connects, and so on.  The opener names the local program's connection by a mark, and the exposer knows its own marks.  It is the
same with Unix sockets.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Final

MARK_SIZE: Final = 7  # bytes; 0 means no mark
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_CREDENTIALS: Final = struct.Struct("=3i")  # struct ucred: unix(7)
_NETWORK: Final = "/proc/self/ns/net"  # namespaces(7)


@lru_cache(maxsize=1)
def _machine() -> bytes:
    """Something that two machines do not share, nor two containers of one, whose addresses and ports are not the same ones.

    It does not leave this process but as a part of a digest.
    """
    try:
        return b"%s %d" % (_BOOT_ID.read_bytes().strip(), os.stat(_NETWORK).st_ino)
    except OSError:
        return socket.gethostname().encode("utf-8", "replace")


def mark_of(begins: tuple[str, int], leads_to: tuple[str, int]) -> int:
    """The mark of a connection on this machine: both ends, as one port may be used towards several others."""
    text = " ".join(f"{host} {port}" for host, port, *_ in (begins, leads_to))
    digest = hashlib.blake2b(text.encode(), digest_size=MARK_SIZE, key=_machine()[:64]).digest()
    return int.from_bytes(digest, "big") or 1


def mark_of_accepted(sock: socket.socket) -> int:
    """The mark of a connection that a local program has made to us; 0 where the system does not tell."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return mark_of(sock.getpeername(), sock.getsockname())
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    pid, _uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return mark_of(("", pid), _end_at(sock.getsockname()))


def _end_at(path: str) -> tuple[str, int]:
    """The listening end of a connection to a Unix socket.  The other end has no name, and is known by its process."""
    return os.path.realpath(path), 0


class OwnConnections:
    """The ends of those connections that this process makes for its peers."""

    def __init__(self) -> None:
        self._marks: Counter[int] = Counter()  # all connections to one Unix socket have the same
        self._of: dict[socket.socket, int] = {}

    def __contains__(self, mark: int) -> bool:
        return self._marks[mark] > 0

    def note(self, sock: socket.socket, leads_to: tuple[str, int]) -> None:
        """From when it begins to connect; whoever closes it has to `forget` it."""
        self._note(sock, mark_of(sock.getsockname(), leads_to))

    def note_path(self, sock: socket.socket, path: str) -> None:
        """The same of a connection to a Unix socket."""
        self._note(sock, mark_of(("", os.getpid()), _end_at(path)))

    def _note(self, sock: socket.socket, mark: int) -> None:
        self._marks[mark] += 1
        self._of[sock] = mark

    def forget(self, sock: socket.socket) -> None:
        """By the socket, as one that was reset does not tell any more where it led."""
        mark = self._of.pop(sock, 0)
        self._marks[mark] -= 1
        if self._marks[mark] <= 0:
            del self._marks[mark]


#: Of all links of the process.
OWN: Final = OwnConnections()
