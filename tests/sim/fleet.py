"""Several plain servers under one name, and two people who meet by way of them."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.cast import acquaint
from tests.sim.link import Link
from tests.sim.peers import SERVER, PeerNode, ServerNode
from tests.sim.world import InWorld, World
from tunnel.node.peering import Peering
from tunnel.units import PathKey, Seconds

NEAR = Seconds(0.010)  # one way, from anywhere to anywhere, unless a test says otherwise


class Several(InWorld):
    """Home waits for friend; what they say to each other goes through a server, unless the paths are set otherwise."""

    def __init__(self, count: int, *, seed: int = 1, delay: Seconds = NEAR, path: str = "relay") -> None:
        self.world = World(seed, Link(delay=delay))
        self.servers = [ServerNode(self.world, self.world.host(f"server{number}")) for number in range(count)]
        self.home, self.friend = (
            PeerNode(self.world, self.world.host(name, self.world.site(name, "prc")), name, path=path)
            for name in ("home", "friend")
        )
        acquaint(self.home, self.friend)

    def run(self, seconds: float) -> None:
        self.world.run(seconds)

    def run_until(self, predicate: Callable[..., bool], limit: float) -> Seconds:
        return self.world.run_until(predicate, limit)

    def lay(self, who: PeerNode, *delays: float) -> None:
        """So far is it from there to each server."""
        for server, delay in zip(self.servers, delays, strict=True):
            for a, b in ((who.host, server.host), (server.host, who.host)):
                self.world.set_link(a, b, Link(delay=Seconds(delay)))

    def meet(self, who: PeerNode, *numbers: int) -> None:
        """Of the list that it has, in this order."""
        servers = [self.servers[number] for number in numbers or range(len(self.servers))]
        who.endpoint.add_server(self.world.now, SERVER, [server.addresses[0] for server in servers])
        self.world.touch(who.host)

    def link(self, seconds: float = 20.0) -> Peering:
        """The two are linked, and have had the time to find a second server."""
        for each in (self.home, self.friend):
            self.meet(each)
        self.home.listen()
        peering = self.friend.connect(self.home)
        self.world.run(seconds)
        return peering

    def carrier(self, who: PeerNode) -> int:
        """Which server carries what it sends."""
        (peering,) = who.live
        assert peering.connection is not None
        return self.number_of(peering.connection.current_path.key)

    def standing_by(self, who: PeerNode) -> list[int]:
        """The servers of the channels that work and carry nothing."""
        (peering,) = who.live
        assert peering.connection is not None
        current = peering.connection.current_path.key
        return sorted(self.number_of(key) for key, works in peering.connection.relay_paths.items() if works and key != current)

    def number_of(self, key: PathKey) -> int:
        return next(number for number, server in enumerate(self.servers) if key.remote in server.addresses)

    @property
    def instances(self) -> list[int]:
        """As each server tells it."""
        return [server.server._instance for server in self.servers]

    def channels(self) -> list[int]:
        """How many each server keeps; of one that is dead, kept last."""
        return [len(server.server.relay._channels) for server in self.servers]
