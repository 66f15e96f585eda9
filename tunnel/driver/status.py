"""What one link is like, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """What `status` shows of one link.  Durations in seconds, rates in bytes per second since the last look.

    `rtt_s` is the smoothed round trip while packets flow; on an idle link it is the newest one, which the keep-alives measure.
    """

    peer: str
    fingerprint: str
    kind: str | None  # "direct", "relay", or None while there is no path
    remote: str | None
    rtt_s: float | None
    rtt_age_s: float | None  # since it was measured; both None: it was not yet
    mtu: int | None
    why: str
    sent_bytes: int
    received_bytes: int
    send_rate: float
    receive_rate: float
    packets_sent: int
    packets_lost: int
    streams: int
    drops: Mapping[str, int]
    punching: Mapping[str, Any]  # what the search for a direct path has cost and may still cost
    nat: Mapping[str, str]  # `ours` and `theirs`: how the routers map; `technique` that was needed, if any
    post_quantum: bool  # what is carried now stays secret from quantum computers too
    reachable: bool  # something gets through to the peer; if not, it is silent, and waited for

    def to_dict(self) -> dict[str, Any]:
        """As `ptunnel status --json` has it."""
        return {name: getattr(self, name) for name in self.__slots__} | {"drops": dict(self.drops), "nat": dict(self.nat)}
