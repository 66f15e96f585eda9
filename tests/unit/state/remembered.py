"""Peers to be remembered, and what goes with them."""

from __future__ import annotations

from typing import Any

from tunnel.state.peers import Peer


def peer(name: str = "nas", key: int = 1, **changes: Any) -> Peer:
    fields: dict[str, Any] = {"static": bytes([key]) * 32, "psk": bytes([key + 100]) * 32, "created": 1.0, "last_seen": 2.5}
    return Peer(name=name, **{**fields, **changes})


def secret(number: int) -> bytes:
    return bytes([number]) * 32
