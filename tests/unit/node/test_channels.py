"""Relay channels that a listener was given end with the relation, whatever the peer, the member or the server does."""

from __future__ import annotations

from hashlib import sha256

from tests.sim.cast import Cast
from tests.sim.peers import SERVER, PeerNode
from tunnel.node.channels import UNUSED_LIFETIME
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.node.letting_go import LET_GO_AFTER
from tunnel.pairing.identity import meeting_days, room_id
from tunnel.rendezvous import messages
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.standing import MAX_CHANNELS
from tunnel.transport.connection.events import PathKind
from tunnel.units import Seconds

LAVISH = ServerConfig(
    channels_per_room=10_000, channels_per_address=5_000, max_channels=100_000
)  # as a server without these limits  # fmt: skip


def lavish(party: Cast) -> None:
    party.server._config = LAVISH
    party.server.boot()


def client_of(person: PeerNode) -> Client:
    return person.endpoint._context.clients[SERVER]


def held(person: PeerNode) -> int:
    return len(client_of(person).channels)


def rooms(party: Cast) -> list[bytes]:
    unix_time = party.home.endpoint._context.unix_time()
    (peer,) = party.friend.saved.values()
    return [room_id(peer.psk, day) for day in meeting_days(unix_time, unix_time)]


def dial_and_dial(party: Cast, times: int) -> None:
    """The friend asks the server for one channel after the other, and begins no handshake on any."""
    for number in range(times):
        client_of(party.friend).dial(party.world.now, rooms(party)[number % 3 :][:1])
        party.world.touch(party.friend.host)
        party.world.run(0.1)


def test_a_channel_on_which_no_handshake_was_done_is_given_back_after_its_time() -> None:
    with Cast() as party:
        lavish(party)
        party.acquaint()
        party.world.run(1.0)
        dial_and_dial(party, 300)
        assert held(party.home) == 300
        party.world.run(UNUSED_LIFETIME - 1.0)
        assert 0 < held(party.home) <= 60  # each was given by itself
        party.world.run(11.0)
        assert held(party.home) == held(party.friend) == 0
        assert len(party.server.server.relay) == 0
        assert party.home.endpoint.drops["relay channels without a connection"] > 200


def test_all_channels_of_a_forgotten_peer_end_at_once() -> None:
    with Cast() as party:
        lavish(party)
        party.acquaint()
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None)
        party.echoed(peering, b"hello")
        dial_and_dial(party, 30)
        assert held(party.home) >= 31
        party.home.saved.clear()
        party.home.endpoint.set_peers(party.world.now, ())
        party.world.touch(party.home.host)
        party.world.run(3.0)
        assert peering.is_closed  # and was told why: its own channel was left last
        assert held(party.home) == 0
        dial_and_dial(party, 30)
        party.world.run(1.0)
        assert held(party.home) == len(party.server.server.relay) == 0


def test_a_server_with_limits_keeps_room_for_others_whatever_one_peer_dials() -> None:
    with Cast() as party:
        party.acquaint(listening=False)
        other = PeerNode(party.world, party.world.host("other", party.world.site("other", "prc")), "other")
        psk = sha256(b"other pair").digest()
        other.save(KnownPeer(name="home", static=party.home.endpoint.static_public, psk=psk, server=SERVER))
        party.home.save(KnownPeer(name="other", static=other.endpoint.static_public, psk=psk, server=SERVER))
        for person in (party.home, other):
            person.endpoint.set_peers(party.world.now, person.saved.values())
        other.meet(party.server)
        party.home.listen()
        party.world.run(1.0)
        dial_and_dial(party, 260)
        assert held(party.home) <= 3 * party.server.server.config.channels_per_room
        peering = other.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None, 5)


def test_the_channel_of_a_connection_stays_until_it_is_let_go_of_beside_a_direct_path() -> None:
    for path, left in (("auto", 0), ("relay", 1)):
        with Cast(friend_path=path) as party:
            party.acquaint()
            peering = party.friend.dial(party.home)
            party.world.run_until(lambda peering=peering: peering.connection is not None)
            party.world.run(UNUSED_LIFETIME + LET_GO_AFTER / 2)
            assert held(party.home) == held(party.friend) == len(party.server.server.relay) == 1
            party.world.run(600.0)
            assert party.friend.kinds[-1] is (PathKind.DIRECT if path == "auto" else PathKind.RELAY)
            assert held(party.home) == held(party.friend) == len(party.server.server.relay) == left
            party.echoed(peering, b"hello")


def test_the_channel_of_a_connection_survives_a_minute_without_the_server() -> None:
    with Cast(friend_path="relay") as party:
        party.acquaint()
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None)
        party.echoed(peering, b"hello")
        party.server.kill()
        party.world.run(60.0)
        assert held(party.home) == held(party.friend) == 1
        party.server.boot()
        party.echoed(peering, b"hello", 60)


def test_a_wrong_guess_at_a_code_leaves_no_channel() -> None:
    with Cast() as party:
        party.home.meet(party.server)
        party.friend.meet(party.server)
        party.home.offer(keep=True)
        party.world.run_until(lambda: bool(party.home.codes))
        party.friend.claim(f"{party.home.codes[0].partition('-')[0]}-zoo-zoo")
        party.world.run(3.0)
        assert party.friend.problems == [Problem.WRONG_CODE]
        party.world.run(40.0)
        assert held(party.home) == held(party.friend) == len(party.server.server.relay) == 0


def test_channels_that_others_open_push_out_none_that_is_in_use() -> None:
    """A client holds so many; a server without limits may bring more."""
    with Cast(friend_path="relay") as party:
        lavish(party)
        party.acquaint()
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None)
        (first,) = client_of(party.home).channels
        home, server = client_of(party.home), party.server.server
        session = server.registry.sessions[home._session]
        for number in range(MAX_CHANNELS + 76):
            channel = b"\xc0" + number.to_bytes(7, "big")
            session.credit = 1_000_000  # nor does it mind who hears it
            server._pushes.push(party.world.now, session, messages.Introduced(rooms(party)[0], channel, bytes(16), 0))
            if number % 50 == 49:
                party.world.touch(party.server.host)
                party.world.run(0.1)
        assert home.drops["rendezvous_channel"] >= 76
        assert held(party.home) == MAX_CHANNELS
        assert first in home.channels
        party.echoed(peering, b"hello")


def refusals(person: PeerNode) -> list[str]:
    return [event.text for event in person.told if isinstance(event, Troubled) and event.problem is Problem.SERVER_REFUSED]


def test_a_listener_is_told_that_the_server_is_full() -> None:
    with Cast() as party:
        party.server._config = ServerConfig(max_sessions=1, sessions_per_address=1)
        party.server.boot()
        party.acquaint(listening=False)
        party.friend.offer()
        party.world.run(1.0)
        party.home.listen()
        party.world.run(300.0)
        assert len(refusals(party.home)) == 1
        assert "friend may not get through: the server rv.example.net lets nobody wait (" in refusals(party.home)[0]
        party.world.run(600.0)
        assert len(refusals(party.home)) == 2


def test_a_listener_is_told_that_the_server_takes_not_all_of_its_rooms() -> None:
    with Cast() as party:
        party.server._config = ServerConfig(rooms_per_session=2)
        party.server.boot()
        party.acquaint()
        party.world.run(30.0)
        assert len(refusals(party.home)) == 1
        assert "friend may not get through: the server rv.example.net lets nobody wait (" in refusals(party.home)[0]
        peering = party.friend.dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None, 10)  # the likeliest day's is there


def test_a_listener_is_told_of_a_denial_that_lasts_and_not_of_one_that_passes() -> None:
    with Cast() as party:
        party.server._config = ServerConfig(own_hosts=frozenset({"45.9.9.9"}))
        party.server.boot()
        party.acquaint()
        party.world.run(15.0)
        assert not refusals(party.home)
        party.world.run(60.0)
        assert len(refusals(party.home)) == 1


def test_a_listener_is_told_that_its_peer_could_not_be_led_to_it() -> None:
    with Cast() as party:
        party.server._config = ServerConfig(channels_per_address=1, max_channels=100)
        party.server.boot()
        party.acquaint()
        party.world.run(1.0)
        hoard = [b"\xc0" + bytes(6) + bytes((n,)) for n in range(2)]
        for channel in hoard:
            client_of(party.friend)._request(party.world.now, messages.Restore(channel, 1, bytes(16)))
        party.world.touch(party.friend.host)
        party.world.run(1.0)
        party.friend.dial(party.home)
        party.world.run(25.0)
        assert len(refusals(party.home)) == 1
        assert "friend may not get through" in refusals(party.home)[0]
        assert refusals(party.friend)


def test_a_full_server_is_not_asked_for_everything_at_each_refresh() -> None:
    with Cast() as party:
        party.server._config = ServerConfig(max_sessions=1, sessions_per_address=1)
        party.server.boot()
        party.acquaint(listening=False)
        party.friend.offer()
        party.world.run(1.0)
        party.home.listen()
        party.world.run(5.0)
        before = party.server.server.counters()["did_refused_full"]
        party.world.run(Seconds(300.0))
        assert party.server.server.counters()["did_refused_full"] - before <= 11
