"""Rooms on the simulated network: members with an endpoint, a room and what both told, and a server that may be killed."""

from __future__ import annotations

from tests.sim.link import Link
from tests.sim.peers import FIRST, SERVER, EndpointNode, ServerNode
from tests.sim.world import Host, InWorld, World
from tunnel.node.events import CodeIssued, Problem, Troubled
from tunnel.rendezvous.limits import ServerConfig
from tunnel.room.core.addresses import Prefix
from tunnel.room.core.creator import CreatorRoom
from tunnel.room.core.events import RoomEvent
from tunnel.room.core.membership import Membership, NewcomerStore
from tunnel.room.core.room import Room
from tunnel.room.core.roster import RoomState, Roster, invited_psk
from tunnel.units import Address, Instant, Seconds, SocketId, Transmit

BLACK_HOLE = Link(loss=1.0)


class MemberNode(EndpointNode):
    """One process of `lan`, with the world's face."""

    def __init__(
        self,
        world: World,
        host: Host,
        server: ServerNode,
        name: str,
        *,
        keeps: bool = False,
        routes: str = "",
        carries: bool = False,
    ) -> None:
        super().__init__(world, host, name)
        self.server = server
        self.carries = carries  # for others
        self.keeps = keeps
        self.routes = tuple(Prefix.parse(text) for text in routes.split())
        self.saved: RoomState | None = None
        self.heard: list[RoomEvent] = []
        self.claims: list[str] = []

    # life

    def boot(self, room_name: str | None = None) -> None:
        """Start: what was saved if anything was, else a new room of that name, or a joiner that knows none."""
        store = NewcomerStore()
        entropy = self.start((), store)
        self.heard.clear()
        static, now = self.endpoint.static_public, self.world.now
        if self.saved is not None:
            kind = CreatorRoom if self.saved.private_key else Room
            room = kind.restore(self.saved, now=now, static=static, routes=self.routes, entropy=entropy)
        elif room_name is not None:
            room = CreatorRoom.create(
                now=now, static=static, member_name=self.name, room_name=room_name, routes=self.routes, keeps=self.keeps,
                entropy=entropy,
            )  # fmt: skip
        else:
            room = Room.join(static=static, member_name=self.name, keeps=self.keeps, routes=self.routes, entropy=entropy)
        self.endpoint.add_server(now, SERVER, self.server.addresses[:1])
        self.members = Membership(self.endpoint, room, store, server=SERVER, now=now, save=self._save, carries=self.carries)
        self.hear(now)
        self.world.attach(self.host, self, {FIRST: self.address})

    def _save(self, state: RoomState) -> None:
        if self.keeps:
            self.saved = state

    def quit(self) -> None:
        """As by Ctrl-C."""
        self.members.leave(self.world.now)
        self.world.touch(self.host)
        self.endpoint.close(self.world.now)
        self.world.touch(self.host)
        self.host.node = None

    # the world's face

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        self.endpoint.handle_batch(now, socket_id, remote, buffer, stride)
        self.hear(now)

    def handle_timeout(self, now: Instant) -> None:
        self.endpoint.handle_timeout(now)
        self.hear(now)

    def poll_timeout(self) -> Instant | None:
        deadlines = (self.endpoint.poll_timeout(), self.members.poll_timeout())
        return min((at for at in deadlines if at is not None), default=None)

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        self.hear(now)
        return self.endpoint.poll_transmit(now, out)

    def hear(self, now: Instant) -> None:
        while (event := self.endpoint.poll_event(now)) is not None:
            self.told.append(event)
            if isinstance(event, Troubled | CodeIssued):
                self.world.note(self.name, str(event))
            self.members.handle_event(now, event)
        for heard in self.members.pump(now):
            self.heard.append(heard)
            self.world.note(self.name, f"{type(heard).__name__} {getattr(getattr(heard, 'member', None), 'name', '')}")

    # verbs

    def claim(self, code: str) -> None:
        self.claims.append(code)
        self.members.claim_code(self.world.now, code)
        self.world.touch(self.host)

    def offer(self) -> None:
        self.members.offer_code(self.world.now)
        self.world.touch(self.host)

    def remove(self, name: str) -> None:
        self.members.remove(self.world.now, name)
        self.hear(self.world.now)
        self.world.touch(self.host)

    def invite(self, other: MemberNode, psk: bytes) -> None:
        self.members.meet(self.world.now, other.static, invited_psk(psk), invited=True)
        self.hear(self.world.now)
        self.world.touch(self.host)

    def join_peer(self, other: MemberNode, psk: bytes) -> None:
        self.members.meet(self.world.now, other.static, invited_psk(psk))
        self.hear(self.world.now)
        self.world.touch(self.host)

    # what is known

    @property
    def room(self) -> Room:
        return self.members.room

    @property
    def static(self) -> bytes:
        return self.endpoint.static_public

    @property
    def roster(self) -> Roster:
        assert self.room.roster is not None
        return self.room.roster

    @property
    def version(self) -> int:
        return self.room.roster.version if self.room.roster is not None else 0

    @property
    def online(self) -> set[str]:
        """The other members that it has a connection to."""
        members = self.room.roster.members if self.room.roster is not None else ()
        return {member.name for member in members if self.members.peering(member.static) is not None}

    @property
    def code(self) -> str:
        return [event.code for event in self.told if isinstance(event, CodeIssued)][-1]

    @property
    def problems(self) -> list[Problem]:
        return [event.problem for event in self.told if isinstance(event, Troubled) and event.problem is not Problem.PEER_ABSENT]

    def code_is_stale(self, code: str) -> bool:
        """Whether the last one that it tried is another than this, or came to nothing in some other way."""
        return not self.endpoint._meetings._claiming

    def of(self, kind: type[RoomEvent]) -> list[RoomEvent]:
        return [event for event in self.heard if isinstance(event, kind)]


class Party(InWorld):
    """A server, a creator and friends, each at a site of its own."""

    def __init__(
        self,
        *,
        seed: int = 1,
        link: Link | None = None,
        keeps: bool = False,
        config: ServerConfig | None = None,
        kind: str = "prc",
        are_apart: bool = False,
    ) -> None:
        self.world = World(seed, link or Link(delay=Seconds(0.010)), are_apart=are_apart)
        self.server = ServerNode(self.world, self.world.host("server"), config)
        self.keeps = keeps
        self.kind = kind
        self.creator = self.node("creator")
        self.friends: list[MemberNode] = []

    @property
    def everybody(self) -> list[MemberNode]:
        return [self.creator, *self.friends]

    def node(self, name: str, *, routes: str = "", kind: str = "", carries: bool = False) -> MemberNode:
        host = self.world.host(name, self.world.site(name, kind or self.kind))
        return MemberNode(self.world, host, self.server, name, keeps=self.keeps, routes=routes, carries=carries)

    def friend(self, name: str, *, routes: str = "", kind: str = "", carries: bool = False) -> MemberNode:
        """Somebody more, who knows no code yet."""
        friend = self.node(name, routes=routes, kind=kind, carries=carries)
        friend.boot()
        self.friends.append(friend)
        return friend

    def open(self) -> str:
        """The creator has a room and a code."""
        self.creator.boot("game")
        self.creator.offer()
        self.world.run_until(lambda: bool([e for e in self.creator.told if isinstance(e, CodeIssued)]), 30)
        return self.creator.code

    def gather(self, count: int, limit: float = 60.0) -> None:
        """A room with so many friends, who all see one another."""
        code = self.open()
        for number in range(count):
            self.friend(f"friend{number}").claim(code)
        self.world.run_until(lambda: self.is_whole(), limit)

    def is_whole(self, members: list[MemberNode] | None = None) -> bool:
        """All of these have the same roster, and see all the others."""
        members = self.everybody if members is None else members
        if not all(each.version for each in members) or len({each.version for each in members}) > 1:
            return False
        statics = {each.static for each in members}
        names = {member.name for member in members[0].roster.members if member.static in statics}
        return len(names) == len(members) and all(len(names & each.online) == len(names) - 1 for each in members)

    def is_whole_but_for(self, name: str) -> bool:
        """All friends have the same roster and see one another, and this one, whom the roster has, is not to be seen."""
        names = {friend.name for friend in self.friends}
        return all(friend.online == names - {friend.name} for friend in self.friends if friend.name != name) and all(
            friend.roster.named(name) is not None and friend.version == self.friends[0].version for friend in self.friends
        )

    def split(self, one: list[MemberNode], other: list[MemberNode], link: Link = BLACK_HOLE) -> None:
        """Nothing gets from one group to the other any more; with a link it does again."""
        for a in one:
            for b in other:
                self.world.set_link(a.host, b.host, link)
                self.world.set_link(b.host, a.host, link)

    def cut_off(self, who: MemberNode, link: Link = BLACK_HOLE) -> None:
        """From everybody and the server."""
        self.split([who], [each for each in self.everybody if each is not who], link)
        for a, b in ((who.host, self.server.host), (self.server.host, who.host)):
            self.world.set_link(a, b, link)
