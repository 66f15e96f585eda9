"""The shape of every file that ptunnel writes for itself: JSON with a version, and a checksum over what it says.

A file that a person damaged, truncated or edited is refused as a whole, so a wrong key is never used and nothing is lost
by writing over it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

from tunnel.errors import StateError
from tunnel.state.files import read_private, write_private

Document = dict[str, Any]

_KNOWN_KEYS: Final = frozenset(("ptunnel", "version", "checksum", "content"))
#: No time stamp of ours comes near it, and every smaller integer is a float too.
MAX_NUMBER: Final = 1e15

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class BadContent(ValueError):
    """A value that does not belong where it stands; becomes a StateError that names the file."""


def read_document(path: Path, kind: str, version: int) -> Document | None:
    """The content, or None when there is no such file.  Raises StateError for anything but what write_document wrote."""
    data = read_private(path)
    if data is None:
        return None
    try:
        return _decode(data, kind, version)
    except _TooNew as newer:
        raise StateError(
            f"{path} was written by a newer ptunnel (format {newer}; this one knows {version}): upgrade ptunnel."
        ) from None
    except (ValueError, RecursionError, OverflowError):
        raise damaged(path) from None


def write_document(path: Path, kind: str, version: int, content: Document) -> None:
    """Replace the file.  The caller holds the lock, and has read what it replaces.  Raises StateError."""
    document = {"ptunnel": kind, "version": version, "checksum": _checksum(kind, version, content), "content": content}
    write_private(path, json.dumps(document, indent=1, ensure_ascii=True).encode("ascii") + b"\n")


def damaged(path: Path) -> StateError:
    return StateError(f"{path} is damaged or was edited by hand: restore it from a backup or move it away.")


class _TooNew(Exception):
    """Carries the version."""


def _decode(data: bytes, kind: str, version: int) -> Document:
    document = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    if not isinstance(document, dict) or document.get("ptunnel") != kind:
        raise BadContent("not such a file")
    found = document.get("version")
    if type(found) is not int or found < 1:
        raise BadContent("no version")
    if found > version:
        raise _TooNew(found)
    content, checksum = document.get("content"), document.get("checksum")
    if document.keys() != _KNOWN_KEYS or not isinstance(content, dict):
        raise BadContent("unknown or missing fields")
    if not isinstance(checksum, str) or not _DIGEST.fullmatch(checksum) or checksum != _checksum(kind, found, content):
        raise BadContent("checksum")
    return content


def _refuse(constant: str) -> Any:
    raise BadContent(constant)


def _checksum(kind: str, version: int, content: Document) -> str:
    """Over the meaning, not the bytes: white space and order of keys may change.  It finds accidents, not forgers."""
    canonical = json.dumps([kind, version, content], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# -- fields


def encode_bytes(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def field_bytes(record: Document, name: str, size: int) -> bytes:
    """Raises BadContent."""
    try:
        data = base64.b64decode(field_text(record, name), validate=True)
    except ValueError:  # binascii.Error is one, and so is what text outside ASCII gives
        raise BadContent(name) from None
    if len(data) != size:
        raise BadContent(name)
    return data


def field_text(record: Document, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.isprintable():
        raise BadContent(name)
    return value


def field_number(record: Document, name: str) -> float:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        raise BadContent(name)
    return float(value)
