"""Any content of ways.json is a list of ways within bounds, or BadContent; any bytes are StateError or what was saved."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import StateError
from tunnel.state.documents import BadContent
from tunnel.state.home import Home
from tunnel.state.ways import MAX_WAYS, Way, decode_ways, encode_ways, merge

hosts = st.ip_addresses().map(str)
ways = st.builds(
    Way,
    network=st.binary(min_size=16, max_size=16),
    static=st.binary(min_size=32, max_size=32),
    host=hosts,
    port=st.integers(1, 65_535),
    kind=st.integers(0, 255),
    technique=st.text(max_size=32).filter(str.isprintable),
    opened=st.booleans(),
    keepalive=st.floats(0, 3_600),
    used=st.floats(0, 1e12),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
fields = st.sampled_from(["network", "static", "host", "port", "kind", "technique", "opened", "keepalive", "used", "more"])


@given(st.lists(ways, max_size=8))
def test_what_is_written_is_read_back(saved: list[Way]) -> None:
    kept = merge([], saved, [])
    assert decode_ways(encode_ways(kept)) == kept


@given(ways, fields, json_values)
def test_any_value_in_any_field(way: Way, field: str, value: Any) -> None:
    content = encode_ways([way])
    content["ways"][0][field] = value
    with contextlib.suppress(BadContent):
        (found,) = decode_ways(content)
        assert 0 < found.port <= 65_535
        assert 0 <= found.keepalive <= 3_600


@given(st.dictionaries(st.sampled_from(["ways", "other"]), json_values, max_size=2))
def test_any_content(content: dict[str, Any]) -> None:
    with contextlib.suppress(BadContent):
        assert len(decode_ways(content)) <= MAX_WAYS


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(directory)
        home.remember_ways([])
        (home.path / "ways.json").write_bytes(data)
        with contextlib.suppress(StateError):
            assert home.ways() == []
