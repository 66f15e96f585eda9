"""Rooms of many on the simulated network: joining, coming and going, removal, splits, lies and wrong codes."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.sim.lan import MemberNode, Party
from tests.sim.peers import entropy_of
from tests.sim.test_meeting import SHARE, rough_link
from tunnel.errors import MalformedPacket
from tunnel.node.events import CodeIssued, Problem
from tunnel.node.peering import CONTROL_ROOM
from tunnel.rendezvous.limits import ServerConfig
from tunnel.room.core import creator as creators
from tunnel.room.core import messages
from tunnel.room.core.events import (
    Entered,
    JoinRefused,
    MemberJoined,
    MemberOffline,
    MemberOnline,
    MemberRemoved,
    RoomFull,
    YouWereRemoved,
)
from tunnel.room.core.messages import Have, Hello, Leave, Reason, State
from tunnel.room.core.records import MESSAGE_BURST
from tunnel.room.core.roster import Roster, sign_roster
from tunnel.transport.connection.events import PathKind

PSK = bytes(range(32))
SIXTEEN = 16  # in a room with something of everything; tests/sim/test_lan_large.py has a full one


def wrong(code: str) -> str:
    return f"{code.partition('-')[0]}-zoo-zoo-zoo"


# --- joining ----------------------------------------------------------------------------------------------------------------


@pytest.mark.time_limit(200)
@pytest.mark.parametrize("seed", range(max(1, int(SHARE))))
def test_sixteen_join_at_once_by_one_code_and_all_see_all(seed: int) -> None:
    with Party(seed=seed) as party:
        party.gather(SIXTEEN - 1)
        roster = party.creator.roster
        assert len(roster.members) == SIXTEEN
        assert sorted(member.host for member in roster.members) == list(range(1, SIXTEEN + 1))
        assert all(friend.roster == roster for friend in party.friends)
        assert roster.epoch == 1
        assert len([event for event in party.creator.told if isinstance(event, CodeIssued)]) == 1
        assert not party.creator.problems
        party.world.run(40.0)  # nobody connects twice, and nothing is renewed without need
        assert party.is_whole()
        assert all(len(each.endpoint.peerings) == SIXTEEN - 1 for each in party.everybody)
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
def test_the_seventeenth_is_told_that_the_room_is_full_and_gets_in_when_somebody_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(creators, "MAX_MEMBERS", SIXTEEN)  # of a full room of today there is one in test_lan_large.py
    with Party() as party:
        party.gather(SIXTEEN - 1)
        late = party.friend("late")
        late.claim(party.creator.code)
        party.world.run_until(lambda: bool(late.of(JoinRefused)), 30)
        assert late.of(JoinRefused) == [JoinRefused(Reason.FULL)]
        assert party.creator.of(RoomFull) == [RoomFull("late")]
        assert party.creator.version == SIXTEEN
        leaver = party.friends.pop(0)
        leaver.quit()
        party.world.run_until(lambda: len(party.creator.roster.members) == SIXTEEN - 1, 10)
        late.boot()
        late.claim(party.creator.code)
        party.world.run_until(party.is_whole, 60)
        assert party.creator.roster.named("late").host == SIXTEEN + 1  # type: ignore[union-attr]  # not the leaver's


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
            party.world.run_until(lambda n=number: len(party.creator.problems) == n + 1, 30)
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
            party.world.run_until(lambda n=number: len(party.creator.problems) == n + 1, 30)
            if number < 4:
                party.friend(f"friend{number}").claim(code)
                party.world.run_until(lambda n=number: len(party.creator.roster.members) == n + 2, 30)
        party.world.run_until(lambda: party.creator.code != code, 10)


def test_strangers_who_take_every_attempt_and_fall_silent_keep_nobody_out_for_long() -> None:
    with Party() as party:
        code = party.open()
        for number in range(8):
            silent = party.friend(f"silent{number}")
            silent.claim(wrong(code))
            party.world.run_until(lambda s=silent: bool(s.endpoint._meetings._claiming[0]._mailbox), 10)
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
        one.members.meet(party.world.now, other.static, PSK)
        other.endpoint.listen(party.world.now)
        other.offer()
        party.world.run(20.0)
        assert Problem.SERVER_REFUSED in other.problems
        assert len(party.server.server.relay) <= 6 + 3  # between the four, and for the three claims


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
        for _ in range(2 * MESSAGE_BURST):
            peering.send_message(CONTROL_ROOM, messages.encode(Have(0)))
        party.world.touch(liar.host)
        party.world.run(2.0)
        assert victim.room.drops["room messages too fast"] > MESSAGE_BURST / 2
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
            with pytest.raises(MalformedPacket):
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
