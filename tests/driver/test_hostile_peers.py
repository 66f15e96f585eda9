"""What a peer that was let in must still not be able to do."""

from __future__ import annotations

import random
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio
import trio.testing

from tests.driver.meeting import lone_driver
from tunnel.errors import StateError
from tunnel.pairing.grants import GrantSet
from tunnel.ports.connecting import _Connecting
from tunnel.ports.counters import MAX_NOTICES, NOTICE_INTERVAL, Notices
from tunnel.ports.local import connect_tcp, stream_code
from tunnel.ports.public_link import Link
from tunnel.setup.store import HomeStore
from tunnel.shell.endpoint import KnownPeer
from tunnel.shell.stream import StreamCode
from tunnel.state.home import Home
from tunnel.state.peers import Peer


def untwisted(word: int) -> int:
    """The state word behind one output of the Mersenne Twister."""
    word ^= word >> 18
    word ^= word << 15 & 0xEFC60000
    value = word
    for _ in range(5):
        value = word ^ (value << 7 & 0x9D2C5680)
    word = value
    for _ in range(2):
        value = word ^ value >> 11
    return value


def foretold(seen: list[bytes]) -> random.Random:
    """The generator that has made these 312 values of eight bytes, if it was a Mersenne Twister."""
    words = [int.from_bytes(each[start : start + 4], "little") for each in seen for start in (0, 4)]
    clone = random.Random()
    clone.setstate((3, (*(untwisted(word) for word in words), 624), None))
    return clone


def test_who_has_seen_many_path_challenges_cannot_foretell_the_next(tmp_path: Path) -> None:
    weak = random.Random(7)
    assert foretold([weak.randbytes(8) for _ in range(312)]).randbytes(8) == weak.randbytes(8)  # the attack works
    driver = lone_driver(tmp_path)
    rng = driver.core._context.rng
    assert foretold([rng.randbytes(8) for _ in range(312)]).randbytes(8) != rng.randbytes(8)
    driver.release()


async def test_forgetting_a_peer_counts_though_its_file_cannot_be_read_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may have used up our descriptors just then."""
    home = Home(tmp_path)
    home.save_peer(Peer(name="friend", static=b"s" * 32, psk=b"p" * 32, created=time.time()))
    store = HomeStore(tmp_path, print)
    assert [peer.name for peer in store.load()] == ["friend"]
    home.forget("friend")
    read, failures = store.home.peers, 0

    def exhausted() -> list[Peer]:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise StateError("Too many open files.")
        return read()

    monkeypatch.setattr(store.home, "peers", exhausted)
    told: list[list[KnownPeer]] = []
    heard = trio.Event()

    def changed(peers: list[KnownPeer]) -> None:
        told.append(peers)
        heard.set()

    with trio.move_on_after(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watch, changed)
            await heard.wait()
            nursery.cancel_scope.cancel()
    assert told == [[]]


async def test_what_any_process_changes_of_the_peers_is_seen_within_a_second(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """By the clock of the test, so that no busy machine makes the promise any longer."""
    home = Home(tmp_path)
    store = HomeStore(tmp_path, print)
    store.load()
    seen: list[tuple[float, list[str]]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch, lambda peers: seen.append((trio.current_time(), [peer.name for peer in peers])))
        for after in (0.01, 0.39, 7.77):
            await trio.sleep(after)
            changed_at, count = trio.current_time(), len(seen)
            home.save_peer(Peer(name=f"peer {after}", static=str(after).encode() * 8, psk=b"p" * 32, created=1.0))
            await trio.sleep(1.0)
            assert len(seen) == count + 1
            assert seen[-1][0] - changed_at < 1.0
        nursery.cancel_scope.cancel()
    assert len(seen[-1][1]) == 3


async def test_a_shared_host_that_cannot_be_a_name_ends_one_stream_and_not_the_process() -> None:
    for host in ("nas..local", "a" * 64 + ".local"):
        assert GrantSet.parse(f"nas={host}:445")
        with pytest.raises(OSError, match="no host name") as caught:
            await connect_tcp(host, 445)
        assert stream_code(caught.value) == StreamCode.UNREACHABLE


def test_whoever_comes_by_himself_is_not_taken_for_the_peer_we_connect_to() -> None:
    """Another remembered peer that finds our port may open a link; connect() must go on waiting for its own."""
    uninvited, wanted = Mock(spec=Link, is_connector=False), Mock(spec=Link, is_connector=True)
    waiting = _Connecting(None)
    waiting.handle_link(uninvited)
    assert not waiting.done.is_set()
    waiting.handle_link(wanted)
    assert waiting.link is wanted


def test_a_name_given_again_leads_to_its_newer_place_only(tmp_path: Path) -> None:
    """Also where the peer pairs anew: what it could reach by that name before is no longer shared."""
    old, new = (GrantSet.parse(text).to_dicts() for text in ("nas=192.168.1.5:445", "nas=192.168.1.9:445"))
    peer = KnownPeer(name="friend", static=b"s" * 32, psk=b"p" * 32, server=None, grants=(*old, *new))
    saved = HomeStore(tmp_path, print).save(peer)
    assert GrantSet.from_dicts(saved.grants).allows("tcp", "nas") == ("192.168.1.9", 445)
    assert len(saved.grants) == 1


def test_a_peer_that_asks_for_every_port_fills_no_screen() -> None:
    now = 0.0
    said: list[str] = []
    notices = Notices(said.append, clock=lambda: now)
    for port in range(1, 5_000):
        notices.say(f"denied tcp/{port}", f"friend asked for tcp/{port}.")
    assert len(said) == MAX_NOTICES
    now = NOTICE_INTERVAL
    notices.say("denied tcp/22", "friend asked for tcp/22.")
    assert len(said) == MAX_NOTICES + 1
