"""PTUNNEL_HOME as the core and the library see it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from tunnel.disk import MAX_LATE_JOBS, DiskThread
from tunnel.errors import ConfigurationError, StateError, TunnelError
from tunnel.faults import Faults
from tunnel.node.events import KeptPsk
from tunnel.pairing.grants import GrantSet
from tunnel.pairing.identity import sanitise_name
from tunnel.server_spec import widest
from tunnel.settings import Given, GivenPeer, Settings, load_given
from tunnel.shell.endpoint import KnownPeer, Traces
from tunnel.state.home import Home
from tunnel.state.peers import Peer
from tunnel.units import Hex

if TYPE_CHECKING:
    from tunnel.telemetry.qlog import QlogDirectory

SEEN_AFTER: Final = 1.0  # seconds
WATCH_INTERVAL: Final = 0.4  # seconds between looks at the peers' file: `peers forget` cuts live streams within one
Stamp: TypeAlias = tuple[int, int, int]  # Home.peers_stamp
Lend: TypeAlias = Callable[[Peer], tuple[dict[str, Any], ...]]


@cache
def _qlog_directory(folder: str) -> QlogDirectory:
    """The same for the whole process, so that one that connects for ever fills no disk.  Raises ConfigurationError."""
    from tunnel.telemetry.qlog import QlogDirectory

    return QlogDirectory(folder)


def own_name(chosen: str | None) -> str:
    """How others are likely to know us: as was chosen, or by this machine's name."""
    return sanitise_name(chosen or socket.gethostname())


def known_peer(peer: Peer) -> KnownPeer:
    return KnownPeer(
        name=peer.name,
        static=peer.static,
        psk=peer.psk,
        server=peer.server,
        grants=tuple(peer.grants),
        machines=peer.machines,
        kept=tuple(KeptPsk(each.psk, each.is_shown) for each in peer.kept),
        is_hybrid=peer.is_hybrid,
    )


class HomeStore:
    """A PeerStore on top of a Home."""

    def __init__(
        self,
        home: Path | str | None,
        not_saved: Callable[[str], None],
        *,
        settings: Settings | None = None,
        given: Given | GivenPeer | None = None,
        name: str | None = None,
        lend: Lend | None = None,
    ) -> None:
        """`not_saved` is told, in one sentence, why a new peer will not be remembered.

        `lend(peer)` is what a peer may reach besides what is remembered of it.

        `settings` are those that the command line has resolved, `given` what the caller of the library has said instead.
        `name` goes before the name by which we are remembered.  Raises ConfigurationError, StateError.
        """
        self.not_saved = not_saved
        self.home = Home(home)
        self.settings = settings or load_given(self.home.config(), os.environ, given or {})
        self.faults = Faults(keep=self.home.keep_report)
        self.disk = DiskThread()
        self.writers = trio.CapacityLimiter(1)  # of our own: a disk that hangs takes no thread from the lookups of names
        self._given_name = name
        self._lend = lend
        self._stamp = self.home.peers_stamp()
        self._replaced: Peer | None = None  # what was remembered under the key of the peer that was saved last

    def save(self, peer: KnownPeer) -> KnownPeer:
        """Remember a newly paired peer.  A full disk does not cost the pairing of this day."""
        now = time.time()
        merged = GrantSet()
        for grant in GrantSet.from_dicts(peer.grants):  # the oldest first: a name given again means its newer place
            merged = merged.union(GrantSet((grant,)))
        grants = merged.to_dicts()
        record = Peer(
            name=peer.name,
            static=peer.static,
            psk=peer.psk,
            server=peer.server,
            grants=grants,
            created=now,
            last_seen=now,
            machines=tuple(map(Hex, peer.machines)),
        )

        def write() -> tuple[Peer | None, Peer]:
            return self.home.find_static(peer.static), self.home.save_peer(record)

        self._replaced = None
        try:
            self._replaced, saved = self.disk.ask(write, also_late=True)
            return self._known(saved)
        except (StateError, ConfigurationError) as error:
            self.not_saved(f"{peer.name} is connected but cannot be remembered. {error}")
            return replace(peer, grants=tuple(grants))

    def unsave(self, peer: KnownPeer) -> KnownPeer | None:
        """The pairing that was saved last came to nothing: what was remembered before is so again, and returned."""
        before = self._replaced if self._replaced is not None and self._replaced.static == peer.static else None
        try:
            left = self.disk.ask(partial(self.home.unpair, peer.static, peer.psk, before), also_late=True)
        except StateError as error:
            self.not_saved(f"{peer.name} did not confirm the pairing, and is still remembered. {error}")
            left = before
        return None if left is None else self._known(left)

    def keep(self, static: bytes, psk: bytes, *, is_shown: bool) -> KnownPeer | None:
        """A disk that is full costs the next connection a step, and nothing else."""
        try:
            saved = self.disk.ask(partial(self.home.keep_psk, static, psk, is_shown=is_shown))
        except (StateError, ConfigurationError):
            return None
        return None if saved is None else self._known(saved)

    def reread(self, peer: KnownPeer) -> KnownPeer:
        """Another process of this home may have written since our last look."""
        before = self._stamp

        def read() -> Peer | None:
            return None if self.home.peers_stamp() == before else self.home.find_static(peer.static)

        try:
            found = self.disk.ask(read)
        except StateError:
            return peer
        return peer if found is None else self._known(found)

    def _known(self, peer: Peer) -> KnownPeer:
        known = known_peer(peer)
        known = replace(known, server=widest(known.server, self.settings.server))
        return known if self._lend is None else replace(known, lent=self._lend(peer))

    def load(self) -> list[KnownPeer]:
        """All remembered peers, most recently seen first.  Raises StateError."""
        self._stamp, peers = self._read()
        return peers

    def _read(self, before: Stamp | None = None) -> tuple[Stamp, list[KnownPeer]]:
        """The peers with the stamp of their file; none of them where that is still `before`.  Raises StateError."""
        stamp = self.home.peers_stamp()
        peers = [] if stamp == before else self.home.peers()
        return stamp, [self._known(peer) for peer in sorted(peers, key=lambda peer: -peer.last_seen)]

    async def note_seen(self, peer: KnownPeer) -> None:
        """The peer was here: written when nobody waits for bytes, in a thread, because a disk may be slow."""
        await trio.sleep(SEEN_AFTER)
        with self.faults.wall("state", f"kept {peer.name} from being noted as seen"):
            if self.writers.statistics().tasks_waiting < MAX_LATE_JOBS:
                await trio.to_thread.run_sync(self._seen, peer, limiter=self.writers, abandon_on_cancel=True)

    def _seen(self, peer: KnownPeer) -> None:
        with suppress(TunnelError):
            self.home.update_peer(peer.static, last_seen=time.time(), machines=peer.machines)

    async def watch(self, changed: Callable[[list[KnownPeer]], None]) -> None:
        """Tell of every change that any process makes to the peers, until cancelled."""
        while True:
            await trio.sleep(WATCH_INTERVAL)
            with self.faults.wall("state", "kept a change of the remembered peers from being seen"), suppress(StateError):
                peers = self.news()
                if peers is not None:
                    changed(peers)

    def news(self) -> list[KnownPeer] | None:
        """All remembered peers, where they have changed since they were read.

        Raises StateError: the file is damaged, or the disk does not answer.  Then it is looked at again.
        """
        stamp, peers = self.disk.ask(partial(self._read, self._stamp))
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        return peers

    def choose(self, name: str | None) -> KnownPeer:
        """The peer called `name`, or the only one there is.  Raises ConfigurationError."""
        if name is not None:
            return self._known(self.home.peer(name))
        peers = self.home.peers()
        if len(peers) == 1:
            return self._known(peers[0])
        if not peers:
            raise ConfigurationError(
                "No peer is remembered yet: connect with a code from 'ptunnel expose' on the other computer."
            )
        names = ", ".join(peer.name for peer in peers[:10])
        raise ConfigurationError(f"Several peers are remembered: name one of {names}.")

    def name(self, remembered: str | None = None) -> str:
        """How we introduce ourselves: as given, as we did before, as configured, or by this machine's name."""
        return own_name(self._given_name or remembered or self.settings.name)

    def traces(self) -> Traces | None:
        """Return the traces of connections, in a folder, where that is wanted.  Raises ConfigurationError."""
        if self.settings.qlog is None:
            return None
        return _qlog_directory(self.settings.qlog)

    def finish(self) -> None:
        """Wait until the traces are on the disk, unless it takes nothing any more."""
        if self.settings.qlog is not None:
            _qlog_directory(self.settings.qlog).finish()
