"""Keys that end: who drops handshakes alone stops a link and is told of, and nobody else is.  All in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.cast import Cast
from tests.sim.link import Link
from tests.sim.peers import PeerNode
from tests.sim.world import Host
from tunnel.node.events import Problem
from tunnel.node.peering import Peering
from tunnel.transport.connection import keyring
from tunnel.transport.crypto.keys import REJECT_AFTER, Keypair
from tunnel.units import Address, Instant, Seconds

HANDSHAKES = range(0x70, 0x74)  # the first bytes by which they are known
LONG = Seconds(0.150)  # one way


def is_handshake(datagram: bytes) -> bool:
    return datagram[0] in HANDSHAKES or (datagram[0] >= 0xC0 and len(datagram) > 8 and datagram[8] in HANDSHAKES)


def drop_handshakes(cast: Cast, where: Callable[[Host, Address, bytes], bool] = lambda *_: True) -> list[int]:
    """From now on; the list holds how many."""
    dropped = [0]

    def let_through(sender: Host, destination: Address, datagram: bytes) -> bool:
        if is_handshake(datagram) and where(sender, destination, datagram):
            dropped[0] += 1
            return False
        return True

    cast.world.filter = let_through
    return dropped


def is_direct(_sender: Host, _destination: Address, datagram: bytes) -> bool:
    return datagram[0] < 0xC0


def relayed_by(cast: Cast) -> Callable[[Host, Address, bytes], bool]:
    return lambda sender, _destination, datagram: sender is cast.server.host and datagram[0] >= 0xC0


def newest_keys(peering: Peering) -> Instant:
    assert peering.connection is not None
    created = peering.connection._shared.keys.current.created_at
    assert created is not None
    return created


def check_keys_are_young(cast: Cast) -> None:
    for person in cast.people:
        for peering in person.live:
            assert cast.world.now - newest_keys(peering) < REJECT_AFTER


@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "sym")])
def test_who_drops_handshakes_alone_cannot_keep_old_keys_in_use_and_both_people_are_told(home: str, friend: str) -> None:
    with Cast(home=home, friend=friend) as cast:
        peering = cast.meet() if home == "sym" else cast.meet_directly()
        dropped = drop_handshakes(cast)
        for _ in range(17):
            cast.world.run(10.0)
            cast.transfer(peering)
        transfer = cast.friend.send(peering, cast.bytes_of(10_000))
        cast.world.run(20.0)
        begun = cast.home.bytes_taken
        for _ in range(10):
            cast.friend.send(peering, cast.bytes_of(1_000))
            cast.world.run(60.0)
        assert dropped[0] > 100
        assert cast.home.bytes_taken == begun
        for person in cast.people:
            assert person.problems == [Problem.NO_KEYS]  # and not that the peer is silent or away
        cast.world.filter = None
        cast.world.run_until(lambda: cast.home.bytes_taken >= begun + 10_000, 30)
        assert transfer.is_done
        assert cast.transfer(peering) < 1.0
        assert cast.home.restarts == cast.friend.restarts == 0
        assert not cast.home.closed + cast.friend.closed


def test_a_direct_path_without_handshakes_gets_its_keys_over_the_relay() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        drop_handshakes(cast, is_direct)
        for _ in range(40):
            cast.world.run(20.0)
            assert cast.transfer(peering) < 0.5
            check_keys_are_young(cast)
            assert cast.is_direct()
        assert not cast.home.problems + cast.friend.problems


def test_a_relay_without_handshakes_costs_a_direct_link_nothing() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        drop_handshakes(cast, relayed_by(cast))
        for _ in range(30):
            cast.world.run(20.0)
            assert cast.transfer(peering) < 0.5
            check_keys_are_young(cast)
        assert not cast.home.problems + cast.friend.problems


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "sym")])
def test_a_third_lost_on_a_long_path_does_not_keep_new_keys_away(seed: int, home: str, friend: str) -> None:
    """The responder of a handshake begins the next one where its initiator fails, and both try for a minute."""
    rough = Link(delay=LONG, loss=0.3)
    with Cast(seed=seed, link=rough, home=home, friend=friend) as cast:
        peering = cast.meet()
        connection = peering.connection
        for _ in range(15):
            cast.world.run(60.0)
            cast.transfer(peering, 2_000, limit=60)
            check_keys_are_young(cast)
        assert peering.connection is connection
        for person in cast.people:
            assert Problem.NO_KEYS not in person.problems
            assert person.restarts == 0


@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "sym"), ("short", "short")])
@pytest.mark.parametrize("idle", [190.0, 600.0])
def test_the_first_byte_after_a_long_silence_is_as_quick_as_any(home: str, friend: str, idle: float) -> None:
    """Keys are renewed on an idle link too, so no handshake stands between the silence and the byte."""
    with Cast(home=home, friend=friend) as cast:
        peering = cast.meet()
        cast.world.run(20.0)
        usual = cast.transfer(peering, 100)
        cast.world.run(idle)
        check_keys_are_young(cast)
        assert cast.transfer(peering, 100) < 2 * usual + 0.02


@pytest.mark.parametrize("slept", [170.0, 200.0, 1_000.0])
@pytest.mark.parametrize("sleepers", [("home",), ("friend",), ("home", "friend")])
def test_waking_costs_a_handshake_and_a_person_is_told_of_no_attack(sleepers: tuple[str, ...], slept: float) -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        for name in sleepers:
            cast.who(name).suspend(Seconds(slept))
        cast.world.run(slept + 0.01)
        cast.transfer(peering, limit=3)
        check_keys_are_young(cast)
        for person in cast.people:
            assert Problem.NO_KEYS not in person.problems
            assert not person.closed


def never_ends(monkeypatch: pytest.MonkeyPatch, *people: PeerNode) -> None:
    """As 6c8f646: a keypair of theirs seals and opens for as long as there is no other."""
    rings = [peering.connection._shared.keys for person in people for peering in person.live if peering.connection is not None]
    ends_at = keyring._ends_at

    def never(keypair: Keypair) -> Instant:
        is_theirs = any(keypair is each for ring in rings for each in (ring.current, *ring.by_index.values()))
        return Instant(float("inf")) if is_theirs else ends_at(keypair)

    monkeypatch.setattr(keyring, "_ends_at", never)
    for ring in rings:
        ring._seals_until = Instant(float("inf"))


@pytest.mark.parametrize("old", ["home", "friend"])
def test_a_peer_that_never_ends_its_keys_is_not_heard_under_them_and_comes_back_with_new_ones(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        never_ends(monkeypatch, cast.who(old))
        drop_handshakes(cast)
        cast.world.run(REJECT_AFTER + 5.0)
        begun = cast.home.bytes_taken
        for _ in range(10):
            cast.friend.send(peering, b"x" * 100)
            cast.world.run(10.0)
        assert cast.home.bytes_taken == begun
        cast.world.filter = None
        cast.world.run_until(lambda: cast.home.bytes_taken >= begun + 1_000, 30)
        cast.transfer(peering)
