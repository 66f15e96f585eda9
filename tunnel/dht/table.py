"""The nodes that have answered us: where the next lookup begins.

They are few, and spread over all ids: one of a network, and of two that answer the older one stays (BEP 5).  A node that
others only tell of is in no table.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from tunnel.dht.ids import distance, network_of
from tunnel.dht.krpc import NodeInfo
from tunnel.dht.lookup import CLOSEST, IPV6_NETWORK_BITS, NETWORK_BITS

BUCKET: Final = 8  # nodes whose ids have the same first bits (BEP 5: K)
BUCKET_BITS: Final = 4  # first bits of an id that choose its bucket: sixteen buckets, where a lookup needs a place to begin
MAX_SILENCES: Final = 2  # questions in a row without an answer, and a node goes


class _Entry:
    __slots__ = ("node", "silences", "tells_our_address")

    def __init__(self, node: NodeInfo, tells_our_address: bool) -> None:
        self.node = node
        self.silences = 0
        self.tells_our_address = tells_our_address


class Table:
    """Of one address family."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}  # by network

    def __len__(self) -> int:
        return len(self._entries)

    def answered(self, node: NodeInfo, *, tells_our_address: bool = False) -> None:
        network = _network(node)
        known = self._entries.get(network)
        if known is not None and (known.node.address == node.address or known.silences):
            self._entries[network] = _Entry(node, tells_our_address)
        elif known is None:
            bucket = [each for each in self._entries.values() if _bucket(each.node) == _bucket(node)]
            failing = next((each for each in bucket if each.silences), None)
            if len(bucket) >= BUCKET and failing is None:
                return
            if len(bucket) >= BUCKET and failing is not None:
                del self._entries[_network(failing.node)]
            self._entries[network] = _Entry(node, tells_our_address)

    def silent(self, node: NodeInfo) -> None:
        network = _network(node)
        known = self._entries.get(network)
        if known is not None and known.node.address == node.address:
            known.silences += 1
            if known.silences >= MAX_SILENCES:
                del self._entries[network]

    def closest(self, target: bytes, count: int = 2 * CLOSEST) -> list[NodeInfo]:
        nodes = [each.node for each in self._entries.values()]
        return sorted(nodes, key=lambda each: distance(each.id, target))[:count]

    def best(self, count: int) -> list[NodeInfo]:
        """Return those to begin with another time: who says where it sees us first, and some of every part of all ids."""
        rank: Counter[tuple[bool, int]] = Counter()
        ranked: list[tuple[bool, int, NodeInfo]] = []
        for each in self._entries.values():
            if not each.silences:
                place = (not each.tells_our_address, _bucket(each.node))
                ranked.append((place[0], rank[place], each.node))
                rank[place] += 1
        return [node for *_, node in sorted(ranked, key=lambda each: each[:2])[:count]]


def _network(node: NodeInfo) -> int:
    return network_of(node.address.host, NETWORK_BITS, IPV6_NETWORK_BITS)


def _bucket(node: NodeInfo) -> int:
    return node.id[0] >> (8 - BUCKET_BITS)
