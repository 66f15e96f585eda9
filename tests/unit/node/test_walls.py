"""An exception that nobody foresaw ends the one peer, pairing or talk that met it; the others do not even pause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from tests.sim.cast import Cast, Three
from tests.sim.peers import FIRST, GRANTS, SERVER, PeerNode
from tunnel.node.events import Faulted, KnownPeer, PeeringClosed, Problem
from tunnel.node.flows import dial as dialing
from tunnel.node.flows.claim_code import ConnectorPairing
from tunnel.node.flows.expose_code import ExposerPairing
from tunnel.node.peering import Peering
from tunnel.node.peerings import Peerings
from tunnel.node.servers import CLIENT_REST
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import CloseCode, RekeyDue
from tunnel.units import Address, Seconds

STUN_SERVER = Address("203.0.113.1", 3478)


class Fault(Exception):
    """Nobody expects it."""


def fails(*_arguments: Any, **_named: Any) -> Any:
    raise Fault("in a test")


def on_connection(name: str) -> Callable[[Peering, pytest.MonkeyPatch], None]:
    def break_it(peering: Peering, patch: pytest.MonkeyPatch) -> None:
        whole = getattr(Connection, name)

        def sometimes(self: Connection, *arguments: Any) -> Any:
            return fails() if self is broken else whole(self, *arguments)

        broken = peering.connection
        patch.setattr(Connection, name, sometimes)

    return break_it


def on_receiver(peering: Peering, patch: pytest.MonkeyPatch) -> None:
    assert peering.connection is not None
    patch.setattr(peering.connection._receiver, "_frames", fails)
    patch.setattr(peering.connection._receiver.inflow, "data", fails)


def on_sink(peering: Peering, patch: pytest.MonkeyPatch) -> None:
    assert peering.connection is not None
    patch.setattr(peering.connection._receiver, "handle_datagrams", fails)


def on_control(peering: Peering, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(peering, "_on_control", fails)


def on_rekeying(peering: Peering, patch: pytest.MonkeyPatch) -> None:
    assert peering.connection is not None
    patch.setattr(peering, "begin_handshake", fails)
    peering.connection._shared.events.append(RekeyDue())


def on_pump(peering: Peering, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(peering, "_pump", fails)


def on_its_timer(peering: Peering, patch: pytest.MonkeyPatch) -> None:
    class Broken(type(peering.hybrid)):  # type: ignore[misc]
        due_at = property(fails)

    patch.setattr(peering.hybrid, "__class__", Broken)


LINK_FAULTS: dict[str, Callable[[Peering, pytest.MonkeyPatch], None]] = {
    **{f"connection.{name}": on_connection(name) for name in (
        "handle_datagrams", "handle_timeout", "poll_transmit", "poll_timeout", "poll_event",
    )},
    "a frame": on_receiver,
    "the receiver": on_sink,
    "a message on the control stream": on_control,
    "rekeying": on_rekeying,
    "the pump": on_pump,
    "the timer": on_its_timer,
}  # fmt: skip


@pytest.mark.parametrize("place", LINK_FAULTS)
def test_a_fault_in_one_link_ends_that_one_while_another_carries_data_without_a_gap(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Three() as three:
        friend, mate = three.meet_both()
        theirs = three.at_home("friend")
        three.carries(mate, 3)
        LINK_FAULTS[place](theirs, monkeypatch)
        if friend.connection is not None:
            friend.send_ping()  # a message on the control stream
            three.friend.send(friend, b"hello")
        three.carries(mate)
        three.world.run(90.0)
        three.carries(mate, 3)
        assert theirs.is_closed
        ended = [event for event in three.home.told if isinstance(event, PeeringClosed)]
        assert [(event.peering, event.reason.code) for event in ended] == [(theirs, CloseCode.INTERNAL)]
        assert {(fault.place, fault.what) for fault in three.faults} == {("link", "ended the link to friend")}
        assert three.home.endpoint.drops["fault: link"] == len(three.faults) <= 2
        assert theirs not in three.home.endpoint._meetings.peerings.all  # nothing of it is left


@pytest.mark.parametrize("place", ["poll_transmit", "handle_datagrams"])
def test_the_peer_of_a_link_that_met_a_fault_is_told_why_it_ended(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Three() as three:
        friend, _ = three.meet_both()
        whole = getattr(Connection, place)
        theirs = three.at_home("friend").connection
        left = [1]

        def once(self: Connection, *arguments: Any) -> Any:
            return fails() if self is theirs and left and left.pop() else whole(self, *arguments)

        monkeypatch.setattr(Connection, place, once)
        three.friend.send(friend, b"hello")
        three.world.run_until(lambda: friend.is_closed, Seconds(5.0))
        reason = next(event.reason for event in three.friend.told if isinstance(event, PeeringClosed))
        assert (reason.code, reason.text, reason.by_peer) == (CloseCode.INTERNAL, "a fault in ptunnel on the other side", True)


@pytest.mark.parametrize("place", ["pump", "handle_event", "handle_stun", "refresh"])
def test_a_fault_in_the_search_for_a_direct_path_ends_the_search_and_not_the_link(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Three() as three:
        friend, mate = three.meet_both()
        theirs = three.at_home("friend")
        monkeypatch.setattr(theirs.puncher, place, fails)
        three.home.endpoint.network_changed(three.world.now)
        three.home.endpoint.set_hosts(three.world.now, [*three.home.host.addresses, "192.168.9.9"])
        if place == "handle_stun":
            three.home.endpoint._context.pool.asked(bytes(12))
            three.home.endpoint.handle_batch(three.world.now, FIRST, STUN_SERVER, memoryview(bytes(20)), 20)
        three.echoed(friend, b"hello")
        three.carries(mate, 3)
        three.world.run(30.0)
        three.echoed(friend, b"hello again")
        assert theirs.puncher is None
        assert not theirs.is_closed
        assert theirs.why_relayed(three.world.now) == "a fault in ptunnel ended the search for a direct path"
        assert {(fault.place, fault.what) for fault in three.faults} == {
            ("punching", "ended the search for a direct path to friend")
        }


@pytest.mark.parametrize(
    "place", ["handle_timeout", "poll_transmit", "poll_timeout", "handle_datagram", "network_changed", "close"]
)
def test_a_fault_in_the_talk_with_a_server_lets_it_rest_and_touches_no_link(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Three() as three:
        _, mate = three.meet_both()
        client = three.home.endpoint._context.clients[SERVER]
        with monkeypatch.context() as patch:
            patch.setattr(client, place, fails)
            three.home.endpoint.network_changed(three.world.now)
            three.carries(mate)
            three.world.run(2.5 * CLIENT_REST)
            three.carries(mate, 3)
            if place == "close":
                three.home.endpoint.close(three.world.now)
            assert {fault.place for fault in three.faults} <= {"server", "datagram"}
            assert len(three.faults) < 100  # it is not met over and over
        if place != "close":
            before = len(three.faults)
            three.world.run(100.0)  # longer than the server would remember a client that says nothing
            assert client.is_reached
            three.carries(mate, 3)
            assert len(three.faults) == before


PAIRING_FAULTS = {
    "the claim": ("home", ExposerPairing, "_answer"),
    "the answer": ("friend", ConnectorPairing, "_on_post"),
    "the init": ("home", ExposerPairing, "_on_init"),
    "the finish": ("home", ExposerPairing, "_on_finish"),
    "what comes of it, with the exposer": ("home", Peerings, "connect"),
    "what comes of it, with the connector": ("friend", Peerings, "connect"),
    "the exposer's timer": ("home", ExposerPairing, "on_time"),
    "the connector's timer": ("friend", ConnectorPairing, "on_time"),
    "the answer on the relay": ("friend", ConnectorPairing, "on_handshake"),
}


@pytest.mark.parametrize("place", PAIRING_FAULTS)
def test_a_fault_in_a_pairing_ends_that_attempt_and_the_next_code_works(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another peer's link carries data."""
    who, owner, name = PAIRING_FAULTS[place]
    with Three() as three:
        _, mate = three.meet_both()
        newcomer = PeerNode(three.world, three.world.host("new", three.world.site("new", "prc")), "new")
        newcomer.meet(three.server)
        broken = {"home": three.home, "friend": newcomer}[who]
        three.home.endpoint.offer_code(three.world.now, SERVER, grants=GRANTS, keep=True)
        three.world.touch(three.home.host)
        three.world.run_until(lambda: bool(three.home.codes))
        whole = getattr(owner, name)
        left = [1]

        def once(self: Any, *arguments: Any, **named: Any) -> Any:
            if self._context is broken.endpoint._context and left:
                left.pop()
                fails()
            return whole(self, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, once)
            newcomer.claim(three.home.codes[-1])
            for _ in range(8):
                three.carries(mate, 3)
                three.world.run(5.0)
        assert not left
        faults = [event for event in broken.told if isinstance(event, Faulted)]
        assert {fault.place for fault in faults} <= {"pairing", "datagram", "link"}
        assert len(faults) == 1
        if who == "friend" and place.endswith("timer"):
            assert Problem.INTERNAL in newcomer.problems
        if not newcomer.peerings or newcomer.peerings[-1].is_closed:
            three.world.run_until(lambda: len(three.home.codes) > 1, 30.0)
            newcomer.claim(three.home.codes[-1])
            three.world.run_until(lambda: bool(newcomer.peerings) and newcomer.peerings[-1].is_confirmed, 30.0)
        three.carries(mate, 3)


def test_a_code_that_met_a_fault_counts_as_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever can bring a fault about would have as many guesses as he likes."""
    with Cast() as party:
        party.claim()
        flow = party.home.endpoint._meetings._exposing[0]
        first = party.home.codes[0]
        with monkeypatch.context() as patch:
            patch.setattr(flow, "_on_init", fails)
            party.world.run_until(lambda: any(isinstance(event, Faulted) for event in party.home.told), 30.0)
        party.world.run_until(lambda: len(party.home.codes) > 1, 30.0)
        assert party.home.codes[1] != first
        assert flow._ended == 1


@pytest.mark.parametrize("place", ["on_time", "on_server", "connect"])
def test_a_fault_while_one_peer_is_dialed_ends_that_one(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Three() as three:
        three.meet_both()
        other = PeerNode(three.world, three.world.host("other", three.world.site("other", "prc")), "other")
        psk = sha256(b"other").digest()
        peer = KnownPeer(name="other", static=other.endpoint.static_public, psk=psk, server=SERVER)
        three.mate.save(peer)
        other.save(replace(peer, name="mate", static=three.mate.endpoint.static_public))
        for person in (three.mate, other):
            person.endpoint.set_peers(three.world.now, person.saved.values())
        other.meet(three.server)
        other.listen()
        mate = three.mate.peerings[0]
        meetings = three.mate.endpoint._meetings
        dialed = three.mate.dial(other)
        monkeypatch.setattr(meetings.peerings if place == "connect" else meetings._dialers[dialed], place, fails)
        for _ in range(3):
            three.carries(mate, 3)
            three.world.run(3.0)
        assert dialed.is_closed
        faults = [event for event in three.mate.told if isinstance(event, Faulted)]
        assert {fault.what for fault in faults} == {"ended the link to other"}
        assert not mate.is_closed


def test_a_fault_in_listening_for_remembered_peers_is_met_once_a_minute_and_they_are_met_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Three() as three:
        _, mate = three.meet_both()
        with monkeypatch.context() as patch:
            patch.setattr(three.home.endpoint._meetings._listener, "on_server", fails)
            patch.setattr(dialing, "room_id", fails)
            three.world.run(200.0)
            three.carries(mate, 3)
        assert 1 <= len(three.faults) < 20


def test_a_store_that_fails_costs_the_memory_and_not_the_pairing() -> None:
    with Cast() as party:
        party.home.save = fails  # type: ignore[method-assign]
        peering = party.pair()
        party.echoed(peering, b"hello")
        faults = [event for event in party.home.told if isinstance(event, Faulted)]
        assert [(fault.place, fault.what) for fault in faults] == [("state", "kept friend from being remembered")]


@pytest.mark.parametrize("first", [0x00, 0x41, 0x42, 0x70, 0x71, 0x72, 0x73, 0x80])
def test_a_fault_with_a_datagram_of_any_kind_drops_that_datagram(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Three() as three:
        _, mate = three.meet_both()
        meetings = three.home.endpoint._meetings
        monkeypatch.setattr(meetings, "confirm", fails)
        monkeypatch.setattr(meetings, "handle_handshake", fails)
        monkeypatch.setattr(three.home.endpoint._context.clients[SERVER], "handle_datagram", fails)
        monkeypatch.setattr(three.at_home("friend").puncher, "handle_stun", fails)
        monkeypatch.setattr(three.home.endpoint._context.pool, "has_asked", lambda _: True)
        for sender in (STUN_SERVER, three.server.addresses[0]):
            data = memoryview(bytes((first,)) + bytes(99))
            three.home.endpoint.handle_batch(three.world.now, FIRST, sender, data, 50)
        three.carries(mate)
        assert {fault.place for fault in three.faults} <= {"datagram", "punching"}
        assert len(three.faults) >= 1
