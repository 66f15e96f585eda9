"""An exception that nobody foresaw ends the one peer, pairing or talk that met it; the others do not even pause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from tests.unit.endpoint.people import FIRST, SERVER, Party, Person
from tunnel.proto.connection.connection import Connection
from tunnel.proto.connection.events import CloseCode, PathKind, RekeyDue
from tunnel.proto.endpoint import KnownPeer, Peering, PeeringClosed
from tunnel.proto.endpoint.events import Faulted
from tunnel.units import Address, Seconds

STUN_SERVER = Address("203.0.113.1", 3478)
PAUSE = Seconds(0.5)  # seconds for an echo over two NATs, if nothing stands still


class Fault(Exception):
    """Nobody expects it."""


def fails(*_arguments: Any, **_named: Any) -> Any:
    raise Fault("in a test")


class Three(Party):
    """home exposes; friend and mate are connected to it."""

    def __init__(self) -> None:
        super().__init__()
        self.mate = Person(self.world, self.world.host("mate", self.world.site("mate", "prc")), "mate")

    def meet(self) -> tuple[Peering, Peering]:
        """The connections of friend and mate, both direct."""
        self.acquaint()
        psk = sha256(b"mate").digest()
        peer = KnownPeer(name="home", static=self.home.endpoint.static_public, psk=psk, server=SERVER)
        self.mate.save(peer)
        self.home.save(replace(peer, name="mate", static=self.mate.endpoint.static_public))
        for person in (self.home, self.mate):
            person.endpoint.set_peers(self.world.now, person.saved.values())
        self.mate.meet(self.server)
        self.home.listen()
        self.friend.dial(self.home)
        self.mate.dial(self.home)
        self.world.run_until(lambda: self.friend.kinds[-1:] == [PathKind.DIRECT] and self.mate.kinds[-1:] == [PathKind.DIRECT])
        return self.friend.peerings[0], self.mate.peerings[0]

    def at_home(self, name: str) -> Peering:
        """The other end of the connection."""
        return next(peering for peering in self.home.endpoint.peerings if peering.peer.name == name)

    def carries(self, peering: Peering, count: int = 20) -> None:
        """Mate's link to home, without a gap."""
        for number in range(count):
            before = self.mate.received.get(peering, b"")
            self.mate.say(peering, f"{number};".encode())
            self.world.run_until(lambda b=before, n=number: self.mate.received.get(peering) == b + f"{n};".encode(), PAUSE)

    @property
    def faults(self) -> list[Faulted]:
        return [event for event in self.home.told if isinstance(event, Faulted)]


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
    patch.setattr(peering.connection._receiver, "_stream_data", fails)


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
    patch.setattr(peering, "_poll_timeout", fails)


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
        friend, mate = three.meet()
        theirs = three.at_home("friend")
        three.carries(mate, 3)
        LINK_FAULTS[place](theirs, monkeypatch)
        if friend.connection is not None:
            friend.send_ping(three.world.now)  # a message on the control stream
            three.friend.say(friend, b"hello")
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
        friend, _ = three.meet()
        whole = getattr(Connection, place)
        theirs = three.at_home("friend").connection
        left = [1]

        def once(self: Connection, *arguments: Any) -> Any:
            return fails() if self is theirs and left and left.pop() else whole(self, *arguments)

        monkeypatch.setattr(Connection, place, once)
        three.friend.say(friend, b"hello")
        three.world.run_until(lambda: friend.is_closed, Seconds(5.0))
        reason = next(event.reason for event in three.friend.told if isinstance(event, PeeringClosed))
        assert (reason.code, reason.text, reason.by_peer) == (CloseCode.INTERNAL, "a fault in ptunnel on the other side", True)


@pytest.mark.parametrize("place", ["pump", "handle_event", "handle_stun", "refresh"])
def test_a_fault_in_the_search_for_a_direct_path_ends_the_search_and_not_the_link(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Three() as three:
        friend, mate = three.meet()
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
