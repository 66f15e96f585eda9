"""Any damaged state file gives StateError or what was saved, and is never written over."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import StateError
from tunnel.state import documents, peers
from tunnel.state.home import Home
from tunnel.state.peers import Kept, Peer
from tunnel.units import Hex

SAVED = [
    Peer(name="home", static=b"a" * 32, psk=b"b" * 32, server="rv.example.net:24531", grants=[{"protocol": "tcp", "port": 22}]),
    Peer(
        name="friend",
        static=b"c" * 32,
        psk=b"d" * 32,
        created=1.5,
        last_seen=2.5,
        machines=(Hex(b"abc"),),
        kept=(Kept(b"e" * 32, True),),
        is_hybrid=True,
    ),
]
BRIEF = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def pristine() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(directory)
        for peer in SAVED:
            home.save_peer(peer)
        return {name: (home.path / name).read_bytes() for name in ("identity.json", "peers.json")}


def check(pristine: dict[str, bytes], name: str, damaged: bytes) -> None:
    """Either every read gives what was saved, or every verb is a StateError and no byte of the home changes."""
    with tempfile.TemporaryDirectory() as directory:
        home = Home(directory)
        for other, content in pristine.items():
            (home.path / other).write_bytes(damaged if other == name else content)
        try:
            understood = (home.identity(), home.peers())
        except StateError:
            pass
        else:
            for other, content in pristine.items():
                (home.path / other).write_bytes(content)
            assert understood == (home.identity(), home.peers())
            return
        verbs: list[Callable[[], Any]] = [
            lambda: home.save_peer(Peer(name="new", static=b"e" * 32, psk=b"f" * 32)),
            lambda: home.forget("home"),
            lambda: home.rename("home", "nas"),
            lambda: home.update_peer(b"a" * 32, last_seen=3.0),
        ]
        for verb in verbs:
            with pytest.raises(StateError):
                verb()
        after = {other: (home.path / other).read_bytes() for other in pristine}
        assert after == {**pristine, name: damaged}


names = st.sampled_from(["identity.json", "peers.json"])


@given(name=names, data=st.data())
@BRIEF
def test_a_changed_byte(pristine: dict[str, bytes], name: str, data: st.DataObject) -> None:
    damaged = bytearray(pristine[name])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    check(pristine, name, bytes(damaged))


@given(name=names, data=st.data())
@BRIEF
def test_a_piece_cut_out_or_repeated(pristine: dict[str, bytes], name: str, data: st.DataObject) -> None:
    whole = pristine[name]
    start, end = (data.draw(st.integers(0, len(whole))) for _ in range(2))
    check(pristine, name, whole[:start] + whole[end:])


@given(name=names, damaged=st.binary(max_size=200))
@BRIEF
def test_any_bytes(pristine: dict[str, bytes], name: str, damaged: bytes) -> None:
    check(pristine, name, damaged)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(name=names, value=json_values, field=st.sampled_from(["ptunnel", "version", "checksum", "content"]))
@BRIEF
def test_any_json_in_any_field(pristine: dict[str, bytes], name: str, value: Any, field: str) -> None:
    document = json.loads(pristine[name])
    document[field] = value
    check(pristine, name, json.dumps(document).encode())


PEER_FIELDS = ["name", "static", "psk", "server", "grants", "created", "last_seen", "version", "machines"]


@given(field=st.sampled_from(PEER_FIELDS), value=json_values)
@BRIEF
def test_a_wrong_value_with_a_right_checksum(field: str, value: Any) -> None:
    """Not damage but a bug or a forger: a Peer or BadContent, nothing else."""
    content = json.loads(json.dumps(peers.encode_peers(SAVED)))
    content["peers"][0][field] = value
    with contextlib.suppress(documents.BadContent):
        assert len(peers.decode_peers(content)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5_000,
        "null",
        '{"ptunnel":"peers","version":1e400}',
        '{"ptunnel":"peers","version":true}',
        '{"ptunnel":"peers","version":NaN}',
        '{"ptunnel":"peers","version":0}',
        '{"ptunnel":"peers","version":1,"checksum":"","content":{}}',
        '{"ptunnel":"peers","version":1,"checksum":"\\ud800","content":{"peers":[]}}',
        "\x00" * 1000,
    ],
    ids=range(12),
)
def test_known_rubbish(pristine: dict[str, bytes], text: str) -> None:
    check(pristine, "peers.json", text.encode())
    check(pristine, "identity.json", text.encode())


def test_a_file_larger_than_any_of_ours(pristine: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.state.files.MAX_FILE_SIZE", 2_000)
    check(pristine, "peers.json", pristine["peers.json"] + b" " * 2_000)
