"""Figures for Prometheus, read from a process's `status` document when they are asked for.

docs/metrics.md has the same table for people.  Names follow Prometheus' conventions: base units, `_total` behind what only grows.
Labels are few: words of ours (a reason, a kind of event), and of a process that has peers their names; no client of a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

MAX_SERIES: Final = 256  # label values of one metric, those that come first: the others are one more, `other`, as their sum
OTHER: Final = "other"  # the label value that stands for them
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text format

Kind: TypeAlias = Literal["counter", "gauge"]
Source: TypeAlias = Callable[[], Mapping[str, Any]]  # gives the `status` document of docs/json.md


class Metric(NamedTuple):
    """A metric as Prometheus knows it."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, "counter", meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, "gauge", meaning, labels)


#: Of every process.
BUILD: Final = _gauge("ptunnel_build_info", "1; its labels say which version runs, and as what.", "version", "role")
UPTIME: Final = _gauge("ptunnel_uptime_seconds", "For how long the process has run.")

#: A counter of a server -> its metric.
OF_SERVER: Final[Mapping[str, Metric]] = {
    "sessions": _gauge("ptunnel_server_sessions", "Clients that are there now."),
    "rooms": _gauge("ptunnel_server_rooms", "Meeting places of remembered peers in which somebody waits now."),
    "nameplates": _gauge("ptunnel_server_codes", "Codes that are given out now."),
    "mailboxes": _gauge("ptunnel_server_mailboxes", "Pairings under way now."),
    "channels": _gauge("ptunnel_server_channels", "Channels through the relay now, one for each pair that has met."),
    "tls_connections": _gauge("ptunnel_server_tls_connections", "TLS connections now, with those that shake hands."),
    "certificate_expiry": _gauge("ptunnel_server_certificate_expiry_timestamp_seconds", "When the certificate ends: Unix time."),
    "rooms_given_up": _counter("ptunnel_server_rooms_given_up_total", "Registrations given back as there were too many."),
    "relayed_bytes": _counter("ptunnel_server_relayed_bytes_total", "Bytes that were relayed."),
    "relayed_bursts": _counter("ptunnel_server_relayed_bursts_total", "Bursts of datagrams that were relayed."),
    "received_datagrams": _counter("ptunnel_server_received_datagrams_total", "Datagrams that came, over UDP and TLS."),
    "received_bytes": _counter("ptunnel_server_received_bytes_total", "Bytes of these."),
    "sent_datagrams": _counter("ptunnel_server_sent_datagrams_total", "Datagrams that were sent, over UDP and TLS."),
    "sent_bytes": _counter("ptunnel_server_sent_bytes_total", "Bytes of these."),
    "overruns": _counter("ptunnel_server_receive_overruns_total", "Datagrams that the kernel lost as a receive buffer was full."),
    "server_internal": _counter("ptunnel_server_faults_total", "Faults in ptunnel, each of which ended one thing."),
    "fleet_servers": _gauge("ptunnel_fleet_servers", "Servers of the fleet that this one sees, with itself."),
    "fleet_joined": _gauge("ptunnel_fleet_joined", "1: this server is one of the fleet; 0: not yet, or 64 are there already."),
    "fleet_store_up": _gauge("ptunnel_fleet_store_up", "1: the store of the fleet answers; 0: it does not."),
    "fleet_load": _gauge("ptunnel_fleet_load_per_mille", "Load of this server, as the fleet sees it: 1000 is all it can take."),
    "fleet_pointers": _gauge("ptunnel_fleet_pointers", "Rooms and codes of this server that the store should know of."),
    "fleet_unwritten": _gauge("ptunnel_fleet_unwritten", "Of these, those whose writing is due or has failed."),
    "fleet_orders_failed": _counter("ptunnel_fleet_orders_failed_total", "Orders to the store that came to nothing."),
    "fleet_records_rejected": _counter("ptunnel_fleet_records_rejected_total", "Records in the store that no server made."),
}  # fmt: skip
#: Of whatever process: what came of the connections to its figures.
SCRAPES: Final = _counter("ptunnel_scrapes_total", "Connections to this page of figures, by what came of them.", "result")
OF_SCRAPES: Final = "scrape_"  # with this begin those counters
#: The same for counters that begin like this; what follows is the label.  The first row that fits counts.
FAMILIES: Final[Mapping[str, Metric]] = {
    "did_refused_": _counter("ptunnel_server_refusals_total", "Requests that were refused, by why.", "reason"),
    "did_": _counter("ptunnel_server_events_total", "Things done, by what.", "event"),
    "dropped_": _counter("ptunnel_server_drops_total", "Datagrams that were dropped, by why.", "reason"),
    "error_": _counter("ptunnel_server_socket_errors_total", "Things that sockets and TLS connections met, by what.", "reason"),
}
#: A field of a link -> its metric, with the peer as its label.
OF_LINK: Final[Mapping[str, Metric]] = {
    "reachable": _gauge("ptunnel_peer_up", "1: something gets through to the peer now.", "peer"),
    "direct": _gauge("ptunnel_peer_direct", "1: the path is direct; 0: relayed, or none.", "peer"),
    "rtt_s": _gauge("ptunnel_peer_round_trip_seconds", "The round trip to the peer, as measured last.", "peer"),
    "mtu": _gauge("ptunnel_peer_mtu_bytes", "Bytes of the largest datagram to the peer.", "peer"),
    "streams": _gauge("ptunnel_peer_streams", "Connections to and from the peer that are open now.", "peer"),
    "sent_bytes": _counter("ptunnel_peer_sent_bytes_total", "Bytes that were sent to the peer.", "peer"),
    "received_bytes": _counter("ptunnel_peer_received_bytes_total", "Bytes that came from the peer.", "peer"),
    "packets_sent": _counter("ptunnel_peer_sent_packets_total", "Packets that were sent to the peer.", "peer"),
    "packets_lost": _counter("ptunnel_peer_lost_packets_total", "Packets of these that were lost.", "peer"),
    "packets_received": _counter("ptunnel_peer_received_packets_total", "Packets that came from the peer.", "peer"),
    "repeated": _counter("ptunnel_peer_repeated_packets_total", "Packets of small datagrams that were sent twice.", "peer"),
    "repaired": _counter("ptunnel_peer_repaired_packets_total", "Packets of the peer that came as a second copy only.", "peer"),
}
LINKS: Final = _gauge("ptunnel_links", "Links to peers now.")
DROPS_OF_LINKS: Final = _counter("ptunnel_link_drops_total", "Packets that links dropped, by why.", "reason")
DROPS: Final = _counter("ptunnel_drops_total", "What the process dropped, by place and why.", "place", "reason")
FORWARDS: Final = _counter("ptunnel_forward_events_total", "What forwards did and dropped, by what.", "event")

METRICS: Final[tuple[Metric, ...]] = (
    BUILD, UPTIME, SCRAPES, *OF_SERVER.values(), *FAMILIES.values(), LINKS, *OF_LINK.values(), DROPS_OF_LINKS, DROPS, FORWARDS,
)  # fmt: skip


@dataclass(slots=True)
class Figures:
    """The figures of one metric, by the values of its labels."""

    metric: Metric
    values: dict[tuple[str, ...], float] = field(default_factory=dict)

    def add(self, value: object, *labels: str) -> None:
        """Add up what comes twice; of a gauge the larger one counts.  Anything that is no number is left out."""
        if not isinstance(value, int | float):
            return
        if labels not in self.values and len(self.values) >= MAX_SERIES and labels:
            labels = (OTHER,) * len(labels)
        before = self.values.get(labels)
        if before is None:
            self.values[labels] = float(value)
        else:
            self.values[labels] = before + value if self.metric.kind == "counter" else max(before, float(value))


def figures(status: Mapping[str, Any]) -> list[Figures]:
    """All figures of a `status` document; a metric that it says nothing about is left out."""
    found: dict[str, Figures] = {}

    def add(metric: Metric, value: object, *labels: str) -> None:
        found.setdefault(metric.name, Figures(metric)).add(value, *labels)

    role = str(status.get("role", ""))
    add(BUILD, 1, _version(), role)
    add(UPTIME, status.get("uptime_s"))
    for name, value in _map(status.get("counters")):
        if name.startswith(OF_SCRAPES):
            add(SCRAPES, value, name.removeprefix(OF_SCRAPES))
        elif role != "serve":
            add(FORWARDS, value, name)
        elif name in OF_SERVER:
            add(OF_SERVER[name], value)
        else:
            for prefix, metric in FAMILIES.items():
                if name.startswith(prefix):
                    add(metric, value, name.removeprefix(prefix))
                    break
    if role != "serve":
        links: list[Mapping[str, Any]] = list(status.get("links") or ())
        add(LINKS, len(links))
        for link in links:
            _add_link(link, add)
        for known in status.get("peers") or ():
            add(OF_LINK["reachable"], 0, str(known.get("peer", "")))  # one with a link has more
    for place, reasons in _map(status.get("drops")):
        for reason, value in _map(reasons):
            add(DROPS, value, place, reason)
    return [each for each in found.values() if each.values]


def _add_link(link: Mapping[str, Any], add: Callable[..., None]) -> None:
    peer = str(link.get("peer", ""))
    is_there = bool(link.get("kind"))
    values = {
        **link,
        "reachable": int(is_there and link.get("reachable") is not False),
        "direct": int(link.get("kind") == "direct"),
    }
    for name, metric in OF_LINK.items():
        add(metric, values.get(name), peer)
    for reason, value in _map(link.get("drops")):
        add(DROPS_OF_LINKS, value, reason)


def _map(value: object) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ptunnel")
    except PackageNotFoundError:
        return "unknown"


class Exposition:
    """The text that a scrape gets.  prometheus_client is imported when the first one is made: few processes need it."""

    def __init__(self, source: Source) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self._source = source
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)  # memory, processor time, descriptors
        self._registry.register(self)

    def text(self) -> bytes:
        """As the figures are now."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def collect(self) -> Iterator[Any]:
        """For the registry, at each scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for each in figures(self._source()):
            metric = each.metric
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            sample = family(metric.name, metric.meaning, labels=metric.labels)
            for labels, value in each.values.items():
                sample.add_metric(labels, value)
            yield sample

    def describe(self) -> list[Any]:
        """Nothing before the first scrape: the registry would call `collect` for it."""
        return []
