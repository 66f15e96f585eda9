"""Many sockets, many peers: each received batch is split into runs by kind and receiver, and every run goes to whom it is for.

Sans IO: the driver hands in batches and instants, and takes datagrams, a deadline and events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from tunnel.core.trace import Traces
from tunnel.errors import ConfigurationError
from tunnel.nat.candidate import CandidateKind
from tunnel.nat.memory import Remembered
from tunnel.nat.technique import PoolSocket
from tunnel.node.context import Context, EndpointConfig, PeerStore
from tunnel.node.demux import FIRST_HANDSHAKE, LAST_HANDSHAKE, LAST_STUN, LAST_TRANSPORT, SERVER_KINDS
from tunnel.node.events import EndpointEvent, KnownPeer, Problem, Troubled
from tunnel.node.fairness import FairShare
from tunnel.node.flows.claim_code import ConnectorPairing
from tunnel.node.flows.expose_code import FOR_ONE, CodeTerms, ExposerPairing
from tunnel.node.meetings import Meetings
from tunnel.node.peering import Peering
from tunnel.node.pool import SocketOrder
from tunnel.node.punching import LocalSocket, Puncher
from tunnel.pairing.code import Purpose
from tunnel.transport.packet.header import TRANSPORT
from tunnel.units import CHANNEL_BYTE, CHANNEL_SIZE, Address, Instant, PathKey, SocketId, Transmit

if TYPE_CHECKING:
    import random

    from tunnel.rendezvous.client import Client

MAX_KEYS: Final = 4_096  # PathKeys kept for reuse


class Endpoint:
    """One process's end of all its tunnels."""

    def __init__(
        self,
        *,
        config: EndpointConfig,
        static_key: bytes,
        peers: Iterable[KnownPeer],
        store: PeerStore,
        entropy: Callable[[int], bytes],
        rng: random.Random,
        wall_ns: Callable[[], int],
        traces: Traces | None = None,
        processor: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`processor`: seconds that it has worked for us so far; what each peer costs is measured by it."""
        self._context = Context(
            config=config, static_key=static_key, store=store, entropy=entropy, rng=rng, wall_ns=wall_ns, traces=traces
        )
        self._context.peers = {peer.static: peer for peer in peers}
        self.drops = self._context.drops
        self._meetings = Meetings(self._context)
        self._keys: dict[tuple[SocketId, Address, bytes], PathKey] = {}
        self._agenda = self._context.agenda
        self.ready = self._agenda.ready  # the peerings that may have something to send
        self._is_closing = False
        self._cold_until: Instant | None = None  # when nothing but connections had something to send
        self._share = FairShare(rng, processor)
        self.carrying = self._context.carrying
        self.servers = self._context.clients

    @property
    def _control(self) -> Meetings:
        """The meetings, for whoever changes something about them or their clients: their deadline is in doubt then."""
        self._context.control.doubt()
        return self._meetings

    # --- what it stands on

    @property
    def static_public(self) -> bytes:
        return self._context.static_public

    @property
    def peerings(self) -> list[Peering]:
        return self._meetings.peerings.live

    @property
    def peers(self) -> dict[bytes, KnownPeer]:
        """By static key."""
        return self._context.peers

    def counters(self) -> dict[str, dict[str, int]]:
        """Return the drops outside of connections, by place and reason."""
        servers = {f"server {name}": dict(client.drops) for name, client in self.servers.items()}
        return {"endpoint": dict(self.drops), **servers}

    def add_socket(self, socket_id: SocketId, *, is_ipv6: bool, port: int) -> None:
        self._context.sockets[socket_id] = LocalSocket(socket_id, is_ipv6, port)

    def poll_socket_order(self) -> SocketOrder | None:
        """Sockets to open or to close; call until None after every input, before poll_transmit."""
        orders = self._context.pool.orders
        return orders.popleft() if orders else None

    def add_pool_sockets(self, now: Instant, sockets: Iterable[PoolSocket], count: int) -> None:
        """Take the sockets that OpenSockets(count) asked for.  They are used for punching only, and closed by CloseSockets."""
        with self._context.wall("punching", "left sockets for a direct path unused"):
            self._context.pool.opened(now, sockets, count)

    def set_hosts(self, now: Instant, hosts: Iterable[str]) -> bool:
        """The machine's own addresses, numeric; call again when they may have changed.  True when they have."""
        found = [
            (socket.socket_id, Address(host, socket.port))
            for socket in self._context.sockets.values()
            for host in hosts
            if (":" in host) == socket.is_ipv6
        ]
        is_change = bool(self._context.candidates.get(CandidateKind.HOST))
        if not self.set_candidates(now, CandidateKind.HOST, found):
            return False
        if is_change:
            self.network_changed(now)
        return is_change

    def set_candidates(self, now: Instant, kind: CandidateKind, found: Iterable[tuple[SocketId, Address]]) -> bool:
        """All addresses of one kind by which we are reached from now on, for peers that may know.  True if others than before."""
        known = tuple(found)
        if self._context.candidates.get(kind, ()) == known:
            return False
        self._context.candidates[kind] = known
        for peering in self._meetings.peerings.live:
            peering.refresh_candidates(now)
        self._control.pump(now)
        return True

    def set_memory(self, memory: Mapping[bytes, Remembered]) -> None:
        """Set the ways that worked with each peer (by static key) from the present network: new connections try them first."""
        self._context.memory = dict(memory)

    def network_changed(self, now: Instant) -> None:
        """The host roamed or woke up: every path proves itself at once, and every server is asked where it sees us now."""
        for name, client in self._context.clients.items():
            with self._context.clients.wall(now, name):
                client.network_changed(now)
        self._control.network_changed(now)

    def give_up_keys(self, now: Instant, text: str) -> None:
        """A copy of this process may hold our keys too: every link gets new ones (a pairing by a code, by the rekey after it).
        `text` says why to a person, "" to nobody."""
        if self._control.give_up_keys(now) and text:
            self._context.emit(Troubled(problem=Problem.KEYS_GIVEN_UP, text=text))

    def add_server(
        self, now: Instant, name: str, addresses: Iterable[Address], access_token: bytes = b"", *, has_fallback: bool = False,
        former: Iterable[bytes] = (),
    ) -> None:  # fmt: skip
        """Talk to the rendezvous server `name` at these addresses.  Raises ConfigurationError when we reach none of them.

        `has_fallback`: where UDP gets no answer there, OpenRoute is ordered.
        `former`: sessions there of processes of this home that died; goodbye is said for them first.
        """
        if name not in self._context.clients:
            self._context.clients.add(now, name, addresses, access_token, has_fallback, former)
            self._control.servers_changed(now)

    def add_client(self, now: Instant, name: str, client: Client, kinds: Iterable[int], notice: str) -> None:
        """Meet peers by `client` in the place of a server.  Datagrams of these first bytes are for it, whoever has sent them.

        `notice` is what a person should know of it.  Raises ConfigurationError where the path policy asks for a relay.
        """
        if self._context.config.path_policy == "relay":
            raise ConfigurationError(f"There is no relay without a server: --path relay and --server {name} do not go together.")
        self._context.emit(Troubled(problem=Problem.STRANGERS, text=notice))
        self._context.clients.add_client(now, name, client, kinds)
        self._control.servers_changed(now)

    def add_alternatives(self, now: Instant, name: str, names: tuple[str, str]) -> None:
        """Meet by the first of `names`, a server, and where that is gone by the second, under one name.

        Each is added by its own, now or later.  OpenRoute(name) is ordered when the second is wanted.
        """
        self._context.clients.add_alternatives(now, name, names)
        self._control.servers_changed(now)

    def touch(self, now: Instant) -> None:
        """Something was handed to a client from outside: see what follows from it."""
        self._control.pump(now)

    def move_server(self, now: Instant, name: str, addresses: Iterable[Address]) -> None:
        """The server's name leads to these addresses now: what was registered goes there as soon as one of them answers."""
        self._context.clients.move(now, name, addresses)
        self._context.control.doubt()

    def route_up(self, now: Instant, name: str, socket_id: SocketId, address: Address, words: str) -> None:
        """A route to the server `name` stands, as OpenRoute asked for: datagrams go to and come from `address`.

        `words` is how a person is told of it.
        """
        self._context.clients.route_up(now, name, socket_id, address, words)
        self._context.control.doubt()

    def route_down(self, now: Instant, socket_id: SocketId) -> None:
        """It has ended; the next one may have the same socket id."""
        self._context.clients.route_down(now, socket_id)
        self._context.control.doubt()

    def has_server(self, name: str) -> bool:
        return name in self._context.clients

    def session(self, name: str) -> bytes:
        """The secret by which that server knows us, for whoever comes after us."""
        return self._context.clients[name].session

    def is_reached(self, name: str) -> bool:
        """Has the server answered, and not fallen silent since?"""
        return self._context.clients[name].is_reached

    def has_answered(self, name: str) -> bool:
        """Has the server answered at all so far?"""
        client = self._context.clients[name]
        return client.is_reached or client.server is not None

    # --- verbs

    def offer_code(
        self, now: Instant, server: str, *, grants: tuple[dict[str, Any], ...], lent: tuple[dict[str, Any], ...] = (),
        keep: bool, terms: CodeTerms = FOR_ONE,
    ) -> ExposerPairing:  # fmt: skip
        """Expose to one new peer (with `keep`: to one after the other).  CodeIssued follows, then PeerPaired.

        `terms` FOR_MANY: a room's code, which many may use at once.
        """
        return self._control.offer_code(now, server, grants=grants, lent=lent, keep=keep, terms=terms)

    def claim_code(
        self,
        now: Instant,
        server: str,
        code: str,
        *,
        expected: KnownPeer | None = None,
        purpose: Purpose = Purpose.PORTS,
    ) -> ConnectorPairing:
        """Connect by a code.  PeerPaired and PeeringStarted follow, or Troubled with is_final.  Raises ConfigurationError."""
        return self._control.claim_code(now, server, code, expected=expected, purpose=purpose)

    def withdraw_code(self, now: Instant, flow: ExposerPairing) -> None:
        """The code of `flow` lets nobody in any more, nor does a fresh one follow."""
        self._control.withdraw_code(now, flow)

    def dial(self, now: Instant, peer: KnownPeer, server: str) -> Peering:
        """Connect to a remembered peer, and stay connected.  PeeringStarted follows."""
        return self._control.dial(now, peer, server)

    def listen(self, now: Instant) -> None:
        """Let remembered peers in, from now on."""
        self._control.listen(now)

    def set_peers(self, now: Instant, peers: Iterable[KnownPeer]) -> None:
        """Set the peers as the store has them now: new grants and names count at once, a forgotten peer is cut off."""
        self._control.set_peers(now, peers)

    def close(self, now: Instant, text: str = "the other side has ended") -> None:
        """Say goodbye to every peer and server; poll_transmit still has to be called."""
        self._is_closing = True
        self._control.close(now, text)
        for name, client in self._context.clients.items():
            with self._context.clients.wall(now, name):
                client.close(now)

    # --- inputs

    def overflowed(self) -> None:
        """A socket's queue in the kernel has dropped datagrams: whoever sends more than its share gives way."""
        self._share.overflowed()

    def handle_batch(
        self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int, ecn: int = 0
    ) -> bool:
        """Datagrams of one sender, each `stride` bytes long, of which the last may be shorter; all had the mark `ecn`.

        False when nothing follows from them: no event and nothing to send, as with IP packets, which went to their sink at once.
        What is dropped costs the same however many peers there are: all of them are looked at only where something came of it.
        """
        position, length = 0, len(buffer)
        touched: Peering | None = None
        is_cold = is_due = False
        clients = self._context.clients
        is_route = socket_id in clients.routes
        by_index = self._context.demux.peerings
        share, counted = self._share, 0
        peerings = self._meetings.peerings.all
        was_shared, is_shared = share.is_measuring, share.begin(len(peerings))
        if is_shared and not was_shared:
            for each in peerings:
                each.fresh_streams()  # what was opened before costs nothing
        while position < length:
            end = min(position + stride, length)
            kind = buffer[position]
            start = position
            prefix = b""
            if kind >= CHANNEL_BYTE and end - position > CHANNEL_SIZE:
                start = position + CHANNEL_SIZE
                prefix = bytes(buffer[position:start])
                kind = buffer[start]
            if prefix and prefix in self.carrying.pairs:
                if touched is not None:
                    is_due, is_cold = self._leave(now, touched, position - counted, is_due, is_cold)
                    touched = None
                end = counted = self.carrying.handle(now, socket_id, remote, buffer, position, stride, ecn, is_shared and share)
                is_due = True
            elif is_route and not prefix and kind not in SERVER_KINDS:
                self.drops["not relayed over a route to a server"] += 1  # nobody but the server is there
            elif TRANSPORT <= kind <= LAST_TRANSPORT:
                peering = by_index.get(int.from_bytes(buffer[start + 1 : start + 5], "big"))
                if peering is None:
                    try:
                        peering = self._meetings.confirm(now, buffer[start:end])
                    except Exception as error:
                        self._dropped(remote, error)
                    is_cold = is_cold or peering is not None or bool(self._context.events)
                if peering is not None and peering.connection is not None:
                    if touched is not None and touched is not peering:
                        is_due, is_cold = self._leave(now, touched, position - counted, is_due, is_cold)
                        touched, counted = None, position
                    unopened = end if prefix else length  # what comes from the server may be of several peers
                    refusal = share.refusal(now, peering, unopened - position) if is_shared else None
                    if refusal is not None:
                        self.drops[refusal] += -(-(unopened - position) // stride)
                        position = unopened
                        continue
                    key = self._key(socket_id, remote, prefix)
                    try:
                        after = peering.connection.handle_datagrams(now, key, buffer, position, stride, ecn)
                    except Exception as error:
                        peering.fail(now, error)
                        after = unopened
                    touched = peering
                    if after <= position:
                        self.drops["transport under keys that have ended"] += 1
                        after = end
                    position = after
                    continue
                self.drops["transport to nobody"] += 1
            elif FIRST_HANDSHAKE <= kind <= LAST_HANDSHAKE:
                try:
                    path = PathKey(socket_id, remote, prefix)
                    is_cold |= self._meetings.handle_handshake(now, path, buffer[start:end])
                except Exception as error:
                    is_cold = True
                    self._dropped(remote, error)
            elif kind in clients.kinds and not prefix:
                try:
                    is_cold |= clients.handle_datagram(now, socket_id, remote, buffer[position:end])
                except Exception as error:
                    is_cold = True
                    self._dropped(remote, error)
            elif kind <= LAST_STUN and not prefix:
                datagram = buffer[position:end]
                if self._context.pool.has_asked(datagram) and any(
                    each.handle_stun(now, socket_id, remote, datagram) for each in self._meetings.peerings.live
                ):
                    is_due = True
                else:
                    self.drops["answer to no question"] += 1
            else:
                self.drops["unknown first byte"] += 1
            position = end
        if touched is not None:
            is_due, is_cold = self._leave(now, touched, length - counted, is_due, is_cold)
        elif is_shared and counted < length:
            share.charge(now, None, length - counted)
        if is_cold:
            self._meetings.pump(now)
        return is_due or is_cold or bool(self._context.events)

    def _leave(self, now: Instant, peering: Peering, size: int, is_due: bool, is_cold: bool) -> tuple[bool, bool]:
        """Its datagrams, of `size` bytes, are opened: say what they brought, and whether anything follows from it."""
        peering.entry.doubt()
        peering.drain(now)
        if self._share.is_measuring:
            self._share.charge(now, peering, size, peering.fresh_streams())
        is_due = is_due or peering in self._agenda.untold
        return is_due, is_cold or peering.needs_meeting or peering.is_closed

    def _dropped(self, remote: Address, error: Exception) -> None:
        """Nobody foresaw `error`, which a datagram has met: that one goes, and whoever sent it may send another."""
        self._context.fault("datagram", f"dropped a datagram from {remote}", error)

    def handle_timeout(self, now: Instant) -> None:
        due = self._agenda.due(now)
        if None in due:
            self._meetings.handle_timeout(now)
        for peering in due:
            if peering is not None:
                peering.handle_timeout(now)
        if not self._context.restless.keys().isdisjoint(due) or None in due:
            self._meetings.pump(now)
        if self._context.pool.is_used:
            with self._context.wall("punching", "left sockets for a direct path open"):
                self._context.pool.sweep(now, self._punchers())

    # --- outputs

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        """The next burst; `out` has room for 65,536 bytes and may be lent to the Transmit."""
        if self._is_closing:  # the goodbyes to peers go through the server, so they have to come first
            return self._poll_peerings(now, out) or self._poll_cold(now, out)
        if now != self._cold_until:  # once in a run of bursts
            burst = self._poll_cold(now, out)
            if burst is not None:
                return burst
            self._cold_until = now
        return self._poll_peerings(now, out) or self._poll_cold(now, out)

    def _poll_cold(self, now: Instant, out: bytearray) -> Transmit | None:
        context = self._context
        if context.out:
            key, datagram = context.out.popleft()
            return _single(key, key.prefix + datagram, out)
        ready = context.clients.poll_transmit(now)
        return self.carrying.poll_transmit() if ready is None else _single(PathKey(ready[0], ready[1]), ready[2], out)

    def _poll_peerings(self, now: Instant, out: bytearray) -> Transmit | None:
        """Round robin over those who may have something: whoever was served goes to the end."""
        agenda = self._agenda
        ready, untold, heap = agenda.ready, agenda.untold, agenda.heap
        if heap and heap[0][0] <= now:
            for due in agenda.overdue(now):
                if due is not None:
                    due.touch()
        while ready:
            peering = next(iter(ready))
            connection = peering.connection
            if connection is None:
                del ready[peering]
                continue
            puncher = peering.puncher
            if puncher is not None and puncher.next_at is not None and puncher.next_at <= now:
                peering.pump(now)
            try:
                transmit = connection.poll_transmit(now, out)
            except Exception as error:
                peering.fail(now, error)
                continue
            if peering not in untold or not peering.entry.is_in_doubt:
                peering.touch()
            if transmit is None or connection.has_sent_all:
                del ready[peering]
            else:
                ready.move_to_end(peering)
            if transmit is not None:
                return transmit
        return None

    def poll_timeout(self) -> Instant | None:
        """When to call handle_timeout next."""
        return self._agenda.next()

    def renew_code(self, now: Instant, flow: ExposerPairing) -> None:
        """One more code for an exposure, now."""
        flow.renew(now)
        self._context.control.doubt()

    @property
    def has_events(self) -> bool:
        """Whether poll_event has something, without asking connections: after handle_batch, whose events are all here."""
        return bool(self._context.events)

    def poll_event(self, now: Instant) -> EndpointEvent | None:
        """The next event; call until None.  `now` is for what the connections have to say meanwhile."""
        events, untold = self._context.events, self._agenda.untold
        if not events and untold:
            is_cold = False
            while untold:
                peerings = list(untold)
                untold.clear()
                for peering in peerings:
                    peering.drain(now)
                    is_cold = is_cold or peering.needs_meeting
            if is_cold:
                self._meetings.pump(now)
        return events.popleft() if events else None

    def _punchers(self) -> Iterator[Puncher]:
        return (each.puncher for each in self._meetings.peerings.all if each.puncher is not None and not each.is_closed)

    def _key(self, socket_id: SocketId, remote: Address, prefix: bytes) -> PathKey:
        found = self._keys.get((socket_id, remote, prefix))
        if found is None:
            if len(self._keys) >= MAX_KEYS:
                self._keys.clear()
            found = PathKey(socket_id, remote, prefix)
            self._keys[socket_id, remote, prefix] = found
        return found


def _single(key: PathKey, datagram: bytes, out: bytearray) -> Transmit:
    """One datagram by itself."""
    out[: len(datagram)] = datagram
    return Transmit(key.socket_id, key.remote, len(datagram), memoryview(out)[: len(datagram)])
