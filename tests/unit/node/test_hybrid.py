"""The hybrid step: pairs, old and new versions, liars, lost messages, full disks, and what no crash may do."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from tests.sim.cast import Cast
from tests.sim.link import Link
from tests.sim.peers import PeerNode
from tests.unit.node.hybrid_pairs import BOTH, be_old, carries, is_safe, reboot, remembered_from_before
from tunnel.node.events import KnownPeer, PeeringStarted, Problem, Troubled
from tunnel.node.hybrid import STEP_INTERVAL
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import CloseCode
from tunnel.transport.crypto import kem
from tunnel.units import Seconds

LOSSY = Link(delay=Seconds(0.020), loss=0.2, jitter=Seconds(0.005), reorder=0.05, duplicate=0.05)


def known(person: PeerNode) -> KnownPeer:
    (peer,) = person.saved.values()
    return peer


def is_agreed(cast: Cast) -> bool:
    """Both have the same psk on disk, and know that the other has it."""
    ours, theirs = known(cast.home), known(cast.friend)
    shown = [{each.psk for each in peer.kept if each.is_shown} for peer in (ours, theirs)]
    return ours.is_hybrid and theirs.is_hybrid and bool(shown[0] & shown[1])


# --- pairs that can


def test_a_pair_keeps_a_secret_that_is_not_of_elliptic_curves_before_anything_is_carried() -> None:
    with Cast() as cast:
        peering = cast.pair()
        assert is_safe(cast)  # when it is told of, and not later
        cast.transfer(peering)
        cast.world.run(1.0)
        assert is_agreed(cast)
        ours, theirs = known(cast.home), known(cast.friend)
        assert ours.kept == theirs.kept
        assert ours.kept[0].psk not in (ours.psk, *peering.hybrid.chain)
        assert ours.psk == theirs.psk  # by which they meet, today as ever
        assert "kept" not in repr(ours.kept) + repr(ours.psk) or ours.kept[0].psk.hex() not in repr(ours)


@pytest.mark.parametrize("by_code", [True, False])
def test_nothing_but_the_control_stream_leaves_before_the_step_is_done(by_code: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a program has written already: here into the connection itself, which is told of to nobody yet."""
    with Cast() as cast:
        if by_code:
            cast.claim()
        else:
            remembered_from_before(cast)
            cast.friend.dial(cast.home)
        connections: list[Connection] = []

        def stand() -> bool:
            connections[:] = [each.connection for person in cast.people for each in person.live if each.connection is not None]
            return len(connections) == 2

        cast.world.run_until(stand)
        assert not cast.friend.peerings + cast.home.peerings
        stream = connections[1].open_stream()
        connections[1].stream_write(stream, b"x" * 1_000)
        connections[1].send_datagrams(cast.world.now, 2, [b"y" * 100])
        packets = connections[1].packets
        assert packets is None or packets.room is None
        cast.world.touch(cast.friend.host)
        peering = cast.friend.live[0]
        while peering.hybrid.is_held:
            assert connections[0]._shared.streams.receiving.keys() <= {0}
            assert not connections[0]._shared.received_datagrams
            cast.world.run(0.005)
        cast.world.run_until(lambda: stream in connections[0]._shared.streams.receiving, 1)
        packets = connections[1].packets
        assert packets is not None
        assert packets.room is not None


def test_later_connections_are_safe_from_their_first_byte_and_wait_for_nothing() -> None:
    with Cast() as cast:
        cast.pair()
        cast.world.run(2.0)
        reboot(cast)
        peering = cast.friend.dial(cast.home)
        cast.world.run_until(lambda: peering.connection is not None)
        assert peering.hybrid.is_reached
        assert not peering.hybrid.is_held
        assert peering in cast.friend.peerings
        assert not peering.hybrid.chain
        cast.transfer(peering)
        cast.world.run(1.0)
        assert peering.hybrid.chain  # and has secrets of its own soon after
        assert is_safe(cast)
        assert len(known(cast.home).kept) == 1  # nothing more is kept


def test_pairs_of_older_versions_do_the_step_at_their_first_connection() -> None:
    with Cast() as cast:
        remembered_from_before(cast)
        peering = cast.friend.connect(cast.home)
        cast.world.run_until(lambda: bool(cast.friend.peerings and cast.home.peerings))
        cast.transfer(peering)
        cast.world.run(1.0)
        assert is_safe(cast)
        assert is_agreed(cast)


@pytest.mark.parametrize("seed", range(20))
def test_any_message_may_be_lost(seed: int) -> None:
    with Cast(seed=seed, link=LOSSY) as cast:
        peering = cast.pair()
        cast.transfer(peering, 2_000)
        cast.world.run_until(lambda: is_agreed(cast), 30)
        assert is_safe(cast)


def test_keys_stay_safe_over_rekeys_and_sleep() -> None:
    with Cast() as cast:
        peering = cast.pair()
        seen: set[int] = set()
        for turn in range(12):
            if turn == 6:
                cast.friend.suspend(Seconds(400.0))
                cast.world.run(401.0)
            cast.world.run(60.0)
            cast.transfer(peering)
            assert is_safe(cast)
            assert peering.connection is not None
            seen.update(peering.connection.indices())
        assert len(seen) > 5
        assert len(peering.hybrid.chain) == 1


def test_a_connection_that_lives_on_makes_new_secrets_every_hour() -> None:
    with Cast() as cast:
        peering = cast.pair()
        chains = {peering.hybrid.chain}
        for _ in range(3):
            cast.world.run(STEP_INTERVAL)
            cast.transfer(peering)
            cast.world.run(1.0)
            assert is_safe(cast)
            chains.add(peering.hybrid.chain)
            assert cast.home.live[0].hybrid.chain == peering.hybrid.chain
        assert len(chains) == 4
        assert len(known(cast.home).kept) == 1


def test_many_processes_may_be_the_first_at_once() -> None:
    """Each makes a secret of its own; whichever of them a side has kept, the other has too."""
    with Cast() as cast:
        remembered_from_before(cast)
        peerings = [cast.friend.dial(cast.home) for _ in range(4)]
        cast.world.run_until(lambda: len(cast.friend.peerings) == 4)
        for peering in peerings:
            cast.transfer(peering, 1_000)
        cast.world.run(2.0)
        assert is_agreed(cast)
        reboot(cast)
        cast.transfer(cast.friend.connect(cast.home))
        assert is_safe(cast)


def test_another_process_of_the_home_may_have_agreed_a_moment_ago() -> None:
    """What it wrote is read again before the peer is judged by what was known before."""
    with Cast() as cast:
        remembered_from_before(cast)
        before = dict(cast.home.saved), dict(cast.friend.saved)
        cast.friend.connect(cast.home)
        cast.world.run(2.0)
        assert is_agreed(cast)
        for person, old in zip(cast.people, before, strict=True):  # what these processes still have in mind
            person.endpoint._context.peers = dict(old)
        peering = cast.friend.connect(cast.home)
        cast.world.run(1.0)
        assert peering.hybrid.is_reached
        assert not cast.home.problems + cast.friend.problems


# --- old and new versions


@pytest.mark.parametrize("old", [("home",), ("friend",), BOTH])
@pytest.mark.parametrize("by_code", [True, False])
def test_old_and_new_versions_work_together_as_before(old: tuple[str, ...], by_code: bool) -> None:
    with Cast() as cast:
        be_old(cast, *old)
        if by_code:
            peering = cast.pair()
        else:
            remembered_from_before(cast)
            peering = cast.friend.connect(cast.home)
        for _ in range(3):
            cast.transfer(peering)
            cast.world.run(130.0)
        assert not is_safe(cast)
        for person in cast.people:
            assert not known(person).is_hybrid
            assert not known(person).kept
            assert not person.problems


@pytest.mark.parametrize("first_old", BOTH)
def test_who_is_upgraded_later_does_the_step_then(first_old: str) -> None:
    with Cast() as cast:
        be_old(cast, first_old)
        cast.pair()
        cast.world.run(1.0)
        cast.who(first_old).is_hybrid = True
        reboot(cast)
        cast.transfer(cast.friend.connect(cast.home))
        cast.world.run(1.0)
        assert is_safe(cast)
        assert is_agreed(cast)


@pytest.mark.parametrize("goes_back", BOTH)
def test_there_is_no_silent_way_back(goes_back: str) -> None:
    """As it would be with a peer that runs an older version again, or with somebody who has broken all but the last secret."""
    with Cast() as cast:
        cast.pair()
        cast.world.run(2.0)
        be_old(cast, goes_back)
        reboot(cast)
        taken = cast.home.bytes_taken
        peering = cast.friend.dial(cast.home)
        cast.world.run(10.0)
        other = cast.home if goes_back == "friend" else cast.friend
        troubles = [event for event in other.told if isinstance(event, Troubled) and event.problem is Problem.POST_QUANTUM]
        assert troubles
        assert "peers forget" in troubles[0].text
        assert troubles[0].is_final is (other is cast.friend)
        assert not carries(peering)
        assert not cast.home.live
        assert cast.home.bytes_taken == taken
        assert not any(isinstance(event, PeeringStarted) for event in other.told)
        assert known(other).is_hybrid


def test_a_restored_backup_is_told_of_and_a_new_pairing_heals_it() -> None:
    with Cast() as cast:
        cast.pair()
        backup = dict(cast.friend.saved)
        cast.world.run(2.0)
        cast.friend.saved = {static: replace(peer, kept=(), is_hybrid=False) for static, peer in backup.items()}
        reboot(cast)
        cast.friend.dial(cast.home)
        cast.world.run(5.0)
        assert Problem.POST_QUANTUM in cast.home.problems
        reason = cast.friend.closed[-1].reason
        assert (reason.code, reason.by_peer) == (CloseCode.KEYS, True)
        reboot(cast)
        cast.transfer(cast.pair())
        cast.world.run(1.0)
        assert is_safe(cast)
        assert is_agreed(cast)


def test_a_pairing_with_an_older_version_of_a_peer_that_could_do_better_is_refused() -> None:
    with Cast() as cast:
        cast.pair()
        cast.world.run(2.0)
        before = known(cast.home)
        be_old(cast, "friend")
        reboot(cast)
        cast.claim()
        cast.world.run(10.0)
        assert Problem.POST_QUANTUM in cast.home.problems
        assert not cast.home.peerings
        assert not cast.home.paired
        assert known(cast.home) == before
        cast.home.saved.clear()  # peers forget
        reboot(cast)
        cast.transfer(cast.pair())


def test_keys_of_a_connection_never_get_worse() -> None:
    """Somebody who has broken the pairing may shake hands for the connection that stands; it does not take those keys."""
    with Cast() as cast:
        peering = cast.pair()
        cast.world.run(2.0)
        connection = peering.connection
        assert connection is not None
        keys = connection.indices()
        for person in cast.people:
            for each in person.live:
                each.hybrid.chain = ()
            person.endpoint._context.peers = {
                static: replace(peer, kept=()) for static, peer in person.endpoint._context.peers.items()
            }
            person.saved = dict(person.endpoint._context.peers)
        peering.begin_handshake(cast.world.now, connection.current_path.key)
        cast.world.touch(cast.friend.host)
        cast.world.run(5.0)
        assert connection.indices() == keys
        drops = [person.endpoint.drops["handshake under older keys"] for person in cast.people]
        assert sum(drops) > 0


# --- disks and crashes


@pytest.mark.parametrize("full", [("home",), ("friend",), BOTH])
def test_a_full_disk_costs_the_next_connection_a_step_and_nobody_the_pair(full: tuple[str, ...]) -> None:
    with Cast() as cast:
        remembered_from_before(cast)
        for name in full:
            cast.who(name).is_disk_full = True
        cast.transfer(cast.friend.connect(cast.home))
        cast.world.run(1.0)
        assert is_safe(cast)
        assert not any(known(cast.who(name)).kept for name in full)
        assert not known(cast.home).is_hybrid or not known(cast.friend).is_hybrid
        reboot(cast)
        cast.transfer(cast.friend.connect(cast.home))
        for person in cast.people:
            person.is_disk_full = False
        reboot(cast)
        cast.transfer(cast.friend.connect(cast.home))
        cast.world.run(1.0)
        assert is_agreed(cast)


class Crash(Exception):
    """The power goes."""


def dies_at_store(cast: Cast, monkeypatch: pytest.MonkeyPatch, number: int, *, before: bool) -> list[int]:
    """The `number`-th write of a kept psk, of either side, is its last act; `before` it is on disk, or right after."""
    count = [0]
    keep = PeerNode.keep

    def write(person: PeerNode, static: bytes, psk: bytes, *, is_shown: bool) -> KnownPeer | None:
        count[0] += 1
        if count[0] != number:
            return keep(person, static, psk, is_shown=is_shown)
        if not before:
            keep(person, static, psk, is_shown=is_shown)
        person.kill()
        cast.world.filter = lambda sender, _destination, _datagram: sender is not person.host
        return None

    monkeypatch.setattr(PeerNode, "keep", write)
    return count


def check_nobody_is_locked_out(cast: Cast) -> None:
    cast.world.filter = None
    reboot(cast)
    peering = cast.friend.connect(cast.home)
    cast.transfer(peering)
    cast.world.run(1.0)
    assert is_safe(cast)
    assert is_agreed(cast)
    for person in cast.people:
        assert Problem.POST_QUANTUM not in person.problems


@pytest.mark.parametrize("by_code", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", range(1, 5))
def test_a_crash_at_any_write_locks_nobody_out(
    number: int, before: bool, by_code: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Exposer keeps, connector keeps, connector notes that it was shown, exposer does."""
    with Cast() as cast:
        if by_code:
            cast.claim()
        else:
            remembered_from_before(cast)
            cast.friend.dial(cast.home)
        written = dies_at_store(cast, monkeypatch, number, before=before)
        cast.world.run(3.0)
        assert written[0] >= number
        monkeypatch.undo()
        check_nobody_is_locked_out(cast)


def test_the_state_of_a_peering_is_not_told_to_logs() -> None:
    with Cast() as cast:
        cast.pair()
        cast.world.run(1.0)
        secret = known(cast.home).kept[0].psk
        assert repr(secret) not in repr(known(cast.home))
        assert repr(cast.home.live[0].hybrid.chain[0]) not in repr(cast.home.told)


# --- where the library has no ML-KEM


def test_a_machine_without_it_is_as_an_older_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cast() as cast:
        monkeypatch.setattr(kem, "is_available", lambda: False)
        cast.friend.boot()
        monkeypatch.undo()
        peering = cast.pair()
        cast.transfer(peering)
        assert not is_safe(cast)


def test_the_secrets_of_a_step_belong_to_its_connection() -> None:
    """The same psk and the same messages under another first handshake give other secrets."""
    made = []
    for binding in (b"one", b"another"):
        key = kem.KemKey(lambda size: bytes(size))
        text, secret = kem.answer(key.public)
        assert key.open(text) == secret
        made.append(kem.derive(sha256(b"psk").digest(), sha256(b"secret").digest(), binding, key.public, b"text"))
    assert made[0].connection != made[1].connection
    assert made[0].kept != made[1].kept
