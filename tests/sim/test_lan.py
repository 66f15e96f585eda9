"""Rooms of many on the simulated network: joining, coming and going, removal, splits, lies and wrong codes."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.sim.lan import MemberNode, Party
from tests.sim.link import Link
from tests.sim.peers import SERVER, entropy_of
from tests.sim.test_meeting import SHARE, rough_link
from tunnel.node.events import CodeIssued, Problem
from tunnel.node.peering import CONTROL_ROOM
from tunnel.pairing.identity import meeting_days, room_id
from tunnel.rendezvous.limits import ServerConfig
from tunnel.room.core import messages
from tunnel.room.core.addresses import BLOCKS, SPARE_BLOCK, Prefix, subnet_prefix
from tunnel.room.core.creator import MAX_RENUMBERS
from tunnel.room.core.events import (
    Entered,
    JoinRefused,
    MemberJoined,
    MemberOffline,
    MemberOnline,
    MemberRemoved,
    Renumbered,
    RoomFull,
    YouWereRemoved,
)
from tunnel.room.core.messages import Have, Hello, Leave, Reason, State
from tunnel.room.core.roster import MAX_MEMBERS, Roster, sign_roster
from tunnel.transport.connection.events import PathKind
from tunnel.units import Seconds

PSK = bytes(range(32))


def wrong(code: str) -> str:
    return f"{code.partition('-')[0]}-zoo-zoo-zoo"


# --- joining ----------------------------------------------------------------------------------------------------------------


@pytest.mark.time_limit(200)
@pytest.mark.parametrize("seed", range(max(1, int(SHARE))))
def test_sixteen_join_at_once_by_one_code_and_all_see_all(seed: int) -> None:
    with Party(seed=seed) as party:
        party.gather(MAX_MEMBERS - 1)
        roster = party.creator.roster
        assert len(roster.members) == MAX_MEMBERS
        assert sorted(member.host for member in roster.members) == list(range(1, MAX_MEMBERS + 1))
        assert all(friend.roster == roster for friend in party.friends)
        assert roster.epoch == 1
        assert len([event for event in party.creator.told if isinstance(event, CodeIssued)]) == 1
        assert not party.creator.problems
        party.world.run(40.0)  # nobody connects twice, and nothing is renewed without need
        assert party.is_whole()
        assert all(len(each.endpoint.peerings) == MAX_MEMBERS - 1 for each in party.everybody)
        assert not [event for each in party.everybody for event in each.of(MemberOffline)]


@pytest.mark.parametrize("seed", range(int(8 * SHARE) or 1))
def test_friends_join_over_any_line(seed: int) -> None:
    with Party(seed=seed, link=rough_link(seed)) as party:
        party.open()
        for number in range(4):
            party.friend(f"friend{number}").claim(party.creator.code)
            party.world.run(random.Random(seed * 7 + number).uniform(0.0, 0.5))

        def again() -> bool:
            """Whoever lost a guess to the line asks for the code that counts now, as a person would."""
            for friend in party.friends:
                if friend.room.roster is None and friend.problems and friend.code_is_stale(party.creator.code):
                    friend.claim(party.creator.code)
            return party.is_whole()

        party.world.run_until(again, 240)


@pytest.mark.time_limit(200)
def test_the_seventeenth_is_told_that_the_room_is_full_and_gets_in_when_somebody_has_left() -> None:
    with Party() as party:
        party.gather(MAX_MEMBERS - 1)
        late = party.friend("late")
        late.claim(party.creator.code)
        party.world.run_until(lambda: bool(late.of(JoinRefused)), 30)
        assert late.of(JoinRefused) == [JoinRefused(Reason.FULL)]
        assert party.creator.of(RoomFull) == [RoomFull("late")]
        assert party.creator.version == MAX_MEMBERS
        leaver = party.friends.pop(0)
        leaver.quit()
        party.world.run_until(lambda: len(party.creator.roster.members) == MAX_MEMBERS - 1, 10)
        late.boot()
        late.claim(party.creator.code)
        party.world.run_until(party.is_whole, 60)
        assert party.creator.roster.named("late").host == MAX_MEMBERS + 1  # type: ignore[union-attr]  # not the leaver's


def test_whoever_pairs_and_says_nothing_is_cut_off_after_a_while_and_takes_no_place() -> None:
    with Party() as party:
        party.gather(1)
        mute = party.friend("mute")
        mute.members._send = lambda: mute.members.room._messages.clear()  # type: ignore[method-assign]
        mute.claim(party.creator.code)
        party.world.run(40.0)
        assert party.creator.version == 2
        assert party.creator.room.drops["joiners that said nothing"] == 1
        assert mute.of(JoinRefused) == [JoinRefused(Reason.UNKNOWN)]


def test_a_remembered_peer_that_is_invited_joins_without_a_code_and_again_after_a_restart() -> None:
    with Party(keeps=True) as party:
        party.open()
        guest, stranger = party.friend("guest"), party.friend("stranger")
        party.creator.invite(guest, PSK)
        guest.join_peer(party.creator, PSK)
        stranger.join_peer(party.creator, bytes(32))
        party.world.run_until(lambda: party.is_whole([party.creator, guest]), 30)
        party.world.run(20.0)
        assert stranger.room.roster is None
        guest.kill()
        party.world.run(5.0)
        guest.boot()
        party.world.run_until(lambda: guest.online == {"creator"}, 30)
        assert party.creator.version == 2


def test_an_invited_guest_that_left_for_good_may_come_back_and_one_that_was_sent_away_may_not() -> None:
    with Party() as party:
        party.open()
        guest = party.friend("guest")
        party.creator.invite(guest, PSK)
        for _ in range(2):
            guest.join_peer(party.creator, PSK)
            party.world.run_until(party.is_whole, 30)
            guest.quit()
            party.world.run_until(lambda: len(party.creator.roster.members) == 1, 10)
            guest.boot()
        guest.join_peer(party.creator, PSK)
        party.world.run_until(party.is_whole, 30)
        party.creator.remove("guest")
        party.world.run_until(lambda: bool(guest.of(YouWereRemoved)), 10)
        guest.boot()
        guest.join_peer(party.creator, PSK)
        party.world.run(60.0)
        assert guest.room.roster is None
        assert not party.creator.online


def test_a_name_that_is_taken_gets_a_number_and_host_numbers_come_back_to_their_owners() -> None:
    with Party() as party:
        party.gather(2)
        first, second = party.friends
        second.quit()
        party.world.run_until(lambda: len(party.creator.roster.members) == 2, 10)
        namesake = party.friend("Friend0!")
        namesake.claim(party.creator.code)
        party.world.run_until(lambda: party.is_whole([party.creator, first, namesake]), 30)
        second.boot()
        second.claim(party.creator.code)
        party.world.run_until(party.is_whole, 30)
        hosts = {member.name: member.host for member in party.creator.roster.members}
        assert hosts == {"creator": 1, "friend0": 2, "friend1": 3, "friend0-2": 4}


def test_a_member_that_waits_meets_a_creator_who_was_away_for_days() -> None:
    with Party(keeps=True) as party:
        party.gather(2)
        party.creator.kill()
        party.friends[1].kill()
        party.world.run(200.0)
        for _ in range(4):
            party.server.days_ahead += 1
            for each in party.everybody:
                each.days_ahead += 1
            party.world.run(100.0)
        party.creator.boot()
        party.world.run_until(lambda: party.creator.online == {"friend0"}, 10)
        party.friends[1].boot()
        party.world.run_until(party.is_whole, 10)


@pytest.mark.parametrize("days", [-2.0, 2.0, -19_675.0, 18_262.0])
@pytest.mark.parametrize("whose", ["creator", "friend0"])
def test_a_calendar_that_is_off_keeps_nobody_out_of_a_room(whose: str, days: float) -> None:
    with Party(keeps=True) as party:
        party.gather(2)
        who = next(each for each in party.everybody if each.name == whose)
        who.kill()
        party.world.run(200.0)
        who.days_ahead = days
        who.boot()
        party.world.run_until(party.is_whole, 20)


# --- codes ------------------------------------------------------------------------------------------------------------------


def test_five_wrong_codes_end_it_each_is_told_and_a_fresh_one_follows_by_itself() -> None:
    with Party() as party:
        code = party.open()
        for number in range(5):
            assert party.creator.code == code
            liar = party.friend(f"liar{number}")
            liar.claim(wrong(code))
            party.world.run_until(lambda n=number: len(party.creator.problems) == n + 1, 30)  # type: ignore[misc]
            assert liar.problems == [Problem.WRONG_CODE]
        assert party.creator.problems == [Problem.WRONG_CODE] * 5
        party.world.run_until(lambda: party.creator.code != code, 10)
        party.friends.clear()
        late = party.friend("late")
        late.claim(code)
        party.world.run_until(lambda: bool(late.problems), 30)
        assert late.problems == [Problem.CODE_UNKNOWN]
        friend = party.friend("friend")
        friend.claim(party.creator.code)
        party.world.run_until(lambda: party.is_whole([party.creator, friend]), 30)
        assert len(party.creator.roster.members) == 2


def test_a_success_forgives_no_wrong_guess() -> None:
    with Party() as party:
        code = party.open()
        for number in range(5):
            liar = party.friend(f"liar{number}")
            liar.claim(wrong(code))
            party.world.run_until(lambda n=number: len(party.creator.problems) == n + 1, 30)  # type: ignore[misc]
            if number < 4:
                party.friend(f"friend{number}").claim(code)
                party.world.run_until(lambda n=number: len(party.creator.roster.members) == n + 2, 30)  # type: ignore[misc]
        party.world.run_until(lambda: party.creator.code != code, 10)


def test_strangers_who_take_every_attempt_and_fall_silent_keep_nobody_out_for_long() -> None:
    with Party() as party:
        code = party.open()
        for number in range(8):
            silent = party.friend(f"silent{number}")
            silent.claim(wrong(code))
            party.world.run_until(lambda s=silent: bool(s.endpoint._meetings._claiming[0]._mailbox), 10)  # type: ignore[misc]
            silent.kill()
        party.friends.clear()
        friend = party.friend("friend")
        friend.claim(code)
        party.world.run(5.0)
        assert not friend.problems  # told to come again, which it does by itself
        assert friend.room.roster is None
        party.world.run_until(lambda: party.creator.code != code, 30)
        assert set(party.creator.problems) == {Problem.CODE_UNANSWERED}
        party.world.run_until(lambda: bool(friend.problems), 30)
        assert friend.problems == [Problem.CODE_UNKNOWN]
        friend.claim(party.creator.code)
        party.world.run_until(party.is_whole, 30)


def test_a_code_lives_as_long_as_its_creator_and_outlives_a_restart_of_the_server() -> None:
    with Party() as party:
        code = party.open()
        party.world.run(3_600.0)
        party.friend("early").claim(code)
        party.world.run_until(party.is_whole, 30)
        party.server.kill()
        party.world.run(30.0)
        party.server.boot()
        party.world.run(30.0)
        assert party.creator.code == code
        party.friend("late").claim(code)
        party.world.run_until(party.is_whole, 30)
        party.creator.quit()
        party.world.run(5.0)
        nobody = party.node("nobody")
        nobody.boot()
        nobody.claim(code)
        party.world.run_until(lambda: bool(nobody.problems), 30)
        assert nobody.problems == [Problem.CODE_UNKNOWN]


def test_guesses_at_numbers_that_nobody_has_still_lock_their_sender_out() -> None:
    with Party() as party:
        code = party.open()
        liar = party.friend("liar")
        number = int(code.partition("-")[0])
        for guess in range(6):
            liar.claim(f"{(number + 1 + guess - 100) % 900 + 100}-zoo-zoo-zoo")
            party.world.run(2.0)
        liar.claim(code)
        party.world.run(5.0)
        assert liar.problems == [Problem.CODE_UNKNOWN] * 7
        assert liar.room.roster is None


def test_members_meet_at_an_embedded_server_and_strangers_find_no_relay_there() -> None:
    with Party() as party:
        hosts = frozenset(gateway.box.host for gateway in party.creator.host.realm.gateways.values())
        party.server._config = ServerConfig(own_hosts=hosts, has_guests=True)
        party.server.boot()
        party.gather(3)
        one, other = party.node("one"), party.node("other")
        for stranger in (one, other):
            stranger.boot()
        other.room.expect(party.world.now, one.static, PSK)  # it is no creator, so this says nothing
        one.room.paired(other.static, PSK)
        other.endpoint.listen(party.world.now)
        other.offer()
        party.world.run(20.0)
        assert Problem.SERVER_REFUSED in other.problems
        assert len(party.server.server.relay) <= 6 + 3  # between the four, and for the three claims


# --- coming and going -------------------------------------------------------------------------------------------------------


def test_a_removed_member_is_cut_off_by_everybody_at_once_and_its_code_is_worth_nothing() -> None:
    with Party() as party:
        party.gather(3)
        victim, others = party.friends[0], [party.creator, *party.friends[1:]]
        code, epoch = party.creator.code, party.creator.roster.epoch
        secret = party.creator.room.state().secret
        begun = party.world.now
        party.creator.remove("friend0")
        party.world.run_until(
            lambda: not any("friend0" in each.online or each.endpoint.peers.get(victim.static) for each in others)
        )
        assert party.world.now - begun < 0.2
        party.world.run(1.0)
        assert victim.of(YouWereRemoved) == [YouWereRemoved()]
        assert not victim.online
        assert {each.roster.epoch for each in others} == {epoch + 1}
        assert {each.room.state().secret for each in others} != {secret}
        assert all(each.of(MemberRemoved) for each in others)
        victim.boot()
        victim.claim(code)
        party.world.run_until(lambda: bool(victim.problems), 30)
        assert victim.problems == [Problem.CODE_UNKNOWN]
        victim.claim(party.creator.code)
        party.world.run_until(party.is_whole, 30)
        assert party.creator.roster.named("friend0").host == 2  # type: ignore[union-attr]


def test_a_removed_member_that_has_paired_by_another_key_beforehand_is_not_back_in_a_moment() -> None:
    with Party() as party:
        party.gather(2)
        again = party.friend("again")
        send = again.members._send
        again.members._send = lambda: None  # type: ignore[method-assign]
        again.claim(party.creator.code)
        party.world.run(5.0)
        party.creator.remove("friend0")
        again.members._send = send  # type: ignore[method-assign]
        again.hear(party.world.now)
        party.world.touch(again.host)
        party.world.run(10.0)
        assert [member.name for member in party.creator.roster.members] == ["creator", "friend1"]
        assert again.of(JoinRefused) == [JoinRefused(Reason.UNKNOWN)]
        assert party.creator.room.drops["joiners turned away by a removal"] == 1


def test_a_new_epoch_cuts_no_connection_and_its_key_is_used_for_the_next_handshake() -> None:
    with Party() as party:
        party.gather(4)
        party.creator.remove("friend0")
        party.friends.pop(0)
        party.world.run(2.0)
        peerings = {peering for each in party.everybody for peering in each.endpoint.peerings}
        party.world.run(400.0)  # three rekeyings
        assert party.is_whole()
        assert {peering for each in party.everybody for peering in each.endpoint.peerings} == peerings
        assert not [event for each in party.everybody for event in each.of(MemberOffline) if event.member.name != "friend0"]  # type: ignore[union-attr]


def test_a_removed_member_keeps_no_relay_channel_to_anybody_whichever_rooms_it_dialed() -> None:
    with Party(config=ServerConfig(channels_per_room=10_000, channels_per_address=5_000)) as party:
        party.gather(3)
        evil = party.friends[0]
        client = evil.endpoint._context.clients[SERVER]
        unix_time = evil.endpoint._context.unix_time()
        everywhere = {
            room_id(peer.psk, day)
            for member in party.everybody
            for peer in member.room.peers()
            for day in meeting_days(unix_time, unix_time)
        }  # a member knows the secret that all of them follow from
        for turn in range(5):
            client.dial(party.world.now, sorted(everywhere)[turn:][:24])
            party.world.touch(evil.host)
            party.world.run(0.5)
        assert len(party.server.server.relay) > 20
        party.creator.remove("friend0")
        party.friends.remove(evil)
        party.world.run(40.0)
        assert party.is_whole()
        assert len(party.server.server.relay) == 3  # the links of those who are left


def test_a_member_that_was_away_while_another_was_removed_comes_back_through_the_creator() -> None:
    with Party(keeps=True) as party:
        party.gather(4)
        away, removed = party.friends[0], party.friends[1]
        away.kill()
        party.world.run(60.0)
        party.creator.remove("friend1")
        party.world.run(5.0)
        away.boot()
        assert away.roster.epoch == 1
        party.world.run_until(lambda: party.is_whole([each for each in party.everybody if each is not removed]), 60)
        assert away.roster.epoch == 2
        assert [event.member.name for event in away.of(MemberRemoved)] == ["friend1"]  # type: ignore[union-attr]


def test_a_member_removed_while_away_is_let_in_nowhere() -> None:
    with Party(keeps=True) as party:
        party.gather(3)
        victim = party.friends[0]
        victim.kill()
        party.world.run(10.0)
        party.creator.remove("friend0")
        party.world.run(5.0)
        victim.boot()
        party.world.run(120.0)
        assert not victim.online
        assert len(party.creator.roster.members) == 3


@pytest.mark.parametrize("who", ["creator", "friend0", "friend1", "friend2"])
def test_whoever_crashes_and_comes_back_is_met_by_all(who: str) -> None:
    with Party(keeps=True) as party:
        party.gather(3)
        lost = next(each for each in party.everybody if each.name == who)
        lost.kill()
        party.world.run_until(lambda: not any(who in each.online for each in party.everybody if each is not lost), 60)
        assert all(each.of(MemberOffline) for each in party.everybody if each is not lost)
        lost.boot()
        party.world.run_until(party.is_whole, 60)
        party.world.run(100.0)
        assert party.is_whole()
        assert all(len(each.endpoint.peerings) == 3 for each in party.everybody)


def test_a_restart_that_nobody_noticed_is_noticed() -> None:
    for who in range(4):
        with Party(keeps=True, seed=who) as party:
            party.gather(3)
            lost = party.everybody[who]
            lost.kill()
            lost.boot()
            party.world.run(1.0)
            party.world.run_until(party.is_whole, 60)


def test_when_the_creator_has_left_the_others_go_on_and_nobody_joins() -> None:
    with Party(keeps=True) as party:
        party.gather(4)
        party.creator.quit()
        party.world.run_until(lambda: all("creator" not in friend.online for friend in party.friends), 10)
        assert party.is_whole_but_for("creator")
        back = party.friends[2]
        back.kill()
        party.world.run(60.0)
        back.boot()
        party.world.run_until(lambda: party.is_whole_but_for("creator"), 60)
        assert not any(friend.of(MemberRemoved) for friend in party.friends)


def test_a_creator_who_kept_the_room_opens_the_same_one_again_and_members_need_no_code() -> None:
    with Party(keeps=True) as party:
        party.gather(3)
        before = party.creator.roster
        party.creator.quit()
        party.friends[0].quit()
        party.world.run(100.0)
        party.creator.boot("other")
        party.creator.offer()
        party.friends[0].boot()
        party.world.run_until(party.is_whole, 60)
        assert party.creator.roster == before
        party.friend("late").claim(party.creator.code)
        party.world.run_until(party.is_whole, 60)
        assert party.creator.roster.members[: len(before.members)] == before.members


@pytest.mark.parametrize("seed", range(int(6 * SHARE) or 1))
def test_a_split_room_heals_to_one_roster_whatever_happened_meanwhile(seed: int) -> None:
    rng = random.Random(seed)
    with Party(seed=seed, keeps=True) as party:
        party.gather(5)
        members = party.friends[:]
        rng.shuffle(members)
        far, near = members[:2], members[2:]
        party.split(far, [party.creator, *near])
        if seed % 2:
            for friend in far:
                party.split([friend], [])
                party.world.set_link(friend.host, party.server.host, Link(loss=1.0))
        party.world.run_until(lambda: not any(friend.online & {"creator"} for friend in far) or party.world.now > 1_100, 120)
        late = party.friend("late")
        late.claim(party.creator.code)
        party.world.run_until(lambda: len(party.creator.roster.members) == 7, 60)
        victim = rng.choice(near)
        party.creator.remove(victim.name)
        party.friends.remove(victim)
        party.world.run(rng.uniform(0.0, 30.0))
        party.split(far, [party.creator, *near, late], Link(delay=Seconds(0.010)))
        for friend in far:
            party.world.set_link(friend.host, party.server.host, Link(delay=Seconds(0.010)))
        party.world.run_until(party.is_whole, 180)
        assert not victim.online


def test_news_reach_those_who_cannot_reach_the_creator_through_others() -> None:
    with Party() as party:
        party.gather(4)
        far = party.friends[0]
        party.split([far], [party.creator])
        party.split([far], [], Link())
        party.world.filter = lambda sender, destination, datagram: (
            not relayed_between(party, sender, far, party.creator, datagram)
        )
        party.world.run_until(lambda: "creator" not in far.online, 120)
        party.creator.remove("friend3")
        party.friends.pop()
        party.world.run_until(lambda: far.version == party.creator.version, 40)
        assert far.of(MemberRemoved)


def relayed_between(party: Party, sender: object, one: MemberNode, other: MemberNode, datagram: bytes) -> bool:
    """Whether the server passes that on between these two: their channels are those that both know."""
    if datagram[0] < 0xC0 or sender is party.server.host:
        return False
    channels = [
        {channel.channel for client in node.endpoint._context.clients.values() for channel in client.channels}
        for node in (one, other)
    ]
    return datagram[:8] in channels[0] & channels[1]


# --- addresses --------------------------------------------------------------------------------------------------------------


def test_a_joiner_whose_routes_clash_makes_the_creator_choose_another_subnet_for_all() -> None:
    with Party() as party:
        party.gather(2)
        subnet = party.creator.roster.subnet
        hosts = [(member.name, member.host) for member in party.creator.roster.members]
        party.friend("clashing", routes=f"{subnet_prefix(subnet)} 192.168.0.0/16").claim(party.creator.code)
        party.world.run_until(lambda: party.is_whole() and party.creator.roster.subnet != subnet, 60)
        assert all(each.of(Renumbered) for each in party.everybody if each.name != "clashing")
        assert [(member.name, member.host) for member in party.creator.roster.members][:3] == hosts
        assert party.creator.roster.epoch == 1


def test_a_member_that_roams_into_a_clash_renumbers_all_and_one_that_lies_does_so_rarely() -> None:
    with Party() as party:
        party.gather(2)
        friend = party.friends[0]
        for _ in range(20):
            routes = (subnet_prefix(friend.roster.subnet),)
            friend.room.set_routes(party.world.now, routes)
            friend.members.pump(party.world.now)
            party.world.touch(friend.host)
            party.world.run(0.5)
        assert 1 <= len(party.creator.of(Renumbered)) <= 4
        everything = ("0.0.0.0/0", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15")
        friend.room.set_routes(party.world.now, tuple(map(Prefix.parse, everything)))
        friend.members.pump(party.world.now)
        party.world.touch(friend.host)
        party.world.run(30.0)
        assert party.creator.room.drops["no subnet without a clash"]
        assert party.is_whole()


def test_a_member_that_lies_on_and_on_about_its_routes_leaves_the_others_their_addresses() -> None:
    """It names each new subnet as a route of its own, then all there are; a friend whose clash is real is helped all the same."""
    with Party() as party:
        party.gather(3)
        liar, friend = party.friends[0], party.friends[1]

        def tell_routes(who: MemberNode, *routes: Prefix) -> None:
            who.room.set_routes(party.world.now, routes)
            who.members.pump(party.world.now)
            party.world.touch(who.host)

        for _ in range(100):
            tell_routes(liar, subnet_prefix(liar.roster.subnet))
            party.world.run(6.0)
        assert MAX_RENUMBERS <= len(party.creator.of(Renumbered)) <= MAX_RENUMBERS + 1
        assert party.creator.room.drops["routes of a member that clash too often"]
        tell_routes(liar, *(Prefix.parse(f"{base}/{bits}") for base, bits in (*BLOCKS, SPARE_BLOCK)))
        party.world.run(6.0)
        before = friend.roster.subnet
        tell_routes(friend, subnet_prefix(before))
        party.world.run(6.0)
        assert friend.roster.subnet != before
        assert party.is_whole()


# --- lies -------------------------------------------------------------------------------------------------------------------


def tell(party: Party, liar: MemberNode, victim: MemberNode, message: messages.RoomMessage) -> None:
    peering = liar.members.peering(victim.static)
    assert peering is not None
    peering.send_message(CONTROL_ROOM, messages.encode(message))
    party.world.touch(liar.host)
    party.world.run(1.0)


def test_forged_replayed_and_older_rosters_are_refused_by_everybody() -> None:
    with Party() as party:
        party.gather(3)
        liar, victim, removed = party.friends
        older = liar.room.state()
        party.creator.remove(removed.name)
        party.world.run(2.0)
        roster, state = victim.roster, liar.room.state()
        mine = entropy_of("liar")(32)

        def with_victim_gone(of: Roster) -> Roster:
            kept = tuple(member for member in of.members if member.static != victim.static)
            return msgspec.structs.replace(of, version=of.version + 1, members=kept)

        lies = {
            "roster forged": State(sign_roster(with_victim_gone(roster), mine), state.secret),
            "roster older": State(older.roster, older.secret),
            "roster known": State(state.roster, state.secret),
            "roster of another room": State(
                sign_roster(msgspec.structs.replace(roster, room=party.creator.static, version=99), mine), state.secret
            ),
            "room message malformed": State(b"\xff" * 200, state.secret),
        }
        for target in (victim, party.creator):
            for reason, lie in lies.items():
                before = target.room.drops[reason]
                tell(party, liar, target, lie)
                assert target.room.drops[reason] == before + 1, reason
                assert target.roster == roster
        key = party.creator.room.state().private_key
        assert key is not None
        for reason, lie in {
            "roster with a wrong secret": State(sign_roster(msgspec.structs.replace(roster, version=50), key), bytes(32)),
            "roster without us": State(sign_roster(with_victim_gone(roster), key), state.secret),
        }.items():
            tell(party, liar, victim, lie)
            assert victim.room.drops[reason] == 1
            assert victim.roster == roster
        assert party.is_whole([party.creator, liar, victim])


def test_a_member_cannot_remove_refuse_or_admit_anybody() -> None:
    with Party() as party:
        party.gather(3)
        liar, victim, _ = party.friends
        before = party.creator.roster
        for message in (
            Leave(),
            messages.Refused(int(Reason.FULL)),
            Hello(b"", 0, "x", False),
            Have(10**9),
            Hello(b"x" * 32, 5, "", True),
        ):
            tell(party, liar, victim, message)
        assert not victim.room.is_over
        assert victim.roster == before
        assert party.is_whole()


def test_a_flood_of_room_messages_is_dropped_and_costs_nobody_else_anything() -> None:
    with Party() as party:
        party.gather(2)
        liar, victim = party.friends
        peering = liar.members.peering(victim.static)
        assert peering is not None
        for _ in range(300):
            peering.send_message(CONTROL_ROOM, messages.encode(Have(0)))
        party.world.touch(liar.host)
        party.world.run(2.0)
        assert victim.room.drops["room messages too fast"] > 150
        party.friend("late").claim(party.creator.code)
        party.world.run_until(party.is_whole, 60)


def test_what_a_creator_remembers_must_fit_together() -> None:
    with Party(keeps=True) as party:
        party.gather(1)
        state = party.creator.saved
        assert state is not None
        for damaged in (
            msgspec.structs.replace(state, secret=bytes(32)),
            msgspec.structs.replace(state, room=bytes(32)),
            msgspec.structs.replace(state, private_key=None),
            msgspec.structs.replace(state, private_key=bytes(32)),
            msgspec.structs.replace(state, roster=state.roster[:-1]),
        ):
            party.creator.saved = damaged
            with pytest.raises(messages.MalformedPacket):
                party.creator.boot()


def test_members_are_told_of_one_another_in_order() -> None:
    with Party() as party:
        party.gather(3)
        first = party.friends[0]
        assert isinstance(first.heard[0], Entered)
        joined = [event.member.name for event in party.creator.of(MemberJoined)]  # type: ignore[union-attr]
        online = [event.member.name for event in party.creator.of(MemberOnline)]  # type: ignore[union-attr]
        assert joined == online == ["friend0", "friend1", "friend2"]
        party.friends[1].quit()
        party.world.run_until(lambda: bool(first.of(MemberRemoved)), 10)
        names = [(type(event).__name__, event.member.name) for event in first.heard if hasattr(event, "member")]
        assert names.index(("MemberOnline", "friend1")) < names.index(("MemberRemoved", "friend1"))


def test_a_room_of_friends_at_home_is_direct_between_all() -> None:
    with Party() as party:
        party.gather(4)
        party.world.run_until(
            lambda: all(
                peering.connection is not None and peering.connection.current_path.kind is PathKind.DIRECT
                for each in party.everybody
                for peering in each.endpoint.peerings
            ),
            20,
        )
