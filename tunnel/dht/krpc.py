"""KRPC: the queries that we ask the nodes of the DHT, and what they answer.

Source: BEP 5 for the messages, BEP 32 for IPv6, BEP 42 for `ip` (where the node sees us), BEP 43 for `ro` (we answer no queries).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from tunnel.dht.bencode import Value, decode_value, encode_value
from tunnel.dht.ids import ID_SIZE
from tunnel.errors import MalformedPacket
from tunnel.units import Address, Buffer

FIRST_BYTE: Final = 0x64  # `d`: how each message begins, and nothing else of ours
MARKER_PORT: Final = 9  # of a peer whose router uses ports by chance, so that nobody need knock (the service `discard`)
MAX_TOKEN: Final = 64  # bytes that a node has us send back with an announcement; the common ones have 4 to 20
MAX_MESSAGE: Final = 4_096  # bytes; replies are mostly under 500, and of those with a node's whole table under 1,600
_HOST_SIZES: Final = {False: 4, True: 16}


class NodeInfo(NamedTuple):
    """A node as others tell of it."""

    id: bytes
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A node's answer.  `sees_us_at` is where our query came from in its eyes; not all tell."""

    transaction: bytes
    id: bytes
    nodes: tuple[NodeInfo, ...] = ()
    peers: tuple[Address, ...] = ()
    token: bytes = b""
    sees_us_at: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A node did not do what it was asked."""

    transaction: bytes
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A node asks us something, which a read-only node does not answer."""


def encode_find_node(transaction: bytes, own_id: bytes, target: bytes) -> bytes:
    """Which nodes are closest to `target`?"""
    return _encode(transaction, b"find_node", {b"id": own_id, b"target": target})


def encode_get_peers(transaction: bytes, own_id: bytes, info_hash: bytes, *, wants_nodes: bool) -> bytes:
    """Ask who was announced under `info_hash`, and with `wants_nodes` (BEP 32: `want`) which nodes are closest to it."""
    arguments: dict[bytes, Value] = {b"id": own_id, b"info_hash": info_hash}
    return _encode(transaction, b"get_peers", arguments if wants_nodes else arguments | {b"want": []})


def encode_announce(transaction: bytes, own_id: bytes, info_hash: bytes, token: bytes, port: int | None) -> bytes:
    """Keep our address and `port` under `info_hash`; None: the port that this question comes from (implied_port)."""
    arguments: dict[bytes, Value] = {b"id": own_id, b"info_hash": info_hash, b"token": token}
    arguments |= {b"implied_port": int(port is None), b"port": port or 1}
    return _encode(transaction, b"announce_peer", arguments)


def _encode(transaction: bytes, method: bytes, arguments: dict[bytes, Value]) -> bytes:
    return encode_value({b"t": transaction, b"y": b"q", b"q": method, b"a": arguments, b"ro": 1})


def decode_message(data: Buffer) -> Reply | Refusal | Question:
    """Raises MalformedPacket.  Keys that are not known are passed over."""
    if not 0 < len(data) <= MAX_MESSAGE or data[0] != FIRST_BYTE:
        raise MalformedPacket("KRPC: no dictionary, or longer than any answer is")
    message = decode_value(data)
    if not isinstance(message, dict):
        raise MalformedPacket("KRPC: no dictionary")
    kind, transaction = message.get(b"y"), message.get(b"t")
    if kind == b"q":
        return Question()
    if not isinstance(transaction, bytes):
        raise MalformedPacket("KRPC: no transaction")
    if kind == b"e":
        return Refusal(transaction=transaction, code=_code(message.get(b"e")))
    answer = message.get(b"r")
    if kind != b"r" or not isinstance(answer, dict):
        raise MalformedPacket("KRPC: neither question, answer nor refusal")
    node_id = answer.get(b"id")
    if not isinstance(node_id, bytes) or len(node_id) != ID_SIZE:
        raise MalformedPacket("KRPC: an answer without an id")
    nodes = (*_nodes(answer.get(b"nodes"), is_ipv6=False), *_nodes(answer.get(b"nodes6"), is_ipv6=True))
    return Reply(
        transaction=transaction,
        id=node_id,
        nodes=nodes,
        peers=_peers(answer.get(b"values")),
        token=_token(answer.get(b"token")),
        sees_us_at=_seen(message.get(b"ip")),
    )


def _code(value: Value | None) -> int:
    if isinstance(value, list) and value and isinstance(value[0], int):
        return value[0]
    raise MalformedPacket("KRPC: a refusal without a code")


def _nodes(value: Value | None, *, is_ipv6: bool) -> Sequence[NodeInfo]:
    if value is None:
        return ()
    size = ID_SIZE + _HOST_SIZES[is_ipv6] + 2
    if not isinstance(value, bytes) or len(value) % size:
        raise MalformedPacket("KRPC: no list of nodes")
    each = (value[at : at + size] for at in range(0, len(value), size))
    return [NodeInfo(item[:ID_SIZE], unpack_address(item[ID_SIZE:])) for item in each]


def _peers(value: Value | None) -> tuple[Address, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise MalformedPacket("KRPC: no list of peers")
    return tuple(unpack_address(each) for each in value if isinstance(each, bytes))


def _token(value: Value | None) -> bytes:
    """A longer one is none: we would send it back."""
    return value if isinstance(value, bytes) and len(value) <= MAX_TOKEN else b""


def _seen(value: Value | None) -> Address | None:
    """Some nodes write four bytes without a port there, or text: that is no view."""
    return unpack_address(value) if isinstance(value, bytes) and len(value) in (6, 18) else None


def unpack_address(packed: bytes) -> Address:
    """Compact form: an IPv4 or IPv6 address and a port.  Raises MalformedPacket."""
    if len(packed) not in (6, 18):
        raise MalformedPacket("KRPC: no address")
    host = ipaddress.ip_address(packed[:-2])
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return Address(str(mapped or host), int.from_bytes(packed[-2:], "big"))
