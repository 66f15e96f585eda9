"""A fleet in virtual time: servers with their real cores, a store that fails in every way, and callers that follow.

The callers are hand-made and do no more than docs/protocol.md asks of a client: what they show is the servers' doing.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Final

from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet.directory import PATIENCE, Drop, Entries, Look, Order, Put, Tell
from tunnel.rendezvous.fleet.fleet import Fleet
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import Role
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.units import Address, Instant, SocketId

KEY: Final = b"a key that all servers of the fleet have"
EPOCH: Final = 1_700_000_000
REFRESH: Final = 7.0
SOCKET: Final = SocketId(0)


class Store:
    """Hashes and channels in memory, behind a line of its own to each server."""

    def __init__(self, world: FleetWorld) -> None:
        self.world = world
        self.hashes: dict[bytes, dict[bytes, bytes]] = defaultdict(dict)
        self.delay = 0.001
        self.jitter = 0.0
        self.loss = 0.0  # of batches, before they are carried out or after; and of what is told
        self.twice = 0.0  # of what is told
        self.is_down = False  # refuses connections
        self.is_stopped = False  # takes orders, and carries them out when it goes on
        self.cut: set[FleetServer] = set()  # servers that do not reach it
        self.operations = 0
        self._kept: list[tuple[FleetServer, list[Order]]] = []

    def submit(self, server: FleetServer, orders: list[Order]) -> None:
        world, rng, boot = self.world, self.world.rng, server.boots

        def finish(results: Sequence[Entries] | None) -> None:
            if server.boots == boot and server.is_up:
                server.fleet.directory.finish(world.now, results)

        if self.is_down:
            world.later(0.01, lambda: finish(None))
            return
        delay = self.delay + rng.random() * self.jitter
        fate = rng.random()
        if server in self.cut or fate < self.loss / 2 or 2 * delay > PATIENCE:
            if server not in self.cut and fate >= self.loss / 2:
                world.later(delay, lambda: self._carry_out_unheard(server, orders))
            world.later(PATIENCE, lambda: finish(None))
            return
        if self.is_stopped:
            self._kept.append((server, orders))
            world.later(PATIENCE, lambda: finish(None))
            return

        def carry_out() -> None:
            if self.is_stopped or self.is_down:
                self._kept.extend([(server, orders)] if self.is_stopped else [])
                world.later(PATIENCE, lambda: finish(None))
                return
            results = self.carry_out(server, orders)
            if fate < self.loss:
                world.later(PATIENCE - delay, lambda: finish(None))
            else:
                world.later(delay, lambda: finish(results))

        world.later(delay, carry_out)

    def go_on(self) -> None:
        """After it was stopped: first what came meanwhile."""
        self.is_stopped = False
        kept, self._kept = self._kept, []
        for server, orders in kept:
            self.carry_out(server, orders)

    def restart_empty(self) -> None:
        self.is_down = self.is_stopped = False
        self._kept.clear()
        self.hashes.clear()

    def _carry_out_unheard(self, server: FleetServer, orders: list[Order]) -> None:
        self.carry_out(server, orders)

    def carry_out(self, server: FleetServer, orders: list[Order]) -> list[Entries]:
        results: list[Entries] = []
        for order in orders:
            self.operations += 1
            match order:
                case Put(key, field, value, _):
                    self.hashes[key][field] = value
                    results.append(dict(self.hashes[key]))
                case Look(key):
                    results.append(dict(self.hashes.get(key, {})))
                case Drop(key, field):
                    self.hashes.get(key, {}).pop(field, None)
                    results.append({})
                case Tell(channel, data):
                    self._publish(channel, data)
                    results.append({})
        return results

    def _publish(self, channel: bytes, data: bytes) -> None:
        rng = self.world.rng
        for server in self.world.servers:
            if not server.is_up or server in self.cut or channel not in server.fleet.notes.channels:
                continue
            for _ in range(1 + (rng.random() < self.twice)):
                if rng.random() >= self.loss:
                    delay = self.delay + rng.random() * self.jitter
                    self.world.later(delay, lambda server=server: server.hear(channel, data))  # type: ignore[misc]


class FleetServer:
    """One server of the fleet; a later life of it knows nothing of the earlier one."""

    def __init__(self, world: FleetWorld, number: int, config: ServerConfig) -> None:
        self.world = world
        self.address = (
            Address("203.0.113.1", 24_531 + 2 * number) if world.is_one_machine else Address(f"203.0.113.{number + 1}", 24_531)
        )
        self.config = config
        self.skew = 0  # seconds of its calendar
        self.boots = 0
        self.busy = 0.0
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.is_up = True
        chance = random.Random(f"{self.address} {self.boots} {self.world.seed}")
        self.fleet = Fleet(
            KEY,
            [self.address],
            entropy=chance.randbytes,
            unix_time=lambda: EPOCH + int(self.world.now) + self.skew,
            busy=lambda: self.busy,
        )
        place = ServerSocket(SOCKET, self.address, None)
        self.server = Server(self.config, sockets=[place], now=self.world.now, entropy=chance.randbytes, fleet=self.fleet)

    def kill(self) -> None:
        self.is_up = False

    def hear(self, channel: bytes, data: bytes) -> None:
        if self.is_up:
            self.fleet.hear(self.world.now, channel, data)

    def receive(self, source: Address, data: bytes) -> None:
        if self.is_up:
            for burst in self.server.handle_batch(self.world.now, SOCKET, source, memoryview(data), len(data)):
                self.world.to_caller(self, burst.remote, bytes(burst.buffer))

    def pump(self) -> None:
        if not self.is_up:
            return
        while (transmit := self.server.poll_transmit(self.world.now)) is not None:
            self.world.to_caller(self, transmit.remote, bytes(transmit.buffer))
        if self.fleet.directory.has_orders:
            self.world.store.submit(self, self.fleet.directory.poll_orders())


class Contact:
    """A caller's talk with one server."""

    def __init__(self, caller: Caller, server: FleetServer) -> None:
        self.caller = caller
        self.server = server
        self.cookie = b""
        self.epoch = 0
        self.misses = 0
        self.instance = 0
        self.refresh_at = caller.world.now
        self.pending: dict[int, tuple[messages.RequestMessage, float, int]] = {}  # message, due, sendings
        self.listening: set[bytes] = set()
        self.dialing: set[bytes] = set()
        self._armed = math.inf

    def ask(self, message: messages.RequestMessage) -> None:
        transaction = self.caller.chance.getrandbits(64)
        self.pending[transaction] = (message, self.caller.world.now, 0)
        self.tick()

    def tick(self) -> None:
        world = self.caller.world
        if world.now >= self.refresh_at:
            self.refresh_at = Instant(world.now + REFRESH)
            if not any(isinstance(message, messages.Refresh) for message, _, _ in self.pending.values()):
                self.ask(messages.Refresh())
        for transaction, (message, due, sendings) in list(self.pending.items()):
            if due <= world.now:
                self.misses += sendings > 0
                self.pending[transaction] = (message, world.now + min(5.0, 0.3 * 2**sendings), sendings + 1)
                data = messages.encode_request(transaction, self.caller.session, message, cookie=self.cookie)
                world.to_server(self.caller, self.server, data)
        if self.misses >= 3:
            self.caller.lost(self)
        self._arm()

    def _arm(self) -> None:
        due = min([self.refresh_at, *(due for _, due, _ in self.pending.values())])
        if due < self._armed:
            self._armed = due
            self.caller.world.later(due - self.caller.world.now, self._ring)

    def _ring(self) -> None:
        self._armed = math.inf
        if self.caller.contacts.get(self.server) is self:
            self.tick()

    def on_response(self, response: messages.Response) -> None:
        if response.transaction not in self.pending:
            return
        self.misses = 0
        request, _, _ = self.pending[response.transaction]
        message = response.message
        if isinstance(message, messages.Retry):
            self.cookie = message.cookie
            self._on_instance(message.instance)
            self._on_epoch(message.epoch)
            self.pending[response.transaction] = (request, self.caller.world.now, 0)
            self.tick()
            return
        if isinstance(message, messages.Refused) and message.code in (11, 13):
            self.pending[response.transaction] = (request, self.caller.world.now + max(1, message.retry_after_s), 0)
            self._arm()
            return
        del self.pending[response.transaction]
        if isinstance(message, messages.Welcome):
            self.cookie = message.cookie
            self._on_instance(message.instance)
            self._on_epoch(message.epoch)
            if not message.known:
                self.caller.register(self)
        elif isinstance(message, messages.Servers):
            self.epoch = message.epoch
            self.caller.list = message
        else:
            self.caller.answers.append((self.server, request, message))
            if isinstance(message, messages.Allocated):
                self.caller.numbers[message.nameplate] = message.ticket
            elif isinstance(message, messages.Refused) and message.code == 14 and isinstance(request, messages.Claim):
                self.caller.claim_at(request, message.at)

    def _on_instance(self, instance: int) -> None:
        """Another life of the server knows nothing of us, not even that we follow."""
        known, self.instance = self.instance, instance
        if known not in (0, instance):
            self.epoch = 0
            self.caller.register(self)

    def _on_epoch(self, epoch: int) -> None:
        if epoch and epoch != self.epoch and self.caller.follows:
            self.epoch = epoch
            self.ask(messages.Follow(epoch))


class Caller:
    """A client: it has one server, and goes where it is sent."""

    def __init__(self, world: FleetWorld, number: int, home: FleetServer | None, *, follows: bool = True) -> None:
        self.world = world
        self.address = Address(f"198.18.{number // 250}.{number % 250 + 1}", 5000)
        self.chance = random.Random(f"caller {number} {world.seed}")
        self.session = self.chance.randbytes(16)
        self.follows = follows
        self.contacts: dict[FleetServer, Contact] = {}
        self.home = home
        self.list: messages.Servers | None = None
        self.answers: list[tuple[FleetServer, messages.RequestMessage, messages.ResponseMessage]] = []
        self.pushes: list[tuple[FleetServer, messages.PushMessage]] = []
        self.numbers: dict[int, bytes] = {}
        self.wanted: tuple[set[bytes], set[bytes]] = (set(), set())  # rooms in which it listens, and that it dials
        self._seen: set[int] = set()
        if home is not None:
            self.contact(home)

    def contact(self, server: FleetServer) -> Contact:
        if server not in self.contacts:
            self.contacts[server] = Contact(self, server)
            self.contacts[server].tick()
        return self.contacts[server]

    def listen(self, *rooms: bytes) -> None:
        self.wanted[0].update(rooms)
        if self.home is not None:
            self.contact(self.home).ask(messages.Join(Role.LISTEN, rooms))

    def dial(self, *rooms: bytes, at: FleetServer | None = None) -> None:
        self.wanted[1].update(rooms)
        server = at or self.home
        if server is not None:
            contact = self.contact(server)
            contact.dialing.update(rooms)
            contact.ask(messages.Join(Role.DIAL, rooms))

    def register(self, contact: Contact) -> None:
        """The server has forgotten, or is a new home."""
        if contact.server is self.home and self.wanted[0]:
            contact.ask(messages.Join(Role.LISTEN, tuple(self.wanted[0])))
        rooms = self.wanted[1] if contact.server is self.home else contact.dialing
        if rooms:
            contact.ask(messages.Join(Role.DIAL, tuple(rooms)))
        if contact.server is self.home:
            for number, ticket in self.numbers.items():
                contact.ask(messages.Allocate(number, 1, ticket))

    def allocate(self) -> None:
        assert self.home is not None
        self.contact(self.home).ask(messages.Allocate())

    def claim(self, number: int, at: FleetServer | None = None) -> None:
        server = at or self.home
        assert server is not None
        self.contact(server).ask(messages.Claim(number, b"pake", may_move=True))

    def claim_at(self, claim: messages.Claim, at: messages.Places) -> None:
        for place in at:
            server = self.world.server_at(messages.unpack_address(place))
            if server is not None:
                self.contact(server).ask(claim)
                return

    def lost(self, contact: Contact) -> None:
        """A server does not answer: if it is the home, another one of the list is from now on."""
        contact.misses = 0
        if contact.server is not self.home:
            return
        del self.contacts[contact.server]
        known = [self.world.server_at(messages.unpack_address(each.at[0])) for each in self.list.servers] if self.list else []
        others = [each for each in known if each is not None and each is not contact.server] or [contact.server]
        self.move(self.chance.choice(others))

    def move(self, server: FleetServer) -> None:
        self.home = server
        self.register(self.contact(server))

    def receive(self, server: FleetServer, data: bytes) -> None:
        contact = self.contacts.get(server)
        if contact is None:
            return
        if data[0] == messages.RESPONSE:
            contact.on_response(messages.decode_response(data))
        elif data[0] == messages.PUSH:
            push = messages.decode_push(data)
            self.world.to_server(self, server, messages.encode_push_ack(self.session, push.push_id))
            if push.push_id not in self._seen:
                self._seen.add(push.push_id)
                self._on_push(server, push.message)

    def _on_push(self, server: FleetServer, message: messages.PushMessage) -> None:
        self.pushes.append((server, message))
        if isinstance(message, messages.Elsewhere):
            there = self.world.server_at(messages.unpack_address(message.at[0]))
            if there is not None and message.room in self.wanted[1]:
                self.dial(*self.wanted[1], at=there)
        elif isinstance(message, messages.MoveOn) and server is self.home:
            there = self.world.server_at(messages.unpack_address(message.at[0])) if message.at else None
            if there is not None:
                self.move(there)
                cookie = self.contacts.pop(server).cookie
                bye = messages.encode_request(self.chance.getrandbits(64), self.session, messages.Goodbye(), cookie=cookie)
                self.world.to_server(self, server, bye)

    def met(self) -> list[messages.Introduced]:
        return [message for _, message in self.pushes if isinstance(message, messages.Introduced)]

    def of(self, kind: type[messages.ResponseMessage]) -> list[messages.ResponseMessage]:
        return [message for _, _, message in self.answers if isinstance(message, kind)]

    def refusals(self) -> list[int]:
        return [message.code for _, _, message in self.answers if isinstance(message, messages.Refused)]


class FleetWorld:
    """Time, the network between callers and servers, and the store."""

    def __init__(
        self, servers: int = 3, *, seed: int = 1, config: ServerConfig | None = None, is_one_machine: bool = False
    ) -> None:
        """`is_one_machine`: the servers have one address, and ports of their own."""
        self.seed = seed
        self.is_one_machine = is_one_machine
        self.rng = random.Random(seed)
        self.now = Instant(1000.0)
        self.delay = 0.01
        self.jitter = 0.0
        self.loss = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.store = Store(self)
        self.callers: dict[Address, Caller] = {}
        self.servers: list[FleetServer] = []
        for number in range(servers):
            self.servers.append(FleetServer(self, number, config or ServerConfig()))
        self.run(8.0)

    def caller(self, home: int | None = 0, *, follows: bool = True) -> Caller:
        server = None if home is None else self.servers[home]
        caller = Caller(self, len(self.callers), server, follows=follows)
        self.callers[caller.address] = caller
        return caller

    def server_at(self, address: Address) -> FleetServer | None:
        return next((each for each in self.servers if each.address == address), None)

    def later(self, delay: float, action: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._queue, (self.now + delay, self._order, action))

    def _send(self, action: Callable[[], None]) -> None:
        if self.rng.random() >= self.loss:
            self.later(self.delay + self.rng.random() * self.jitter, action)

    def to_server(self, caller: Caller, server: FleetServer, data: bytes) -> None:
        self._send(lambda: server.receive(caller.address, data))

    def to_caller(self, server: FleetServer, remote: Address, data: bytes) -> None:
        caller = self.callers.get(remote)
        if caller is not None:
            self._send(lambda: caller.receive(server, data))

    def _deadlines(self) -> Iterator[float]:
        if self._queue:
            yield self._queue[0][0]
        for server in self.servers:
            if server.is_up and (at := server.server.poll_timeout()) is not None:
                yield at

    def run(self, seconds: float = 1.0, until: Callable[[], bool] | None = None) -> None:
        """Step from deadline to deadline.  With `until`: fail if that has not come true in time."""
        end = self.now + seconds
        while True:
            for server in self.servers:
                server.pump()
            if until is not None and until():
                return
            due = min(self._deadlines(), default=end)
            if due > end:
                self.now = Instant(end)
                assert until is None, f"not within {seconds} s (seed {self.seed})"
                return
            self.now = Instant(max(self.now, due))
            while self._queue and self._queue[0][0] <= self.now:
                heappop(self._queue)[2]()
            for server in self.servers:
                if server.is_up:
                    server.server.handle_timeout(self.now)
