"""The usual cast on the simulated network: home exposes, friend connects, the server stands between.

with Cast(seed=7, home="prc", friend="sym") as cast:
    peering = cast.meet()
    cast.transfer(peering, 100_000)
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from tests.sim.link import Link
from tests.sim.peers import BLACK_HOLE, GRANTS, PeerNode, ServerNode
from tests.sim.world import InWorld, Realm, World
from tunnel.node.events import Faulted, KeptPsk, KnownPeer
from tunnel.node.peering import Peering
from tunnel.rendezvous.limits import ServerConfig
from tunnel.transport.connection.events import PathKind
from tunnel.units import Seconds

PAUSE = Seconds(0.5)  # for an echo over two NATs, if nothing stands still


def acquaint(home: PeerNode, *friends: PeerNode, by_older_versions: bool = False) -> None:
    """Let each friend and home remember one another, without the ceremony; nobody meets the server by this.

    `by_older_versions`: which knew no hybrid step, so that nothing was kept.
    """
    for friend in friends:
        psk = sha256(home.static_key + friend.static_key).digest()
        kept = () if by_older_versions else (KeptPsk(sha256(psk).digest(), True),)
        known = KnownPeer(
            name=home.name, static=home.endpoint.static_public, psk=psk, server=home.server, kept=kept, is_hybrid=bool(kept)
        )
        friend.save(known)
        home.save(replace(known, name=friend.name, static=friend.endpoint.static_public, grants=GRANTS))
        friend.endpoint.set_peers(friend.world.now, friend.saved.values())
    home.endpoint.set_peers(home.world.now, home.saved.values())


class Cast(InWorld):
    """A server, home and friend, each at a site of a kind that nat.SITES names, on one link from site to site."""

    def __init__(
        self,
        *,
        seed: int = 1,
        link: Link | None = None,
        home: str = "prc",
        friend: str = "prc",
        home_path: str = "auto",
        friend_path: str = "auto",
        config: ServerConfig | None = None,
    ) -> None:
        self.world = World(seed, link or Link(delay=Seconds(0.010)))
        self.server = ServerNode(self.world, self.world.host("server"), config)
        self.home_site = self.world.site("home", home)
        self.friend_site = self.world.site("friend", friend)
        self.home = PeerNode(self.world, self.world.host("home", self.home_site), "home", path=home_path)
        self.friend = PeerNode(self.world, self.world.host("friend", self.friend_site), "friend", path=friend_path)

    @property
    def people(self) -> tuple[PeerNode, ...]:
        return self.home, self.friend

    def site_of(self, who: str) -> Realm:
        return self.home_site if who == "home" else self.friend_site

    def who(self, who: str) -> PeerNode:
        return self.home if who == "home" else self.friend

    def another(self, name: str, kind: str = "prc", *, static: bytes | None = None, path: str = "auto") -> PeerNode:
        """One more person, at a site of its own."""
        host = self.world.host(name, self.world.site(name, kind))
        return PeerNode(self.world, host, name, static=static, path=path)

    def claim(self) -> None:
        """The friend types the code."""
        for person in self.people:
            person.meet(self.server)
        self.home.offer()
        self.world.run_until(lambda: bool(self.home.codes))
        self.friend.claim(self.home.codes[0])

    def pair(self, limit: float = 60.0) -> Peering:
        """By a code, as far as the friend's first connection."""
        self.claim()
        self.world.run_until(lambda: bool(self.friend.peerings and self.home.peerings), limit)
        return self.friend.peerings[0]

    def acquaint(self, *, listening: bool = True) -> None:
        """They remember each other and have greeted the server, and home listens."""
        acquaint(self.home, self.friend)
        for person in (self.home, self.friend):
            person.meet(self.server)
        if listening:
            self.home.listen()

    def meet(self, limit: float = 60.0) -> Peering:
        """As remembered peers, as far as a connection on both sides."""
        self.acquaint()
        peering = self.friend.dial(self.home)
        self.world.run_until(lambda: bool(self.friend.peerings and self.home.peerings), limit)
        return peering

    def meet_directly(self, limit: float = 10.0) -> Peering:
        """As remembered peers, as far as a direct path on both sides."""
        peering = self.meet()
        self.world.run_until(self.is_direct, limit)
        return peering

    def is_direct(self) -> bool:
        return self.home.is_direct and self.friend.is_direct

    def bytes_of(self, size: int) -> bytes:
        return self.world.rng.randbytes(size)

    def transfer(self, peering: Peering, size: int = 10_000, limit: float = 30.0) -> Seconds:
        """So many bytes to the other side and back; how long that took."""
        nodes = [host.node for host in self.world.hosts.values()]
        sender = next(node for node in nodes if isinstance(node, PeerNode) and peering in node.endpoint.peerings)
        transfer = sender.send(peering, self.bytes_of(size))
        return self.world.run_until(lambda: transfer.is_done, limit)

    def echoed(self, peering: Peering, data: bytes, limit: float = 30.0) -> Seconds:
        """These bytes from the friend to home and back; how long that took."""
        transfer = self.friend.send(peering, data)
        return self.world.run_until(lambda: transfer.is_done, limit)

    def black_hole(self, sender: str) -> None:
        """Nothing gets through any more from `sender` to the other one."""
        a, b = (self.home, self.friend) if sender == "home" else (self.friend, self.home)
        self.world.set_link(a.host, b.host, BLACK_HOLE)

    def cut_off_server(self, link: Link = BLACK_HOLE) -> None:
        """What lies between the server and both sides, in both directions."""
        for person in self.people:
            self.world.set_link(person.host, self.server.host, link)
            self.world.set_link(self.server.host, person.host, link)


class Three(Cast):
    """home exposes; friend and mate are connected to it, the mate from an older version's time."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed=seed)
        self.mate = self.another("mate")

    @property
    def people(self) -> tuple[PeerNode, ...]:
        return self.home, self.friend, self.mate

    def meet_both(self) -> tuple[Peering, Peering]:
        """The connections of friend and mate, both direct."""
        self.acquaint()
        acquaint(self.home, self.mate, by_older_versions=True)
        self.mate.meet(self.server)
        self.friend.dial(self.home)
        self.mate.dial(self.home)
        self.world.run_until(lambda: self.friend.kinds[-1:] == [PathKind.DIRECT] and self.mate.kinds[-1:] == [PathKind.DIRECT])
        return self.friend.peerings[0], self.mate.peerings[0]

    def carries(self, peering: Peering, count: int = 20) -> None:
        """Mate's link to home, without a gap."""
        for number in range(count):
            transfer = self.mate.send(peering, f"{number};".encode())
            self.world.run_until(lambda transfer=transfer: transfer.is_done, PAUSE)

    @property
    def faults(self) -> list[Faulted]:
        return [event for event in self.home.told if isinstance(event, Faulted)]

    def at_home(self, name: str) -> Peering:
        """The other end of the connection."""
        return next(peering for peering in self.home.endpoint.peerings if peering.peer.name == name)
