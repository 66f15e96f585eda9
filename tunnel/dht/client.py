"""One socket's part in the DHT, over IPv4 or IPv6, which are two separate networks of nodes (BEP 32).

It asks and is asked nothing: whoever is behind a NAT is no use to others as a node, and says so (BEP 43).  Sans IO.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median
from typing import Final, Protocol

from tunnel.core.scope import may_name
from tunnel.core.trace import Drops
from tunnel.dht import krpc
from tunnel.dht.ids import ID_SIZE, bound_id
from tunnel.dht.krpc import NodeInfo, Question, Refusal, Reply
from tunnel.dht.ledger import MIN_PORT, Ledger, is_target
from tunnel.dht.lookup import Lookup
from tunnel.dht.table import Table
from tunnel.dht.views import Views
from tunnel.errors import MalformedPacket
from tunnel.units import Address, Buffer, Instant, Seconds

FIRST_PATIENCE: Final = Seconds(0.5)  # for an answer, before a slot is given to another; once round trips are known ...
SHORTEST_PATIENCE: Final = Seconds(0.25)  # ... twice their median, within these
LONGEST_PATIENCE: Final = Seconds(1.0)
ANSWER_LIFETIME: Final = Seconds(5.0)  # a late answer counts for so long
MAX_SEARCHES: Final = 4  # lookups at a time; the others wait for their turn
ENTERED: Final = 8  # nodes that have answered, and no entry node is waited for any more
SAVED_AT_ONCE: Final = 8  # nodes of an earlier run that are asked at first; one more for each that is silent while nobody answers
MAX_SAVED: Final = 32  # nodes of an earlier run that are asked
MAX_PENDING: Final = 256  # questions whose answers are waited for; the oldest is forgotten
ENTRY_ATTEMPTS: Final = 3  # questions to each of the nodes by which we come in, as one may be lost
ROUND_TRIPS: Final = 31  # the last ones, of which the median counts
TRANSACTION_SIZE: Final = 4  # bytes, of chance: who does not see our questions cannot answer them


class Asker(Protocol):
    """Whoever asks nodes something."""

    def answered(self, now: Instant, node: NodeInfo, reply: Reply) -> None:
        """Early or late."""

    def silent(self, now: Instant, node: NodeInfo) -> None:
        """No answer in time, or a refusal.  An answer may still come."""


class _Pending:
    """A question that was asked."""

    __slots__ = ("asker", "is_overdue", "node", "sent_at")

    def __init__(self, node: NodeInfo, asker: Asker, sent_at: Instant) -> None:
        self.node = node
        self.asker = asker
        self.sent_at = sent_at
        self.is_overdue = False


class DhtClient:
    """Begins at the entry nodes.  Lookups go on by themselves; look at `views` at any time."""

    def __init__(
        self,
        *,
        is_ipv6: bool,
        entry: Iterable[Address],
        entropy: Callable[[int], bytes],
        now: Instant,
        saved: Iterable[Address] = (),
    ) -> None:
        """`saved`: nodes that answered in an earlier run.  They are asked beside the entry nodes, and in their place."""
        self.id = entropy(ID_SIZE)
        self.is_ipv6 = is_ipv6
        self.mapped: Address | None = None  # where a port that our router maps leads to this socket
        self.views = Views()
        self.drops = Drops()
        self.table = Table()
        self._has_bound_id = False
        self._entropy = entropy
        self._ledger = Ledger()
        self._pending: dict[bytes, _Pending] = {}
        self._awaited: dict[Address, int] = {}  # how many answers of each
        self._out: deque[tuple[Address, bytes]] = deque()
        self._searches: list[Search] = []
        self._waiting: deque[Search] = deque()
        self._round_trips: deque[Seconds] = deque(maxlen=ROUND_TRIPS)
        self._entries = list(dict.fromkeys(entry))
        self._saved = deque(dict.fromkeys(saved), MAX_SAVED)
        self.enter(now)

    @property
    def round_trip(self) -> Seconds | None:
        """The median of the last ones; None: nobody has answered yet."""
        return Seconds(median(self._round_trips)) if self._round_trips else None

    @property
    def is_entering(self) -> bool:
        """Whether an entry node may still let us in; as long as none has, also late."""
        if len(self.table) >= ENTERED:
            return False
        entering = (each for each in self._pending.values() if isinstance(each.asker, _Entry))
        return any(not each.is_overdue or not len(self.table) for each in entering)

    @property
    def is_idle(self) -> bool:
        """No lookup is under way."""
        return not self._searches

    # --- verbs

    def enter(self, now: Instant) -> None:
        """Ask the entry nodes for others; again after the network has changed, or when all that were known have gone."""
        self._ask_entries(now, self._entries)
        for _ in range(SAVED_AT_ONCE):
            self.ask_saved(now)

    def add_entries(self, now: Instant, entry: Iterable[Address]) -> None:
        """More nodes by which to come in, whose names were not known before."""
        fresh = [each for each in dict.fromkeys(entry) if each not in self._entries]
        self._entries += fresh
        self._ask_entries(now, fresh)

    def ask_saved(self, now: Instant) -> None:
        """One more node of an earlier run, as long as nobody answers."""
        if self._saved and len(self.table) < ENTERED:
            _Entry(self, attempts=1).ask(now, NodeInfo(bytes(ID_SIZE), self._saved.popleft()))

    def _ask_entries(self, now: Instant, entry: Iterable[Address]) -> None:
        for address in entry:
            _Entry(self, attempts=ENTRY_ATTEMPTS).ask(now, NodeInfo(bytes(ID_SIZE), address))

    def network_changed(self, now: Instant) -> None:
        """Forget what nodes said of us: it is no longer true."""
        self.views = Views()
        self.enter(now)

    def look_up(self, now: Instant, target: bytes) -> None:
        """Ask for the nodes closest to `target`, beginning with those that are known."""
        self.search(now, Search(self, target, now))

    def search(self, now: Instant, search: Search) -> None:
        self._waiting.append(search)
        self._go_on(now)

    def ask(self, now: Instant, node: NodeInfo, asker: Asker, encode: Callable[[bytes], bytes]) -> bool:
        """One question, with the transaction that `encode` is given; False: that host has got too many."""
        if not self._ledger.take(now, node.address.host):
            self.drops["DHT question too many to a host"] += 1
            return False
        while len(self._pending) >= MAX_PENDING:
            self._forget(next(iter(self._pending)))
        transaction = self._entropy(TRANSACTION_SIZE)
        self._pending[transaction] = _Pending(node, asker, now)
        self._awaited[node.address] = self._awaited.get(node.address, 0) + 1
        self._out.append((node.address, encode(transaction)))
        return True

    # --- inputs and outputs

    def handle_datagram(self, now: Instant, remote: Address, data: Buffer) -> bool:
        """One that begins with FIRST_BYTE.  Rubbish, lies and questions are counted, and nothing is raised.

        Returns whether it answers us.  Whoever was asked nothing is not even read: to read a long message costs more than to
        send it.
        """
        if remote not in self._awaited:
            self.drops["DHT answer from another address"] += 1
            return False
        try:
            message = krpc.decode_message(data)
        except MalformedPacket:
            self.drops["DHT message malformed"] += 1
            return False
        if isinstance(message, Question):
            self.drops["DHT question"] += 1
            return False
        pending = self._pending.get(message.transaction)
        if pending is None:
            self.drops["DHT answer to no question"] += 1
        elif pending.node.address != remote:
            self.drops["DHT answer from another address"] += 1
        else:
            self._forget(message.transaction)
            self._on_answer(now, pending, message)
            return True
        return False

    def handle_timeout(self, now: Instant) -> None:
        patience = self._patience()
        for transaction, pending in list(self._pending.items()):
            if now >= pending.sent_at + ANSWER_LIFETIME and transaction in self._pending:
                self._forget(transaction)
            if not pending.is_overdue and now >= pending.sent_at + patience:
                pending.is_overdue = True
                self.table.silent(pending.node)
                pending.asker.silent(now, pending.node)
        self._go_on(now)

    def poll_timeout(self) -> Instant | None:
        patience = self._patience()
        waits = (each.sent_at + (ANSWER_LIFETIME if each.is_overdue else patience) for each in self._pending.values())
        return min((Instant(at) for at in waits), default=None)

    def poll_transmit(self) -> tuple[Address, bytes] | None:
        return self._out.popleft() if self._out else None

    # --- inside

    def _forget(self, transaction: bytes) -> None:
        """Wait for that answer no more."""
        address = self._pending.pop(transaction).node.address
        self._awaited[address] -= 1
        if not self._awaited[address]:
            del self._awaited[address]

    def _patience(self) -> Seconds:
        known = self.round_trip
        return FIRST_PATIENCE if known is None else Seconds(min(max(2 * known, SHORTEST_PATIENCE), LONGEST_PATIENCE))

    def _on_answer(self, now: Instant, pending: _Pending, message: Reply | Refusal) -> None:
        address = pending.node.address
        self._ledger.answered(address.host)
        self._round_trips.append(Seconds(now - pending.sent_at))
        if isinstance(message, Refusal):
            self.drops["DHT question refused"] += 1
            pending.asker.silent(now, pending.node)
            return
        seen = message.sees_us_at
        if seen is not None and seen.is_ipv6 == self.is_ipv6 and may_name(address.host, seen.host):
            self.views.note(address.host, seen, pending.sent_at)
            self._bind_id()
        self.table.answered(NodeInfo(message.id, address), tells_our_address=seen is not None)
        sound = tuple(node for node in message.nodes if self._is_sound(address, node))
        peers = tuple(peer for peer in message.peers if self._is_peer(address, peer))
        told = Reply(transaction=b"", id=message.id, nodes=sound, peers=peers, token=message.token)
        pending.asker.answered(now, pending.node, told)
        self._go_on(now)

    def met(self, node: NodeInfo, others: Iterable[NodeInfo]) -> None:
        """An entry node, and whom it told of."""
        for search in self._searches:
            search.lookup.offer(node)
            search.lookup.tell(node, others)

    def _bind_id(self) -> None:
        """Have an id that fits our address, as some nodes answer no others (BEP 42); it is kept from then on."""
        seen = self.views.seen
        if seen is not None and not self._has_bound_id:
            self._has_bound_id = True
            self.id = bound_id(seen.host, self._entropy)

    def _is_sound(self, source: Address, node: NodeInfo) -> bool:
        """Whether it may be asked, whoever told of it."""
        if node.address.is_ipv6 == self.is_ipv6 and is_target(source, node.address):
            return True
        self.drops["DHT node where none can be"] += 1
        return False

    def _is_peer(self, source: Address, peer: Address) -> bool:
        if peer.is_ipv6 != self.is_ipv6:
            return False
        return is_target(source, peer if peer.port != krpc.MARKER_PORT else Address(peer.host, MIN_PORT))

    def _go_on(self, now: Instant) -> None:
        while self._waiting and len(self._searches) < MAX_SEARCHES:
            fresh = self._waiting.popleft()
            fresh.begin(now)
            for known in self.table.closest(fresh.lookup.target):
                fresh.lookup.offer(known)
            self._searches.append(fresh)
        for search in list(self._searches):
            while (node := search.lookup.next(now)) is not None:
                if not self.ask(now, node, search, search.question):
                    search.lookup.silent(node)
            if search.lookup.is_over(now) and not self.is_entering:
                self._searches.remove(search)
                search.over(now)


class Search:
    """A lookup under way.  This one only wants nodes."""

    def __init__(self, client: DhtClient, target: bytes, now: Instant) -> None:
        self.client = client
        self.lookup = Lookup(target, now)

    def begin(self, now: Instant) -> None:
        """Its turn has come."""
        self.lookup = Lookup(self.lookup.target, now)

    def question(self, transaction: bytes) -> bytes:
        return krpc.encode_find_node(transaction, self.client.id, self.lookup.target)

    def answered(self, now: Instant, node: NodeInfo, reply: Reply) -> None:
        self.lookup.answered(node)
        self.lookup.tell(node, reply.nodes)

    def silent(self, now: Instant, node: NodeInfo) -> None:
        self.lookup.silent(node)

    def over(self, now: Instant) -> None:
        """Nobody is left to ask."""


class _Entry:
    """The questions to one entry node."""

    def __init__(self, client: DhtClient, attempts: int) -> None:
        self._client = client
        self._attempts = attempts

    def ask(self, now: Instant, node: NodeInfo) -> None:
        self._attempts -= 1
        self._client.ask(now, node, self, lambda each: krpc.encode_find_node(each, self._client.id, self._client.id))

    def answered(self, now: Instant, node: NodeInfo, reply: Reply) -> None:
        self._client.met(NodeInfo(reply.id, node.address), reply.nodes)

    def silent(self, now: Instant, node: NodeInfo) -> None:
        if self._attempts > 0:
            self.ask(now, node)
        else:
            self._client.ask_saved(now)
