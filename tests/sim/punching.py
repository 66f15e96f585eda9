"""Two agents and a STUN server on the simulated network: the least that punches.  A stub seals checks: a tag and a nonce."""

from __future__ import annotations

import random
from collections import deque
from typing import Final

from tests.sim.world import Host, World
from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket
from tunnel.nat import behaviour, stun
from tunnel.nat.agent import Agent
from tunnel.nat.candidate import Candidate, CandidateKind, decode_offer, encode_offer, make_candidate
from tunnel.nat.state import AgentState
from tunnel.nat.technique import Measure, PoolSocket
from tunnel.nat.techniques import Techniques
from tunnel.units import Address, Instant, Seconds, SocketId, Transmit

V4, V6 = SocketId(0), SocketId(1)
STUN_INTERVAL: Final = 0.25
CHECK_LIFE: Final = Seconds(5.0)
_CHECK, _ANSWER = 0x1A, 0x1B


class StunNode:
    """Answers binding requests on every socket.  The second socket is the second port."""

    def __init__(self) -> None:
        self._out: deque[tuple[SocketId, Address, bytes]] = deque()

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        for at in range(0, len(buffer), stride):
            try:
                request = stun.decode(buffer[at : at + stride])
            except MalformedPacket:
                continue
            self._out.append((socket_id, remote, stun.encode_binding_response(request, remote)))

    def handle_timeout(self, now: Instant) -> None: ...

    def poll_timeout(self) -> Instant | None:
        return None

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        return _transmit(self._out, out)


class PunchNode:
    """Learns its reflexive address, exchanges offers with its peer by `signal_delay`, and runs the agent's checks."""

    def __init__(
        self,
        world: World,
        host: Host,
        *,
        is_a: bool,
        servers: list[Address],
        mapping_servers: list[Address],
        elsewhere: Address | None = None,
    ) -> None:
        self.world, self.host, self.is_a = world, host, is_a
        self.rng = random.Random(world.rng.random())
        self.peer: PunchNode | None = None
        self.signal_delay = 0.02  # of our offers to the peer
        self.started_at: Instant | None = None  # when we had something to check
        self.direct_at: Instant | None = None  # first success
        self.succeeded: list[tuple[SocketId, Address]] = []
        self.checks_received = 0
        self._servers, self._mapping_servers = servers, mapping_servers
        sockets = {V4: host.bind()} if any(":" not in address for address in host.addresses) else {}
        if any(":" in address for address in host.addresses):
            sockets[V6] = host.bind(ipv6=True)
        self.sockets = sockets
        self.technique = Techniques(rng=self.rng)
        self.agent = Agent(
            controlling=is_a,
            now=world.now,
            rng=self.rng,
            sockets={key: address.is_ipv6 for key, address in sockets.items()},
            technique=self.technique,
        )
        self.pool: dict[SocketId, Address] = {}
        self.most_sockets = 0
        self.most_pool = 1000  # what the system grants
        self._elsewhere = elsewhere
        self._next_socket = 100
        self._measures: dict[bytes, Measure] = {}
        self._reflexive: dict[tuple[SocketId, Address], Address] = {}
        self._stun_at: Instant | None = world.now
        self._stun_left = 40
        self._sent: dict[bytes, tuple[SocketId, Address, Instant]] = {}
        self._out: deque[tuple[SocketId, Address, bytes]] = deque()
        world.attach(host, self, sockets)

    # --- the face of a node -----------------------------------------------------------------------------------------------

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        for at in range(0, len(buffer), stride):
            datagram = bytes(buffer[at : at + stride])
            if datagram[0] <= 3:  # RFC 7983: STUN
                self._handle_stun(now, socket_id, remote, datagram)
            else:
                self._handle_check(now, socket_id, remote, datagram)
        self._signal()
        self._manage_pool(now)

    def handle_timeout(self, now: Instant) -> None:
        if self._stun_at is not None and now >= self._stun_at:
            self._ask_servers(now)

    def poll_timeout(self) -> Instant | None:
        return earliest(self._stun_at, self.agent.poll_timeout())

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        while self._out and self._out[0][0] not in self.host.sockets:
            self._out.popleft()  # of a socket that has been closed
        if self._out:
            return _transmit(self._out, out)
        check = self.agent.poll_check(now)
        self._manage_pool(now)
        while (measure := self.technique.poll_measure(now)) is not None:
            server = self._elsewhere if measure.elsewhere else self._servers[0]
            if measure.second:
                server = self._elsewhere or self._mapping_servers[0]
            if server is not None:
                transaction = self.rng.randbytes(12)
                self._measures[transaction] = measure
                self._out.append((measure.socket_id, server, stun.encode_binding_request(transaction)))
        self._signal()
        if check is None or check.socket_id not in self.host.sockets:
            return _transmit(self._out, out)
        nonce = self.rng.randbytes(8)
        self._sent[nonce] = (check.socket_id, check.remote, now)
        datagram = self._seal(_CHECK, nonce)
        out[: len(datagram)] = datagram
        return Transmit(check.socket_id, check.remote, len(datagram), memoryview(out)[: len(datagram)], check.ttl)

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _seal(self, kind: int, nonce: bytes) -> bytes:
        return b"\x80" + (b"A" if self.is_a else b"B") + bytes((kind,)) + nonce

    def _manage_pool(self, now: Instant) -> None:
        """Open and close the sockets of the techniques, as the endpoint and its driver do."""
        wanted = min(self.technique.wanted_sockets, self.most_pool)
        if wanted > len(self.pool):
            while wanted > len(self.pool):
                key, self._next_socket = SocketId(self._next_socket), self._next_socket + 1
                self.pool[key] = self.host.sockets[key] = address = self.host.bind()
                self.host.by_address[address] = key
                self.agent.add_socket(now, key, False, plain=False)
            self.technique.sockets_opened(now, tuple(PoolSocket(key, address.port) for key, address in self.pool.items()))
            self.most_sockets = max(self.most_sockets, len(self.pool))
        elif not self.technique.wanted_sockets and self.pool:
            kept = {key for key, _ in self.succeeded}
            for key in [key for key in self.pool if key not in kept]:
                del self.host.by_address[self.pool.pop(key)]
                del self.host.sockets[key]
                self.agent.remove_socket(key)

    def _handle_check(self, now: Instant, socket_id: SocketId, remote: Address, datagram: bytes) -> None:
        if datagram[1:2] != (b"B" if self.is_a else b"A"):
            return  # ours, come back: it does not authenticate
        kind, nonce = datagram[2], datagram[3:11]
        if kind == _CHECK:
            self.checks_received += 1
            self._out.append((socket_id, remote, self._seal(_ANSWER, nonce)))
            self.agent.peer_reflexive(now, socket_id, remote)
            return
        sent = self._sent.pop(nonce, None)
        if sent is None or sent[:2] != (socket_id, remote) or now - sent[2] > CHECK_LIFE:
            return
        self.agent.check_succeeded(now, socket_id, remote, Seconds(now - sent[2]))
        self.succeeded.append((socket_id, remote))
        if self.direct_at is None:
            self.direct_at = now

    def gather(self, now: Instant) -> None:
        """Ask the servers again, as after a roam."""
        self._reflexive.clear()
        self._stun_at, self._stun_left = now, 40
        self.world.touch(self.host)

    def _ask_servers(self, now: Instant) -> None:
        self._stun_left -= 1
        self._stun_at = Instant(now + STUN_INTERVAL) if self._stun_left else None
        for socket_id, local in self.sockets.items():
            for server in self._servers + self._mapping_servers:
                if server.is_ipv6 == local.is_ipv6 and (socket_id, server) not in self._reflexive:
                    request = stun.encode_binding_request(self.rng.randbytes(12))
                    self._out.append((socket_id, server, request))

    def _handle_stun(self, now: Instant, socket_id: SocketId, remote: Address, datagram: bytes) -> None:
        response = stun.decode(datagram)
        if response.mapped_address is None:
            return
        measure = self._measures.pop(response.transaction, None)
        if measure is not None:
            self.technique.measured(now, measure, response.mapped_address)
            self.agent.refine_mapping(now)
            return
        self._reflexive[socket_id, remote] = response.mapped_address
        wanted = [
            (key, server)
            for key, local in self.sockets.items()
            for server in self._servers + self._mapping_servers
            if server.is_ipv6 == local.is_ipv6
        ]
        if any(key not in self._reflexive for key in wanted):
            return
        self._stun_at = None
        candidates: list[Candidate] = []
        for key, local in self.sockets.items():
            candidates.append(make_candidate(CandidateKind.HOST, local, key))
            for server in self._servers:
                if (key, server) in self._reflexive:
                    candidates.append(make_candidate(CandidateKind.SERVER_REFLEXIVE, self._reflexive[key, server], key))
        views = [self._reflexive[key] for key in wanted if key[0] == V4]
        mapping = behaviour.observe(views[0], views[1]) if len(views) > 1 else None
        self.agent.set_local(now, candidates, mapping)

    def _signal(self) -> None:
        peer = self.peer
        while peer is not None and (offer := self.agent.poll_offer()) is not None:
            encoded = encode_offer(offer)
            self.world.note(self.host.name, f"says {'opened' if offer.opened else 'offer'} {offer.generation}")
            self.world.call_later(self.signal_delay, lambda encoded=encoded: peer.receive_offer(encoded))  # type: ignore[misc]

    def receive_offer(self, encoded: bytes) -> None:
        now = self.world.now
        if now < self.host.asleep_until:
            return
        self.agent.handle_offer(now, decode_offer(encoded))
        if self.started_at is None and self.agent.state is not AgentState.IDLE:
            self.started_at = now
        self._signal()
        self.world.touch(self.host)


def make_pair(world: World, a: Host, b: Host, *, ipv6: bool = False, second_host: bool = True) -> tuple[PunchNode, PunchNode]:
    """A server, with two addresses if `second_host`, and two nodes that have begun to ask it."""
    server = world.host("server", ipv6=ipv6)
    first, second = server.bind(), server.bind()
    sockets, servers, extra = {V4: first, SocketId(2): second}, [first], [second]
    if ipv6:
        sockets[V6] = server.bind(ipv6=True)
        servers.append(sockets[V6])
    world.attach(server, StunNode(), sockets)
    elsewhere = None
    if second_host:
        other = world.host("server's other address")
        elsewhere = other.bind()
        world.attach(other, StunNode(), {V4: elsewhere})
    nodes = tuple(
        PunchNode(world, host, is_a=is_a, servers=servers, mapping_servers=extra, elsewhere=elsewhere)
        for host, is_a in ((a, True), (b, False))
    )
    nodes[0].peer, nodes[1].peer = nodes[1], nodes[0]
    return nodes[0], nodes[1]


def _transmit(queue: deque[tuple[SocketId, Address, bytes]], out: bytearray) -> Transmit | None:
    if not queue:
        return None
    socket_id, remote, datagram = queue.popleft()
    out[: len(datagram)] = datagram
    return Transmit(socket_id, remote, len(datagram), memoryview(out)[: len(datagram)])
