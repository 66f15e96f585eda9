"""A home of its own for each test, and nobody at the terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.schema import schema
from tunnel.cli import render
from tunnel.state.home import Home
from tunnel.state.peers import Peer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    monkeypatch.setenv("PTUNNEL_HOME", str(path))
    for variable in ("PTUNNEL_SERVER", "PTUNNEL_CODE", "PTUNNEL_ACCESS_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return path


@pytest.fixture(autouse=True)
def checked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object that is printed is as docs/json.md says, but for what another version says."""
    if "of_another_version" in request.fixturenames:
        return

    def dumps(event: Any, **options: Any) -> str:
        assert schema().problems(event) == []
        return json.dumps(event, **options)

    monkeypatch.setattr(render, "json", SimpleNamespace(dumps=dumps))


@pytest.fixture
def of_another_version() -> None:
    """Asked for by tests of answers that this version would not give."""


@pytest.fixture
def remember(home: Path) -> Callable[[str], Peer]:
    def save(name: str, server: str = "127.0.0.1:9") -> Peer:
        static = name.encode().ljust(32, b".")
        grant = {"protocol": "tcp", "name": None, "host": "127.0.0.1", "first": 22, "last": 22}
        return Home(home).save_peer(Peer(name=name, static=static, psk=bytes(32), server=server, grants=[grant], last_seen=1.0))

    return save
