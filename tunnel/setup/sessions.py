"""The sessions of this process at servers, kept for the process that comes after it: see state/sessions.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from tunnel.disk import DiskThread
from tunnel.errors import StateError, TunnelError
from tunnel.host.machine import place_id
from tunnel.state.home import Home
from tunnel.state.sessions import SessionFile, Sessions

UNWRITTEN: Final = "kept from being written where we are registered"


class SessionKeeper:
    """A SessionMemory on top of a file.  Whatever goes wrong with it, servers are met without."""

    def __init__(self, home: Home, find: Callable[[bytes], SessionFile]) -> None:
        """`find(place)` is the file.  The caller holds the lock of those whose it is: whoever is named there has died."""
        file = self._file = find(place_id(home.path))
        self._disk = DiskThread()
        self._writers = trio.CapacityLimiter(1)  # of our own: a disk that hangs takes no thread from the lookups of names
        self._changed = trio.Event()
        self._sessions: Sessions = {}
        self._former: Sessions = {}
        with suppress(TunnelError, OSError, ValueError):
            self._former = self._disk.ask(file.read)
        self._sessions.update(self._former)

    def former(self, server: str) -> Sequence[bytes]:
        return self._former.get(server, ())

    def note(self, server: str, session: bytes) -> None:
        self._sessions[server] = (session, *self.former(server))
        self._changed.set()

    async def run(self) -> None:
        """Writes what is noted, in a thread, because a disk may be slow; until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            await trio.to_thread.run_sync(self._write, {**self._sessions}, limiter=self._writers, abandon_on_cancel=True)

    def _write(self, sessions: Sessions) -> None:
        with suppress(TunnelError, OSError):
            self._file.write(sessions)

    def close(self) -> None:
        """Goodbye has been said."""
        if self._sessions:
            with suppress(StateError):
                self._disk.ask(partial(_remove, self._file), also_late=True)


def _remove(file: SessionFile) -> None:
    with suppress(TunnelError, OSError):
        file.remove()
