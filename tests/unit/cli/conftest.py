"""A home of its own for each test, and nobody at the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.fixture
def remember(home: Path) -> Callable[[str], Peer]:
    def save(name: str, server: str = "127.0.0.1:9") -> Peer:
        static = name.encode().ljust(32, b".")
        grant = {"protocol": "tcp", "name": None, "host": "127.0.0.1", "first": 22, "last": 22}
        return Home(home).save_peer(Peer(name=name, static=static, psk=bytes(32), server=server, grants=[grant], last_seen=1.0))

    return save
