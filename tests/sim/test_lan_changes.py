"""Rooms whose members come, go, crash and change their addresses."""

from __future__ import annotations

import random

import pytest

from tests.sim.lan import MemberNode, Party
from tests.sim.link import Link
from tests.sim.peers import SERVER
from tests.sim.test_meeting import SHARE
from tunnel.node.events import Problem
from tunnel.pairing.identity import meeting_days, room_id
from tunnel.rendezvous.limits import ServerConfig
from tunnel.room.core.addresses import BLOCKS, SPARE_BLOCK, Prefix, subnet_prefix
from tunnel.room.core.creator import MAX_RENUMBERS
from tunnel.room.core.events import (
    JoinRefused,
    MemberOffline,
    MemberRemoved,
    Renumbered,
    YouWereRemoved,
)
from tunnel.room.core.messages import Reason
from tunnel.units import Seconds

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
