"""Rooms that are kept: one file each in `rooms` of PTUNNEL_HOME, and a lock so that no two processes are the same member.

What a room is made of is checked by whoever uses it (its parts are signed); here only sizes and names.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec.structs import asdict

from tunnel.errors import AlreadyRunningError, ConfigurationError, StateError
from tunnel.room.core.roster import RoomState
from tunnel.state.documents import (
    BadContent,
    Document,
    Time,
    decode_record,
    encode_record,
    read_document,
    require_printable,
    write_document,
)
from tunnel.state.files import FileLock, explain, is_incapable, make_private_directory
from tunnel.state.home import Home
from tunnel.state.sessions import SessionFile

KIND: Final = "room"
#: Format of a room's file; one with a larger version is left alone.
VERSION: Final = 1
#: Files of rooms that are looked at.
MAX_ROOMS: Final = 1_000

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class SavedRoom(RoomState, frozen=True, kw_only=True):
    """A room and where it is kept.  `name` is a label of [a-z0-9-], `server` the host:port to meet at, `saved_at` a Unix time."""

    name: str
    server: str
    saved_at: Time

    @classmethod
    def of(cls, state: RoomState, **where: Any) -> SavedRoom:
        """`where` are our own fields."""
        return cls(**{**asdict(state), **where})

    @property
    def is_creator(self) -> bool:
        return self.private_key is not None


def is_room_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def encode_room(room: SavedRoom) -> Document:
    return encode_record(room)


def decode_room(content: Document, name: str = "") -> SavedRoom:
    """`name`: whose file it is.  Raises BadContent."""
    room = decode_record(content, SavedRoom)
    require_printable(room.member_name, room.server)
    if not is_room_name(room.name) or room.name != (name or room.name):
        raise BadContent("name")
    return room


class Rooms:
    """The rooms of one home.  Nothing is made before something is written."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = home.path / "rooms"

    def names(self) -> list[str]:
        """Of all rooms that are kept.  Raises StateError."""
        try:
            found = [path.stem for path in self._folder.glob("*.json")]
        except OSError as error:
            raise StateError(f"{self._folder} cannot be read: {explain(error)}.") from error
        return sorted(name for name in found[:MAX_ROOMS] if is_room_name(name))

    def all(self) -> list[SavedRoom]:
        """By name.  Raises StateError."""
        return [room for room in (self.find(name) for name in self.names()) if room is not None]

    def find(self, name: str) -> SavedRoom | None:
        """Raises StateError."""
        if not is_room_name(name):
            return None
        return read_document(self._path(name), KIND, VERSION, partial(decode_room, name=name))

    def room(self, name: str) -> SavedRoom:
        """Raises ConfigurationError with the names there are, StateError."""
        found = self.find(name)
        if found is not None:
            return found
        names = ", ".join(self.names()[:10])
        known = f"kept are {names}" if names else "none is kept yet: --keep keeps one"
        raise ConfigurationError(f"No room called {name[:40]!r} is kept: {known}.")

    def save(self, room: SavedRoom) -> None:
        """Write it or write over it.  Raises StateError."""
        self._home.identity()  # a room without the identity that it knows would be worthless
        make_private_directory(self._folder)
        with self._home.exclusive():
            write_document(self._path(room.name), KIND, VERSION, encode_room(room))

    def forget(self, name: str) -> None:
        """Raises ConfigurationError when there is none, StateError.  One that is damaged goes as well."""
        path = self._path(name)
        try:
            if not is_room_name(name) or not path.exists():
                self.room(name)
            path.unlink()
        except OSError as error:
            raise StateError(f"{path} cannot be removed: {explain(error)}.") from error

    def free_name(self, wanted: str, room: bytes) -> str:
        """A name for the room with that key: the one that it is kept under, or `wanted`, with a number where that is taken."""
        name, number = wanted, 1
        while (known := self.find(name)) is not None and known.room != room:
            number += 1
            ending = f"-{number}"
            name = wanted[: 63 - len(ending)].rstrip("-") + ending
        return name

    def hold(self, room: bytes) -> RoomLock:
        """Be this member until released.  Raises AlreadyRunningError."""
        folder = self._folder
        try:
            make_private_directory(self._home.path)
            make_private_directory(folder)
        except StateError as problem:
            if not is_incapable(problem):
                raise
            folder = self._home.path  # where there can be no lock, as it will say
            with contextlib.suppress(StateError):
                folder = self._home.spare_dir()
        return RoomLock(folder / f"{room[:16].hex()}.lock", self._home.spare_dir)

    def sessions(self, room: bytes, place: bytes) -> SessionFile:
        """For whoever holds this room, at this place: see SessionFile."""
        return SessionFile(self._folder / f"{room[:16].hex()}.sessions.json", place)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


class RoomLock:
    """Held while a process is a member of a room; the file goes with it."""

    def __init__(self, path: Path, spare: Callable[[], Path]) -> None:
        self._lock = FileLock(path, spare)
        if not self._lock.try_acquire():
            holder = self._lock.read_note()
            which = f" (process {holder})" if holder else ""
            raise AlreadyRunningError(f"Another ptunnel of this home is in this room already{which}: stop it first.")
        self._lock.write_note(str(os.getpid()))

    @property
    def trouble(self) -> str:
        """A sentence, where there can be no lock."""
        return self._lock.trouble

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._lock.path.unlink()
        self._lock.release()
