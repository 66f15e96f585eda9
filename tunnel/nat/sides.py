"""One agent's knowledge of both sides: sockets, candidates and mappings, and the offers to the other agent."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingType

from tunnel.nat.behaviour import Mapping
from tunnel.nat.candidate import MAX_CANDIDATES, Candidate, CandidateKind, Offer, canonical, is_allowed
from tunnel.nat.technique import Scene, is_seen_by_the_world
from tunnel.units import Address, SocketId


class Sides:
    """Ours and theirs; `sockets` says which of ours speak IPv6, `plain` which of them have a check list."""

    def __init__(self, sockets: MappingType[SocketId, bool], *, controlling: bool, allow_loopback: bool) -> None:
        self.controlling = controlling
        self.sockets = dict(sockets)
        self.plain = set(sockets)
        self.local: tuple[Candidate, ...] = ()
        self.remote: dict[Address, Candidate] = {}
        self.mapping = Mapping.UNKNOWN  # ours, as the rendezvous client observed it and a technique refined it
        self.is_confirmed = False
        self.remote_mapping = Mapping.UNKNOWN
        self.is_remote_confirmed = False
        self._observed = Mapping.UNKNOWN
        self._allow_loopback = allow_loopback

    def may_try(self, address: Address) -> bool:
        return is_allowed(address, self._allow_loopback)

    @property
    def has_common_family(self) -> bool:
        families = {self.sockets[socket_id] for socket_id in self.plain}
        return any(address.is_ipv6 in families for address in self.remote)

    def take_local(self, candidates: Iterable[Candidate]) -> bool:
        """Whether they differ from the last ones; of several with one address the best stays."""
        unique: dict[Address, Candidate] = {}
        for candidate in sorted(candidates, key=lambda candidate: -candidate.priority):
            unique.setdefault(candidate.address, candidate)
        chosen = tuple(unique.values())[:MAX_CANDIDATES]
        changed, self.local = chosen != self.local, chosen
        return changed

    def take_remote(self, candidates: Iterable[Candidate]) -> bool:
        """Whether there is a new one among those that may be tried."""
        named: dict[Address, Candidate] = {}
        for candidate in tuple(candidates)[:MAX_CANDIDATES]:
            address = Address(canonical(candidate.address.host), candidate.address.port)
            if candidate.kind is not CandidateKind.RELAYED and self.may_try(address):
                named.setdefault(address, candidate._replace(address=address))
        fresh = any(address not in self.remote for address in named)
        self.remote = named
        return fresh

    def observe(self, mapping: Mapping | None, differs_elsewhere: bool | None) -> bool:
        """Whether our mapping is another one now.

        Two ports of the server saw one mapping, its other address another one: address-dependent.  RFC 5780 §4.3.
        """
        before = self.mapping, self.is_confirmed
        self._observed = self._observed if mapping is None else mapping
        varies = self._observed is Mapping.ENDPOINT_INDEPENDENT and differs_elsewhere
        self.mapping = Mapping.ADDRESS_DEPENDENT if varies else self._observed
        self.is_confirmed = differs_elsewhere is not None and self._observed is not Mapping.UNKNOWN
        return before != (self.mapping, self.is_confirmed)

    def scene(self) -> Scene:
        remotes = sorted(self.remote.values(), key=lambda each: (each.kind is CandidateKind.HOST, -each.priority))
        return Scene(
            self.controlling,
            self.mapping,
            self.is_confirmed,
            self.remote_mapping,
            self.is_remote_confirmed,
            tuple(socket_id for socket_id in sorted(self.plain) if not self.sockets[socket_id]),
            frozenset(each.address.host for each in self.local if is_seen_by_the_world(each)),
            tuple(remotes),
        )


class Outbox:
    """At most one offer and one notice wait to be sent; newer ones replace them."""

    def __init__(self) -> None:
        self.generation = 0
        self._opened_told = -1
        self._waiting: list[Offer] = []

    def offer(self, sides: Sides, *, searching: bool) -> None:
        self.generation += 1
        self._waiting = [offer for offer in self._waiting if offer.opened]
        offer = Offer(self.generation, sides.local, sides.mapping, searching=searching, confirmed=sides.is_confirmed)
        self._waiting.append(offer)

    def begin_round(self) -> None:
        """Say again when our openers are out."""
        self._opened_told = -1

    def tell_opened(self, generation: int) -> None:
        """Our NAT has been opened towards every address of a generation of the peer's offers."""
        if self._opened_told < generation:
            self._opened_told = generation
            self._waiting = [offer for offer in self._waiting if not offer.opened]
            self._waiting.append(Offer(generation, opened=True))

    def poll(self) -> Offer | None:
        return self._waiting.pop(0) if self._waiting else None
