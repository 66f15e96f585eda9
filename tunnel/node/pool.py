"""The pool: extra IPv4 sockets for one puncher at a time.  The core asks for them; the driver opens and closes them.

A socket that carries a path when the rest is given back stays open as long as the path does.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tunnel.nat.budget import POOL_SOCKETS, Budget
from tunnel.nat.technique import PoolSocket
from tunnel.units import Buffer, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.node.punching import Puncher

MAX_SURVIVORS: Final = 64  # sockets that carry paths, over all peers: beyond that no pool is opened
SWEEP_INTERVAL: Final = Seconds(5.0)
MAX_QUESTIONS: Final = 1_024  # to servers, over all peers, whose answers are waited for; the oldest is forgotten


@dataclass(frozen=True, slots=True)
class OpenSockets:
    """Open so many IPv4 sockets on free ports and call Endpoint.add_pool_sockets, with fewer if there are no more to be had."""

    count: int


@dataclass(frozen=True, slots=True)
class CloseSockets:
    socket_ids: tuple[SocketId, ...]


@dataclass(frozen=True, slots=True)
class OpenRoute:
    """Keep a route beside UDP to this server open from now on; say Endpoint.route_up and route_down as it comes and goes."""

    server: str


@dataclass(frozen=True, slots=True)
class CloseRoute:
    """UDP will do again for this server."""

    server: str


SocketOrder: TypeAlias = OpenSockets | CloseSockets | OpenRoute | CloseRoute


class SocketPool:
    """One for each endpoint."""

    def __init__(self, drops: MutableMapping[str, int] | None = None) -> None:
        """`drops` counts what the budget held back."""
        self.budget = Budget(drops)
        self.orders: deque[SocketOrder] = deque()
        self._owner: Puncher | None = None
        self._waiting: list[Puncher] = []
        self._sockets: dict[SocketId, PoolSocket] = {}  # of the owner
        self._survivors: set[SocketId] = set()
        self._is_asked = False
        self._is_exhausted = False  # the system gave fewer than asked for
        self._sweep_at: Instant | None = None
        self._questions: OrderedDict[bytes, None] = OrderedDict()  # STUN transactions of all punchers

    def asked(self, transaction: bytes) -> None:
        """A puncher puts this STUN question to a server."""
        if len(self._questions) >= MAX_QUESTIONS:
            self._questions.popitem(last=False)
        self._questions[transaction] = None

    def has_asked(self, datagram: Buffer) -> bool:
        """Whether this may be an answer to one of our STUN questions: strangers' datagrams end here."""
        return bytes(datagram[8:20]) in self._questions

    def __len__(self) -> int:
        """Sockets open now."""
        return len(self._sockets) + len(self._survivors)

    @property
    def is_used(self) -> bool:
        """Whether sweep may have something to close."""
        return self._owner is not None or bool(self._survivors)

    def serve(self, now: Instant, puncher: Puncher) -> None:
        """Give the puncher what it wants, or take back what it has no use for."""
        wanted = min(puncher.wanted_sockets, POOL_SOCKETS)
        if not wanted:
            if self._owner is puncher:
                self._release(now)
            return
        if self._owner is None and len(self._survivors) <= MAX_SURVIVORS:
            self._owner = puncher
        if self._owner is not puncher:
            if puncher not in self._waiting:
                self._waiting.append(puncher)
            return
        missing = wanted - len(self._sockets)
        if missing > 0 and not self._is_asked and not self._is_exhausted:
            self._is_asked = True
            self.orders.append(OpenSockets(missing))

    def opened(self, now: Instant, sockets: Iterable[PoolSocket], count: int) -> None:
        """`count` were asked for."""
        fresh = {socket.socket_id: socket for socket in sockets}
        self._is_asked = False
        if self._owner is None:
            if fresh:
                self.orders.append(CloseSockets(tuple(fresh)))
            return
        self._is_exhausted = len(fresh) < count
        self._sockets.update(fresh)
        self._owner.sockets_opened(now, fresh.values(), tuple(self._sockets.values()))
        self.serve(now, self._owner)

    def sweep(self, now: Instant, live: Iterable[Puncher]) -> None:
        """Close what nobody uses any more: of punchers that ended, and of paths that died."""
        if self._sweep_at is not None and now < self._sweep_at:
            return
        self._sweep_at = Instant(now + SWEEP_INTERVAL)
        punchers = list(live)
        if self._owner is not None and self._owner not in punchers:
            self._release(now)
        if self._survivors:
            used = {socket_id for puncher in punchers for socket_id in puncher.used_sockets()}
            gone = self._survivors - used
            self._survivors &= used
            self._close(now, gone, punchers)

    def _release(self, now: Instant) -> None:
        owner, self._owner = self._owner, None
        assert owner is not None
        kept = owner.used_sockets() & self._sockets.keys()
        self._survivors |= kept
        self._close(now, self._sockets.keys() - kept, [owner])
        self._sockets = {}
        self._is_exhausted = False
        waiting, self._waiting = self._waiting, []
        for puncher in waiting:
            puncher.next_at = now

    def _close(self, now: Instant, socket_ids: Iterable[SocketId], punchers: Iterable[Puncher]) -> None:
        gone = tuple(sorted(socket_ids))
        if not gone:
            return
        for puncher in punchers:
            puncher.sockets_closed(now, gone)
        self.orders.append(CloseSockets(gone))
