"""The nodes of the DHT that have answered, kept in a home for the next start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from tunnel.disk import DiskThread
from tunnel.errors import StateError, TunnelError
from tunnel.state.home import Home
from tunnel.state.nodes import NODE_LIFETIME
from tunnel.units import Address


class NodeKeeper:
    """A NodeMemory on top of a Home.  Whatever goes wrong with the file, the DHT is entered without it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._disk = DiskThread()

    def load(self) -> list[Address]:
        """The newest first."""
        with suppress(TunnelError, OSError, ValueError):
            oldest = time.time() - NODE_LIFETIME
            return [node.address for node in self._disk.ask(self._home.nodes) if node.answered > oldest]
        return []

    def save(self, nodes: Sequence[Address]) -> None:
        with suppress(StateError):
            self._disk.ask(partial(self._write, nodes), also_late=True)

    def _write(self, nodes: Sequence[Address]) -> None:
        with suppress(TunnelError, OSError):
            self._home.remember_nodes(nodes, time.time())
