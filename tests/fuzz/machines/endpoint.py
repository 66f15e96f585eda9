"""Whole endpoints and a server in the simulated network: whoever is in between, a paired peer, and who knows a code's number.

Home exposes with a code and listens; friend is paired and connected, and its control stream says anything; mate is honest, and is
still heard at the end.  What a wall held counts as found.
"""

from __future__ import annotations

import random
from functools import cache

from tests.fuzz.engine import Machine
from tests.fuzz.machines.decoders import OFFER, PUSHES, RESPONSES, ROOM
from tests.sim.cast import Three
from tests.sim.peers import FIRST, GRANTS, SERVER
from tests.sim.world import Host
from tunnel.nat.candidate import encode_offer
from tunnel.node.events import Faulted
from tunnel.node.hybrid import CONTROL_KEM_KEPT, CONTROL_KEM_KEY, CONTROL_KEM_TEXT, KEEP
from tunnel.node.peering import CONTROL_OFFER, CONTROL_PING, CONTROL_PONG, CONTROL_ROOM, Peering
from tunnel.rendezvous import messages as m
from tunnel.room.core.messages import encode as encode_message
from tunnel.transport.crypto.kem import TEXT_SIZE, KemKey
from tunnel.units import Address, Seconds

STRANGER = Address("45.9.9.9", 999)
MOST_PEERINGS = 4  # friend's, mate's, and what a code may bring


def meet(three: Three) -> tuple[Peering, Peering]:
    """The connections of friend and mate, both direct; and home has a code."""
    peerings = three.meet_both()
    three.home.endpoint.offer_code(three.world.now, SERVER, grants=GRANTS, keep=True)
    three.world.touch(three.home.host)
    three.world.run_until(lambda: bool(three.home.codes))
    return peerings


class _Endpoints:
    """Inputs: what is done, to whom and from where, and the bytes."""

    def __init__(self, _seed: int) -> None:
        self.three = Three()  # of one seed: what was recorded is what another time would be the same
        self.evil, self.honest = meet(self.three)
        self.spoken = b""

    def feed(self, data: bytes) -> None:
        if len(data) < 3:
            return
        three, rest = self.three, data[2:]
        home, world = three.home, three.world
        match data[0] % 10:
            case 0 | 1 | 2:
                self._inject(data[1], rest)
            case 3 | 4 | 5:
                if self.evil.connection is not None and not self.evil.is_closed:
                    self.evil.connection.send_control(rest[:1_000])
                world.touch(three.friend.host)
            case 6:
                connection = self.evil.connection
                if connection is not None and not self.evil.is_closed:
                    connection.send_datagrams(world.now, data[1], [rest])
                world.touch(three.friend.host)
            case 7:
                world.run(data[1] ** 2 / 10_000)
            case 8 if home.codes:
                number = int(home.codes[-1].partition("-")[0])
                client = three.friend.endpoint._context.clients[SERVER]
                if data[1] & 1:
                    client.claim(world.now, number, rest[:60])
                else:
                    client.post(world.now, rest[:8].ljust(8, b"\0"), rest[8:70])
                world.touch(three.friend.host)
            case 9:
                person = three.people[data[1] % 2]
                person.endpoint.network_changed(world.now)
                world.touch(person.host)
            case _:
                pass
        world.run(0.002)
        if self.evil.is_closed and data[0] % 10 == 7:
            self.evil = three.friend.dial(home)
        self._look()

    def _inject(self, which: int, datagram: bytes) -> None:
        """A datagram that nobody of them sent, or not just then."""
        three = self.three
        person = three.people[which % 2]
        sources = (three.server.addresses[0], STRANGER, Address(three.mate.host.addresses[0], 40_000))
        source = sources[(which >> 1) % len(sources)]
        if datagram:
            person.endpoint.handle_batch(
                three.world.now, FIRST, source, memoryview(datagram), max(1, len(datagram) >> (which >> 6))
            )
            three.world.touch(person.host)

    def _look(self) -> None:
        for person in self.three.people:
            for event in person.told:
                if isinstance(event, Faulted):
                    raise event.error
            person.told.clear()

    def end(self) -> None:
        three = self.three
        self._look()
        assert len(three.home.endpoint.peerings) <= MOST_PEERINGS
        assert len(three.home.endpoint._context.drops) < 60
        assert not self.honest.is_closed, "the honest peer's link is gone"
        transfer = three.mate.send(self.honest, b"still there")
        three.world.run_until(lambda: transfer.is_done, Seconds(20.0))
        self._look()


@cache
def corpus() -> list[bytes]:
    """What went over the wire while they met, and what may be said on the control stream."""
    seen: dict[bytes, None] = {}
    three = Three()

    def listen(_host: Host, _destination: Address, segment: bytes) -> bool:
        if len(segment) < 1_250:
            seen.setdefault(segment)
        return True

    three.world.filter = listen
    meet(three)
    three.friend.endpoint.claim_code(three.world.now, SERVER, three.home.codes[-1])
    three.world.run(3.0)
    wire = [bytes((number % 3, number % 256)) + segment for number, segment in enumerate(seen)]
    said = [
        bytes((CONTROL_OFFER,)) + encode_offer(OFFER),
        bytes((CONTROL_PING,)) + b"p" * 8,
        bytes((CONTROL_PONG,)) + b"p" * 8,
        b"\0",
        bytes((CONTROL_KEM_KEY, KEEP)) + KemKey(random.Random(1).randbytes).public,
        bytes((CONTROL_KEM_TEXT, KEEP)) + bytes(TEXT_SIZE),
        bytes((CONTROL_KEM_KEPT,)),
        b"\x63later",
    ]
    said += [bytes((CONTROL_ROOM,)) + encode_message(each) for each in ROOM]
    control = [b"\3\0" + each for each in said]
    server = [b"\0\0" + m.encode_response(n, each) for n, each in enumerate(RESPONSES)] + [
        b"\0\1" + m.encode_push(bytes(16), 9, each) for each in PUSHES
    ]
    other = [
        b"\6\2datagram",
        b"\6\3" + bytes(1_400),
        b"\x08\1" + b"S" + bytes(32),
        b"\x08\0" + bytes(40),
        b"\x09\0\0",
        b"\x09\1\0",
    ]
    return wire + control * 6 + server + other + [bytes((7, n, 0)) for n in (3, 30, 100, 250)] * 4


MACHINES = [Machine("endpoint", corpus, _Endpoints, length=600)]
