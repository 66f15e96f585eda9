"""The servers of a node: the client of each, from where and how it is reached, and when it is left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from tunnel.core.timers import earliest
from tunnel.errors import ConfigurationError
from tunnel.node.alternatives import Alternatives
from tunnel.node.demux import SERVER_KINDS
from tunnel.node.walls import Wall
from tunnel.rendezvous.addresses import ROLES
from tunnel.rendezvous.client import Client
from tunnel.units import Address, Buffer, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.node.context import Context
    from tunnel.rendezvous.events import Hearer

CLIENT_REST: Final = Seconds(5.0)  # after a fault of ours in the talk with a server, before it goes on


class Route(NamedTuple):
    """A way to a server beside UDP, which the driver has opened under a socket id of its own."""

    server: str
    words: str  # for a person: everything goes over ...


class Servers(dict[str, Client]):
    """By name."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        self._at: dict[tuple[SocketId, str], list[Client]] = {}  # one server may go by several names and ports
        self._resting: dict[str, Instant] = {}  # those that met a fault of ours, and until when they are left alone
        self._met: dict[str, Exception] = {}  # in poll_timeout, to be told at the next handle_timeout
        self.routes: dict[SocketId, Route] = {}  # beside UDP
        #: First bytes of what servers say; where anybody may say it, with the client whom it is for.
        self.kinds: dict[int, Client | None] = dict.fromkeys(SERVER_KINDS)

    def add(
        self, now: Instant, name: str, addresses: Iterable[Address], access_token: bytes, has_fallback: bool,
        former: Iterable[bytes] = (),
    ) -> None:  # fmt: skip
        """Raises ConfigurationError when we reach none of the addresses."""
        context, ways = self._context, self._ways(addresses)
        if not ways:
            raise ConfigurationError(f"The server {host_of(name)} has no address of a family that this machine speaks.")
        self[name] = Client(
            servers=ways, now=now, rng=context.rng, entropy=context.entropy, access_token=access_token, has_fallback=has_fallback,
            former=former,
        )  # fmt: skip
        self._note_ways(self[name])
        self._appeared(now, name)

    def add_client(self, now: Instant, name: str, client: Client, kinds: Iterable[int]) -> None:
        """One that talks to whomever it likes, and hears all datagrams of these first bytes."""
        self[name] = client
        self.kinds.update(dict.fromkeys(kinds, client))
        self._appeared(now, name)

    def add_alternatives(self, now: Instant, name: str, names: tuple[str, str]) -> None:
        """The two of these `names`, of which the second is in the place of a server, under one name."""
        both = Alternatives(self, names, now)
        self[name] = cast("Client", both)
        for each in names:
            if each in self:
                both.appeared(now, each)

    def _appeared(self, now: Instant, name: str) -> None:
        for each in self._alternatives(name):
            each.appeared(now, name)

    def reached(self, now: Instant, name: str) -> None:
        """That one answers now."""
        for each in self._alternatives(name):
            each.look(now)

    def _alternatives(self, name: str) -> list[Alternatives]:
        """Those to which that client belongs."""
        return [each for each in self.values() if isinstance(each, Alternatives) and name in each.names]

    def is_part(self, name: str, of: str | None) -> bool:
        """Whether what is known as `of` is that client, or goes by way of it."""
        client = self.get(of or "")
        return name == of or (isinstance(client, Alternatives) and name in client.names)

    def move(self, now: Instant, name: str, addresses: Iterable[Address]) -> None:
        """Its name leads to these addresses now."""
        client, ways = self[name], self._ways(addresses)
        if not ways:
            return
        with self.wall(now, name):
            client.move(now, ways)
        for clients in self._at.values():
            if client in clients:
                clients.remove(client)
        self._note_ways(client)

    def _ways(self, addresses: Iterable[Address]) -> list[tuple[SocketId, Address]]:
        """From each of our sockets to each address of its family."""
        sockets = self._context.sockets.values()
        return [(each.socket_id, address) for address in addresses for each in sockets if each.is_ipv6 == address.is_ipv6]

    def _note_ways(self, client: Client) -> None:
        for socket_id, address in client.ways:
            found = self._at.setdefault((socket_id, address.host), [])
            if client not in found:
                found.append(client)

    def route_up(self, now: Instant, name: str, socket_id: SocketId, address: Address, words: str) -> None:
        self.routes[socket_id] = Route(name, words)
        self[name].fallback_up(now, socket_id, address)
        self._note_ways(self[name])

    def route_down(self, now: Instant, socket_id: SocketId) -> None:
        route = self.routes.get(socket_id)
        if route is not None:
            self[route.server].fallback_down(now, socket_id)

    def describe(self, now: Instant) -> list[dict[str, Any]]:
        """All that this node knows, whatever they are called, those in use first; for `status`."""
        found: dict[str, dict[str, Any]] = {}
        told = [each for client in self.values() for each in client.describe(now)]
        for each in sorted(told, key=lambda each: ROLES.index(each["role"])):
            found.setdefault(each["server"], each)
        return [*found.values()]

    def name_of(self, client: Client) -> str:
        return next((name for name, each in self.items() if each is client), "")

    def follow(self, channel: bytes, hearer: Hearer) -> None:
        """`hearer` hears from now on what becomes of a relay channel, of whichever server."""
        for client in self.values():
            client.follow(channel, hearer)

    def doubt(self, now: Instant, name: str, path: PathKey) -> None:
        """A path through it has died: is it still there?"""
        if name in self:
            self[name].doubt(now, path)
            self._context.control.doubt()

    # --- faults of ours

    def wall(self, now: Instant, name: str) -> Wall:
        """Around what is done with one of them: see interrupt."""
        return Wall(lambda error: self.interrupt(now, name, error))

    def interrupt(self, now: Instant, name: str, error: Exception) -> None:
        """It has met a fault of ours: it rests, so that it does not meet it over and over."""
        self._context.fault("server", f"interrupted the talk with the server {host_of(name)}", error)
        self._resting[name] = Instant(now + CLIENT_REST)
        self._context.control.doubt()

    def _is_resting(self, now: Instant, name: str) -> bool:
        if self._resting and now >= self._resting.get(name, now):
            self._resting.pop(name, None)
        return name in self._resting

    # --- datagrams and time

    def handle_datagram(self, now: Instant, socket_id: SocketId, remote: Address, datagram: Buffer) -> bool:
        """A response or a push; whether something came of it."""
        one = self.kinds.get(datagram[0])
        clients = self._at.get((socket_id, remote.host)) if one is None else [one]
        if clients is None:
            self._context.drops["rendezvous datagram from a stranger"] += 1
            return False
        is_taken = False
        for client in clients:  # each knows its own by transaction or session
            before = client.drops.total()
            client.handle_datagram(now, socket_id, remote, datagram)
            is_taken |= client.drops.total() == before
            if one is None and client.has_new_ways:
                client.has_new_ways = False
                self._note_ways(client)
        return is_taken

    def handle_timeout(self, now: Instant) -> None:
        for name, client in self.items():
            if not self._is_resting(now, name):
                with self.wall(now, name):
                    met = self._met.pop(name, None)
                    if met is not None:
                        raise met
                    client.handle_timeout(now)

    def poll_timeout(self) -> Instant | None:
        """The first deadline of all."""
        first: Instant | None = None
        for name, client in self.items():
            at = self._resting.get(name)
            if at is None:
                try:
                    at = client.poll_timeout()
                except Exception as error:
                    self._met[name] = error
                    at = Instant(0.0)
            first = earliest(first, at)
        return first

    def poll_transmit(self, now: Instant) -> tuple[SocketId, Address, bytes] | None:
        for name, client in self.items():
            try:
                ready = None if self._resting and self._is_resting(now, name) else client.poll_transmit(now)
            except Exception as error:
                self.interrupt(now, name, error)
                continue
            if ready is not None:
                self._context.control.doubt()
                return ready
        return None


def host_of(server: str) -> str:
    """How a person is told of a server, or of several: without options."""
    parts = (part.strip() for part in server.split(","))
    return " or ".join(part for part in parts if part and part != "dht" and "=" not in part) or server.partition(",")[0]
