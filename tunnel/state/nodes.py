"""Nodes of the DHT that have answered: where the next start begins, also when those that everybody begins at are gone.

An entry is a question that will be asked, and no more: one that is old or was put there by somebody costs a datagram.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tunnel.state.documents import Document, Record, Time, decode_record, encode_record, require_host
from tunnel.units import Address

KIND: Final = "nodes"
VERSION: Final = 1
MAX_NODES: Final = 32  # of each address family; those that have answered last
NODE_LIFETIME: Final = 90 * 86_400  # seconds since a node has answered, before it is left out


class KnownNode(Record, frozen=True, kw_only=True):
    """One node.  `answered` is a Unix time."""

    host: str
    port: Annotated[int, Meta(ge=1, le=65_535)]
    answered: Time

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)


class _File(msgspec.Struct):
    nodes: Annotated[list[KnownNode], Meta(max_length=2 * MAX_NODES)]


def encode_nodes(nodes: Iterable[KnownNode]) -> Document:
    return encode_record(_File(list(nodes)))


def decode_nodes(content: Document) -> list[KnownNode]:
    """Raises BadContent."""
    nodes = decode_record(content, _File).nodes
    for node in nodes:
        require_host(node.host)
    return nodes


def merge(known: Iterable[KnownNode], fresh: Iterable[Address], now: float) -> list[KnownNode]:
    """The newest of each family, without those that are too old or of a time to come; `fresh` have answered now."""
    found = {node.address: node for node in known if now - NODE_LIFETIME < node.answered <= now}
    found.update((each, KnownNode(host=each.host, port=each.port, answered=now)) for each in fresh)
    newest = sorted(found.values(), key=lambda node: -node.answered)
    families = ([node for node in newest if node.address.is_ipv6 == is_ipv6] for is_ipv6 in (False, True))
    return [node for family in families for node in family[:MAX_NODES]]
