"""Punching for one connection: nat.agent says where to check, the connection seals and validates, the peer is told.

With the path policy `relay` there is no agent at all: no candidate leaves the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from tunnel.core.scope import is_local, may_be_second
from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket
from tunnel.nat import stun
from tunnel.nat.agent import Agent
from tunnel.nat.behaviour import Mapping, explain_view
from tunnel.nat.birthday import POOL_SECONDS
from tunnel.nat.budget import POOL_SOCKETS
from tunnel.nat.candidate import Candidate, CandidateKind, Offer, decode_offer, encode_offer, is_allowed, make_candidate
from tunnel.nat.memory import Remembered
from tunnel.nat.technique import Measure, PoolSocket, TechniqueStats
from tunnel.nat.techniques import Techniques
from tunnel.transport.connection.events import ConnectionEvent, PathKind, PathLost, PathProbed, PathValidated
from tunnel.units import Address, Buffer, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from tunnel.node.pool import SocketPool
    from tunnel.rendezvous.client import Client
    from tunnel.transport.connection.connection import Connection

MAX_CHECKS_A_TURN: Final = 32
MAX_MEASURES: Final = 128  # questions to the server that wait for an answer
QUESTION_SIZE: Final = 100  # bytes; the padding asks for the server's other address (RFC 5780 §7.6)


#: Where our sockets are reached, by what kind of address, as the driver has found out.
LocalAddresses: TypeAlias = "dict[CandidateKind, tuple[tuple[SocketId, Address], ...]]"


class LocalSocket(NamedTuple):
    """One of our sockets, as candidates need it."""

    socket_id: SocketId
    is_ipv6: bool
    port: int


def is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


class Puncher:
    """Finds direct paths for one connection, for as long as it lives."""

    def __init__(
        self,
        connection: Connection,
        *,
        controlling: bool,
        sockets: Iterable[LocalSocket],
        local: LocalAddresses,
        client: Client | None,
        same_machine: bool,
        now: Instant,
        rng: random.Random,
        pool: SocketPool | None = None,
        remembered: Remembered | None = None,
        send: Callable[[PathKey, bytes], None] | None = None,
        touched: Callable[[], None] = lambda: None,
        begins_at: Instant | None = None,
    ) -> None:
        """`same_machine`: the peer is known to be on this machine, so loopback addresses are candidates too.

        `begins_at`: when it is the turn of this search; only what is remembered is tried before.

        `pool` and `send` are what the costlier techniques need; without them there are none.
        `local` stays the caller's, who calls refresh when it changes.  `touched` is called when `next_at` changes.
        """
        self._connection = connection
        self._sockets = {socket.socket_id: socket for socket in sockets}
        self.is_same_machine = self._same_machine = same_machine
        self._client = client
        self._local = local
        self._pool = pool
        self._send = send
        self._rng = rng
        self._measures: dict[bytes, tuple[Measure, Address]] = {}
        self._elsewhere: Address | None = None  # the server's other address
        self._beside: Address | None = None  # its other port
        self.technique = Techniques(rng=rng, budget=pool.budget, remembered=remembered) if pool is not None else None
        self._touched = touched
        self._next_at: Instant | None = now
        self._begins_at = begins_at  # None: it has begun
        self._held: Offer | None = None  # that came before
        self.agent = Agent(
            controlling=controlling,
            now=now,
            rng=rng,
            sockets={socket.socket_id: socket.is_ipv6 for socket in self._sockets.values()},
            allow_loopback=same_machine,
            technique=self.technique,
            remembered=remembered,
            budget=pool.budget if pool is not None else None,
            has_way=lambda: connection.has_path,
        )
        self.refresh(now)

    @property
    def next_at(self) -> Instant | None:
        """When `pump` has something to do."""
        return self._next_at

    @next_at.setter
    def next_at(self, at: Instant | None) -> None:
        self._next_at = at
        self._touched()

    @property
    def why_relayed(self) -> str:
        """One sentence for a person.  What the server cannot see explains more than what the agent has tried."""
        seen = None if self._client is None else self._client.view
        if seen is not None and not self.agent.mapping.is_hard:
            ours = {address.host for _, address in self._local.get(CandidateKind.HOST, ())}
            return explain_view(seen.host, seen.host in ours)
        return self.agent.why_relayed

    def learned(self, key: PathKey, keepalive: Seconds) -> Remembered:
        """Return the part of a direct path that is worth remembering."""
        kinds = {candidate.address: candidate.kind for candidate in self.agent.remote_candidates}
        is_plain = key.socket_id in self._sockets
        is_costly = self.technique is not None and not (is_plain and key.remote in kinds)
        technique = self.technique.used if self.technique is not None and is_costly else ""
        kind = kinds.get(key.remote, CandidateKind.PEER_REFLEXIVE)
        return Remembered(key.remote, kind, technique, technique == "birthday" and not is_plain, keepalive)

    def refresh(self, now: Instant) -> None:
        """Our candidates may have changed: say so to the agent, who tells the peer."""
        candidates: list[Candidate] = []
        reflexive = {} if self._client is None else self._client.reflexive
        if self._same_machine:
            for socket in self._sockets.values():
                if not socket.is_ipv6:
                    self._add(candidates, CandidateKind.HOST, Address("127.0.0.1", socket.port), socket.socket_id)
        for kind, found in self._local.items():
            for socket_id, address in found:
                self._add(candidates, kind, address, socket_id)
        for socket_id, address in self._local.get(CandidateKind.PORT_MAPPED, ()):
            seen = reflexive.get(socket_id)
            if seen is not None and is_local(address.host) and not is_local(seen.host):
                # A modem before the router may hand everything on to it (DMZ): then the port is open out there.
                self._add(candidates, CandidateKind.PORT_MAPPED, Address(seen.host, address.port), socket_id)
        for socket_id, address in reflexive.items():
            self._add(candidates, CandidateKind.SERVER_REFLEXIVE, address, socket_id)
        mapping = Mapping.UNKNOWN
        if self._client is not None:
            varies = self._client.mapping_varies
            if varies is not None:
                mapping = Mapping.ADDRESS_AND_PORT_DEPENDENT if varies else Mapping.ENDPOINT_INDEPENDENT
        self.agent.set_local(now, candidates, mapping)
        self.next_at = now

    def _add(self, candidates: list[Candidate], kind: CandidateKind, address: Address, socket_id: SocketId) -> None:
        if socket_id in self._sockets and is_allowed(address, self._same_machine):
            candidates.append(make_candidate(kind, address, socket_id))

    def handle_offer(self, now: Instant, data: Buffer) -> None:
        """Candidates of the peer.  Raises MalformedPacket."""
        offer = decode_offer(data)
        if self._begins_at is None:
            self.agent.handle_offer(now, offer)
        elif not offer.opened:
            self._held = offer  # all that it has named, so the newest counts
        self.next_at = now

    def _begin(self, now: Instant) -> None:
        held, self._held, self._begins_at = self._held, None, None
        if held is not None:
            self.agent.handle_offer(now, held)

    def handle_event(self, now: Instant, event: ConnectionEvent) -> None:
        match event:
            case PathValidated(key=key, kind=PathKind.DIRECT, rtt=rtt):
                self.agent.check_succeeded(now, key.socket_id, key.remote, rtt)
            case PathProbed(key=key) if not key.prefix:
                self.agent.peer_reflexive(now, key.socket_id, key.remote)
            case PathLost(kind=PathKind.DIRECT):
                self.agent.path_lost(now)
            case PathValidated():
                pass  # there is a way, for what waited for one
            case _:
                return
        self.next_at = now

    # --- sockets and measurements of the techniques

    @property
    def wanted_sockets(self) -> int:
        return self.technique.wanted_sockets if self.technique is not None else 0

    def sockets_opened(self, now: Instant, fresh: Iterable[PoolSocket], sockets: tuple[PoolSocket, ...]) -> None:
        """`fresh` of all `sockets` of the pool are new."""
        for socket in fresh:
            self.agent.add_socket(now, socket.socket_id, False, plain=False)
        if self.technique is not None:
            self.technique.sockets_opened(now, sockets)
        self.next_at = now

    def sockets_closed(self, now: Instant, gone: Iterable[SocketId]) -> None:
        for socket_id in gone:
            self.agent.remove_socket(socket_id)
        for key in self._connection.paths:
            if key.socket_id in gone:
                self._connection.drop_path(now, key)

    def used_sockets(self) -> set[SocketId]:
        """Those that carry a path of ours."""
        if self._connection.is_closed:
            return set()
        return self._connection.used_sockets

    def stats(self, now: Instant) -> TechniqueStats | None:
        return self.technique.stats(now) if self.technique is not None else None

    @property
    def nat(self) -> dict[str, str]:
        """How our router maps and how the peer's does, as far as known, and which costlier technique was used last."""
        ours, theirs = (each.name.lower().replace("_", "-") for each in (self.agent.mapping, self.agent.remote_mapping))
        return {"ours": ours, "theirs": theirs, "technique": self.technique.used if self.technique is not None else ""}

    def describe(self, now: Instant) -> dict[str, Any]:
        """Return the cost of the search for a direct path, spent and left: packets, sockets, seconds; for `status`."""
        stats, technique = self.agent.stats, self.stats(now)
        shown: dict[str, Any] = {
            "state": stats.state.value,
            "rounds": stats.rounds,
            "checks_sent": stats.checks_sent,
            "checks_left": stats.budget,
        }
        if technique is not None:
            shown |= {"technique": technique.name, "sockets": technique.sockets, "sockets_limit": POOL_SOCKETS}
            shown |= {"probes_sent": technique.probes_sent, "probes_left": technique.probes_left}
            shown |= {"openers_sent": technique.openers_sent, "openers_left": technique.openers_left}
            shown |= {"seconds": round(technique.seconds, 3), "seconds_limit": POOL_SECONDS}
        return shown

    def _measure(self, now: Instant) -> None:
        technique, client, send = self.technique, self._client, self._send
        if technique is None or client is None or send is None or self._pool is None:
            return
        while (measure := technique.poll_measure(now)) is not None:
            server = self._elsewhere if measure.elsewhere else client.ipv4_address
            if measure.second:
                server = self._elsewhere or self._beside
            if server is None:
                continue
            while len(self._measures) >= MAX_MEASURES:
                del self._measures[next(iter(self._measures))]
            transaction = self._rng.randbytes(12)
            self._measures[transaction] = measure, server
            self._pool.asked(transaction)
            send(PathKey(measure.socket_id, server), stun.encode_binding_request(transaction, padding_to=QUESTION_SIZE))

    def handle_stun(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> bool:
        """An answer to one of our questions?"""
        asked = self._measures.get(bytes(data[8:20]))
        if asked is None or asked[0].socket_id != socket_id or asked[1] != remote or self.technique is None:
            return False
        try:
            message = stun.decode(data)
            mapped, other = message.mapped_address, message.other_address
        except MalformedPacket:
            return False
        del self._measures[message.transaction]
        if mapped is None or message.type != stun.BINDING_RESPONSE:
            return True
        if other is not None and not asked[0].elsewhere and not asked[0].second and is_allowed(other):
            if other.host != remote.host and may_be_second(remote.host, other.host):
                self._elsewhere = other
            elif other.host == remote.host and other != remote:
                self._beside = other
        self.technique.measured(now, asked[0], mapped)
        self.agent.refine_mapping(now)
        self.next_at = now
        return True

    def pump(self, now: Instant) -> bytes | None:
        """Queue the checks that are due; returns an offer for the peer, if there is one: call again until None."""
        if self._next_at is None or now < self._next_at:
            return None
        if self._begins_at is not None and now >= self._begins_at:
            self._begin(now)
        for _ in range(MAX_CHECKS_A_TURN):
            check = self.agent.poll_check(now)
            if check is None:
                break
            self._connection.challenge(now, PathKey(check.socket_id, check.remote), PathKind.DIRECT, check.ttl)
        if self._pool is not None:
            self._measure(now)
            self._pool.serve(now, self)
        offer = self.agent.poll_offer() if self._begins_at is None else None
        if offer is not None:
            return encode_offer(offer)
        self.next_at = earliest(self.agent.poll_timeout(), self._begins_at)
        return None
