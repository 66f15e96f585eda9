"""A link that is direct holds no relay channel, and gets one when its path fails.  All in virtual time."""

from __future__ import annotations

import random

import pytest

from tests.sim import healing
from tests.sim.cast import Cast, acquaint
from tests.sim.fleet import Several
from tests.sim.healing import MISFORTUNES, both_holes, heal
from tests.sim.lan import Party
from tests.sim.link import Link
from tests.sim.peers import BLACK_HOLE, SERVER, PeerNode, Transfer
from tests.sim.world import Host
from tunnel.node.events import Problem
from tunnel.node.letting_go import (
    AGREED_WITHIN,
    JOINED_AFTER,
    KEPT_AFTER_LOSS,
    LET_GO_AFTER,
    LETS_GO,
    LOOK_AGAIN,
    OFFER_AGAIN,
    REKEYS_APART,
    SILENCE_TOLD,
    LettingGo,
    Stage,
)
from tunnel.node.peering import Peering
from tunnel.node.relays import LET_GO, MAX_RELAYS
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import Introduced
from tunnel.transport.crypto.keys import REKEY_AFTER
from tunnel.units import Instant, Seconds, Transmit

BOTH = f"{SERVER},dht"
SETTLED = LET_GO_AFTER + JOINED_AFTER + 5.0
SERVER_MISSED = Seconds(9.0)  # the longest silence where the server, too, has to hear from an address that changed, or to return


def channels(cast: Cast) -> int:
    return len(cast.server.server.relay)


def rooms(cast: Cast) -> int:
    return len(cast.server.server.registry.rooms)


def settled(cast: Cast) -> Peering:
    """A link that is direct and has let go."""
    peering = cast.meet_directly()
    cast.world.run(SETTLED)
    assert channels(cast) == 0
    return peering


def alone(cast: Cast) -> tuple[Peering, Transfer]:
    """A link that has let go, then neither path nor server, and a question on its way."""
    peering = settled(cast)
    cast.server.kill()
    both_holes(cast)
    return peering, cast.friend.send(peering, b"are you there")


def of(person: PeerNode) -> LettingGo:
    (peering,) = person.live
    return peering.letting_go


def problems(cast: Cast) -> list[Problem]:
    return cast.home.problems + cast.friend.problems


def heals(cast: Cast) -> None:
    for a, b in ((cast.home, cast.friend), (cast.friend, cast.home)):
        cast.world.set_link(a.host, b.host, cast.world.internet.link)


# --- at rest ----------------------------------------------------------------------------------------------------------------


def test_a_link_that_was_direct_for_three_minutes_holds_no_channel_and_one_room_more() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        waited_in = rooms(cast)
        cast.world.run(LET_GO_AFTER - 10.0)
        assert channels(cast) == 1
        cast.world.run(JOINED_AFTER + 20.0)
        assert channels(cast) == 0
        assert [len(node.endpoint._context.clients[node.server].channels) for node in cast.people] == [0, 0]
        assert rooms(cast) == waited_in + 1
        cast.world.run(3 * 3600.0)
        assert channels(cast) == 0
        assert cast.is_direct()
        assert not problems(cast)
        assert cast.transfer(peering) < 0.5
        cast.friend.hang_up(peering)
        cast.world.run(60.0)
        assert rooms(cast) == waited_in  # the one of the link is left


def test_a_relayed_link_holds_its_channel() -> None:
    with Cast(home="sym", friend="sym") as cast:
        peering = cast.meet()
        cast.world.run(3600.0)
        assert channels(cast) == 1
        assert cast.transfer(peering) < 0.5


def test_what_crosses_the_server_falls_when_a_link_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []
    for lets_go in (True, False):
        with monkeypatch.context() as patch, Cast() as cast:
            if not lets_go:
                patch.setattr("tunnel.node.letting_go.LET_GO_AFTER", healing.NEVER)
            cast.meet_directly()
            cast.world.run(SETTLED)
            spent, send = [0], cast.world._send

            def count(host: Host, burst: Transmit, spent: list[int] = spent, send: object = send) -> None:
                spent[0] += len(burst.buffer) + 28 * -(-len(burst.buffer) // burst.segment_size)
                send(host, burst)  # type: ignore[operator]

            patch.setattr(cast.world, "_send", count)
            cast.world.run(3600.0)
            sent.append(spent[0])
    assert sent[0] < 0.95 * sent[1]  # 0.71 and 0.82 MB an hour, of both ends and the server; most of it are Refreshes


def test_the_channels_of_two_servers_are_let_go_of_alike() -> None:
    with Several(2, path="auto") as world:
        for a, b in ((world.home, world.friend), (world.friend, world.home)):
            world.world.set_link(a.host, b.host, BLACK_HOLE)
        world.link()
        assert sorted(world.channels()) == [1, 1]
        for a, b in ((world.home, world.friend), (world.friend, world.home)):
            world.world.set_link(a.host, b.host, Link(delay=Seconds(0.010)))
        world.run_until(lambda: world.home.is_direct and world.friend.is_direct, 600)
        world.run(SETTLED)
        assert world.channels() == [0, 0]


def test_members_of_a_room_hold_no_channels() -> None:
    with Party() as party:
        party.gather(5)
        party.world.run(30.0)
        assert len(party.server.server.relay) > 0
        party.world.run(SETTLED + 30.0)
        assert len(party.server.server.relay) == 0
        assert party.is_whole()


# --- when the path fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["home", "friend"])
@pytest.mark.parametrize("name", MISFORTUNES)
def test_a_link_that_has_let_go_heals_whoever_speaks_first(name: str, by: str) -> None:
    is_far = ("forgets" in name or "change" in name or "meanwhile" in name) and (name, by) not in {
        ("the exposer's router forgets", "home"),
        ("the exposer's address changes", "home"),
        ("the connector's router forgets", "friend"),
        ("the connector's address changes", "friend"),
    }  # the server's pushes miss who speaks second, until its next Refresh
    for seed in range(2):
        assert heal(MISFORTUNES[name], seed, by) < (SERVER_MISSED if is_far else 1.5)


def test_it_says_nothing_to_people_when_a_path_fails_and_the_relay_takes_over() -> None:
    with Cast() as cast:
        peering = settled(cast)
        both_holes(cast)
        assert cast.transfer(peering) < 1.0
        assert channels(cast) > 0
        assert not problems(cast)
        cast.world.run(LOOK_AGAIN + 60.0)
        assert channels(cast) == 1
        assert of(cast.friend).stage is of(cast.home).stage is Stage.HELD


def test_after_a_path_has_failed_the_channel_is_kept_for_an_hour() -> None:
    with Cast() as cast:
        peering = settled(cast)
        both_holes(cast)
        cast.transfer(peering)
        heals(cast)
        cast.world.run_until(cast.is_direct, 200)
        cast.world.run(KEPT_AFTER_LOSS - 400.0)
        assert channels(cast) == 1
        cast.world.run(400.0 + OFFER_AGAIN + SETTLED)
        assert channels(cast) == 0
        assert cast.is_direct()


def test_a_bad_moment_of_the_path_costs_a_channel_for_a_while_and_no_word() -> None:
    with Cast() as cast:
        peering = settled(cast)
        transfer = cast.friend.send(peering, b"are you there")
        both_holes(cast)
        cast.world.run_until(lambda: cast.friend.live[0] in cast.friend.endpoint._meetings._dialers, 5)
        heals(cast)
        cast.world.run_until(lambda: transfer.is_done, 5)
        cast.world.run(SETTLED + 30.0)
        assert channels(cast) == 0
        assert cast.is_direct()
        assert not problems(cast)
        assert of(cast.friend).stage is of(cast.home).stage is Stage.LET_GO


def test_while_no_server_answers_a_link_waits_and_people_are_told_and_then_it_heals() -> None:
    with Cast() as cast:
        _, transfer = alone(cast)
        cast.world.run(SILENCE_TOLD)
        assert not {Problem.PEER_LOST, Problem.PEER_SILENT} & set(problems(cast))
        cast.world.run(300.0)
        assert not transfer.is_done
        assert cast.friend.problems.count(Problem.PEER_LOST) == 1
        assert cast.home.problems.count(Problem.PEER_SILENT) == 1
        cast.server.boot()
        assert cast.world.run_until(lambda: transfer.is_done, 30) < 10.0
        assert not cast.friend.closed + cast.home.closed


def test_a_direct_path_that_returns_while_no_server_answers_calls_the_search_off() -> None:
    with Cast() as cast:
        peering, transfer = alone(cast)
        cast.world.run(20.0)
        heals(cast)
        cast.world.run_until(lambda: transfer.is_done, 10)
        cast.server.boot()
        cast.world.run(60.0)
        dialer = cast.friend.endpoint._meetings._dialers[peering]
        assert not dialer.is_dialing
        assert Problem.PEER_ABSENT not in problems(cast)


@pytest.mark.parametrize("who", ["home", "friend"])
def test_a_process_that_restarts_is_met_again_by_a_link_that_had_let_go(who: str) -> None:
    with Cast() as cast:
        peering = settled(cast)
        node = cast.who(who)
        node.kill()
        cast.world.run(3.0)
        node.boot()
        node.meet(cast.server)
        if who == "home":
            cast.home.listen()
            transfer = cast.friend.send(peering, b"are you there")
            cast.world.run_until(lambda: cast.friend.restarts == 1, 30)
            assert transfer.is_cut
        else:
            peering = cast.friend.connect(cast.home, limit=10)
        cast.transfer(peering)


@pytest.mark.parametrize("sleepers", [("home",), ("friend",), ("home", "friend")])
def test_who_slept_is_there_again_at_once(sleepers: tuple[str, ...]) -> None:
    with Cast() as cast:
        peering = settled(cast)
        for name in sleepers:
            cast.who(name).suspend(Seconds(600.0))
        cast.world.run(600.0)
        assert cast.transfer(peering) < 1.0
        cast.world.run_until(cast.is_direct, 150)


def test_new_keys_come_over_a_channel_where_the_direct_path_lets_no_handshake_through() -> None:
    with Cast() as cast:
        peering = settled(cast)
        begun = cast.world.now
        cast.world.filter = lambda _sender, _to, datagram: datagram[0] not in range(0x70, 0x74)
        cast.world.run(REKEY_AFTER + REKEYS_APART)
        assert channels(cast) == 1
        assert peering.connection is not None
        created = peering.connection._shared.keys.current.created_at
        assert created is not None
        assert created > begun
        assert not problems(cast)
        cast.world.run(KEPT_AFTER_LOSS / 2)
        assert channels(cast) == 1


def test_a_link_that_was_met_by_a_server_or_the_dht_lets_go_and_heals_likewise() -> None:
    with Cast() as cast:
        for person in cast.people:
            person.server = BOTH
        acquaint(cast.home, cast.friend)
        for person in cast.people:
            person.endpoint.add_server(cast.world.now, SERVER, cast.server.addresses[:1])
            person.endpoint.add_alternatives(cast.world.now, BOTH, (SERVER, "dht"))
            cast.world.touch(person.host)
        cast.home.listen()
        peering = cast.friend.connect(cast.home)
        cast.world.run(SETTLED + 30.0)
        assert channels(cast) == 0
        both_holes(cast)
        assert cast.transfer(peering) < 1.0
        cast.world.run(LOOK_AGAIN + 1.0)
        assert channels(cast) == 1


@pytest.mark.parametrize("by", ["home", "friend"])
def test_of_two_servers_the_one_that_is_left_leads_together_those_whose_path_fails(by: str) -> None:
    with Several(2, path="auto") as world:
        world.link(SETTLED + 30.0)
        assert world.channels() == [0, 0]
        client = world.friend.endpoint._context.clients[SERVER]
        used = next(server for server in world.servers if server.addresses[0] == client.server)
        used.kill()
        world.run(30.0)
        for a, b in ((world.home, world.friend), (world.friend, world.home)):
            world.world.set_link(a.host, b.host, BLACK_HOLE)
        node = world.home if by == "home" else world.friend
        transfer = node.send(node.live[0], b"are you there")
        assert world.run_until(lambda: transfer.is_done, 20) < 1.5
        assert not node.closed


# --- who does not take part -------------------------------------------------------------------------------------------------


class Older(LettingGo):
    """As a version that knows nothing of this: its HELLO has not the bit, and the message is none to it."""

    def handle(self, now: Instant, body: bytes) -> None:
        raise AssertionError("it was told what it does not know")

    def direct(self, now: Instant) -> None:
        """Not noticed."""


@pytest.mark.parametrize("older", ["home", "friend"])
def test_a_peer_of_an_older_version_keeps_its_channel(older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tunnel.node.peering.LettingGo",
        lambda context, peering: (Older if context.config.name == older else LettingGo)(context, peering),
    )
    told = LettingGo.peer_takes
    monkeypatch.setattr(
        LettingGo,
        "peer_takes",
        lambda self, bits: told(self, bits if self._context.config.name == older else bits & ~LETS_GO),
    )
    with Cast() as cast:
        peering = cast.meet_directly()
        cast.world.run(2 * SETTLED)
        assert channels(cast) == 1
        both_holes(cast)
        assert cast.transfer(peering) < 1.0


def test_who_waits_for_nobody_keeps_its_channel_and_is_asked_again_later() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        known = cast.home.endpoint._context.awaits
        cast.home.endpoint._context.awaits = lambda now, peering: False
        cast.world.run(SETTLED + AGREED_WITHIN)
        assert channels(cast) == 1
        cast.home.endpoint._context.awaits = known
        cast.world.run(OFFER_AGAIN + LET_GO_AFTER)
        assert channels(cast) == 0
        assert cast.transfer(peering) < 0.5


def test_a_server_without_room_for_one_more_room_goes_on_relaying() -> None:
    with Cast(config=ServerConfig(max_room_entries=4, rooms_per_address=4, rooms_per_session=3)) as cast:
        peering = cast.meet_directly()
        registry = cast.server.server.registry
        registry._may_enter = lambda session: False  # type: ignore[method-assign]
        cast.world.run(SETTLED)
        assert channels(cast) == 1
        assert of(cast.friend).stage is Stage.HELD
        both_holes(cast)
        assert cast.transfer(peering) < 1.0


# --- who means harm ---------------------------------------------------------------------------------------------------------


def test_offers_of_a_peer_in_a_row_are_counted_and_change_nothing() -> None:
    with Cast() as cast:
        settled(cast)
        (theirs,) = cast.home.live
        room = of(cast.home)._room
        for number in range(100):
            theirs.relays.handle(cast.world.now, bytes((LET_GO,)) + number.to_bytes(16, "big"))
        assert cast.home.endpoint.drops["offer to let go too soon"] == 100
        assert len(cast.home.endpoint._context.clients[cast.home.server]._standing.listening) == 3
        assert of(cast.home)._room == room


@pytest.mark.parametrize("body", [b"", b"short", bytes(17)])
def test_what_is_no_offer_is_counted(body: bytes) -> None:
    with Cast() as cast:
        settled(cast)
        (theirs,) = cast.home.live
        theirs.relays.handle(cast.world.now, bytes((LET_GO,)) + body)
        assert cast.home.endpoint.drops["message about relays malformed"] == 1
        assert of(cast.home).stage is Stage.LET_GO


def test_an_initiator_takes_no_room_of_the_responder_and_no_yes_to_nothing() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        peering.relays.handle(cast.world.now, bytes((LET_GO,)) + bytes(16))
        peering.relays.handle(cast.world.now, bytes((LET_GO,)))
        assert cast.friend.endpoint.drops["message about relays malformed"] == 1
        assert cast.friend.endpoint.drops["agreed to no offer"] == 1
        assert channels(cast) == 1


def test_a_server_that_introduces_strangers_without_end_gets_a_few_challenges() -> None:
    """Nobody but the two knows the room; the server does, which sees it dialed."""
    with Cast() as cast:
        peering = settled(cast)
        server, client = cast.server.server, cast.friend.endpoint._context.clients[cast.friend.server]
        session = server.registry.sessions[client._session]
        room = of(cast.friend)._room
        for number in range(50):
            channel = b"\xc0" + number.to_bytes(7, "big")
            session.credit = 1_000_000
            server._pushes.push(cast.world.now, session, Introduced(room, channel, bytes(16), 1))
        cast.world.touch(cast.server.host)
        cast.world.run(1.0)
        assert peering.connection is not None
        assert len(peering.connection.channels) <= MAX_RELAYS
        assert cast.friend.endpoint.drops["relay channel not wanted"] >= 50 - MAX_RELAYS
        cast.world.run(60.0)
        assert not peering.connection.channels
        assert len(client.channels) == 0
        assert cast.transfer(peering) < 0.5


def test_an_old_room_leads_to_nothing() -> None:
    with Cast() as cast:
        peering = settled(cast)
        client = cast.friend.endpoint._context.clients[cast.friend.server]
        client.dial(cast.world.now, [bytes(16)], peering)
        cast.home.endpoint._context.clients[cast.home.server].listen(cast.world.now, [bytes(16)], cast.home.live[0])
        for person in cast.people:
            cast.world.touch(person.host)
        cast.world.run(2.0)
        assert cast.friend.endpoint.drops["relay channel not wanted"] == 1
        assert cast.home.endpoint.drops["relay channel not wanted"] == 1
        assert channels(cast) == 0


def test_status_says_that_a_link_holds_no_relay() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        assert peering.holds_relay
        cast.world.run(SETTLED)
        assert not peering.holds_relay
        (shown,) = peering.relays.describe(cast.world.now)
        assert shown["role"] == "idle"
        assert shown["why"] == "the link is direct, and asks for a channel when it needs one"


def test_links_under_a_rough_line_let_go_and_always_heal() -> None:
    for seed in range(6):
        rng = random.Random(f"rough {seed}")
        link = Link(delay=Seconds(0.030), jitter=Seconds(0.010), loss=0.05)
        with Cast(seed=seed, link=link) as cast:
            peering = cast.meet_directly(60.0)
            cast.world.run(SETTLED + rng.uniform(0.0, 900.0))
            both_holes(cast)
            node = cast.home if seed % 2 else cast.friend
            transfer = node.send(node.live[0], b"are you there")
            cast.world.run_until(lambda transfer=transfer: transfer.is_done, 20)
            assert not peering.is_closed
