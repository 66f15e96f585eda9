"""Peers that lie in the hybrid step, or fall silent in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import PeerNode
from tests.unit.node.hybrid_pairs import BOTH, be_old, carries, is_safe, reboot, remembered_from_before
from tunnel.node.events import Problem
from tunnel.node.hybrid import CONTROL_KEM_KEPT, CONTROL_KEM_KEY, CONTROL_KEM_TEXT, KEEP, STEP_INTERVAL, STEP_PATIENCE, Stage
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import CloseCode
from tunnel.transport.crypto.kem import PUBLIC_SIZE, TEXT_SIZE
from tunnel.units import Seconds

# --- liars


def lies(monkeypatch: pytest.MonkeyPatch, person: PeerNode, lie: Callable[[bytes], list[bytes]]) -> None:
    """What `person` says of the step is changed on its way into the control stream."""
    honest = Connection.send_control

    def send(connection: Connection, data: bytes) -> None:
        is_theirs = any(each.connection is connection for each in person.endpoint.peerings)
        if is_theirs and data[0] in (CONTROL_KEM_KEY, CONTROL_KEM_TEXT, CONTROL_KEM_KEPT):
            for message in lie(data):
                honest(connection, message)
        else:
            honest(connection, data)

    monkeypatch.setattr(Connection, "send_control", send)


def of_kind(kind: int, *instead: Callable[[bytes], bytes]) -> Callable[[bytes], list[bytes]]:
    return lambda data: [make(data) for make in instead] if data[0] == kind else [data]


KEY, TEXT, KEPT = CONTROL_KEM_KEY, CONTROL_KEM_TEXT, CONTROL_KEM_KEPT
LIES: dict[str, tuple[str, Callable[[bytes], list[bytes]]]] = {
    "a short key": ("friend", of_kind(KEY, lambda data: data[:-1])),
    "a long key": ("friend", of_kind(KEY, lambda data: data + b"!")),
    "an empty key": ("friend", of_kind(KEY, lambda data: data[:1])),
    "no key at all": ("friend", of_kind(KEY, lambda data: data[:2] + b"\xff" * PUBLIC_SIZE)),
    "two keys": ("friend", of_kind(KEY, bytes, bytes)),
    "a key and kept": ("friend", of_kind(KEY, bytes, lambda _: bytes((KEPT,)))),
    "kept before anything": ("friend", of_kind(KEY, lambda _: bytes((KEPT,)), bytes)),
    "kept twice": ("friend", of_kind(KEPT, bytes, bytes)),
    "a text instead of a key": ("friend", of_kind(KEY, lambda _: bytes((TEXT, 0)) + bytes(TEXT_SIZE))),
    "a short text": ("home", of_kind(TEXT, lambda data: data[:-1])),
    "a long text": ("home", of_kind(TEXT, lambda data: data + b"!")),
    "an empty text": ("home", of_kind(TEXT, lambda data: data[:1])),
    "two texts": ("home", of_kind(TEXT, bytes, bytes)),
    "a key back": ("home", of_kind(TEXT, lambda _: bytes((KEY, 0)) + bytes(PUBLIC_SIZE))),
    "kept back": ("home", of_kind(TEXT, bytes, lambda _: bytes((KEPT,)))),
}


AFTERWARDS = {"kept twice"}  # lies that come when nothing waits for the step any more


@pytest.mark.parametrize("lie", LIES)
def test_what_no_honest_peer_says_ends_a_connection_that_waits_and_nothing_else(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, change = LIES[lie]
    with Cast() as cast:
        remembered_from_before(cast)
        liar, honest = cast.who(name), cast.home if name == "friend" else cast.friend
        lies(monkeypatch, liar, change)
        cast.friend.dial(cast.home)
        cast.world.run(3.0)
        assert [event.reason.code for event in honest.closed] == ([] if lie in AFTERWARDS else [CloseCode.KEYS])
        assert honest.endpoint.drops["hybrid step broken off"] == 1
        assert not [event for event in honest.told if type(event).__name__ == "Faulted"]
        monkeypatch.undo()
        reboot(cast)
        cast.transfer(cast.friend.connect(cast.home))
        assert is_safe(cast)


@pytest.mark.parametrize("lie", LIES)
def test_lies_beside_the_traffic_cost_no_connection(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change = LIES[lie]
    with Cast() as cast:
        cast.acquaint()
        lies(monkeypatch, cast.who(name), change)
        peering = cast.friend.connect(cast.home)
        for _ in range(8):
            cast.transfer(peering)
            cast.world.run(40.0)
            assert is_safe(cast)
        assert not cast.home.closed + cast.friend.closed
        assert not cast.home.problems + cast.friend.problems


def test_patience_ends_a_connection_that_waits_also_where_its_step_came_to_nothing() -> None:
    with Cast() as cast:
        remembered_from_before(cast)
        peering = cast.friend.dial(cast.home)
        cast.world.run_until(lambda: peering.hybrid._stage is Stage.PROVING, 10)
        began = cast.world.now
        peering.hybrid.refused()
        cast.world.run_until(lambda: Problem.POST_QUANTUM in cast.friend.problems, 3 * STEP_PATIENCE)
        assert STEP_PATIENCE - 2 < cast.world.now - began < STEP_PATIENCE + 2
        assert peering.is_closed


def test_a_step_is_due_at_whoever_begins_it_and_at_nobody_else() -> None:
    with Cast() as cast:
        peering = cast.pair()
        cast.world.run(5.0)
        due_at = peering.hybrid.due_at
        assert due_at is not None
        assert STEP_INTERVAL - 10 <= due_at - cast.world.now <= STEP_INTERVAL
        assert [each.hybrid.due_at for each in cast.home.live] == [None]


@pytest.mark.parametrize("place", [2, 700, TEXT_SIZE])
def test_a_wrong_ciphertext_is_found_out_by_the_handshake_that_it_was_for(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: bytes) -> bytes:
        return data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]

    with Cast() as cast:
        remembered_from_before(cast)
        lies(monkeypatch, cast.home, of_kind(TEXT, wrong))
        peering = cast.friend.dial(cast.home)
        cast.world.run(5.0)
        assert Problem.POST_QUANTUM in cast.friend.problems
        assert not carries(peering)
        assert not cast.friend.peerings + cast.home.peerings
        monkeypatch.undo()
        reboot(cast)  # and whatever the two have kept of it locks nobody out
        cast.transfer(cast.friend.connect(cast.home))
        assert is_safe(cast)


def test_a_wrong_ciphertext_beside_the_traffic_costs_new_secrets_and_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cast() as cast:
        cast.acquaint()
        lies(monkeypatch, cast.home, of_kind(TEXT, lambda data: data[:-1] + bytes((data[-1] ^ 1,))))
        peering = cast.friend.connect(cast.home)
        for _ in range(40):
            cast.world.run(10.0)
            cast.transfer(peering)
        assert is_safe(cast)  # under what was kept
        assert cast.friend.endpoint.drops["hybrid step without effect"] == 1
        assert not cast.friend.problems + cast.home.problems


@pytest.mark.parametrize("silent", BOTH)
def test_who_says_that_it_does_the_step_and_does_not_is_left(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cast() as cast:
        remembered_from_before(cast)
        lies(monkeypatch, cast.who(silent), lambda _: [])
        cast.friend.dial(cast.home)
        cast.world.run(STEP_PATIENCE - 2.0)
        assert len(cast.home.live) == 1
        assert not cast.home.peerings
        cast.world.run(4.0)
        assert not cast.home.live
        assert Problem.POST_QUANTUM in cast.home.problems + cast.friend.problems
        assert not cast.home.peerings + cast.friend.peerings


def test_a_peer_that_sleeps_during_the_step_is_waited_for() -> None:
    with Cast() as cast:
        remembered_from_before(cast)
        peering = cast.friend.dial(cast.home)
        cast.world.run_until(lambda: bool(cast.home.live))
        cast.home.suspend(Seconds(100.0))
        cast.world.run(101.0)
        cast.world.run_until(lambda: bool(cast.friend.peerings), 20)
        cast.transfer(peering)
        assert is_safe(cast)


def test_messages_of_the_step_from_who_has_not_offered_it_are_left_unread() -> None:
    with Cast() as cast:
        be_old(cast, "friend")
        peering = cast.pair()
        assert peering.connection is not None
        for kind in (KEY, TEXT, KEPT):
            peering.connection.send_control(bytes((kind, KEEP)) + bytes(100))
        cast.world.touch(cast.friend.host)
        cast.transfer(peering)
        assert not cast.home.closed
