"""Networks that block UDP, in virtual time: both ways of getting there, the way back, and what live streams notice of it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.sim.cast import Cast
from tests.sim.link import Link
from tests.sim.peers import CLIENT_TLS, TLS_PORT, PeerNode
from tests.sim.test_staying_up import LINE, SOON, check_goes_on, under_way
from tests.sim.world import Host
from tunnel.transport.connection.events import PathKind
from tunnel.units import Address, Seconds


class Blocked:
    """A filter of the world: what these hosts send goes nowhere but to the server's TCP port."""

    def __init__(self, cast: Cast, people: Iterable[PeerNode] = ()) -> None:
        self.hosts = {person.host.name for person in people}
        cast.world.filter = self

    def __call__(self, sender: Host, destination: Address, _datagram: bytes) -> bool:
        return sender.name not in self.hosts or destination.port == TLS_PORT


def cast_with_tls(**options: str | Link) -> Cast:
    cast = Cast(**options)  # type: ignore[arg-type]
    for person in cast.people:
        person.may_use_tls = True
    return cast


def is_over_tls(person: PeerNode) -> bool:
    return [each.connection.current_path.key.socket_id for each in person.live if each.connection is not None] == [CLIENT_TLS]


@pytest.mark.parametrize("who", ["home", "friend", "both"])
def test_they_pair_by_code_and_talk_within_two_seconds_whoever_lacks_udp(who: str) -> None:
    with cast_with_tls() as cast:
        blocked = cast.people if who == "both" else (cast.who(who),)
        Blocked(cast, blocked)
        begun = cast.world.now
        peering = cast.pair()
        assert cast.world.now - begun < 2.0
        cast.transfer(peering)
        for person in cast.people:
            assert is_over_tls(person) == (person in blocked)
        cast.world.run(120)
        assert not cast.is_direct()
        for person in blocked:
            assert "over TLS" in person.live[0].why_relayed(cast.world.now)


def test_where_udp_works_no_tls_connection_is_ever_made() -> None:
    with cast_with_tls() as cast:
        cast.meet_directly()
        cast.world.run(600)
        assert not any(person.has_tls for person in cast.people)


def test_udp_that_works_again_is_used_within_seconds_and_the_path_becomes_direct_without_a_lost_byte() -> None:
    with cast_with_tls(link=LINE) as cast:
        filter_ = Blocked(cast, (cast.friend,))
        peering = cast.pair()
        cast.world.run(20)
        transfer = under_way(cast, peering)
        assert is_over_tls(cast.friend)
        filter_.hosts.clear()
        begun = cast.world.now
        check_goes_on(cast, transfer)
        cast.world.run_until(cast.is_direct, 10)
        assert cast.world.now - begun < 10
        cast.world.run(20)
        assert not cast.friend.has_tls
        cast.transfer(peering)


@pytest.mark.parametrize("later", [0.0, 2.0, 4.0, 6.0])
@pytest.mark.parametrize("is_told", [True, False])
def test_a_live_stream_goes_over_tls_when_udp_is_blocked_under_it(is_told: bool, later: float) -> None:
    """After a move the machine says so; a firewall that changes its mind is found out by silence, whenever that is."""
    with cast_with_tls(link=LINE) as cast:
        peering = cast.meet_directly()
        cast.world.run(later)
        filter_ = Blocked(cast)
        transfer = under_way(cast, peering)
        filter_.hosts.add(cast.friend.host.name)
        if is_told:
            cast.friend.endpoint.network_changed(cast.world.now)
            cast.world.touch(cast.friend.host)
        check_goes_on(cast, transfer)
        assert is_over_tls(cast.friend)
        # What home sends still arrives directly: it finds out with the next look at a quiet path that nothing comes back there.
        cast.world.run_until(
            lambda: all(each.connection.current_path.kind is PathKind.RELAY for each in cast.home.live if each.connection), 40
        )


def test_a_tls_connection_that_is_made_anew_costs_no_byte() -> None:
    with cast_with_tls(link=LINE) as cast:
        Blocked(cast, cast.people)
        peering = cast.pair()
        transfer = under_way(cast, peering)
        cast.friend.drop_tls()
        cast.world.call_later(0.5, cast.friend._connect_tls)
        check_goes_on(cast, transfer, within=SOON + 0.5)


def test_a_server_that_has_no_tls_costs_nothing_but_the_wish() -> None:
    with Cast(link=Link(delay=Seconds(0.4))) as cast:
        for person in cast.people:
            person.may_use_tls = True
            person.meet(cast.server)
            person.tls_server = None
        cast.acquaint()
        cast.home.listen()
        peering = cast.friend.connect(cast.home)
        cast.transfer(peering)
