"""The ways that led directly to each peer, by network: read at the start, written a moment after they are learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from tunnel.disk import DiskThread
from tunnel.errors import StateError, TunnelError
from tunnel.host.network import network_name
from tunnel.shell.endpoint import CandidateKind, Remembered
from tunnel.state.home import Home
from tunnel.state.ways import Way
from tunnel.units import Address, Seconds

WRITE_AFTER: Final = 1.0  # seconds: not while the first bytes are on their way, and several at once


class WayKeeper:
    """A WayMemory on top of a Home.  Whatever goes wrong with the file, peers are met without it."""

    def __init__(self, home: Home, name: Callable[[bytes], bytes] = network_name) -> None:
        """`name` tells the network that we are in, given a secret of this home."""
        self._home = home
        self._name = name
        self._disk = DiskThread()
        self._writers = trio.CapacityLimiter(1)  # of our own: a disk that hangs takes no thread from the lookups of names
        self._secret = b""
        self._network = b""
        self._known: dict[bytes, Remembered] = {}
        self._pending: dict[tuple[bytes, bytes], Way | None] = {}
        self._writing: dict[tuple[bytes, bytes], Way | None] = {}
        self._changed = trio.Event()

    def load(self) -> Mapping[bytes, Remembered]:
        self._known, self._network = {}, b""
        with suppress(TunnelError, OSError, ValueError):
            self._network, ways = self._disk.ask(self._read)
            for way in ways:
                if way.network == self._network and way.kind in CandidateKind._value2member_map_:
                    self._known[way.static] = Remembered(
                        Address(way.host, way.port), CandidateKind(way.kind), way.technique, way.opened, Seconds(way.keepalive)
                    )
        return self._known

    def _read(self) -> tuple[bytes, list[Way]]:
        self._secret = self._home.identity()
        return self._name(self._secret), self._home.ways()

    def note(self, static: bytes, way: Remembered | None) -> None:
        if not self._network:
            return
        # Named anew: the router is known by its hardware address, and at the start nobody may have spoken with it yet.
        with suppress(OSError, ValueError):
            self._network = self._name(self._secret)
        record: Way | None = None
        if way is not None:
            record = Way(
                network=self._network, static=static, host=way.remote.host.partition("%")[0], port=way.remote.port,
                kind=way.kind.value, technique=way.technique, opened=way.opened, keepalive=way.keepalive, used=time.time(),
            )  # fmt: skip
        self._pending[self._network, static] = record
        self._changed.set()

    async def run(self) -> None:
        """Writes what is noted, in a thread, because a disk may be slow; until cancelled."""
        while True:
            await self._changed.wait()
            await trio.sleep(WRITE_AFTER)
            self._changed = trio.Event()
            self._writing, self._pending = self._pending, {}
            await trio.to_thread.run_sync(self._write, self._writing, limiter=self._writers, abandon_on_cancel=True)
            self._writing = {}

    def close(self) -> None:
        """Write what was not written yet."""
        pending, self._writing, self._pending = {**self._writing, **self._pending}, {}, {}
        if pending:
            with suppress(StateError):
                self._disk.ask(partial(self._write, pending), also_late=True)

    def _write(self, pending: Mapping[tuple[bytes, bytes], Way | None]) -> None:
        with suppress(TunnelError, OSError):
            fresh = [way for way in pending.values() if way is not None]
            self._home.remember_ways(fresh, [key for key, way in pending.items() if way is None])
