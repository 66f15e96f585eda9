"""Random bytes for who needs a few at a time and often: a server draws eight or sixteen for each push, token and channel."""

from __future__ import annotations

import os
from typing import Final

AT_ONCE: Final = 4_096  # bytes that the system is asked for; a call for eight of them costs what one for a hundred does


class Chance:
    """os.urandom, asked for many bytes at once.  Each byte is given once.  Not for a process that forks and goes on in both."""

    __slots__ = ("_at", "_drawn")

    def __init__(self) -> None:
        self._drawn = b""
        self._at = 0

    def __call__(self, size: int) -> bytes:
        at, end = self._at, self._at + size
        if end > len(self._drawn):
            if size > AT_ONCE:
                return os.urandom(size)
            self._drawn = os.urandom(AT_ONCE)
            at, end = 0, size
        self._at = end
        return self._drawn[at:end]
