"""Every counter of a process as one snapshot: what `ptunnel status --json` shows under `counters` and `drops`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Counters of forwards that are no drops: how much went through, and what is open.
TRAFFIC = frozenset(("tcp_opened", "tcp_active", "udp_flows_opened", "udp_flows_active", "udp_datagrams_in", "udp_datagrams_out"))


def snapshot(
    endpoint: Mapping[str, Mapping[str, int]], forwards: Mapping[str, int], links: Iterable[tuple[str, Mapping[str, int]]]
) -> dict[str, dict[str, dict[str, int]]]:
    """`drops` by place and reason; a place that dropped nothing is there too, empty: it was looked at.

    Places are `endpoint`, `server NAME`, `udp ADDRESS`, `forwards`, and `link PEER` for every connection.
    """
    drops = {place: dict(sorted(counts.items())) for place, counts in endpoint.items()}
    drops["forwards"] = {name: count for name, count in forwards.items() if count and name not in TRAFFIC}
    for peer, counts in links:
        drops[f"link {peer}"] = dict(sorted(counts.items()))
    return {"drops": drops}
