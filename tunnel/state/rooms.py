"""Rooms that are kept: one file each in `rooms` of PTUNNEL_HOME, and a lock so that no two processes are the same member.

What a room is made of is checked by whoever uses it (its parts are signed); here only sizes and names.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tunnel.errors import AlreadyRunningError, ConfigurationError, StateError
from tunnel.state.documents import (
    BadContent,
    Document,
    damaged,
    encode_bytes,
    field_bytes,
    field_number,
    field_text,
    read_document,
    write_document,
)
from tunnel.state.files import FileLock, explain, is_incapable, make_private_directory
from tunnel.state.home import Home

KIND: Final = "room"
#: Format of a room's file; one with a larger version is left alone.
VERSION: Final = 1
#: Bytes of every key in it.
KEY_SIZE: Final = 32
#: Bytes of a signed roster at most.
MAX_ROSTER: Final = 4096
#: Members of a room, and numbers that it has given away.
MAX_KEYS: Final = 256
#: Files of rooms that are looked at.
MAX_ROOMS: Final = 1_000

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_FIELDS: Final = frozenset((
    "name", "member_name", "room", "private_key", "secret", "epoch", "roster", "psks", "former", "highest", "server", "saved_at",
))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRoom:
    """One room.  `name` is a label of [a-z0-9-]; `private_key` is the creator's; `roster` is signed; `psks` and `former` are by
    static key.  `server` is the host:port to meet at; `saved_at` is a Unix time."""

    name: str
    member_name: str
    room: bytes
    private_key: bytes | None = field(repr=False)
    secret: bytes = field(repr=False)
    epoch: int
    roster: bytes
    psks: Mapping[bytes, bytes] = field(repr=False)
    former: tuple[tuple[bytes, int], ...] = ()
    highest: int = 1
    server: str
    saved_at: float = 0.0

    @property
    def is_creator(self) -> bool:
        return self.private_key is not None


def is_room_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def encode_room(room: SavedRoom) -> Document:
    return {
        "name": room.name,
        "member_name": room.member_name,
        "room": encode_bytes(room.room),
        "private_key": None if room.private_key is None else encode_bytes(room.private_key),
        "secret": encode_bytes(room.secret),
        "epoch": room.epoch,
        "roster": encode_bytes(room.roster),
        "psks": {static.hex(): encode_bytes(psk) for static, psk in room.psks.items()},
        "former": [[static.hex(), number] for static, number in room.former],
        "highest": room.highest,
        "server": room.server,
        "saved_at": room.saved_at,
    }


def decode_room(content: Document) -> SavedRoom:
    """Raises BadContent."""
    psks, former = content.get("psks"), content.get("former")
    if content.keys() != _FIELDS or not isinstance(psks, dict) or not isinstance(former, list):
        raise BadContent("fields")
    if len(psks) > MAX_KEYS or len(former) > MAX_KEYS or not is_room_name(field_text(content, "name")):
        raise BadContent("name or sizes")
    numbers = []
    for pair in former:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[1]) is not int or not 1 <= pair[1] <= 254:
            raise BadContent("former")
        numbers.append((_static(pair[0]), pair[1]))
    highest, epoch, roster = content["highest"], content["epoch"], content["roster"]
    if type(highest) is not int or not 1 <= highest <= 254 or type(epoch) is not int or epoch < 1:
        raise BadContent("highest or epoch")
    if not isinstance(roster, str) or not len(roster) <= 2 * MAX_ROSTER:
        raise BadContent("roster")
    return SavedRoom(
        name=content["name"],
        member_name=field_text(content, "member_name"),
        room=field_bytes(content, "room", KEY_SIZE),
        private_key=None if content["private_key"] is None else field_bytes(content, "private_key", KEY_SIZE),
        secret=field_bytes(content, "secret", KEY_SIZE),
        epoch=epoch,
        roster=field_bytes(content, "roster", len(roster) // 4 * 3 - roster.count("=")),
        psks={_static(static): field_bytes(psks, static, KEY_SIZE) for static in psks},
        former=tuple(numbers),
        highest=highest,
        server=field_text(content, "server"),
        saved_at=field_number(content, "saved_at"),
    )


def _static(text: Any) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_SIZE}}}", text):
        raise BadContent("a static key")
    return bytes.fromhex(text)


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
        path = self._path(name)
        content = read_document(path, KIND, VERSION)
        if content is None:
            return None
        try:
            room = decode_room(content)
        except BadContent:
            raise damaged(path) from None
        if room.name != name:
            raise damaged(path)
        return room

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
            folder = self._home.spare_dir()
        return RoomLock(folder / f"{room[:16].hex()}.lock", self._home.spare_dir)

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
