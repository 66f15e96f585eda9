"""Two endpoints, a server and their routers in virtual time: how they meet, and what keeps them together."""

from __future__ import annotations

import pytest

from tests.sim.cast import Cast
from tests.sim.link import Link
from tests.sim.peers import SERVER
from tunnel.node.events import PeeringClosed, PeeringRestarted, PeerPaired, Problem, Troubled
from tunnel.transport.connection.events import PathKind
from tunnel.units import Seconds

LOSSY = Link(delay=Seconds(0.020), loss=0.2, jitter=Seconds(0.005), reorder=0.05, duplicate=0.05)


def test_a_code_pairs_two_peers_behind_home_routers_and_a_direct_path_follows() -> None:
    with Cast() as party:
        peering = party.pair()
        assert party.echoed(peering, b"hello") < 0.1
        party.world.run_until(lambda: party.friend.kinds[-1:] == [PathKind.DIRECT], 3)
        assert [event.peer.name for event in party.home.told if isinstance(event, PeerPaired)] == ["friend"]
        assert peering.grants.allows("tcp", 22) is None  # the exposer gets nothing at the connector's
        assert party.home.peerings[0].grants.allows("tcp", 22) == ("127.0.0.1", 22)
        assert party.echoed(peering, b"again") < 0.1


@pytest.mark.parametrize("seed", range(40))
def test_pairing_survives_loss_reordering_and_duplication(seed: int) -> None:
    with Cast(seed=seed, link=LOSSY) as party:
        peering = party.pair()
        party.echoed(peering, b"hello" * 1000)


@pytest.mark.parametrize("seed", range(40))
def test_dialing_survives_loss_reordering_and_duplication(seed: int) -> None:
    with Cast(seed=seed, link=LOSSY) as party:
        party.acquaint()
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None)
        party.echoed(peering, b"hello" * 1000)
        assert len(party.home.peerings) == 1  # however often it asked


def test_first_byte_from_a_remembered_peer_within_six_round_trips() -> None:
    with Cast() as party:
        party.acquaint()
        party.world.run(2.0)
        party.friend.boot()
        begun = party.world.now
        party.friend.meet(party.server)
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None)
        party.echoed(peering, b"hello")
        round_trip = 0.020 + 0.001  # to the server and back, with the LANs
        assert party.world.now - begun < 6 * 2 * round_trip + 0.1
        assert party.world.now - begun < 7 * round_trip  # greet, dial, handshake (two legs), echo (two legs)


def test_a_wrong_code_is_told_to_both_and_a_fresh_one_works() -> None:
    with Cast() as party:
        party.home.meet(party.server)
        party.friend.meet(party.server)
        party.home.offer()
        party.world.run_until(lambda: bool(party.home.codes))
        nameplate = party.home.codes[0].partition("-")[0]
        party.friend.claim(f"{nameplate}-zoo-zoo")
        party.world.run_until(lambda: len(party.home.codes) == 2)
        assert party.friend.problems == [Problem.WRONG_CODE]
        assert party.home.problems == [Problem.WRONG_CODE]
        party.friend.claim(party.home.codes[1])
        party.world.run_until(lambda: bool(party.friend.peerings))


def test_a_code_that_nobody_uses_expires_and_is_replaced() -> None:
    with Cast() as party:
        party.home.meet(party.server)
        party.home.offer()
        party.world.run_until(lambda: len(party.home.codes) == 2, 700)
        assert party.home.problems == [Problem.CODE_EXPIRED]
        party.friend.meet(party.server)
        party.friend.claim(party.home.codes[0])
        party.world.run_until(lambda: bool(party.friend.problems))
        assert party.friend.problems in ([Problem.CODE_UNKNOWN], [Problem.CODE_SPENT])


def test_silence_after_a_claim_spends_the_code() -> None:
    with Cast() as party:
        party.home.meet(party.server)
        party.friend.meet(party.server)
        party.home.offer()
        party.world.run_until(lambda: bool(party.home.codes))
        party.friend.claim(party.home.codes[0])
        party.world.run(0.025)
        party.world.suspend(party.friend.host, Seconds(60))
        party.world.run_until(lambda: len(party.home.codes) == 2, 30)
        assert party.home.problems == [Problem.CODE_UNANSWERED]


def test_guessing_is_slowed_down() -> None:
    with Cast() as party:
        party.home.meet(party.server)
        party.friend.meet(party.server)
        party.home.offer()
        for guess in range(8):
            party.world.run_until(lambda count=guess: len(party.home.codes) > count, 2_000)
            party.friend.claim(party.home.codes[-1].partition("-")[0] + "-zoo-zoo")
        assert party.world.now > 1_000 + 5 + 10 + 20 + 40


def test_the_server_restarts_and_they_can_still_meet() -> None:
    with Cast() as party:
        party.acquaint()
        party.world.run(1.0)
        party.server.boot()
        party.world.run(60.0)
        peering = party.friend.dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None) < 5


def test_a_direct_link_lives_on_without_the_server() -> None:
    with Cast() as party:
        peering = party.pair()
        party.world.run_until(lambda: party.friend.kinds[-1:] == [PathKind.DIRECT], 3)
        party.world.suspend(party.server.host, Seconds(10_000))
        for _ in range(20):
            party.world.run(60.0)
            assert party.echoed(peering, b"still here") < 0.2
        assert not peering.is_closed


def test_keys_are_renewed_while_streams_go_on() -> None:
    with Cast() as party:
        peering = party.pair()
        assert peering.connection is not None
        connection, first = peering.connection, set(peering.connection.indices())
        for _ in range(10):
            party.world.run(60.0)
            party.echoed(peering, b"x" * 5000)
        assert peering.connection is connection
        assert not first & set(connection.indices())
        assert len(party.home.peerings) == 1


def test_an_exposer_that_restarted_is_met_again_and_the_link_goes_on() -> None:
    with Cast() as party:
        peering = party.pair()
        party.world.run(3.0)
        party.home.boot()
        party.home.meet(party.server)
        party.home.listen()
        party.friend.send(peering, b"into the void")
        party.world.run_until(lambda: any(isinstance(event, PeeringRestarted) for event in party.friend.told), 40)
        party.echoed(peering, b"hello again")
        assert not peering.is_closed


@pytest.mark.parametrize("asleep", ["home", "friend"])
def test_a_link_survives_hours_of_sleep(asleep: str) -> None:
    with Cast() as party:
        peering = party.pair()
        party.world.run(3.0)
        party.world.suspend(getattr(party, asleep).host, Seconds(1_800))
        party.world.run(1_801)
        assert party.echoed(peering, b"good morning", 30) < 15
        assert not peering.is_closed


def test_a_mapping_lost_on_the_way_is_found_again() -> None:
    with Cast() as party:
        peering = party.pair()
        party.world.run_until(lambda: party.friend.kinds[-1:] == [PathKind.DIRECT], 3)
        party.world.flush_mappings(party.friend_site)
        assert party.echoed(peering, b"hello") < 2
        party.world.flush_mappings(party.home_site)
        assert party.echoed(peering, b"hello") < 2


def test_a_forgotten_peer_is_cut_off_and_let_in_no_more() -> None:
    with Cast() as party:
        peering = party.pair()
        party.home.endpoint.set_peers(party.world.now, [])
        party.world.touch(party.home.host)
        party.world.run_until(lambda: peering.is_closed, 1)
        again = party.friend.dial(party.home)
        party.world.run(20.0)
        assert again.connection is None
        assert Problem.PEER_ABSENT in party.friend.problems


@pytest.mark.parametrize("has_ended", [True, False])
def test_of_a_peer_that_does_not_answer_is_said_what_is_known(has_ended: bool) -> None:
    """Nobody waits for us there; or somebody does, as far as the server knows, and has just been switched off."""
    with Cast() as party:
        party.acquaint(listening=False)
        if not has_ended:
            party.home.listen()
            party.world.run(5.0)
        party.home.host.node = None
        party.friend.dial(party.home)
        party.world.run(20.0)
        said = [event.text for event in party.friend.told if isinstance(event, Troubled)]
        led = "The server has led us to home, and no answer comes from there yet. Waiting."
        assert said == ["home does not answer: is 'ptunnel expose' running there? Waiting." if has_ended else led]


@pytest.mark.parametrize(("home", "friend", "expected"), [("relay", "auto", "relay"), ("auto", "relay", "relay")])
def test_with_relay_on_one_side_no_candidate_leaves_the_machine(home: str, friend: str, expected: str) -> None:
    with Cast(home_path=home, friend_path=friend) as party:
        peering = party.pair()
        party.world.run(20.0)
        assert peering.policy == expected
        assert set(party.friend.kinds) == {PathKind.RELAY}
        assert peering.puncher is None
        assert party.home.peerings[0].puncher is None


def test_direct_against_relay_is_an_error_on_both_sides() -> None:
    with Cast(home_path="direct", friend_path="relay") as party:
        party.claim()
        party.world.run_until(lambda: Problem.PATH_POLICY in party.friend.problems)
        party.world.run_until(lambda: any(isinstance(event, PeeringClosed) for event in party.home.told))
        assert not party.friend.peerings
        assert not party.home.peerings


def test_a_peer_with_another_key_is_named_as_such() -> None:
    with Cast() as party:
        party.acquaint(listening=False)
        party.home.static_key = bytes(range(32))
        party.home.boot()
        party.home.meet(party.server)
        party.home.listen()
        party.friend.dial(party.home)
        party.world.run_until(lambda: Problem.KEY_CHANGED in party.friend.problems, 15)


def test_our_own_changed_key_is_named_as_such() -> None:
    with Cast() as party:
        party.acquaint()
        party.friend.static_key = bytes(range(32))
        party.friend.boot()
        party.friend.meet(party.server)
        party.friend.dial(party.home)
        party.world.run_until(lambda: Problem.KEY_CHANGED in party.friend.problems, 15)
        party.world.run_until(lambda: Problem.KEY_CHANGED in party.home.problems, 5)


def test_several_connections_of_one_peer_stand_side_by_side() -> None:
    with Cast() as party:
        party.acquaint()
        peerings = [party.friend.dial(party.home) for _ in range(4)]
        party.world.run_until(lambda: all(peering.connection is not None for peering in peerings))
        for number, peering in enumerate(peerings):
            party.echoed(peering, b"number %d" % number)
        assert len(party.home.endpoint.peerings) == 4


def test_nothing_is_left_behind_by_peers_that_come_and_go() -> None:
    with Cast() as party:
        party.acquaint()
        for _ in range(20):
            peering = party.friend.dial(party.home)
            party.world.run_until(lambda p=peering: p.connection is not None)
            party.echoed(peering, b"quick")
            peering.close(party.world.now, 0, "done")
            party.world.touch(party.friend.host)
            party.world.run(5.0)
        for person in (party.home, party.friend):
            meetings = person.endpoint._meetings
            demux = person.endpoint._context.demux
            assert (len(meetings.peerings.all), len(demux.peerings), len(demux.handshakes)) == (
                0,
                0,
                0,
            )
        assert party.home.endpoint.has_server(SERVER)


def test_two_codes_of_one_server_at_once_are_two_and_each_grants_its_own() -> None:
    """What the server says of one of them is the affair of that one."""
    with Cast() as party:
        party.home.meet(party.server)
        party.friend.meet(party.server)
        grants = [({"kind": "tcp", "host": "127.0.0.1", "port": port},) for port in (22, 80)]
        for each in grants:
            party.home.endpoint.offer_code(party.world.now, SERVER, grants=each, keep=False)
        party.world.touch(party.home.host)
        party.world.run_until(lambda: len(party.home.codes) == 2)
        assert len({code.partition("-")[0] for code in party.home.codes}) == 2
        party.friend.claim(party.home.codes[1])
        party.world.run_until(lambda: bool(party.home.peerings))
        assert party.home.peerings[0].peer.grants == grants[1]
