"""The door for TLS in time that the test owns: shares, turns, and who gives way to whom."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tunnel.core.prefixes import limits
from tunnel.doors.tls import guests
from tunnel.doors.tls.guests import GRACE, Guest, GuestBook, Stage


class Door:
    """A book, and what it told."""

    def __init__(self, **limits: int) -> None:
        self.book = GuestBook(**limits)
        self.now = 100.0
        self.dismissed: list[Guest] = []
        self.turns: list[Guest] = []

    def arrive(self, host: str, *, speaks: bool = False) -> Guest | None:
        guest = self.book.arrive(self.now, host)
        if guest is not None:
            guest.begin = lambda: self.turns.append(guest)
            guest.dismiss = lambda: self.dismissed.append(guest)
            if speaks:
                self.book.speak(self.now, guest)
        return guest

    def come(self, host: str, *, speaks: bool = False) -> Guest:
        guest = self.arrive(host, speaks=speaks)
        assert guest is not None
        return guest

    def join(self, host: str) -> Guest:
        """As an honest client does."""
        guest = self.come(host, speaks=True)
        assert guest in self.turns
        self.book.shaken(self.now, guest)
        assert self.book.prove(guest)
        return guest

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.book.poll_timeout()) is not None and at <= end:
            self.now = at
            self.book.handle_timeout(self.now)
        self.now = end


def home(number: int) -> str:
    """An address with a site of its own."""
    return f"198.18.{number}.1"


def test_every_table_of_the_door_has_a_share_per_address_that_is_far_below_it() -> None:
    pairs = [
        (guests.MAX_CONNECTIONS, guests.MAX_PER_ADDRESS),
        (guests.MAX_STRANGERS, guests.STRANGERS_PER_ADDRESS),
        (guests.MAX_HANDSHAKES, guests.HANDSHAKES_PER_ADDRESS),
    ]
    assert len(pairs) == len([name for name in vars(guests) if name.startswith("MAX_") and name != "MAX_PER_ADDRESS"])
    for total, each in pairs:
        assert each <= total / 16
        assert max(limits(each, total)) <= total / 2


def test_silent_connections_cost_no_turn() -> None:
    door = Door()
    for number in range(16):
        for _ in range(64):
            door.come(home(number))
    assert not door.turns
    door.wait(GRACE)
    assert door.come("198.19.0.1", speaks=True) in door.turns
    assert len(door.dismissed) == 1  # one of those who filled the table


def test_an_address_has_eight_turns_and_the_others_wait() -> None:
    door = Door()
    mine = [door.come(home(1), speaks=True) for _ in range(20)]
    assert door.turns == mine[:8]
    other = door.come(home(2), speaks=True)
    assert door.turns[8:] == [other]
    door.book.shaken(door.now, mine[0])
    door.book.leave(door.now, mine[1])
    assert door.turns[9:] == mine[8:10]


def test_a_home_with_many_prefixes_has_32_turns() -> None:
    door = Door()
    for number in range(256):
        door.come(f"2a00:1:2:33{number:02x}::1", speaks=True)
    assert len(door.turns) == 32
    assert door.come("2a00:1:2:4400::1", speaks=True) in door.turns


def test_who_holds_a_turn_and_does_nothing_gives_it_up_after_a_second_when_somebody_waits() -> None:
    door = Door()
    idlers = [door.come(home(number), speaks=True) for number in range(16) for _ in range(8)]
    assert len(door.turns) == guests.MAX_HANDSHAKES
    newcomer = door.come("198.19.0.1", speaks=True)
    door.wait(GRACE - 0.2)
    assert newcomer.stage is Stage.WAITING
    door.wait(0.4)
    assert newcomer in door.turns
    assert door.dismissed == idlers[:1]
    door.wait(60.0)
    assert door.dismissed == idlers[:1]  # while nobody waits they may try on


def test_the_turns_of_ones_own_address_come_free_likewise() -> None:
    """An honest client behind the same NAT as eight idlers."""
    door = Door()
    for _ in range(8):
        door.come(home(1), speaks=True)
    honest = door.come(home(1), speaks=True)
    door.wait(GRACE + 0.2)
    assert honest in door.turns


def test_turns_go_from_address_to_address() -> None:
    door = Door(max_handshakes=1, handshakes_per_address=1)
    first = door.come(home(1), speaks=True)
    greedy = [door.come(home(1), speaks=True) for _ in range(20)]
    modest = door.come(home(2), speaks=True)
    door.book.shaken(door.now, first)
    door.book.shaken(door.now, door.turns[-1])
    assert modest in door.turns
    assert door.turns == [first, greedy[0], modest]


def test_the_newest_stranger_beats_the_oldest_of_whoever_has_most() -> None:
    door = Door(max_strangers=64, strangers_per_address=16)
    modest = [door.come(home(number)) for number in range(16)]
    crowd = [door.come(f"198.18.200.{number % 3}") for number in range(32)]
    door.wait(GRACE)
    while door.book.arrive(door.now, home(100 + len(door.book))) is not None and not door.dismissed:
        pass
    for number in range(30):
        door.come(f"198.19.{number}.1")
    assert set(door.dismissed) == set(crowd[: len(door.dismissed)])
    assert not set(door.dismissed) & set(modest)
    assert len(door.book) == 64


def test_who_has_just_come_does_not_give_way() -> None:
    door = Door(max_strangers=16, strangers_per_address=1)
    for number in range(16):
        door.come(home(number))
    assert door.book.is_full(door.now)
    assert door.arrive("198.19.0.1") is None
    door.wait(GRACE)
    assert not door.book.is_full(door.now)
    door.come("198.19.0.1")
    assert len(door.dismissed) == 1


def test_a_connection_of_a_session_never_gives_way() -> None:
    door = Door(max_connections=40, max_per_address=10, max_strangers=16, strangers_per_address=4)
    members = [door.join(home(number)) for number in range(30)]
    for number in range(100, 250):
        door.arrive(home(number))
        door.wait(0.1)
    assert door.dismissed
    assert not set(door.dismissed) & set(members)
    door.wait(GRACE)
    assert door.join("198.19.0.1").stage is Stage.PROVEN


def test_sessions_are_limited_for_each_address_and_in_all() -> None:
    door = Door(max_connections=40, max_per_address=10)
    for _ in range(10):
        door.join(home(1))
    assert door.arrive(home(1)) is None
    late = door.come(home(2), speaks=True)
    door.book.shaken(door.now, late)
    for number in range(3, 29):
        door.join(home(number))
    for _ in range(9):
        if (guest := door.arrive(home(2), speaks=True)) is not None:
            door.book.shaken(door.now, guest)
            door.book.prove(guest)
    assert not door.book.prove(late)  # what was free when it came has gone
    assert door.join(home(30)).stage is Stage.PROVEN  # the last tenth is for newcomers


def test_when_descriptors_run_out_the_heaviest_stranger_goes_at_once() -> None:
    door = Door()
    door.join(home(1))
    strangers = [door.come(home(2)) for _ in range(3)]
    door.come(home(3))
    for _ in range(3):
        door.book.relieve(door.now)
    assert door.dismissed[:2] == strangers[:2]
    for _ in range(9):
        door.book.relieve(door.now)
    assert len(door.book) == 1


@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_in_whatever_order_leaves_nothing_behind(seed: int) -> None:
    rng = random.Random(seed)
    door = Door(max_connections=60, max_per_address=8, max_strangers=40, strangers_per_address=10, max_handshakes=8,
                handshakes_per_address=2)  # fmt: skip
    present: list[Guest] = []
    for _ in range(20_000):
        door.now += rng.random() * 0.05
        match rng.randrange(6):
            case 0 | 1:
                host = rng.choice((f"198.18.{rng.randrange(4)}.{rng.randrange(4)}", f"2a00:1:2:{rng.randrange(600):x}::1"))
                if (guest := door.arrive(host)) is not None:
                    present.append(guest)
            case 2 if present:
                door.book.speak(door.now, rng.choice(present))
            case 3 if present:
                door.book.shaken(door.now, rng.choice(present))
            case 4 if present:
                door.book.prove(rng.choice(present))
            case 5 if present:
                door.book.leave(door.now, present.pop(rng.randrange(len(present))))
        door.book.handle_timeout(door.now)
        present = [guest for guest in present if guest.stage is not Stage.GONE]
        assert len(door.book) == len(present) <= 100
        shaking = sum(guest.stage is Stage.SHAKING for guest in present)
        assert shaking == door.book._turns.used <= 8
    for guest in present:
        door.book.leave(door.now, guest)
    tables: tuple[Any, ...] = (door.book._members, door.book._strangers, door.book._turns)
    assert not any(table.used or any(table._counts.values()) for table in tables)
    for crowd in (door.book._standing, door.book._shaking):
        assert not crowd._by_key
        assert not crowd._by_count
        assert crowd.oldest(None) is None
    assert not door.book._waiting
