"""One infohash in one DHT: our address is kept there, and others who keep theirs there are found.

Whoever gave an address that is kept there is told ours at once: the other side looks at the same nodes.  Nodes drop
announcements silently, and forget them, so what they hold is read back, and announced again with a token that is fresh.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from tunnel.dht import krpc
from tunnel.dht.client import DhtClient, Search
from tunnel.dht.ids import distance, is_bound
from tunnel.dht.krpc import MARKER_PORT, NodeInfo, Reply
from tunnel.dht.lookup import CLOSEST, choose
from tunnel.units import Address, Instant, Seconds

if TYPE_CHECKING:
    from collections.abc import Callable

RENEW_INTERVAL: Final = Seconds(900.0)  # between two whole lookups; nodes forget what is 30 to 45 minutes old
TOKEN_LIFETIME: Final = Seconds(240.0)  # of a node's token, which is good for 5 to 10 minutes
AGAIN_AFTER: Final = Seconds(5.0)  # before a node that holds nothing of ours is told once more ...
MAX_AGAIN: Final = 3  # ... so often
ANEW_AFTER: Final = Seconds(3.0)  # since the last whole lookup, before another address of ours is announced everywhere
LOOK_AGAIN: Final = Seconds(10.0)  # between two whole lookups where too few nodes hold our address
ENOUGH_HOLDERS: Final = 4  # of the closest eight
MAX_HOLDERS: Final = 2 * CLOSEST  # nodes that are asked and told; the one farthest goes


class _Holder:
    """A node that keeps addresses under the infohash."""

    __slots__ = (
        "asked_at",
        "distance",
        "is_bound",
        "kept",
        "node",
        "silences",
        "token",
        "token_at",
        "told",
    )

    def __init__(self, node: NodeInfo, info_hash: bytes) -> None:
        self.node = node
        self.distance = distance(node.id, info_hash)
        self.is_bound = is_bound(node.id, node.address.host)
        self.token = b""
        self.token_at: Instant | None = None
        self.asked_at: Instant | None = None
        self.told: dict[int | None, _Told] = {}  # by the port that was said
        self.kept: frozenset[Address] = frozenset()  # of ours, as it has shown
        self.silences = 0


class _Told:
    """An announcement to a node."""

    __slots__ = ("at", "attempts")

    def __init__(self) -> None:
        self.at: Instant | None = None
        self.attempts = 0


class Ours(NamedTuple):
    """An address to announce, and how: a port of None is the one that the announcement comes from."""

    address: Address | None  # None: no node has told yet where it sees us
    port: int | None


class Topic:
    """Announces and polls until `close`."""

    #: (now, address, host of the node that tells of it)
    Found: TypeAlias = "Callable[[Instant, Address, str], None]"

    def __init__(self, client: DhtClient, info_hash: bytes, now: Instant, *, found: Found) -> None:
        """`found` hears of each address under the infohash that is not ours, and from whom, each time a node tells of it."""
        self.info_hash = info_hash
        self._client = client
        self._found = found
        self._holders: dict[Address, _Holder] = {}
        self.is_closed = False
        self._looked_at = now
        self._is_looking = False
        self._announced: list[Ours] = []  # the last ones, as far as they were known then
        self._look(now)

    @property
    def holders(self) -> int:
        """Nodes that have shown that they keep all addresses of ours."""
        ours = {each.address for each in self._ours()}
        return sum(each.kept >= ours for each in self._holders.values())

    def close(self) -> None:
        self.is_closed = True

    def poll(self, now: Instant) -> None:
        """Ask the one of the closest nodes whose turn it is who is there now; the caller chooses how often."""
        if self._has_moved() and now >= self._looked_at + ANEW_AFTER:
            self._announce_anew(now)
        elif now >= self._looked_at + RENEW_INTERVAL or (self.holders < ENOUGH_HOLDERS and now >= self._looked_at + LOOK_AGAIN):
            self._look(now)
        holder = min(self._closest(), key=lambda each: -1.0 if each.asked_at is None else each.asked_at, default=None)
        if holder is not None:
            holder.asked_at = now
            self._client.ask(now, holder.node, self, self._poll_question)

    # --- what nodes say; of polls and announcements

    def answered(self, now: Instant, node: NodeInfo, reply: Reply) -> None:
        if self.is_closed:
            return
        holder = self._holders.get(node.address)
        if holder is None:
            holder = self._holders[node.address] = _Holder(NodeInfo(reply.id, node.address), self.info_hash)
            while len(self._holders) > MAX_HOLDERS:
                del self._holders[self._far().node.address]
        holder.silences = 0
        if reply.token:
            holder.token, holder.token_at = reply.token, now
        ours = {each.address for each in self._ours()}
        if reply.token or reply.peers:  # an answer to an announcement has neither
            holder.kept = frozenset(reply.peers) & ours
        for peer in reply.peers:
            if peer not in ours:
                self._found(now, peer, node.address.host)
        if reply.peers or not self._is_looking:
            self._announce(now, holder)

    def silent(self, now: Instant, node: NodeInfo) -> None:
        holder = self._holders.get(node.address)
        if holder is not None:
            holder.silences += 1
            if holder.silences > 2:
                del self._holders[node.address]

    def looked(self, now: Instant) -> None:
        """A lookup is over: whoever is closest is told."""
        self._is_looking = False
        if not self.is_closed:
            for holder in self._closest():
                self._announce(now, holder)

    # --- inside

    def _ours(self) -> list[Ours]:
        """Return what to announce, as far as nodes have told where they see us."""
        views, mapped = self._client.views, self._client.mapped
        seen = views.seen
        if seen is None:
            return [Ours(None, None)]
        if mapped is not None and mapped.host != seen.host:
            mapped = None  # of a router behind another one: an announcement is of the host that it comes from
        is_open = [] if mapped is None or mapped == seen else [Ours(mapped, mapped.port)]
        if not views.varies:
            return [Ours(seen, None), *is_open]
        return is_open or [Ours(Address(seen.host, port := views.next_port or MARKER_PORT), port)]

    def _look(self, now: Instant) -> None:
        if not self._is_looking:
            self._is_looking = True
            self._looked_at = now
            for holder in self._holders.values():
                for told in holder.told.values():
                    told.attempts = 0
            self._client.search(now, _TopicSearch(self._client, self, now))

    def _has_moved(self) -> bool:
        """The NAT has given us another port since we announced, or the router maps one."""
        before, ours = self._announced, self._ours()
        if not before or ours[0].address is None:
            return False
        if before[0].address is None:
            return [each.port for each in ours] != [None]
        return ours != before

    def _announce_anew(self, now: Instant) -> None:
        for holder in self._holders.values():
            holder.told.clear()
            holder.kept = frozenset()
        self._announced = self._ours()
        self._look(now)

    def _announce(self, now: Instant, holder: _Holder) -> None:
        """Unless it has what we would say, or was told a moment ago, or too often."""
        if holder.token_at is None or now >= holder.token_at + TOKEN_LIFETIME or holder not in self._closest():
            return
        ours = self._ours()
        for each in ours:
            told = holder.told.setdefault(each.port, _Told())
            pause = RENEW_INTERVAL if each.address in holder.kept else AGAIN_AFTER
            if told.attempts < MAX_AGAIN and (told.at is None or now >= told.at + pause):
                told.at = now
                told.attempts += 1
                self._client.ask(now, holder.node, self, partial(self._announcement, holder.token, each.port))
        if not self._announced or self._announced[0].address is None:
            self._announced = ours

    def _announcement(self, token: bytes, port: int | None, transaction: bytes) -> bytes:
        return krpc.encode_announce(transaction, self._client.id, self.info_hash, token, port)

    def _poll_question(self, transaction: bytes) -> bytes:
        return krpc.encode_get_peers(transaction, self._client.id, self.info_hash, wants_nodes=False)

    def _closest(self) -> list[_Holder]:
        return choose(sorted(self._holders.values(), key=lambda each: each.distance))

    def _far(self) -> _Holder:
        return max(self._holders.values(), key=lambda each: (not each.is_bound, each.distance))


class _TopicSearch(Search):
    """Finds the nodes closest to the infohash, and on the way who is known under it."""

    def __init__(self, client: DhtClient, topic: Topic, now: Instant) -> None:
        super().__init__(client, topic.info_hash, now)
        self._topic = topic

    def question(self, transaction: bytes) -> bytes:
        return krpc.encode_get_peers(transaction, self.client.id, self._topic.info_hash, wants_nodes=True)

    def answered(self, now: Instant, node: NodeInfo, reply: Reply) -> None:
        super().answered(now, node, reply)
        self._topic.answered(now, node, reply)

    def over(self, now: Instant) -> None:
        self._topic.looked(now)
