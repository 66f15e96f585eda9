"""Which way the bytes go, and what happens when a way is lost: endpoints, server and routers in virtual time."""

from __future__ import annotations

import pytest

from tests.sim.cast import Cast
from tests.sim.link import Link
from tunnel.node.events import PeerBack, PeeringClosed, PeeringEvent, Problem
from tunnel.node.peering import Peering
from tunnel.shell.events import Trouble
from tunnel.shell.link import Link as DriverLink
from tunnel.shell.reports import to_event
from tunnel.transport.connection.events import PathChanged, PathKind
from tunnel.units import Seconds

BLACK_HOLE = Link(loss=1.0)


def is_direct(party: Cast) -> bool:
    return party.friend.kinds[-1:] == [PathKind.DIRECT] and party.home.kinds[-1:] == [PathKind.DIRECT]


@pytest.mark.parametrize("friend", ["open", "fw", "prc", "uprc", "prcrace", "cgn"])
@pytest.mark.parametrize("home", ["open", "fw", "prc", "uprc", "prcrace"])
def test_easy_routers_let_a_direct_path_through_soon(home: str, friend: str) -> None:
    with Cast(home=home, friend=friend) as party:
        peering = party.pair()
        took = party.world.run_until(lambda: is_direct(party), 5)
        assert took < 1.5
        party.echoed(peering, b"hello")


def test_two_hard_routers_are_relayed_and_the_user_is_told_why() -> None:
    with Cast(home="sym", friend="sym") as party:
        peering = party.pair()
        party.world.run(15.0)
        assert not is_direct(party)
        assert party.echoed(peering, b"hello") < 0.2
        assert "both routers" in peering.why_relayed(party.world.now)
        last = [e.event for e in party.friend.told if isinstance(e, PeeringEvent) and isinstance(e.event, PathChanged)][-1]
        assert "both routers" in last.why


def test_two_hard_routers_without_blocks_are_explained_within_three_seconds() -> None:
    with Cast(home="sym", friend="sym") as party:
        peering = party.pair()
        begun = party.world.now

        def is_told() -> bool:
            events = [each.event for each in party.friend.told if isinstance(each, PeeringEvent)]
            return any(isinstance(each, PathChanged) and "both routers" in each.why for each in events)

        party.world.run_until(is_told, 3)
        assert party.world.now - begun < 3.0
        assert "both routers" in peering.why_relayed(party.world.now)


def test_with_direct_only_a_person_hears_that_there_is_no_such_path() -> None:
    with Cast(home="sym", friend="sym", friend_path="direct") as party:
        party.pair()
        party.world.run_until(lambda: Problem.NO_DIRECT in party.friend.problems, 30)


def test_a_relayed_goodbye_arrives() -> None:
    with Cast(home="sym", friend="sym") as party:
        party.pair()
        party.friend.endpoint.close(party.world.now, "done here")
        party.world.touch(party.friend.host)
        party.world.run(0.5)
        closed = [event for event in party.home.told if isinstance(event, PeeringClosed)]
        assert [event.reason.text for event in closed] == ["done here"]


@pytest.mark.parametrize("one_way", [False, True])
def test_a_black_hole_on_the_direct_path_is_left_for_the_relay_within_two_seconds(one_way: bool) -> None:
    with Cast() as party:
        peering = party.pair()
        party.world.run_until(lambda: is_direct(party), 5)
        party.world.set_link(party.friend.host, party.home.host, BLACK_HOLE)
        if not one_way:
            party.world.set_link(party.home.host, party.friend.host, BLACK_HOLE)
        assert party.echoed(peering, b"x" * 50_000) < 2
        party.world.set_link(party.friend.host, party.home.host, Link())
        party.world.set_link(party.home.host, party.friend.host, Link())
        party.world.run_until(lambda: is_direct(party), 150)


def test_a_relayed_link_outlives_a_restart_of_the_server() -> None:
    with Cast(home="sym", friend="sym") as party:
        peering = party.pair()
        party.echoed(peering, b"before")
        party.server.boot()
        party.echoed(peering, b"across the restart", 60)
        assert not peering.is_closed


def test_a_new_public_address_is_found_out_and_punched_from() -> None:
    with Cast() as party:
        peering = party.pair()
        party.world.run_until(lambda: is_direct(party), 5)
        party.world.renumber(party.friend_site)
        assert party.echoed(peering, b"x" * 50_000) < 5
        party.world.renumber(party.home_site)
        assert party.echoed(peering, b"x" * 50_000) < 30
        assert not peering.is_closed


def test_an_absent_peer_is_waited_for() -> None:
    with Cast() as party:
        party.acquaint(listening=False)
        peering = party.friend.dial(party.home)
        party.world.run(100.0)
        assert Problem.PEER_ABSENT in party.friend.problems
        party.home.listen()
        assert party.world.run_until(lambda: peering.connection is not None, 10) < Seconds(1.0)


@pytest.mark.parametrize("ahead", [-1, 0, 1])
def test_days_pass_and_the_rooms_with_them_even_if_two_calendars_differ(ahead: int) -> None:
    with Cast() as party:
        party.acquaint()
        party.world.run(10.0)
        party.home.days_ahead, party.friend.days_ahead = 5, 5 + ahead
        party.world.run(130.0)
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None, 5)


@pytest.mark.parametrize("routers", ["prc", "sym"])
def test_both_sides_hear_that_nothing_gets_through_and_that_it_does_again(routers: str) -> None:
    """A laptop that sleeps: the one looks for it, the other waits for it, and the link does not seem to carry."""
    with Cast(home=routers, friend=routers) as party:
        peering = party.pair()
        party.world.run(5.0)
        theirs = party.home.peerings[0]
        statuses = [link_of(party, each) for each in (peering, theirs)]
        assert all(link.status().reachable for link in statuses)
        assert [link.is_direct for link in statuses] == [routers == "prc"] * 2
        others = {"friend": party.friend.host, "home": party.home.host}
        for host in others.values():
            for other in (party.server.host, *others.values()):
                party.world.set_link(host, other, BLACK_HOLE)
                party.world.set_link(other, host, BLACK_HOLE)
        party.friend.send(peering, b"into the dark")
        party.world.run_until(lambda: not (peering.is_reachable or theirs.is_reachable), 120)
        assert party.friend.problems.count(Problem.PEER_LOST) == 1
        assert party.home.problems.count(Problem.PEER_SILENT) == 1
        assert [link.status().reachable for link in statuses] == [False, False]
        assert [link.is_direct for link in statuses] == [False, False]
        assert [link.status().why for link in statuses] == [
            f"{name} is silent, and is waited for" for name in (peering.peer.name, theirs.peer.name)
        ]
        assert not any(isinstance(event, PeerBack) for event in (*party.friend.told, *party.home.told))
        for host in others.values():
            for other in (party.server.host, *others.values()):
                party.world.set_link(host, other, Link(delay=Seconds(0.010)))
                party.world.set_link(other, host, Link(delay=Seconds(0.010)))
        party.world.run_until(lambda: peering.is_reachable and theirs.is_reachable, 120)
        party.world.run(1.0)
        for person in (party.friend, party.home):
            (back,) = [event for event in person.told if isinstance(event, PeerBack)]
            trouble = Trouble(code="peer_back", message=f"{back.peering.peer.name} answers again.")
            assert to_event(back, party.world.now) == trouble
        assert party.friend.problems.count(Problem.PEER_LOST) == 1
        assert all(link.status().reachable for link in statuses)


def link_of(party: Cast, peering: Peering) -> DriverLink:
    """As the driver sees it."""
    return DriverLink(peering, flush=lambda: None, before_flush=lambda _call: None, clock=lambda: party.world.now)
