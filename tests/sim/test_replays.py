"""Datagrams that are sent again change nothing."""

from __future__ import annotations

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import PeerNode
from tests.sim.world import World
from tunnel.units import Address, Instant, SocketId, Transmit

# --- replays ----------------------------------------------------------------------------------------------------------------


class Stranger:
    """A host that sends what it is given, to anybody."""

    def __init__(self, world: World) -> None:
        self._queue: list[tuple[Address, bytes]] = []
        self.world = world
        self.host = world.host("stranger")
        self.answers = 0
        world.attach(self.host, self, {SocketId(0): self.host.bind()})

    def send(self, remote: Address, data: bytes) -> None:
        self._queue.append((remote, data))
        self.world.touch(self.host)

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        self.answers += 1

    def handle_timeout(self, now: Instant) -> None: ...

    def poll_timeout(self) -> Instant | None:
        return None

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        if not self._queue:
            return None
        remote, data = self._queue.pop(0)
        return Transmit(SocketId(0), remote, len(data), memoryview(data))


def state_of(person: PeerNode) -> list[object]:
    """What a replay must not change."""
    return [
        person.bytes_taken,
        [sorted(each.connection.indices()) for each in person.live if each.connection is not None],
        [each.connection.stats().received_bytes for each in person.live if each.connection is not None],
        [each.connection.current_path.key for each in person.live if each.connection is not None],
        sorted(person.saved),
        len(person.paired),
        len(person.closed),
        len(person.codes),
    ]


@pytest.mark.parametrize("by_code", [True, False])
@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "sym"), ("open", "open")])
def test_datagrams_that_are_replayed_change_nothing(by_code: bool, home: str, friend: str) -> None:
    with Cast(home=home, friend=friend) as cast:
        for person in cast.people:
            person.heard = []
        stranger = Stranger(cast.world)
        peering = cast.pair() if by_code else cast.meet()
        cast.transfer(peering, 20_000)
        cast.world.run(3.0)
        cast.world.filter = None
        recorded = {person: list(person.heard or ()) for person in cast.people}
        for person in cast.people:
            person.heard = None
        before = [state_of(person) for person in cast.people]
        for person, batches in recorded.items():
            assert len(batches) > 10
            for socket_id, remote, data, stride in batches:
                if data[0] < 0x70:
                    continue  # the rendezvous has its own tests
                # from where it came, and from an address that nobody knows
                for source in (remote, stranger.host.sockets[SocketId(0)]):
                    person.handle_datagrams(cast.world.now, socket_id, source, memoryview(data), stride)
                    cast.world.touch(person.host)
        cast.world.run(2.0)
        after = [state_of(person) for person in cast.people]
        assert after == before
        cast.transfer(peering, 20_000)
        assert len(cast.home.live) == len(cast.friend.live) == 1
        assert stranger.answers <= 2 * sum(map(len, recorded.values()))


def test_replayed_inits_make_no_connection_even_after_a_restart_of_the_exposer() -> None:
    with Cast() as cast:
        cast.home.heard = []
        cast.meet_directly()
        inits = [batch for batch in cast.home.heard or () if batch[2][0] == 0x70 or batch[2][8:9] == b"\x70"]
        assert inits
        cast.friend.kill()
        cast.home.heard = None
        cast.home.boot()
        cast.home.meet(cast.server)
        cast.home.listen()
        for socket_id, remote, data, stride in inits:
            cast.home.handle_datagrams(cast.world.now, socket_id, remote, memoryview(data), stride)
            cast.world.touch(cast.home.host)
        cast.world.run(60.0)
        assert not cast.home.endpoint.peerings
        assert not cast.home.peerings


def test_relayed_datagrams_sent_again_by_a_stranger_go_nowhere() -> None:
    with Cast(home="sym", friend="sym") as cast:
        stranger = Stranger(cast.world)
        sent: list[bytes] = []

        def note(sender: object, destination: Address, datagram: bytes) -> bool:
            if destination == cast.server.addresses[0] and datagram[0] >= 0xC0:
                sent.append(datagram)
            return True

        cast.world.filter = note
        peering = cast.meet()
        cast.transfer(peering, 20_000)
        cast.world.run(8.0)  # the two have told each other which servers they reach
        before = [state_of(person) for person in cast.people]
        for datagram in list(sent):
            stranger.send(cast.server.addresses[0], datagram)
        cast.world.run(2.0)
        assert [state_of(person) for person in cast.people] == before
        assert stranger.answers <= len(sent)
        cast.transfer(peering, 20_000)
