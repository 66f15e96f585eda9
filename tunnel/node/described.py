"""The part of a peering that tells people how its link goes, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunnel.node import reasons

if TYPE_CHECKING:
    from tunnel.node.context import Context
    from tunnel.node.punching import Puncher
    from tunnel.transport.connection.connection import Connection
    from tunnel.units import Instant


class Described:
    """A part of Peering."""

    connection: Connection | None
    puncher: Puncher | None
    policy: str
    _context: Context
    _has_lost_puncher: bool

    def why_relayed(self, now: Instant) -> str:
        """One sentence for a person, about a connection that is relayed."""
        return self.by_way(reasons.why_relayed(self.policy, self.puncher, self.route, self._has_lost_puncher))

    def by_way(self, why: str) -> str:
        """`why` the connection is relayed, and by which other peer, if one carries it."""
        return why if not self.carried_by else f"{why}; it goes by way of {self.carried_by}"

    @property
    def carried_by(self) -> str:
        """Which other peer passes on what goes to this one; empty: none does."""
        connection = self.connection
        return "" if connection is None else self._context.carrying.names.get(connection.current_path.key.prefix, "")

    @property
    def route(self) -> str:
        """By what the current path goes to the server instead of UDP, for a person; empty: by UDP, or past the server."""
        connection = self.connection
        found = None if connection is None else self._context.clients.routes.get(connection.current_path.key.socket_id)
        return "" if found is None else found.words

    @property
    def holds_relay(self) -> bool:
        """Whether there is a relay channel for the link, in use or not."""
        return self.connection is not None and bool(self.connection.channels)

    @property
    def nat(self) -> dict[str, str]:
        """How our router maps and how the peer's does, as far as known, and which costlier technique was used last."""
        return {} if self.puncher is None else self.puncher.nat

    def punching(self, now: Instant) -> dict[str, Any]:
        """Return the cost of the search for a direct path, spent and left: packets, sockets, seconds; for `status`."""
        return {} if self.puncher is None else self.puncher.describe(now)
