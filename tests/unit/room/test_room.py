"""One member's view, fed by hand: what no simulated network needs to show."""

from __future__ import annotations

import random
from hashlib import sha256

import msgspec
import pytest

from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.room.core import messages
from tunnel.room.core.addresses import Prefix, is_spare
from tunnel.room.core.creator import JOIN_PATIENCE, MAX_JOINING, RENUMBER_INTERVAL, CreatorRoom
from tunnel.room.core.events import Entered, JoinRefused, MemberJoined, MemberOffline, MemberOnline, YouWereRemoved
from tunnel.room.core.messages import Have, Hello, Reason, State
from tunnel.room.core.room import HAVE_INTERVAL, RESEND_AFTER, Room
from tunnel.units import Instant, Seconds

T0 = Instant(100.0)
EVERYTHING = tuple(map(Prefix.parse, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
PSK = bytes(32)


def static_of(name: str) -> bytes:
    return sha256(name.encode()).digest()


def a_creator(name: str = "anna", **options: object) -> CreatorRoom:
    return CreatorRoom.create(
        now=T0, static=static_of(name), member_name=name, room_name="game", entropy=random.Random(name).randbytes,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def a_joiner(name: str, creator: Room) -> Room:
    room = Room.join(static=static_of(name), member_name=name, entropy=random.Random(name).randbytes)
    room.paired(creator.static, PSK)
    return room


def events_of(room: Room) -> list[object]:
    found: list[object] = []
    while (event := room.poll_event()) is not None:
        found.append(event)
    return found


def deliver(now: Instant, *rooms: Room) -> int:
    """Everything that they have to say to each other, until nobody says anything more; what waits for its second, too."""
    by_static = {room.static: room for room in rooms}
    count = 0
    while True:
        while said := [(room.static, message) for room in rooms if (message := room.poll_message()) is not None]:
            for sender, (receiver, body) in said:
                count += 1
                if receiver in by_static:
                    by_static[receiver].handle_message(now, sender, body)
        late = [room for room in rooms if room._pass_on_at is not None]
        for room in late:
            room._pass_on_to_all(now)
        if not late:
            return count


def connect(now: Instant, one: Room, other: Room) -> None:
    one.connected(now, other.static)
    other.connected(now, one.static)


def joined(creator: Room, name: str, now: Instant = T0) -> Room:
    member = a_joiner(name, creator)
    creator.expect(now, member.static, PSK)
    connect(now, creator, member)
    deliver(now, creator, member)
    return member


def test_a_join_takes_three_messages_and_gives_both_the_same_roster() -> None:
    creator = a_creator()
    member = a_joiner("ben", creator)
    creator.expect(T0, member.static, PSK)
    connect(T0, creator, member)
    assert deliver(T0, creator, member) == 3  # two Hello and a State
    assert member.roster == creator.roster
    assert [type(event) for event in events_of(member)][:2] == [Entered, MemberOnline]
    assert MemberJoined in [type(event) for event in events_of(creator)]
    assert member.me is not None
    assert member.me.host == 2
    assert creator.is_creator
    assert not member.is_creator


def test_members_dial_the_creator_and_among_others_the_smaller_key_dials() -> None:
    creator = a_creator()
    ben, cleo = joined(creator, "ben"), joined(creator, "cleo")
    assert not creator.dials(ben.static)
    assert ben.dials(creator.static)
    assert ben.dials(cleo.static) is not cleo.dials(ben.static)
    assert ben.dials(cleo.static) is (ben.static < cleo.static)


def test_everybody_has_a_key_for_everybody_else_and_pairs_agree() -> None:
    creator = a_creator()
    rooms = [creator, *(joined(creator, name) for name in ("ben", "cleo", "dora"))]
    for room in rooms[1:3]:
        connect(T0, creator, room)
    deliver(T0, *rooms)
    keys = {room.static: {peer.static: peer.psk for peer in room.peers()} for room in rooms}
    for one in rooms:
        assert keys[one.static].keys() == {room.static for room in rooms} - {one.static}
        for other in rooms:
            if one is not other:
                assert keys[one.static][other.static] == keys[other.static][one.static]
    assert keys[creator.static][rooms[1].static] == PSK


def test_a_message_of_somebody_without_a_connection_or_after_the_end_is_dropped() -> None:
    creator = a_creator()
    creator.handle_message(T0, static_of("nobody"), messages.encode(Have(1)))
    assert creator.drops["room message from nobody"] == 1
    ben = joined(creator, "ben")
    ben.forgotten_by(creator.static)
    ben.handle_message(T0, creator.static, messages.encode(Have(1)))
    assert ben.drops["room message from nobody"] == 1
    assert YouWereRemoved() in events_of(ben)
    assert ben.peers() == []


def test_whoever_is_not_expected_is_refused_and_stays_out() -> None:
    creator = a_creator()
    mallory = a_joiner("mallory", creator)
    connect(T0, creator, mallory)
    deliver(T0, creator, mallory)
    assert JoinRefused(Reason.UNKNOWN) in events_of(mallory)
    assert creator.roster is not None
    assert len(creator.roster.members) == 1


def test_being_forgotten_by_another_member_means_nothing() -> None:
    creator = a_creator()
    ben, cleo = joined(creator, "ben"), joined(creator, "cleo")
    ben.forgotten_by(cleo.static)
    creator.forgotten_by(ben.static)
    assert not ben.is_over
    assert not creator.is_over


def test_those_who_pair_and_say_nothing_are_few_and_expire() -> None:
    creator = a_creator()
    for number in range(MAX_JOINING + 24):
        creator.expect(T0, static_of(f"mute{number}"), PSK)
    assert len(creator.peers()) == MAX_JOINING
    creator.expect(T0, static_of("guest"), PSK, invited=True)
    assert len(creator.peers()) == MAX_JOINING + 1
    assert creator.poll_timeout() == T0 + min(JOIN_PATIENCE, HAVE_INTERVAL)
    creator.handle_timeout(Instant(T0 + JOIN_PATIENCE))
    assert [peer.static for peer in creator.peers()] == [static_of("guest")]
    assert creator.drops["joiners that said nothing"] == MAX_JOINING + 24


def test_have_is_repeated_and_heals_what_got_lost_but_not_at_once() -> None:
    creator = a_creator()
    ben = a_joiner("ben", creator)
    creator.expect(T0, ben.static, PSK)
    connect(T0, creator, ben)
    hello = ben.poll_message()
    assert hello is not None
    creator.handle_message(T0, ben.static, hello[1])
    while creator.poll_message() is not None:
        pass  # its Hello and its State are lost
    creator.handle_message(T0, ben.static, messages.encode(Have(0)))
    assert creator.poll_message() is None  # it was told a moment ago
    later = Instant(T0 + RESEND_AFTER)
    creator.handle_message(later, ben.static, messages.encode(Have(0)))
    deliver(later, creator, ben)
    assert ben.roster == creator.roster
    due = Instant(T0 + HAVE_INTERVAL)
    assert creator.poll_timeout() == due
    creator.handle_timeout(due)
    said = creator.poll_message()
    assert said is not None
    assert messages.decode_message(said[1]) == Have(2)


def test_a_message_for_somebody_who_has_gone_is_not_sent() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    creator.handle_timeout(Instant(T0 + 60))
    creator.disconnected(T0, ben.static)
    assert creator.poll_message() is None
    assert isinstance(events_of(creator)[-1], MemberOffline)


def test_going_twice_and_coming_twice_is_told_once() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    events_of(creator)
    creator.connected(T0, ben.static)
    assert events_of(creator) == []
    for _ in range(2):
        creator.disconnected(T0, ben.static)
    assert [type(event) for event in events_of(creator)] == [MemberOffline]


def test_only_the_creator_removes_and_not_itself_or_nobody() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    with pytest.raises(ConfigurationError, match="Only who created"):
        ben.remove(T0, "anna")
    with pytest.raises(ConfigurationError, match="there are ben"):
        creator.remove(T0, "zoe")
    with pytest.raises(ConfigurationError, match="cannot remove yourself"):
        creator.remove(T0, "anna")
    assert creator.remove(T0, "ben").static == ben.static


def test_a_room_of_another_name_for_the_same_joiner_is_refused() -> None:
    creator, other = a_creator(), a_creator("otto")
    ben = joined(creator, "ben")
    other.expect(T0, ben.static, PSK, invited=True)
    other.connected(T0, ben.static)
    other.handle_message(T0, ben.static, messages.encode(Hello(creator.state().room, 2, "ben", True)))
    last = None
    while (said := other.poll_message()) is not None:
        last = messages.decode_message(said[1])
    assert last == messages.Refused(int(Reason.OTHER_ROOM))


def test_the_first_roster_must_come_from_the_creator_himself() -> None:
    creator, other = a_creator(), a_creator("otto")
    ben = a_joiner("ben", creator)
    other.expect(T0, ben.static, PSK)
    other.connected(T0, ben.static)
    other.handle_message(T0, ben.static, messages.encode(Hello(b"", 0, "ben", False)))
    state = other.state()
    for sender in (creator.static, other.static):
        ben.connected(T0, sender)
        ben.handle_message(T0, sender, messages.encode(State(state.roster, state.secret)))
    assert ben.roster is None
    assert ben.drops["roster from a stranger"] == 2


def test_a_host_whose_routes_take_every_private_network_can_make_no_room() -> None:
    with pytest.raises(ConfigurationError, match="private IPv4"):
        a_creator(routes=(*EVERYTHING, Prefix.parse("198.18.0.0/15")))
    with pytest.raises(ValueError, match="never entered"):
        a_joiner("ben", a_creator()).state()


def subnet_of(room: Room) -> bytes:
    assert room.roster is not None
    return room.roster.subnet


def hello_of_6c8f646(creator: Room, name: str, routes: tuple[Prefix, ...] = ()) -> bytes:
    """What the release before spare subnets says: the same, without the last element."""
    whole = msgspec.msgpack.decode(messages.encode(Hello(b"", 0, name, False, messages.pack_routes(routes))))
    return msgspec.msgpack.encode(whole[:6])


def test_members_in_all_private_blocks_get_a_spare_subnet_that_suits_everybody() -> None:
    """One home in 192.168/16, one in 10/8, and a telephone's network in 172.16/12: each counts its block as its own."""
    creator = a_creator(routes=EVERYTHING[2:])
    assert subnet_of(creator)[0] == 10
    ben, cleo = a_joiner("ben", creator), a_joiner("cleo", creator)
    for number, (member, routes) in enumerate(((ben, EVERYTHING[:1]), (cleo, EVERYTHING[1:2]))):
        at = Instant(T0 + 10 * number)
        member.set_routes(at, routes)
        creator.expect(at, member.static, PSK)
        connect(at, creator, member)
        deliver(at, creator, ben, cleo)
        creator.handle_timeout(Instant(at + RENUMBER_INTERVAL))
        deliver(at, creator, ben, cleo)
    assert is_spare(subnet_of(creator))
    assert creator.roster == ben.roster == cleo.roster


def test_a_member_that_does_not_know_spare_subnets_gets_a_private_one() -> None:
    creator = a_creator(routes=EVERYTHING)
    ben = joined(creator, "ben")
    assert is_spare(subnet_of(creator))
    creator.set_routes(T0, EVERYTHING[:2])  # now there is another that would do
    assert is_spare(subnet_of(creator))
    old = static_of("old")
    creator.expect(T0, old, PSK)
    creator.connected(T0, old)
    creator.handle_message(T0, old, hello_of_6c8f646(creator, "old"))
    deliver(T0, creator, ben)
    assert subnet_of(creator)[:2] == b"\xc0\xa8"
    assert creator.roster == ben.roster
    creator.handle_message(T0, old, messages.encode(messages.Leave()))  # the room stays where it is
    assert subnet_of(creator)[:2] == b"\xc0\xa8"


def test_a_newcomer_that_would_understand_no_roster_is_refused() -> None:
    creator = a_creator(routes=EVERYTHING)
    old = static_of("old")
    creator.expect(T0, old, PSK)
    creator.connected(T0, old)
    creator.handle_message(T0, old, hello_of_6c8f646(creator, "old"))
    said = [messages.decode_message(message[1]) for message in iter(creator.poll_message, None)]
    assert messages.Refused(int(Reason.TOO_OLD)) in said
    assert creator.roster is not None
    assert creator.roster.member(old) is None


def test_a_release_before_spare_subnets_reads_our_hello() -> None:
    """It takes the elements that it knows, and ignores the rest."""
    body = messages.encode(Hello(b"", 3, "ben", True, messages.pack_routes(EVERYTHING), True))
    assert msgspec.msgpack.decode(body)[:6] == [1, b"", 3, "ben", True, list(messages.pack_routes(EVERYTHING))]
    assert messages.decode_message(hello_of_6c8f646(a_creator(), "ben")) == Hello(b"", 0, "ben", False)


def test_a_subnet_that_suits_nobody_more_is_not_chosen() -> None:
    creator = a_creator()
    ben = joined(creator, "ben")
    before = creator.roster
    everything = (*EVERYTHING, Prefix.parse("198.18.0.0/15"))
    creator.handle_message(T0, ben.static, messages.encode(messages.Told(messages.pack_routes(everything))))
    creator.handle_timeout(Instant(T0 + 10))
    assert creator.roster == before


def test_a_restored_creator_renumbers_when_its_own_routes_clash_now() -> None:
    creator = a_creator(keeps=True)
    assert creator.roster is not None
    clash = Prefix(int.from_bytes(creator.roster.subnet, "big"), 24)
    again = CreatorRoom.restore(
        creator.state(),
        now=Instant(T0 + Seconds(9.0)),
        static=creator.static,
        routes=(clash,),
        entropy=random.Random(5).randbytes,
    )
    assert again.roster is not None
    assert again.roster.subnet != creator.roster.subnet
    assert again.roster.version == 2


def test_routes_beyond_the_limit_are_cut_and_host_bits_do_not_matter() -> None:
    many = tuple(Prefix(number << 8, 24) for number in range(100))
    packed = messages.pack_routes(many)
    assert messages.unpack_routes(packed) == many[: messages.MAX_PREFIXES]
    assert messages.unpack_routes((bytes((10, 1, 2, 3, 8)),)) == (Prefix.parse("10.0.0.0/8"),)
    assert messages.unpack_routes((bytes((10, 1, 2, 3, 0)),)) == (Prefix(0, 0),)
    with pytest.raises(MalformedPacket):
        messages.unpack_routes((bytes((10, 1, 2, 3, 33)),))
