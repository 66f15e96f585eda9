"""nodes.json: nodes of the DHT that have answered, bounded and with their age."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tunnel.setup.nodes import NodeKeeper
from tunnel.state.documents import BadContent
from tunnel.state.home import Home
from tunnel.state.nodes import MAX_NODES, NODE_LIFETIME, KnownNode, decode_nodes, encode_nodes, merge
from tunnel.units import Address

NOW = 1_800_000_000.0
IPV4 = [Address(f"44.{number}.1.1", 6_881) for number in range(2 * MAX_NODES)]
IPV6 = [Address(f"3fff:{number + 1:x}::1", 6_881) for number in range(2 * MAX_NODES)]


def test_nodes_come_back_the_newest_first(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.nodes() == []
    home.remember_nodes(IPV4[:3], NOW)
    home.remember_nodes([IPV4[1], IPV6[0]], NOW + 1)
    assert [each.address for each in Home(tmp_path).nodes()] == [IPV4[1], IPV4[0], IPV4[2], IPV6[0]]
    assert (tmp_path / "nodes.json").stat().st_mode & 0o077 == 0


def test_of_each_family_the_newest_stay() -> None:
    kept = merge(merge([], [*IPV4[:MAX_NODES], *IPV6], NOW), IPV4[MAX_NODES:], NOW + 1)
    assert {each.address for each in kept if not each.address.is_ipv6} == set(IPV4[MAX_NODES:])
    assert sum(each.address.is_ipv6 for each in kept) == MAX_NODES
    assert decode_nodes(encode_nodes(kept)) == kept


@pytest.mark.parametrize(("at", "stays"), [(NOW - NODE_LIFETIME + 1, True), (NOW - NODE_LIFETIME, False), (NOW + 1, False)])
def test_a_node_is_left_out_when_it_is_too_old_or_of_a_time_to_come(at: float, stays: bool) -> None:
    known = [KnownNode(host=IPV4[0].host, port=IPV4[0].port, answered=at)]
    assert bool(merge(known, [], NOW)) == stays


@pytest.mark.parametrize(
    ("field", "value"),
    [("host", "nowhere.example"), ("host", "044.1.1.1"), ("host", 7), ("port", 0), ("port", 65_536), ("answered", "x")],
)
def test_what_is_no_node_is_refused(field: str, value: object) -> None:
    content = encode_nodes([KnownNode(host=IPV4[0].host, port=6_881, answered=NOW)])
    content["nodes"][0][field] = value
    with pytest.raises(BadContent):
        decode_nodes(content)


def test_a_file_with_too_many_is_refused() -> None:
    nodes = [KnownNode(host=each.host, port=each.port, answered=NOW) for each in [*IPV4, *IPV6]]
    with pytest.raises(BadContent):
        decode_nodes(encode_nodes(nodes))


def test_a_damaged_file_costs_nothing_but_the_nodes(tmp_path: Path) -> None:
    keeper = NodeKeeper(Home(tmp_path))
    keeper.save(IPV4[:2])
    assert keeper.load() == IPV4[:2]
    (tmp_path / "nodes.json").write_text("{", encoding="ascii")
    assert keeper.load() == []
    keeper.save(IPV4[:2])  # it is not written over
    assert (tmp_path / "nodes.json").read_text(encoding="ascii") == "{"


def test_old_nodes_are_not_asked(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.remember_nodes(IPV4[:2], time.time() - NODE_LIFETIME - 1)
    assert NodeKeeper(home).load() == []
