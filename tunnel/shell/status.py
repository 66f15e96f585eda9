"""The status of one link, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunnel.transport.connection.events import ConnectionStats


@dataclass(slots=True, kw_only=True)
class LinkStatus(ConnectionStats):
    """The status of one link, beside the counters of its connection.

    Durations in seconds, rates in bytes per second since the last look.
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
    send_rate: float
    receive_rate: float
    punching: Mapping[str, Any]  # what the search for a direct path has cost and may still cost
    nat: dict[str, str]  # `ours` and `theirs`: how the routers map; `technique` that was needed, if any
    relays: Sequence[Mapping[str, Any]]  # the servers that it could go by, and what each is to it
    holds_relay: bool  # some server has a channel for it; false: it is direct, and gets one when it needs it
    post_quantum: bool  # what is carried now stays secret from quantum computers too
    reachable: bool  # something gets through to the peer; if not, it is silent, and waited for
