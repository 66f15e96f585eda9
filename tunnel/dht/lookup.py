"""One iterative lookup: the nodes closest to a target, asked and asked again for closer ones (BEP 5).

Nodes hand out addresses of homes that have long gone, and some lie.  So nobody is waited for: a slot is free again after a
moment, and whoever answers late still counts.  A network has one voice among the closest, and at most half of those are nodes
whose id does not fit their address (BEP 42): who wants to crowd around a target needs many networks.  Addresses where nobody is
cost nothing to make up, so few are taken from one answer, and those come last whose tellers have told of others that are silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from typing import Final, Protocol, TypeVar

from tunnel.dht.ids import distance, is_bound, network_of
from tunnel.dht.krpc import NodeInfo
from tunnel.units import Instant, Seconds

CLOSEST: Final = 8  # nodes that hold what belongs to a target (BEP 5: K)
MAX_LOOSE: Final = CLOSEST // 2  # of these, nodes whose id does not fit their address
PARALLEL: Final = 5  # nodes asked at a time
MAX_ASKED: Final = 64  # nodes asked in one lookup: two to three times what a lookup takes where none is dead
MAX_CANDIDATES: Final = 128  # nodes known to a lookup; the farthest goes
MAX_TIPS: Final = CLOSEST  # nodes taken from one answer, the closest of them: some nodes tell of their whole table
MAX_IN_VAIN: Final = 3  # nodes asked because one network told of them, without an answer so far, before its others come last
MAX_OF_NETWORK: Final = 4  # of these, nodes of one network before one of them has answered
NETWORK_BITS: Final = 24  # of an IPv4 address: what one owner of addresses has at the least
IPV6_NETWORK_BITS: Final = 64  # likewise
MAX_LASTING: Final = Seconds(12.0)  # of a lookup, whoever answers then


class _State(Enum):
    FRESH = 0
    ASKED = 1
    ANSWERED = 2
    SILENT = 3


class Candidate:
    """A node, as far as one lookup knows it."""

    __slots__ = ("distance", "is_bound", "network", "node", "state", "tellers")

    def __init__(self, node: NodeInfo, target: bytes) -> None:
        self.node = node
        self.distance = distance(node.id, target)
        self.is_bound = is_bound(node.id, node.address.host)
        self.network = network_of(node.address.host, NETWORK_BITS, IPV6_NETWORK_BITS)
        self.state = _State.FRESH
        self.tellers: set[int] = set()  # networks; none: we knew it ourselves


class Placed(Protocol):
    """A node, as far as it is chosen by its place."""

    is_bound: bool


T = TypeVar("T", bound=Placed)


def choose(sorted_by_distance: Iterable[T]) -> list[T]:
    """The closest; with ids that do not fit their addresses at most MAX_LOOSE of them."""
    chosen: list[T] = []
    loose = 0
    for each in sorted_by_distance:
        if not each.is_bound and loose >= MAX_LOOSE:
            continue
        loose += not each.is_bound
        chosen.append(each)
        if len(chosen) == CLOSEST:
            break
    return chosen


class Lookup:
    """Says whom to ask next; hears who has answered and who has not."""

    def __init__(self, target: bytes, now: Instant) -> None:
        self.target = target
        self._begun_at = now
        self._candidates: list[Candidate] = []  # the closest first
        self._asked = 0
        self._in_vain: Counter[int] = Counter()  # by teller: nodes that were asked, less twice those that answered

    def __len__(self) -> int:
        return len(self._candidates)

    def offer(self, node: NodeInfo, teller: int | None = None) -> None:
        """A node that the network `teller` tells of, or that we know ourselves; the caller has looked at its address."""
        fresh = Candidate(node, self.target)
        same = [each for each in self._candidates if each.network == fresh.network]
        known = next((each for each in same if each.node.address == node.address), None)
        if known is not None:
            if known.state is _State.FRESH and known.tellers:
                known.tellers = known.tellers | {teller} if teller is not None else set()
            return
        if len(same) >= MAX_OF_NETWORK or any(each.state is _State.ANSWERED for each in same):
            return
        fresh.tellers = set() if teller is None else {teller}
        self._candidates.append(fresh)
        if len(self._candidates) > MAX_CANDIDATES:
            self._candidates.sort(key=lambda each: (each.state is not _State.ANSWERED, self._is_doubtful(each), each.distance))
            del self._candidates[MAX_CANDIDATES:]

    def tell(self, teller: NodeInfo, nodes: Iterable[NodeInfo]) -> None:
        """Take the nodes that `teller` answers with; the caller has looked at their addresses."""
        network = network_of(teller.address.host, NETWORK_BITS, IPV6_NETWORK_BITS)
        for each in sorted(nodes, key=lambda each: distance(each.id, self.target))[:MAX_TIPS]:
            self.offer(each, network)

    def next(self, now: Instant) -> NodeInfo | None:
        """Return the node to ask now; None: nobody, for the moment or for good."""
        if now - self._begun_at >= MAX_LASTING or self._asked >= MAX_ASKED:
            return None
        if sum(each.state is _State.ASKED for each in self._candidates) >= PARALLEL:
            return None
        found = next((each for each in self._front() if each.state is _State.FRESH), None)
        if found is None:
            return None
        found.state = _State.ASKED
        self._in_vain.update(found.tellers)
        self._asked += 1
        return found.node

    def answered(self, node: NodeInfo) -> None:
        """`node` has answered, early or late; `node.id` is what it said then."""
        found = self._find(node)
        if found is not None and found.state is not _State.ANSWERED:
            self._in_vain.subtract(dict.fromkeys(found.tellers, 2))
            found.state = _State.ANSWERED

    def silent(self, node: NodeInfo) -> None:
        """`node` has not answered for as long as a slot is kept for it."""
        found = self._find(node)
        if found is not None and found.state is _State.ASKED:
            found.state = _State.SILENT

    def is_over(self, now: Instant) -> bool:
        """Whether there is nobody left to ask or to wait for."""
        if now - self._begun_at >= MAX_LASTING:
            return True
        if any(each.state is _State.ASKED for each in self._candidates):
            return False
        return self._asked >= MAX_ASKED or all(each.state is not _State.FRESH for each in self._front())

    def _front(self) -> list[Candidate]:
        """The closest of those that have answered or may answer yet; those that are doubtful last."""
        hopeful = [each for each in self._candidates if each.state is not _State.SILENT]
        return choose(sorted(hopeful, key=lambda each: (self._is_doubtful(each), each.distance)))

    def _is_doubtful(self, candidate: Candidate) -> bool:
        """Whether all who tell of it have told of too many who do not answer."""
        tellers = candidate.tellers
        return bool(tellers) and candidate.state is _State.FRESH and all(self._in_vain[each] >= MAX_IN_VAIN for each in tellers)

    def _find(self, node: NodeInfo) -> Candidate | None:
        return next((each for each in self._candidates if each.node.address == node.address), None)
