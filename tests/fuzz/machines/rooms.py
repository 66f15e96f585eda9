"""Rooms: members that say anything to one another and to the creator; and what goes through a room's interfaces."""

from __future__ import annotations

import random

import trio
from trio.testing import MockClock

from tests.fuzz.engine import Machine
from tests.fuzz.machines.decoders import ROOM
from tests.fuzz.test_lan_fuzz import STATE
from tests.fuzz.test_lan_through import throw_everything
from tests.twins.tap import ALL_OFFLOADS
from tests.unit.room.test_room import T0, a_creator, deliver, joined
from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.room.core.messages import encode as encode_message
from tunnel.room.core.roster import is_signed
from tunnel.units import Instant

PACKETS = 60  # for one input of the machine `interface`, which says only which


class _Room:
    """Inputs: who hears it, how long after the last, and a message of cleo's."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = T0
        self.creator = a_creator()
        self.ben, self.cleo = joined(self.creator, "ben"), joined(self.creator, "cleo")
        deliver(T0, self.creator, self.ben, self.cleo)
        self.ben.connected(self.now, self.cleo.static)

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        victim = self.creator if data[0] & 1 else self.ben
        self.now = Instant(self.now + data[1] / 50)
        if data[0] & 8:
            victim.disconnected(self.now, self.cleo.static)
            victim.connected(self.now, self.cleo.static)
        victim.handle_message(self.now, self.cleo.static, data[2:])
        victim.handle_timeout(self.now)
        for _ in range(5_000):
            said = victim.poll_message()
            if said is None:
                break
            other = self.ben if victim is self.creator else self.creator
            if data[0] & 4 and said[0] == other.static:
                other.handle_message(self.now, victim.static, said[1])
        else:
            raise AssertionError("the room never runs dry")
        while victim.poll_event() is not None:
            pass
        assert victim.roster is not None
        assert len(victim.roster.members) <= MAX_MEMBERS
        assert is_signed(victim.state().roster, STATE.room)

    def end(self) -> None:
        assert not self.ben.is_over
        assert not self.creator.is_over
        assert self.ben.roster is not None
        assert self.creator.roster is not None
        assert self.ben.roster.named("ben") is not None
        assert self.creator.roster.named("ben") is not None
        assert len(self.creator.drops) < 40


def room_corpus() -> list[bytes]:
    return [bytes((who, pause)) + encode_message(each) for who in range(4) for pause in (0, 50, 200) for each in ROOM] + [
        b"\x08\1\0"
    ]


class _Interface:
    def feed(self, data: bytes) -> None:
        seed = int.from_bytes(data[:8], "big")
        offloads = ALL_OFFLOADS if seed & 1 else 0
        trio.run(throw_everything, seed, PACKETS, offloads, clock=MockClock(autojump_threshold=0))

    def end(self) -> None:
        pass


def interface_corpus() -> list[bytes]:
    return [random.Random(number).randbytes(8) for number in range(64)]


MACHINES = [
    Machine("room", room_corpus, _Room, length=300),
    Machine("interface", interface_corpus, lambda _seed: _Interface(), length=10),
]
