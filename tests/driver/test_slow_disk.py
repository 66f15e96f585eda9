"""A disk that takes nothing, in the middle of a write: the tunnel goes on, and what was to be written is said and comes later."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

import tunnel
from tests.driver.meeting import Heard, a_server, echo, shout
from tunnel.disk import MAX_LATE_JOBS
from tunnel.setup import store
from tunnel.setup.store import HomeStore
from tunnel.shell.endpoint import KnownPeer
from tunnel.shell.events import CodeReady, Trouble
from tunnel.state.home import Home

PATIENCE_S = 30.0


class HungDisk:
    """Every fsync from `hang` on waits for `come_back`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._original = os.fsync
        self._is_back = threading.Event()
        self._is_back.set()
        self.is_asked = threading.Event()
        monkeypatch.setattr(os, "fsync", self._sync)

    def hang(self) -> None:
        self._is_back.clear()

    def come_back(self) -> None:
        self._is_back.set()

    def _sync(self, descriptor: int) -> None:
        if not self._is_back.is_set():
            self.is_asked.set()
            self._is_back.wait(PATIENCE_S)
        self._original(descriptor)


async def test_a_link_goes_on_while_the_disk_takes_nothing_and_the_new_peer_is_remembered_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = HungDisk(monkeypatch)
    heard = Heard()
    with trio.fail_after(PATIENCE_S):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=tmp_path / "home", keep=True, on_event=heard, handler=echo, name="home"),
            tunnel.connect(first := await heard.code(), server=server, home=tmp_path / "ada", name="ada") as link,
        ):
            assert await shout(link, b"before") == b"before"
            fresh = await heard.wait(lambda event: isinstance(event, CodeReady) and event.code != first)
            assert isinstance(fresh, CodeReady)
            seen = len(heard)
            Home(tmp_path / "ben").identity()
            disk.hang()
            try:
                async with trio.open_nursery() as nursery:

                    async def ben() -> None:
                        async with tunnel.connect(fresh.code, server=server, home=tmp_path / "ben", name="ben") as other:
                            assert await shout(other, b"from ben") == b"from ben"
                            assert await shout(link, b"meanwhile") == b"meanwhile"

                    nursery.start_soon(ben)
                assert disk.is_asked.is_set()
                told = await heard.wait(lambda event: isinstance(event, Trouble) and event.code == "not_saved", after=seen)
                assert isinstance(told, Trouble)
                assert "The disk has not answered" in told.message
                assert [peer.name for peer in Home(tmp_path / "home").peers()] == ["ada"]
            finally:
                disk.come_back()
            while [peer.name for peer in Home(tmp_path / "home").peers()] != ["ada", "ben"]:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_of_peers_that_are_met_meanwhile_so_many_are_noted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEEN_AFTER", 0.0)
    disk = HungDisk(monkeypatch)
    mine = HomeStore(tmp_path, print)
    peers = [
        mine.save(KnownPeer(name=f"p{number}", static=bytes([number]) * 32, psk=bytes(32), server=None))
        for number in range(MAX_LATE_JOBS + 6)
    ]
    disk.hang()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.note_seen, peers[0])
            while not disk.is_asked.is_set():  # noqa: ASYNC110
                await trio.sleep(0.01)
            for peer in peers[1:]:
                nursery.start_soon(mine.note_seen, peer)
            await trio.testing.wait_all_tasks_blocked()
            assert mine.writers.statistics().tasks_waiting == MAX_LATE_JOBS
            disk.come_back()
