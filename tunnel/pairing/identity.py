"""Identities of peers: static keys, fingerprints, names, and the meeting points of two peers who know each other."""

from __future__ import annotations

import base64
import hashlib
import hmac
import unicodedata
from typing import Final

from tunnel.core.hkdf import hkdf
from tunnel.pairing.code import looks_like_code

MAX_NAME_BYTES: Final = 64  # of UTF-8
ROOM_ID_SIZE: Final = 16  # bytes
DAY: Final = 86_400  # seconds
LAST_DAY: Final = 2**32 - 2  # that has a room, and a tomorrow that has one


def fingerprint(static_public: bytes) -> str:
    """Return the text that two people compare: 160 bits of SHA-256 in base 32, in groups of four."""
    digest = hashlib.sha256(static_public).digest()[:20]
    text = base64.b32encode(digest).decode().lower()
    return "SHA256:" + "-".join(text[start : start + 4] for start in range(0, len(text), 4))


def sanitise_name(text: str) -> str:
    """A name that is safe to print, to store and to send: no control or direction characters, at most 64 bytes.

    It never looks like a code or an option, and is never empty.  Sanitising twice changes nothing more.
    """
    kept = []
    for letter in unicodedata.normalize("NFC", text[:1024]):
        category = unicodedata.category(letter)
        if category.startswith("Z") or letter in "\t\n\r\v\f":
            kept.append(" ")
        elif not category.startswith("C"):  # control, format, surrogate, private use, unassigned
            kept.append(letter)
    name = _cut(unicodedata.normalize("NFC", " ".join("".join(kept).split()).lstrip("- ")))
    if looks_like_code(name):
        name = _cut(f"peer {name}")
    return name or "peer"


def _cut(name: str) -> str:
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip()


def machine_number(static_private: bytes, machine_id: bytes, size: int) -> bytes:
    """Return the machine's number for peers: the same for all processes of one identity there, and useless to link others.

    Empty where nothing tells it from other machines.
    """
    if not machine_id:
        return b""
    return hmac.digest(static_private, b"ptunnel 1 machine" + machine_id, "sha256")[:size]


def twin_psk(static_private: bytes) -> bytes:
    """Return the psk that all holders of this private key share, and nobody else has."""
    return hmac.digest(static_private, b"ptunnel 1 twin", "sha256")


def room_id(psk: bytes, day: int) -> bytes:
    """The room at the rendezvous server where the holders of `psk` meet on that day (UTC, since 1970).

    HKDF-SHA256, RFC 5869, without salt, info = "ptunnel 1 room" and the day in 32 bits; the first 16 bytes.
    """
    return hkdf(psk, b"ptunnel 1 room" + day.to_bytes(4, "big"), size=ROOM_ID_SIZE)


def days_around(unix_time: float) -> tuple[int, int, int]:
    """Yesterday, today and tomorrow: two clocks may differ by a day and still meet."""
    today = min(max(1, int(unix_time // DAY)), LAST_DAY)
    return today - 1, today, today + 1


def meeting_days(own: float, server: float | None) -> tuple[int, ...]:
    """The days whose rooms a pair may meet in, the likeliest first, by our own calendar and by the server's (Unix times).

    The server's counts where it tells one: it is the same for both sides, whatever their own say.  Today by our own stays one
    of them, for a server whose calendar is wrong and a peer that goes by its own.
    """
    yesterday, today, tomorrow = days_around(own if server is None else server)
    return tuple(dict.fromkeys((today, tomorrow, yesterday, days_around(own)[1])))
