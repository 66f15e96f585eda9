"""Whoever comes and goes, and comes again: the others pay a bounded number of rosters for it, whatever connections it makes."""

from __future__ import annotations

import random

from tests.unit.room.test_room import PSK, T0, a_creator, a_joiner, connect, deliver, events_of, joined, static_of
from tunnel.room.core import messages
from tunnel.room.core.addresses import BLOCKS, MAX_MEMBERS, SPARE_BLOCK, Prefix
from tunnel.room.core.creator import (
    MAX_RENUMBERS,
    MEMBER_CHANGES,
    MEMBER_REFILL,
    RENUMBER_INTERVAL,
    RENUMBER_REFILL,
    ROOM_CHANGES,
    ROOM_REFILL,
    TOO_OFTEN,
)
from tunnel.room.core.events import JoinRefused, MemberRemoved
from tunnel.room.core.messages import Have, Hello, Leave, Reason, Told, pack_routes
from tunnel.room.core.records import MAX_SPENDERS, MESSAGE_BURST, MESSAGE_RATE, Allowances
from tunnel.room.core.room import Room
from tunnel.room.core.roster import Roster
from tunnel.units import Instant, Seconds

TEN_MINUTES = 600.0


def roster(room: Room) -> Roster:
    assert room.roster is not None
    return room.roster


def version(room: Room) -> int:
    return roster(room).version


def come(now: Instant, creator: Room, static: bytes, *rooms: Room) -> None:
    creator.connected(now, static)
    creator.handle_message(now, static, messages.encode(Hello(b"", 0, "mallory", False, (), True, MAX_MEMBERS)))
    deliver(now, creator, *rooms)


def go(now: Instant, creator: Room, static: bytes, *rooms: Room) -> None:
    creator.handle_message(now, static, messages.encode(Leave()))
    creator.disconnected(now, static)
    deliver(now, creator, *rooms)


def test_ten_minutes_of_coming_and_going_cost_the_others_few_rosters_and_epochs() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    mallory = static_of("mallory")
    creator.expect(T0, mallory, PSK, invited=True)
    before = version(creator)
    for second in range(int(TEN_MINUTES)):
        now = Instant(T0 + second)
        come(now, creator, mallory, ben)
        go(now, creator, mallory, ben)
        creator.handle_timeout(now)
        deliver(now, creator, ben)
    assert creator.roster is not None
    assert creator.roster == ben.roster
    most = MEMBER_CHANGES + TEN_MINUTES / MEMBER_REFILL + 1
    assert MEMBER_CHANGES <= version(creator) - before <= most
    assert creator.roster.epoch - 1 <= most
    assert creator.drops[TOO_OFTEN] > 400


def test_news_of_the_creator_reach_the_others_while_somebody_churns_as_fast_as_it_can() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    mallory = static_of("mallory")
    creator.expect(T0, mallory, PSK, invited=True)
    for tenth in range(int(10 * TEN_MINUTES)):
        now = Instant(T0 + tenth / 10)
        come(now, creator, mallory, ben)
        go(now, creator, mallory, ben)
        if not tenth % 50:
            creator.handle_timeout(now)
    assert ben.drops["room messages too fast"] == 0
    assert creator.roster == ben.roster


def test_by_many_keys_the_room_as_a_whole_is_churned_as_little() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    before = version(creator)
    refused = 0
    for second in range(int(TEN_MINUTES)):
        now = Instant(T0 + second)
        mallory = a_joiner(f"mallory{second}", creator)
        creator.expect(now, mallory.static, PSK)
        connect(now, creator, mallory)
        deliver(now, creator, mallory, ben)
        refused += JoinRefused(Reason.BUSY) in events_of(mallory)
        creator.handle_message(now, mallory.static, messages.encode(Leave()))
        creator.disconnected(now, mallory.static)
        creator.handle_timeout(now)
        deliver(now, creator, ben)
    # A newcomer may take the place of one that has gone: two rosters for one.
    assert ROOM_CHANGES <= version(creator) - before <= 2 * (ROOM_CHANGES + TEN_MINUTES / ROOM_REFILL) + 1
    assert refused > 100
    assert creator.roster == ben.roster
    later = Instant(T0 + 2 * TEN_MINUTES)
    come(later, creator, static_of("guest"), ben)
    creator.expect(later, static_of("guest"), PSK)
    come(later, creator, static_of("guest"), ben)
    assert creator.roster is not None
    assert creator.roster.member(static_of("guest")) is not None


def test_who_leaves_too_often_is_let_go_later_and_stays_if_it_is_back() -> None:
    creator = a_creator()
    mallory, other = static_of("mallory"), static_of("other")
    for static in (mallory, other):
        creator.expect(T0, static, PSK, invited=True)
        for _ in range(MEMBER_CHANGES // 2):
            come(T0, creator, static)
            go(T0, creator, static)
        assert creator.roster is not None
        assert creator.roster.member(static) is None
    creator.handle_timeout(at := Instant(T0 + MEMBER_REFILL))
    come(at, creator, mallory)
    come(at, creator, other)
    go(at, creator, mallory)
    go(at, creator, other)
    assert roster(creator).member(mallory) is not None
    assert roster(creator).member(other) is not None
    come(at, creator, other)  # a member still, so that costs nothing
    events_of(creator)
    due = creator.poll_timeout()
    while due is not None and due < T0 + 2 * MEMBER_REFILL + 1:
        creator.handle_timeout(due)
        due = creator.poll_timeout()
    assert roster(creator).member(mallory) is None
    assert roster(creator).member(other) is not None
    assert len([event for event in events_of(creator) if isinstance(event, MemberRemoved)]) == 1


def test_a_person_is_never_too_often() -> None:
    creator = a_creator()
    for number in range(2 * MEMBER_CHANGES):
        now = Instant(T0 + number * ROOM_REFILL * 2)
        joined(creator, f"friend{number}", now)
        creator.remove(now, f"friend{number}")
    assert creator.drops[TOO_OFTEN] == 0


def test_all_friends_come_leave_and_come_again_at_once() -> None:
    creator = a_creator()
    names = [f"friend{number}" for number in range(MAX_MEMBERS - 1)]
    for _ in range(2):
        friends = [joined(creator, name) for name in names]
        assert all(friend.roster is not None for friend in friends)
        if _ == 0:
            for friend in friends:
                go(T0, creator, friend.static)
    assert creator.roster is not None
    assert len(creator.roster.members) == MAX_MEMBERS
    assert creator.drops[TOO_OFTEN] == 0


def test_the_rate_of_messages_is_that_of_a_member_and_not_of_its_connections() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    heard = 0
    for second in range(60):
        now = Instant(T0 + second)
        for _ in range(10):
            creator.connected(now, ben.static)
            for _ in range(MESSAGE_BURST):
                before = creator.drops["room messages too fast"]
                creator.handle_message(now, ben.static, messages.encode(Have(1)))
                heard += creator.drops["room messages too fast"] == before
    assert heard <= MESSAGE_BURST + 60 * MESSAGE_RATE


def test_a_renumbering_that_was_spent_is_not_given_back_by_leaving() -> None:
    creator = a_creator()
    ben = static_of("ben")
    creator.expect(T0, ben, PSK, invited=True)
    seen = set()
    for minute in range(30):
        now = Instant(T0 + 60 * minute)
        assert creator.roster is not None
        seen.add(creator.roster.subnet)
        creator.connected(now, ben)
        clash = (creator.roster.subnet + bytes((24,)),)
        creator.handle_message(now, ben, messages.encode(Hello(b"", 0, "ben", False, clash)))
        creator.handle_timeout(Instant(now + 30))
        go(Instant(now + 31), creator, ben)
        creator.handle_timeout(Instant(now + 32))
    most = 1 + MAX_RENUMBERS + 30 * 60 / RENUMBER_REFILL
    assert most - 1 <= len(seen) <= most


def test_who_has_all_networks_costs_the_creator_one_search_for_a_subnet_and_not_one_for_each_message() -> None:
    creator = a_creator()
    joined(creator, "ben")
    everything = messages.encode(
        Told(pack_routes(tuple(Prefix.parse(f"{base}/{bits}") for base, bits in (*BLOCKS, SPARE_BLOCK))))
    )
    for _ in range(MESSAGE_BURST // 2):
        creator.handle_message(T0, static_of("ben"), everything)
    assert creator.drops["no subnet without a clash"] == 1
    later = Instant(T0 + RENUMBER_INTERVAL)
    for _ in range(MESSAGE_BURST // 4):
        creator.handle_timeout(later)
        creator.handle_message(later, static_of("ben"), everything)
    assert creator.drops["no subnet without a clash"] == 2


def test_allowances_are_kept_for_so_many_and_come_back_in_time() -> None:
    rng = random.Random(1)
    spent = Allowances(2, Seconds(10.0))
    assert [spent.take(T0, b"a") for _ in range(3)] == [True, True, False]
    assert spent.ready_at(T0, b"a") == T0 + 10
    assert spent.take(Instant(T0 + 10), b"a")
    assert not spent.take(Instant(T0 + 10), b"a")
    assert spent.take(Instant(T0 + 1_000), b"a")
    assert spent.spent(T0, b"a") <= 2  # a clock that went back gives nothing
    for _ in range(3 * MAX_SPENDERS):
        spent.take(T0, rng.randbytes(32))
    assert len(spent._spent) == MAX_SPENDERS
