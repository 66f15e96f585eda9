"""Memory of ways to peers, as the driver reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tunnel.nat.memory import Remembered


class WayMemory(Protocol):
    """Where it is kept what led directly to each peer, by network; knows by itself which network this machine is in."""

    def load(self) -> Mapping[bytes, Remembered]:
        """Return the ways known in the present network, by the peers' static keys."""

    def note(self, static: bytes, way: Remembered | None) -> None:
        """Remember, or (None) forget.  Must not wait for a disk."""
