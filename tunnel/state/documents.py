"""The shape of every file that ptunnel writes for itself: JSON with a version, and a checksum over what it says.

A file that a person damaged, truncated or edited is refused as a whole, so a wrong key is never used and nothing is lost
by writing over it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from tunnel.errors import StateError
from tunnel.state.files import read_private, write_private
from tunnel.units import KEY_SIZE, Hex

Document = dict[str, Any]
T = TypeVar("T")

#: Seconds; no time stamp of ours comes near it, and every smaller integer is a float too.
MAX_NUMBER: Final = 1e15

Key = Annotated[bytes, Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]
Time = Annotated[float, Meta(gt=-MAX_NUMBER, lt=MAX_NUMBER)]


class BadContent(ValueError):
    """A value that does not belong where it stands; becomes a StateError that names the file."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a file.  Bytes are base64 there, Hex hexadecimal; fields that we do not know are passed over."""

    def __repr__(self) -> str:
        """Without the keys."""
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        shown = ", ".join(f"{name}={value!r}" for name, value in fields if isinstance(value, str | int | float))
        return f"{type(self).__name__}({shown})"


def read_document(path: Path, kind: str, version: int, decode: Callable[[Document], T]) -> T | None:
    """The content as `decode` reads it (it may raise BadContent), or None when there is no such file.

    Raises StateError for anything but what write_document wrote.
    """
    data = read_private(path)
    if data is None:
        return None
    try:
        return decode(_decode(data, kind, version))
    except _TooNew as newer:
        raise StateError(
            f"{path} was written by a newer ptunnel (format {newer}; this one knows {version}): upgrade ptunnel."
        ) from None
    except (ValueError, RecursionError, OverflowError):
        raise StateError(f"{path} is damaged or was edited by hand: restore it from a backup or move it away.") from None


def write_document(path: Path, kind: str, version: int, content: Document) -> None:
    """Replace the file.  The caller holds the lock, and has read what it replaces.  Raises StateError."""
    document = {"ptunnel": kind, "version": version, "checksum": _checksum(kind, version, content), "content": content}
    write_private(path, json.dumps(document, indent=1, ensure_ascii=True).encode("ascii") + b"\n")


class _TooNew(Exception):
    """Carries the version."""


class _Envelope(msgspec.Struct):
    """The frame around the content, in any version."""

    ptunnel: str
    version: Annotated[int, Meta(ge=1)]
    checksum: Any = None
    content: Any = None


def _decode(data: bytes, kind: str, version: int) -> Document:
    try:
        found = msgspec.json.decode(data, type=_Envelope)
    except msgspec.MsgspecError as error:
        raise BadContent(str(error)) from None
    if found.ptunnel != kind:
        raise BadContent("not such a file")
    if found.version > version:
        raise _TooNew(found.version)
    if not isinstance(found.content, dict) or found.checksum != _checksum(kind, found.version, found.content):
        raise BadContent("checksum")
    return found.content


def _checksum(kind: str, version: int, content: Document) -> str:
    """Over the meaning, not the bytes: white space and order of keys may change.  It finds accidents, not forgers."""
    canonical = json.dumps([kind, version, content], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# -- records


def encode_record(record: msgspec.Struct) -> Document:
    return msgspec.to_builtins(record, enc_hook=_to_text)  # type: ignore[no-any-return]


def decode_record(content: Any, kind: type[T]) -> T:
    """Raises BadContent."""
    try:
        return msgspec.convert(content, kind, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        raise BadContent(str(error)) from None


def _to_text(value: Any) -> str:
    if isinstance(value, Hex):
        return value.hex()
    raise NotImplementedError(type(value))


def _from_text(kind: type, value: Any) -> Hex:
    if kind is not Hex or not isinstance(value, str):
        raise ValueError("not hexadecimal digits")
    return Hex(bytes.fromhex(value))


def require_host(host: str) -> None:
    """`host` has to be an IP address as it is usually written.  Raises BadContent."""
    try:
        canonical = str(ipaddress.ip_address(host))
    except ValueError:
        raise BadContent("host") from None
    if canonical != host:
        raise BadContent("host")


def require_printable(*texts: str | None) -> None:
    """Raises BadContent."""
    if not all(text is None or text.isprintable() for text in texts):
        raise BadContent("text that cannot be printed")
