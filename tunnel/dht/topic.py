"""One infohash in one DHT: our address is kept there, and others who keep theirs there are found.

Whoever gave an address that is kept there is told ours at once: the other side looks at the same nodes.  Nodes drop
announcements silently, and forget them, so what they hold is read back, and announced again with a token that is fresh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
LOOK_AGAIN: Final = Seconds(10.0)  # between two whole lookups where too few nodes hold our address
ENOUGH_HOLDERS: Final = 4  # of the closest eight
POLLED: Final = 4  # of the holders, asked in turn at each poll
MAX_HOLDERS: Final = 2 * CLOSEST  # nodes that are asked and told; the one farthest goes


class _Holder:
    """A node that keeps addresses under the infohash."""

    __slots__ = (
        "announced_at",
        "asked_at",
        "attempts",
        "distance",
        "has_ours",
        "is_bound",
        "node",
        "silences",
        "token",
        "token_at",
    )

    def __init__(self, node: NodeInfo, info_hash: bytes) -> None:
        self.node = node
        self.distance = distance(node.id, info_hash)
        self.is_bound = is_bound(node.id, node.address.host)
        self.token = b""
        self.token_at: Instant | None = None
        self.announced_at: Instant | None = None
        self.asked_at: Instant | None = None
        self.attempts = 0
        self.has_ours = False
        self.silences = 0


class Topic:
    """Announces and polls until `close`."""

    def __init__(
        self, client: DhtClient, info_hash: bytes, now: Instant, *, found: Callable[[Instant, Address, str], None]
    ) -> None:
        """`found` hears of each address under the infohash that is not ours, and from whom, each time a node tells of it."""
        self.info_hash = info_hash
        self._client = client
        self._found = found
        self._holders: dict[Address, _Holder] = {}
        self._is_closed = False
        self._looked_at = now
        self._is_looking = False
        self._announced: Address | None = None  # what we have announced last, as far as it was known then
        self._look(now)

    @property
    def holders(self) -> int:
        """Nodes that have shown that they keep our address."""
        return sum(each.has_ours for each in self._holders.values())

    def close(self) -> None:
        self._is_closed = True

    def poll(self, now: Instant) -> None:
        """Ask those of the closest nodes whose turn it is who is there now; the caller chooses how often."""
        ours = self._ours()
        if self._announced is not None and ours is not None and ours != self._announced:
            self._announce_anew(now)  # the NAT has given us another port
        elif now >= self._looked_at + RENEW_INTERVAL or (self.holders < ENOUGH_HOLDERS and now >= self._looked_at + LOOK_AGAIN):
            self._look(now)
        turn = sorted(self._closest(), key=lambda each: -1.0 if each.asked_at is None else each.asked_at)
        for holder in turn[:POLLED]:
            holder.asked_at = now
            self._client.ask(now, holder.node, self, self._poll_question)

    # --- what nodes say; of polls and announcements

    def answered(self, now: Instant, node: NodeInfo, reply: Reply) -> None:
        if self._is_closed:
            return
        holder = self._holders.get(node.address)
        if holder is None:
            holder = self._holders[node.address] = _Holder(NodeInfo(reply.id, node.address), self.info_hash)
            while len(self._holders) > MAX_HOLDERS:
                del self._holders[self._far().node.address]
        holder.silences = 0
        if reply.token:
            holder.token, holder.token_at = reply.token, now
        ours = self._ours()
        if reply.token or reply.peers:  # an answer to an announcement has neither
            holder.has_ours = ours is not None and ours in reply.peers
        for peer in reply.peers:
            if peer != ours:
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
        if not self._is_closed:
            for holder in self._closest():
                self._announce(now, holder)

    # --- inside

    def _ours(self) -> Address | None:
        """Return the address to announce, as far as nodes have told where they see us."""
        views = self._client.views
        if views.seen is None or not views.varies:
            return views.seen
        return Address(views.seen.host, views.next_port or MARKER_PORT)

    def _look(self, now: Instant) -> None:
        if not self._is_looking:
            self._is_looking = True
            self._looked_at = now
            for holder in self._holders.values():
                holder.attempts = 0
            self._client.search(now, _TopicSearch(self._client, self, now))

    def _announce_anew(self, now: Instant) -> None:
        for holder in self._holders.values():
            holder.announced_at, holder.attempts, holder.has_ours = None, 0, False
        self._announced = self._ours()
        self._look(now)

    def _announce(self, now: Instant, holder: _Holder) -> None:
        """Unless it has what we would say, or was told a moment ago, or too often."""
        is_fresh = holder.token_at is not None and now < holder.token_at + TOKEN_LIFETIME
        at = holder.announced_at
        is_told = at is not None and now < at + (RENEW_INTERVAL if holder.has_ours else AGAIN_AFTER)
        if not is_fresh or is_told or holder.attempts >= MAX_AGAIN or holder not in self._closest():
            return
        holder.announced_at = now
        holder.attempts += 1
        if self._announced is None:
            self._announced = self._ours()
        self._client.ask(now, holder.node, self, lambda each: self._announcement(each, holder.token))

    def _announcement(self, transaction: bytes, token: bytes) -> bytes:
        ours = self._ours()
        port = ours.port if ours is not None and self._client.views.varies else None
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
