"""Figures for Prometheus: every counter has a metric, names follow the conventions, labels stay few, the page lists them all."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.style.source import ROOT
from tests.unit.rendezvous.introductions import ROOMS
from tests.unit.rendezvous.world import World
from tunnel.rendezvous.access import AccessList
from tunnel.rendezvous.limits import ServerConfig
from tunnel.telemetry.metrics import MAX_SERIES, METRICS, OTHER, Exposition, figures

LINK: dict[str, Any] = {
    "peer": "home", "kind": "direct", "reachable": True, "rtt_s": 0.02, "mtu": 1472, "streams": 1, "sent_bytes": 7,
    "received_bytes": 8,
    "packets_sent": 3, "packets_lost": 1, "packets_received": 4, "drops": {"replayed": 2},
}  # fmt: skip
SERVER: dict[str, Any] = {
    "role": "serve",
    "uptime_s": 5.0,
    "counters": {"sessions": 2, "did_claimed": 3, "dropped_relay_quota": 4},
}


def samples(status: dict[str, Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By name and labels, as Prometheus reads them."""
    text = Exposition(lambda: status).text().decode()
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if each.name.startswith("ptunnel_")
    }


def test_what_only_grows_is_a_counter_and_its_name_ends_in_total() -> None:
    for each in METRICS:
        assert re.fullmatch(r"ptunnel_[a-z][a-z0-9_]*[a-z]", each.name)
        assert (each.kind == "counter") == each.name.endswith("_total"), each.name
        assert not re.search(r"_(ms|kb|milli\w*|minutes|s)(_total)?$", each.name), "base units alone"
        assert each.meaning.endswith(".")
        assert set(each.labels) <= {"peer", "reason", "place", "event", "result", "version", "role"}
    assert len({each.name for each in METRICS}) == len(METRICS)


def test_the_page_lists_every_metric_and_no_other() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ptunnel_\w+)` \| (\w+) \|([^|]*)\| ([^|]+) \|$", text, re.MULTILINE)
    written = [(name, kind, labels.strip().replace("`", ""), meaning) for name, kind, labels, meaning in rows]
    assert written == [(each.name, each.kind, ", ".join(each.labels), each.meaning) for each in METRICS]


def test_a_server_is_shown_by_counters_of_its_own_and_no_client_is_named() -> None:
    found = samples(SERVER)
    assert found["ptunnel_server_sessions", ()] == 2
    assert found["ptunnel_server_events_total", (("event", "claimed"),)] == 3
    assert found["ptunnel_server_drops_total", (("reason", "relay_quota"),)] == 4
    assert found["ptunnel_uptime_seconds", ()] == 5
    assert not any("peer" in dict(labels) for _, labels in found)
    assert "ptunnel_links" not in {name for name, _ in found}


def test_a_process_with_peers_shows_each_by_its_name() -> None:
    found = samples(
        {"role": "up", "uptime_s": 1.0, "links": [LINK], "counters": {"tcp_opened": 6}, "drops": {"udp": {"full": 9}}}
    )
    home = (("peer", "home"),)
    assert found["ptunnel_peer_up", home] == 1
    assert found["ptunnel_peer_direct", home] == 1
    assert found["ptunnel_peer_round_trip_seconds", home] == 0.02
    assert found["ptunnel_peer_sent_bytes_total", home] == 7
    assert found["ptunnel_peer_lost_packets_total", home] == 1
    assert found["ptunnel_links", ()] == 1
    assert found["ptunnel_link_drops_total", (("reason", "replayed"),)] == 2
    assert found["ptunnel_drops_total", (("place", "udp"), ("reason", "full"))] == 9
    assert found["ptunnel_forward_events_total", (("event", "tcp_opened"),)] == 6


def test_a_silent_peer_is_down_and_what_is_not_known_is_left_out() -> None:
    silent = {**LINK, "reachable": False, "kind": "relay", "rtt_s": None, "mtu": None}
    found = samples({"role": "up", "links": [silent]})
    home = (("peer", "home"),)
    assert found["ptunnel_peer_up", home] == 0
    assert found["ptunnel_peer_direct", home] == 0
    assert ("ptunnel_peer_round_trip_seconds", home) not in found
    assert "ptunnel_uptime_seconds" not in {name for name, _ in found}


def test_two_links_of_one_peer_are_one_series() -> None:
    """Prometheus refuses a page on which a series comes twice."""
    found = samples({"role": "up", "links": [LINK, {**LINK, "kind": "relay"}]})
    assert found["ptunnel_peer_sent_bytes_total", (("peer", "home"),)] == 14
    assert found["ptunnel_peer_direct", (("peer", "home"),)] == 1
    assert found["ptunnel_links", ()] == 2


def test_a_metric_has_a_bounded_number_of_series_whatever_peers_there_are() -> None:
    links = [{**LINK, "peer": f"peer{number}"} for number in range(MAX_SERIES + 50)]
    found = samples({"role": "up", "links": links})
    of_bytes = {dict(labels)["peer"]: value for (name, labels), value in found.items() if name == "ptunnel_peer_sent_bytes_total"}
    assert len(of_bytes) == MAX_SERIES + 1
    assert of_bytes[OTHER] == 50 * 7
    assert sum(of_bytes.values()) == len(links) * 7


def test_a_peers_name_is_text_whatever_it_holds() -> None:
    name = 'a"} 1\nptunnel_links 99\\'
    found = samples({"role": "up", "links": [{**LINK, "peer": name}]})
    assert found["ptunnel_peer_up", (("peer", name),)] == 1
    assert found["ptunnel_links", ()] == 1


def test_every_counter_of_a_server_that_people_use_has_a_metric() -> None:
    """Those of the core; that of a whole server is looked at by tests/driver/test_metrics.py."""
    world = World(config=ServerConfig(access=AccessList.parse("198.18.0.0/16", "a test")))
    for name, address in (("home", ""), ("stranger", "203.0.113.7")):
        world.host(name, address).client.listen(world.now, ROOMS)
    world.run(1)
    counters = world.server.counters()
    assert {"did_registered", "did_refused_denied"} <= counters.keys()
    shown = figures({"role": "serve", "counters": counters})
    assert sum(len(each.values) for each in shown) == len(counters) + 1  # and what runs here


def test_the_figures_of_the_process_itself_are_there_too() -> None:
    text = Exposition(lambda: SERVER).text().decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= families


@pytest.mark.parametrize("value", [None, "7", [1]])
def test_what_is_no_number_is_no_figure(value: object) -> None:
    assert not [
        each for each in figures({"role": "serve", "counters": {"sessions": value}}) if each.metric.name != "ptunnel_build_info"
    ]


def expressions(value: object) -> list[str]:
    """All that a dashboard asks of Prometheus."""
    if isinstance(value, dict):
        found = [each for key, each in value.items() if key == "expr"]
        return found + [each for inner in value.values() for each in expressions(inner)]
    return [each for inner in value for each in expressions(inner)] if isinstance(value, list) else []


def test_the_dashboard_and_the_alarms_ask_for_metrics_that_exist() -> None:
    known = {each.name for each in METRICS}
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("## What to be woken for")[1]
    dashboard = json.loads((ROOT / "docs" / "grafana-serve.json").read_text(encoding="utf-8"))
    asked = expressions(dashboard) + re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(asked) > 20
    of_process = {family.name for family in text_string_to_metric_families(Exposition(lambda: SERVER).text().decode())}
    for expression in asked:
        assert expression.count("(") == expression.count(")"), expression
        for name in re.findall(r"\b(?:ptunnel|process)_\w+", expression):
            assert name in known or name.removesuffix("_total") in of_process, expression
            assert ("rate(" in expression or "increase(" in expression) == name.endswith("_total"), expression
        for metric in METRICS:
            for label in re.findall(rf"{metric.name}\{{(\w+)=", expression):
                assert label in (*metric.labels, "job", "instance"), expression


def test_the_dashboard_can_be_imported_anywhere_and_says_what_each_panel_shows() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana-serve.json").read_text(encoding="utf-8"))
    assert dashboard["uid"] == "ptunnel-serve"
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "instance"]
    panels = [each for each in dashboard["panels"] if each["type"] != "row"]
    assert len({each["id"] for each in dashboard["panels"]}) == len(dashboard["panels"])
    for each in panels:
        assert each["title"]
        assert each["description"]
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in each["targets"]:
            assert 'instance=~"$instance"' in target["expr"], each["title"]
    spaces = [each["gridPos"] for each in dashboard["panels"]]
    cells = [
        (x, y)
        for each in spaces
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(cells) == len(set(cells)), "panels lie over one another"
    assert max(x for x, _ in cells) < 24
