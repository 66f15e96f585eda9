"""sessions.json: the sessions that the process which serves this home has at servers, for the one that comes after it.

A process that is killed says no goodbye.  The next one of the same home reads here what to say goodbye for.  A copy of the home
must not, on another machine or beside it: these sessions are somebody else's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from tunnel.errors import StateError
from tunnel.state.documents import BadContent, Document, Record, decode_record, encode_record, read_document, write_document
from tunnel.state.files import explain
from tunnel.units import Hex

KIND: Final = "sessions"
VERSION: Final = 1
MAX_FORMER: Final = 4  # sessions at one server that are remembered; a process that is killed at once leaves one each time
MAX_SERVERS: Final = 1_024  # whose sessions are remembered; beyond that a process that is killed stays there for a while
PLACE_SIZE: Final = 16  # bytes
SESSION_SIZE: Final = 16  # bytes, as the protocol has it

Sessions = dict[str, tuple[bytes, ...]]


class _Sessions(Record, frozen=True, kw_only=True):
    place: Hex  # of whom they are
    servers: Annotated[dict[str, Annotated[tuple[Hex, ...], Meta(max_length=MAX_FORMER)]], Meta(max_length=MAX_SERVERS)]
    """By server, the newest first."""


class SessionFile:
    """Written by whoever holds the lock of that role, and by nobody else."""

    def __init__(self, path: Path, place: bytes) -> None:
        """`place` tells this home, on this machine since its start, from others.  Where it is empty, nothing is kept."""
        self._path = path
        self._place = Hex(sha256(place).digest()[:PLACE_SIZE]) if place else Hex()

    def read(self) -> Sessions:
        """Those of former processes.  Raises StateError."""
        found = read_document(self._path, KIND, VERSION, _decode) if self._place else None
        if found is None or found.place != self._place:
            return {}
        return dict(found.servers)

    def write(self, sessions: Mapping[str, Sequence[bytes]]) -> None:
        """Raises StateError."""
        if self._place:
            newest = list(sessions.items())[-MAX_SERVERS:]
            servers = {server: tuple(map(Hex, each[:MAX_FORMER])) for server, each in newest}
            write_document(self._path, KIND, VERSION, encode_record(_Sessions(place=self._place, servers=servers)))

    def remove(self) -> None:
        """Goodbye was said for all of them.  Raises StateError."""
        try:
            with suppress(FileNotFoundError):
                self._path.unlink()
        except OSError as error:
            raise StateError(f"{self._path} cannot be removed: {explain(error)}.") from error


def _decode(content: Document) -> _Sessions:
    """Raises BadContent."""
    found = decode_record(content, _Sessions)
    if not all(len(each) == SESSION_SIZE for sessions in found.servers.values() for each in sessions):
        raise BadContent("session")
    return found
