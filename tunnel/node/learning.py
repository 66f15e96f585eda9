"""Lessons of a connection about ways to its peer, for the next one: see nat/memory.py."""

from __future__ import annotations

from tunnel.nat.candidate import CandidateKind
from tunnel.nat.memory import Remembered
from tunnel.node.context import Context
from tunnel.node.events import WayLearned
from tunnel.node.punching import Puncher
from tunnel.transport.connection.connection import Connection


class Learning:
    """Of one peer."""

    def __init__(self, context: Context, static: bytes) -> None:
        self._context = context
        self._static = static

    def learn(self, connection: Connection | None, puncher: Puncher | None) -> None:
        """Remember the way that led here, if it differs from what is remembered."""
        if connection is None or puncher is None or puncher.is_same_machine:
            return
        way = puncher.learned(connection.current_path.key, connection.keepalive)
        known = self._context.memory.get(self._static)
        if known is not None and known.remote == way.remote and way.kind is CandidateKind.PEER_REFLEXIVE:
            way = way._replace(kind=known.kind)  # it worked before the peer named it
        if known != way:
            self._remember(way)

    def learn_keepalive(self, connection: Connection | None) -> None:
        """A mapping may have died: the next connection need not find that out again."""
        known = self._context.memory.get(self._static)
        if known is not None and connection is not None and connection.keepalive != known.keepalive:
            self._remember(known._replace(keepalive=connection.keepalive))

    def unlearn(self) -> None:
        """Forget the remembered way, which led nowhere: the next connection begins like a first one."""
        if self._context.memory.pop(self._static, None) is not None:
            self._context.emit(WayLearned(static=self._static, way=None))

    def _remember(self, way: Remembered) -> None:
        self._context.memory[self._static] = way
        self._context.emit(WayLearned(static=self._static, way=way))
