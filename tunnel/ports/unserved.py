"""Local connections between two links: those that an earlier link has left as they came."""

from __future__ import annotations

import socket
from collections.abc import Callable


class Unserved:
    """Accepted connections that a link has taken nothing of and brought nothing for: the next link has them first."""

    def __init__(self, end: Callable[[socket.socket], None]) -> None:
        """`end` closes one that no link will have."""
        self._end = end
        self._sockets: list[socket.socket] = []
        self._is_over = False

    def keep(self, sock: socket.socket) -> bool:
        """False when there will be no other link."""
        if not self._is_over:
            self._sockets.append(sock)
        return not self._is_over

    def take(self) -> list[socket.socket]:
        taken, self._sockets = self._sockets, []
        return taken

    def close(self) -> None:
        self._is_over = True
        for sock in self.take():
            self._end(sock)
