"""Memory of the last direct path from this network to this peer: the same is tried first.

A hint and no more.  A remembered address gets three checks before the peer has named any, openers where it stands behind a NAT,
so a wrong one costs three datagrams; a remembered technique begins at once, but only where the peer is seen at the same host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping as MappingType
from typing import Final, NamedTuple, Protocol

from tunnel.nat.candidate import OPEN_KINDS, CandidateKind
from tunnel.nat.checklist import OPENERS, Check
from tunnel.nat.technique import Scene
from tunnel.units import Address, Instant, Seconds, SocketId

#: Where no NAT has to be opened first: when, and TTL.
EARLY: Final = ((Seconds(0.0), None), (Seconds(0.1), None), (Seconds(0.3), None))


class Remembered(NamedTuple):
    """One peer, from one network."""

    remote: Address  # where the direct path led
    kind: CandidateKind  # what the peer called that address; peer-reflexive: nothing
    technique: str = ""  # "", "prediction", "birthday" or "blocks"
    opened: bool = False  # birthday: it was our side that opened the pool
    keepalive: Seconds = Seconds(0.0)  # that the path's mappings were found to survive; 0: not known

    def fits(self, scene: Scene) -> bool:
        """Whether the peer is seen where it was."""
        return scene.target is not None and scene.target.host == self.remote.host


class WayMemory(Protocol):
    """Where it is kept what led directly to each peer, by network; knows by itself which network this machine is in."""

    def load(self) -> MappingType[bytes, Remembered]:
        """Return the ways known in the present network, by the peers' static keys."""

    def note(self, static: bytes, way: Remembered | None) -> None:
        """Remember, or (None) forget.  Must not wait for a disk."""


class EarlyChecks:
    """The checks of a remembered address, for as long as the peer has named none."""

    def __init__(self, now: Instant, remembered: Remembered, sockets: MappingType[SocketId, bool]) -> None:
        """`sockets` says which of ours speak IPv6.  The caller has asked whether the address may be tried."""
        remote, kind = remembered.remote, remembered.kind
        is_open = remote.is_ipv6 or kind in OPEN_KINDS
        plan = EARLY if is_open else OPENERS
        self.remembered = remembered
        #: How many openers of each pair went out.
        self.opened: dict[tuple[SocketId, Address], int] = {}
        self._plan = deque(
            (Instant(now + after), Check(socket_id, remote, ttl))
            for after, ttl in plan
            for socket_id, is_ipv6 in sockets.items()
            if is_ipv6 == remote.is_ipv6
        )

    def is_due(self, now: Instant) -> bool:
        return bool(self._plan) and self._plan[0][0] <= now

    def poll_check(self, now: Instant) -> Check | None:
        if not self.is_due(now):
            return None
        check = self._plan.popleft()[1]
        if check.ttl is not None:
            key = (check.socket_id, check.remote)
            self.opened[key] = self.opened.get(key, 0) + 1
        return check

    def poll_timeout(self) -> Instant | None:
        return self._plan[0][0] if self._plan else None

    def stop(self) -> None:
        """The peer has named its addresses: they are checked in their own order."""
        self._plan.clear()
