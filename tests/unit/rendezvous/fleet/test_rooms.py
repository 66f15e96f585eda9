"""Rooms of very many clients: those that nobody waits for are written to the store in their turn, a few at a time."""

from __future__ import annotations

import random
from collections import Counter

from tunnel.core.trace import Drops
from tunnel.rendezvous.fleet.directory import Directory, Look, Order, Put
from tunnel.rendezvous.fleet.members import Members
from tunnel.rendezvous.fleet.notes import Notes
from tunnel.rendezvous.fleet.rooms import SLICE, TURN, Rooms
from tunnel.rendezvous.fleet.seal import Seal
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.numbers import Numbers
from tunnel.rendezvous.pushes import Pushes
from tunnel.rendezvous.registry import Dial, Registry, Session
from tunnel.units import Address, Instant, SocketId

MANY = 20 * SLICE
SEAL = Seal(b"a key that all servers of the fleet have")


class Desk:
    """The rooms of one server, and a store that answers at once."""

    def __init__(self) -> None:
        entropy = random.Random(3).randbytes
        config = ServerConfig(rooms_per_session=10 * MANY, rooms_per_address=10 * MANY, max_room_entries=100 * MANY)
        self.now = Instant(1000.0)
        self.registry = Registry(config, entropy, Numbers(config, entropy, bytes(32)), lambda room: False)
        self.directory = Directory()
        drops = Drops()
        members = Members(SEAL, 1, (), entropy)
        notes = Notes(SEAL, self.directory, 1, lambda now, note: None, drops)
        self.rooms = Rooms(
            seal=SEAL, directory=self.directory, members=members, notes=notes, registry=self.registry,
            pushes=Pushes(config, self.registry, entropy, drops, lambda *_: None), field=b"f" * 8,
            unix_time=lambda: 1_800_000_000, counts=Counter(),
        )  # fmt: skip
        self.registry.on_room = self.rooms.changed

    def session(self, number: int) -> Session:
        identifier = number.to_bytes(16, "big")
        found = self.registry.enter(self.now, identifier, SocketId(0), Address(f"20.0.0.{number}", 1))
        assert found is not None
        found.follows = True
        return found

    def settle(self) -> None:
        """Until everything is written."""
        while self.rooms.unwritten or self.rooms.poll_timeout() is not None:
            self.turn()

    def turn(self) -> list[Order]:
        """A time-out, and what it gives the store to do."""
        self.now = Instant(max(self.now, self.rooms.poll_timeout() or self.now))
        self.rooms.handle_timeout(self.now)
        orders: list[Order] = []
        while batch := self.directory.poll_orders():
            orders += batch
            self.directory.finish(self.now, [{} for _ in batch])
        return orders


def _room(number: int) -> bytes:
    return b"r" * 8 + number.to_bytes(8, "big")


def test_a_store_that_lost_everything_is_written_anew_a_few_rooms_at_a_time_and_those_that_are_dialed_first() -> None:
    desk = Desk()
    waiting, dialer = desk.session(1), desk.session(2)
    for number in range(MANY):
        assert desk.registry.listen(waiting, _room(number))
    dialed = [_room(number) for number in range(MANY - 3, MANY)]
    for name in dialed:
        assert desk.registry.dial(Dial(dialer, (name,)), name) is not None
    desk.settle()
    desk.rooms.all_anew()
    assert desk.rooms.unwritten >= MANY
    assert not desk.rooms.wants_turn
    began, written = desk.now, []
    while desk.rooms.unwritten:
        orders = desk.turn()
        assert len(orders) <= SLICE
        written += [order.key for order in orders if isinstance(order, Put)]
    assert written[:3] == [SEAL.name(b"room", name) for name in dialed]
    assert set(written) == {SEAL.name(b"room", _room(number)) for number in range(MANY)}
    assert desk.now - began >= (MANY // SLICE - 1) * TURN


def test_who_comes_meanwhile_is_written_at_once() -> None:
    desk = Desk()
    waiting = desk.session(1)
    for number in range(MANY):
        desk.registry.listen(waiting, _room(number))
    desk.settle()
    desk.rooms.all_anew()
    desk.turn()
    desk.registry.listen(waiting, _room(MANY))
    assert desk.rooms.wants_turn
    before = desk.now
    names = [order.key for order in desk.turn() if isinstance(order, Put)]
    assert SEAL.name(b"room", _room(MANY)) in names
    assert desk.now - before <= TURN


def test_what_a_store_did_not_take_is_written_in_its_turn_when_it_is_back() -> None:
    desk = Desk()
    waiting = desk.session(1)
    for number in range(MANY):
        desk.registry.listen(waiting, _room(number))
    while not desk.directory.is_broken:
        desk.rooms.handle_timeout(desk.now)
        assert desk.directory.poll_orders()
        desk.directory.finish(desk.now, None)
    desk.rooms.retry()
    assert desk.rooms.unwritten == MANY
    assert desk.rooms.poll_timeout() is None  # nothing is tried again and again while the store is away
    desk.directory.probe(desk.now, Look(b"k"), lambda now, entries: None)
    desk.directory.poll_orders()
    desk.directory.finish(desk.now, [{}])
    desk.rooms.retry()
    written: set[bytes] = set()
    while desk.rooms.unwritten:
        fresh = not desk.rooms.wants_turn
        orders = desk.turn()
        assert len(orders) <= SLICE or not fresh
        written.update(order.key for order in orders if isinstance(order, Put))
    assert len(written) == MANY
