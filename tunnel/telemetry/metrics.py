"""Every drop of a process as one snapshot: what `ptunnel status --json` shows as `drops`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

#: Counters of forwards that are no drops: how much went through, and what is open.
TRAFFIC = frozenset(("tcp_opened", "tcp_active", "udp_flows_opened", "udp_flows_active", "udp_datagrams_in", "udp_datagrams_out"))


class Status(Protocol):
    @property
    def drops(self) -> Mapping[str, int]: ...


class Link(Protocol):
    """What this needs of a `tunnel.shell.link.Link`."""

    @property
    def peer_name(self) -> str: ...

    def status(self) -> Status: ...


def snapshot(
    endpoint: Mapping[str, Mapping[str, int]], forwards: Mapping[str, int], links: Iterable[Link]
) -> dict[str, dict[str, int]]:
    """Counts by place and reason; a place that dropped nothing is there too, empty: it was looked at.

    Places are `endpoint`, `server NAME`, `udp ADDRESS`, `forwards`, and `link PEER` for every connection.
    """
    drops = {place: dict(sorted(counts.items())) for place, counts in endpoint.items()}
    drops["forwards"] = {name: count for name, count in forwards.items() if count and name not in TRAFFIC}
    for link in links:
        drops[f"link {link.peer_name}"] = dict(sorted(link.status().drops.items()))
    return drops
