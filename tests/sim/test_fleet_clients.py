"""The clients that people have, at the servers of a fleet: led to each other, and moved on with their number."""

from __future__ import annotations

import random
from typing import Any

from tests.sim.fleet_servers import REFRESH, SOCKET, FleetServer, FleetWorld
from tunnel.rendezvous import messages
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import Told
from tunnel.units import Address, Seconds

ROOM, OWN = b"r" * 16, b"o" * 16


class Person:
    """A client in the place of a caller; its name leads to one server, by which it hears of the others."""

    def __init__(self, world: FleetWorld, number: int, home: int) -> None:
        self.world = world
        self.address = Address(f"198.18.200.{number}", 5000)
        self.told: list[Told] = []
        self.client = Client(
            servers=[(SOCKET, world.servers[home].address)],
            now=world.now,
            rng=random.Random(number),
            entropy=random.Random(f"person {number}").randbytes,
        )
        world.callers[self.address] = self  # type: ignore[assignment]
        self._tick()

    def receive(self, server: FleetServer, data: bytes) -> None:
        self.client.handle_datagram(self.world.now, SOCKET, server.address, data)
        self.flush()

    def _tick(self) -> None:
        """Its clock."""
        self.client.handle_timeout(self.world.now)
        self.flush()
        self.world.later(0.02, self._tick)

    def flush(self) -> None:
        while (out := self.client.poll_transmit(self.world.now)) is not None:
            _, target, data = out
            server = self.world.server_at(target)
            if server is not None:
                self.world.to_server(self, server, data)  # type: ignore[arg-type]
        while (event := self.client.poll_event()) is not None:
            if isinstance(event, Told):
                self.told.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [each.message for each in self.told if isinstance(each.message, kind)]

    @property
    def at(self) -> int:
        """Which server it uses."""
        return next(number for number, server in enumerate(self.world.servers) if server.address == self.client.server)


def test_clients_at_two_servers_meet_at_the_listeners_and_know_all_servers() -> None:
    world = FleetWorld(3)
    listener, dialer = Person(world, 1, 0), Person(world, 2, 1)
    listener.client.listen(world.now, [ROOM])
    world.run(2.0)
    assert len(listener.client.ways) == len(dialer.client.ways) == 3
    dialer.client.dial(world.now, [ROOM])
    world.run(5.0, lambda: bool(listener.of(messages.Introduced) and dialer.of(messages.Introduced)))
    assert [each.server for each in dialer.client.channels] == [world.servers[0].address]
    assert (listener.at, dialer.at) == (0, 1)


def test_who_has_dialed_for_long_is_led_to_whoever_comes_to_listen_at_another_server() -> None:
    world = FleetWorld(3)
    dialer, listener = Person(world, 1, 1), Person(world, 2, 0)
    dialer.client.dial(world.now, [ROOM])
    world.run(120.0)
    assert not dialer.of(messages.Introduced)
    listener.client.listen(world.now, [ROOM], is_spare=True)
    world.run(5.0, lambda: bool(listener.of(messages.Introduced) and dialer.of(messages.Introduced)))
    assert [each.channel for each in dialer.client.channels] == [each.channel for each in listener.client.channels]


def test_a_code_is_claimed_by_a_client_of_another_server() -> None:
    world = FleetWorld(3)
    owner, claimer = Person(world, 1, 0), Person(world, 2, 1)
    owner.client.allocate(world.now)
    world.run(5.0, lambda: bool(owner.of(messages.Allocated)))
    number = owner.of(messages.Allocated)[0].nameplate
    claimer.client.claim(world.now, number, b"pake")
    world.run(5.0, lambda: bool(owner.of(messages.ClaimReceived) and claimer.of(messages.ClaimAccepted)))
    owner.client.post(world.now, owner.of(messages.ClaimReceived)[0].mailbox, b"answer")
    claimer.client.post(world.now, claimer.of(messages.ClaimAccepted)[0].mailbox, b"more")
    world.run(5.0, lambda: bool(owner.of(messages.Posted) and claimer.of(messages.Posted)))


def test_a_client_whose_server_dies_goes_to_another_by_itself_with_its_rooms_and_its_number() -> None:
    world = FleetWorld(3)
    owner = Person(world, 1, 0)
    owner.client.allocate(world.now)
    owner.client.listen(world.now, [ROOM])
    world.run(5.0, lambda: bool(owner.of(messages.Allocated)))
    number = owner.of(messages.Allocated)[0].nameplate
    world.servers[0].kill()
    world.run(30.0, lambda: owner.at != 0)
    world.run(5.0)
    friend = Person(world, 2, 3 - owner.at)
    friend.client.dial(world.now, [ROOM])
    friend.client.claim(world.now, number, b"pake")
    world.run(10.0, lambda: bool(friend.of(messages.Introduced) and friend.of(messages.ClaimAccepted)))
    assert owner.of(messages.Refused) == friend.of(messages.Refused) == []


def introduced(world: FleetWorld) -> tuple[Person, Person]:
    """Two that have met at the first server: who listens and who dialled, with a channel."""
    listener, dialer = Person(world, 1, 0), Person(world, 2, 0)
    listener.client.listen(world.now, [ROOM])
    dialer.client.dial(world.now, [ROOM])
    world.run(5.0, lambda: bool(listener.client.channels and dialer.client.channels))
    dialer.client.leave(world.now, [ROOM])
    return listener, dialer


def test_a_client_whose_server_drains_is_at_another_before_it_is_gone_and_its_channel_stays_meanwhile() -> None:
    world = FleetWorld(3)
    listener, dialer = introduced(world)
    world.run(1.0)
    world.servers[0].fleet.drain(world.now, Seconds(30.0))
    world.run(10.0, lambda: listener.at != 0 and dialer.at != 0)
    world.run(1.0)
    for person in (listener, dialer):
        assert person.of(messages.MoveOn)  # of the channel that is there
        assert [each.server for each in person.client.channels] == [world.servers[0].address]
        person.client.leave_channel(world.now, person.client.channels[0].channel)
    world.run(2.0)
    assert not world.servers[0].server.registry.sessions


def test_a_server_that_was_restarted_counts_again_when_the_list_says_so() -> None:
    world = FleetWorld(3)
    person = Person(world, 1, 0)
    world.run(10.0, lambda: len(person.client.relays(world.now)) == 3)
    before = person.client.relays(world.now).keys()
    for server in world.servers[1:]:  # whoever is not in use is asked every five minutes only
        server.kill()
        world.run(2.0)
        server.boot()
    world.run(2 * REFRESH, lambda: len(person.client.relays(world.now).keys() - before) == 2)


def test_who_waits_in_a_room_for_others_of_itself_goes_from_a_server_that_drains_for_good() -> None:
    world = FleetWorld(3)
    listener, dialer = introduced(world)
    for person in (listener, dialer):  # as a program does that looks for copies of itself
        person.client.listen(world.now, [OWN])
        person.client.dial(world.now, [OWN])
    world.run(5.0)
    world.servers[0].fleet.drain(world.now, Seconds(30.0))
    world.run(10.0, lambda: listener.at != 0 and dialer.at != 0)
    world.run(4.0)  # the other servers have said that somebody waits where they were
    for person in (listener, dialer):
        for channel in person.client.channels:
            person.client.leave_channel(world.now, channel.channel)
    world.run(4.0, lambda: not world.servers[0].server.registry.sessions)


def test_a_code_of_a_server_that_the_others_miss_is_good_when_it_has_the_store_again() -> None:
    world = FleetWorld(3)
    world.run(5.0)
    world.store.cut.add(world.servers[0])
    world.run(16.0)
    owner, friend = Person(world, 1, 0), Person(world, 2, 1)
    owner.client.allocate(world.now)
    world.run(5.0, lambda: bool(owner.of(messages.Allocated)))
    friend.client.claim(world.now, owner.of(messages.Allocated)[0].nameplate, b"pake")
    world.run(3.0)
    world.store.cut.clear()
    world.run(8.0, lambda: bool(friend.of(messages.ClaimAccepted)))
    assert friend.of(messages.Refused) == []
