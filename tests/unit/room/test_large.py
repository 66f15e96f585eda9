"""Rooms of more than sixteen: who knows no such room, and what many who come at once cost the others."""

from __future__ import annotations

import random

import msgspec

from tests.unit.room.test_room import PSK, T0, a_creator, a_joiner, connect, deliver, events_of, joined, static_of
from tunnel.room.core import messages
from tunnel.room.core.addresses import MAX_MEMBERS, MEMBERS_UNSAID
from tunnel.room.core.creator import CreatorRoom
from tunnel.room.core.events import JoinRefused, RoomFull
from tunnel.room.core.messages import Hello, Reason, Refused, State, decode_message
from tunnel.room.core.room import PASS_ON_INTERVAL, Room
from tunnel.room.core.roster import RoomState
from tunnel.units import Instant


def say_hello(creator: CreatorRoom, name: str, now: Instant = T0) -> list[messages.RoomMessage]:
    """As a member does that does not say how many it knows; what the creator answers."""
    static = static_of(name)
    creator.expect(now, static, PSK)
    creator.connected(now, static)
    creator.handle_message(now, static, messages.encode(Hello(b"", 0, name, True)))
    return heard_by(creator, static)


def heard_by(creator: Room, static: bytes) -> list[messages.RoomMessage]:
    found = []
    while (said := creator.poll_message()) is not None:
        if said[0] == static:
            found.append(decode_message(said[1]))
    return found


def come(creator: CreatorRoom, name: str, now: Instant = T0) -> Room:
    """One of today's."""
    member = joined(creator, name, now)
    while creator.poll_message() is not None:
        pass
    return member


def members(creator: Room) -> int:
    assert creator.roster is not None
    return len(creator.roster.members)


def test_a_member_that_knows_no_larger_room_holds_it_at_sixteen_and_the_creator_is_told_whose_it_is() -> None:
    creator = a_creator()
    answers = say_hello(creator, "old")
    assert any(isinstance(answer, State) for answer in answers)
    for number in range(MEMBERS_UNSAID - 2):
        come(creator, f"friend{number}")
    assert members(creator) == MEMBERS_UNSAID
    events_of(creator)
    late = come(creator, "late")
    assert JoinRefused(Reason.HELD_SMALL) in events_of(late)
    assert RoomFull("late", MEMBERS_UNSAID, ("old",)) in events_of(creator)
    assert members(creator) == MEMBERS_UNSAID
    creator.remove(T0, "old")
    for number in range(3):
        assert come(creator, f"late{number}").roster is not None
    assert members(creator) == MEMBERS_UNSAID + 2


def test_who_knows_no_larger_room_is_told_that_one_of_sixteen_is_full() -> None:
    creator = a_creator()
    for number in range(MEMBERS_UNSAID - 1):
        come(creator, f"friend{number}")
    events_of(creator)
    assert Refused(int(Reason.FULL)) in say_hello(creator, "old")
    assert RoomFull("old", MEMBERS_UNSAID, ("old",)) in events_of(creator)
    assert come(creator, "new").roster is not None
    assert Refused(int(Reason.FULL)) in say_hello(creator, "older")


def test_a_member_that_was_updated_holds_nobody_up_any_more() -> None:
    creator = a_creator()
    say_hello(creator, "old")
    for number in range(MEMBERS_UNSAID - 2):
        come(creator, f"friend{number}")
    assert come(creator, "late").roster is None
    creator.handle_message(T0, static_of("old"), messages.encode(Hello(b"", 0, "old", True, (), True, MAX_MEMBERS)))
    assert come(creator, "later").roster is not None


def test_what_a_creator_knows_of_its_members_survives_a_restart_and_unheard_ones_count_as_old() -> None:
    creator = a_creator(keeps=True)
    friends = [come(creator, f"friend{number}") for number in range(MEMBERS_UNSAID - 1)]
    state = creator.state()
    assert set(state.sizes) == {friend.static for friend in friends}

    def restored(saved: RoomState) -> CreatorRoom:
        return CreatorRoom.restore(saved, now=T0, static=creator.static, entropy=random.Random(1).randbytes)

    assert come(restored(state), "late").roster is not None
    before = restored(msgspec.structs.replace(state, sizes={}))  # as a version wrote it that knew nothing of this
    assert come(before, "late").roster is None
    for friend in friends:
        before.connected(T0, friend.static)
        assert friend.roster is not None
        hello = Hello(friend.roster.room, friend.roster.version, "friend", True, (), True, MAX_MEMBERS)
        before.handle_message(T0, friend.static, messages.encode(hello))
    assert come(before, "later").roster is not None


def test_many_who_come_at_once_cost_the_others_one_roster_a_second_and_a_removal_waits_for_nobody() -> None:
    creator = a_creator()
    ben, cleo = joined(creator, "ben"), joined(creator, "cleo")
    connect(T0, ben, cleo)
    deliver(T0, creator, ben, cleo)
    later = Instant(T0 + PASS_ON_INTERVAL + 1.0)
    for number in range(20):
        static = static_of(f"friend{number}")
        creator.expect(later, static, PSK)
        creator.connected(later, static)
        creator.handle_message(later, static, messages.encode(Hello(b"", 0, f"friend{number}", True, (), True, MAX_MEMBERS)))
    told = {ben.static: 0, cleo.static: 0}
    while (said := creator.poll_message()) is not None:
        if said[0] in told and isinstance(decode_message(said[1]), State):
            told[said[0]] += 1
            {ben.static: ben, cleo.static: cleo}[said[0]].handle_message(later, creator.static, said[1])
    assert set(told.values()) == {1}
    at = creator.poll_timeout()
    assert at is not None
    assert at <= later + PASS_ON_INTERVAL
    creator.handle_timeout(at)
    deliver(at, creator, ben, cleo)
    assert ben.roster == cleo.roster == creator.roster
    creator.remove(at, "friend7")
    assert any(isinstance(message, State) for message in heard_by(creator, ben.static))


def test_the_keys_of_pairs_are_those_of_the_newest_secret() -> None:
    creator = a_creator()
    ben, cleo, dora = (a_joiner(name, creator) for name in ("ben", "cleo", "dora"))
    for member in (ben, cleo, dora):
        creator.expect(T0, member.static, PSK)
        connect(T0, creator, member)
    deliver(T0, creator, ben, cleo, dora)

    def key(of: Room, towards: Room) -> bytes:
        return next(peer.psk for peer in of.peers() if peer.static == towards.static)

    before = key(ben, cleo)
    assert key(cleo, ben) == before
    creator.remove(T0, "dora")
    deliver(T0, creator, ben, cleo)
    assert key(ben, cleo) == key(cleo, ben) != before


def test_who_comes_to_a_room_that_is_being_told_of_others_is_told_at_once() -> None:
    creator = a_creator()
    friends = []
    for number in range(5):
        member = a_joiner(f"friend{number}", creator)
        creator.expect(T0, member.static, PSK)
        connect(T0, creator, member)
        while (said := member.poll_message()) is not None:
            creator.handle_message(T0, member.static, said[1])
        for message in heard_by(creator, member.static):
            member.handle_message(T0, creator.static, messages.encode(message))
        friends.append(member)
    assert all(friend.me is not None for friend in friends)
