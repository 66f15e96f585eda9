"""What is remembered of the ways to peers: from which network, what led there directly.  A cache, bounded."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tunnel.state.documents import BadContent, Document, encode_bytes, field_bytes, field_number, field_text

KIND: Final = "ways"
VERSION: Final = 1
MAX_WAYS: Final = 512  # ways of one home; those not used for longest go.  Some 300 bytes each
MAX_TECHNIQUE: Final = 32  # characters
KEY_SIZE: Final = 32  # bytes of a peer's static public key
NETWORK_SIZE: Final = 16  # bytes of a network's name, a digest

_FIELDS: Final = frozenset(("network", "static", "host", "port", "kind", "technique", "opened", "keepalive", "used"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One peer from one network.  `kind` is the number of a candidate's kind, `keepalive` in seconds, `used` a Unix time."""

    network: bytes
    static: bytes
    host: str
    port: int
    kind: int
    technique: str
    opened: bool
    keepalive: float
    used: float


def encode_ways(ways: Iterable[Way]) -> Document:
    return {
        "ways": [
            {
                "network": encode_bytes(way.network),
                "static": encode_bytes(way.static),
                "host": way.host,
                "port": way.port,
                "kind": way.kind,
                "technique": way.technique,
                "opened": way.opened,
                "keepalive": way.keepalive,
                "used": way.used,
            }
            for way in ways
        ]
    }


def decode_ways(content: Document) -> list[Way]:
    """Raises BadContent."""
    records = content.get("ways")
    if content.keys() != {"ways"} or not isinstance(records, list) or len(records) > MAX_WAYS:
        raise BadContent("ways")
    return [_decode_way(record) for record in records]


def _decode_way(record: Any) -> Way:
    if not isinstance(record, dict) or record.keys() != _FIELDS:
        raise BadContent("way")
    host, technique, opened = field_text(record, "host"), field_text(record, "technique"), record["opened"]
    try:
        canonical = str(ipaddress.ip_address(host))
    except ValueError:
        raise BadContent("host") from None
    if canonical != host or len(technique) > MAX_TECHNIQUE or not isinstance(opened, bool):
        raise BadContent("way")
    numbers = {name: field_number(record, name) for name in ("port", "kind", "keepalive", "used")}
    if not 0 < numbers["port"] <= 65_535 or not 0 <= numbers["kind"] <= 255 or not 0 <= numbers["keepalive"] <= 3_600:
        raise BadContent("number")
    return Way(
        network=field_bytes(record, "network", NETWORK_SIZE),
        static=field_bytes(record, "static", KEY_SIZE),
        host=host,
        port=int(numbers["port"]),
        kind=int(numbers["kind"]),
        technique=technique,
        opened=opened,
        keepalive=numbers["keepalive"],
        used=numbers["used"],
    )


def merge(ways: Iterable[Way], fresh: Iterable[Way], gone: Iterable[tuple[bytes, bytes]]) -> list[Way]:
    """`fresh` ones replace those of the same network and peer, `gone` (network, static) leave; the newest MAX_WAYS stay."""
    kept = {(way.network, way.static): way for way in ways}
    for key in gone:
        kept.pop(key, None)
    kept.update(((way.network, way.static), way) for way in fresh)
    return sorted(kept.values(), key=lambda way: -way.used)[:MAX_WAYS]
