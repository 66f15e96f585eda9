"""ptunnel: a UDP tunnel and port forwarder over hole-punched connections.

async with tunnel.connect("731-garden-violin", server="rv.example.net") as link: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunnel.errors import (
    AlreadyRunningError,
    ConfigurationError,
    InternalError,
    MalformedPacket,
    PairingError,
    PeerError,
    PermissionDeniedError,
    ServerUnreachableError,
    StateError,
    TunnelError,
    UnreachableError,
)

if TYPE_CHECKING:
    from tunnel.api import Exposure, connect, expose, lan, revoke
    from tunnel.driver.link import Link, LinkStatus
    from tunnel.driver.stream import StreamResetError, StreamStoppedError, TunnelStream

__version__ = "0.1.0"

__all__ = [
    "connect",
    "expose",
    "lan",
    "revoke",
    "Exposure",
    "Link",
    "LinkStatus",
    "TunnelStream",
    "StreamResetError",
    "StreamStoppedError",
    "TunnelError",
    "AlreadyRunningError",
    "ConfigurationError",
    "InternalError",
    "MalformedPacket",
    "PairingError",
    "PeerError",
    "PermissionDeniedError",
    "ServerUnreachableError",
    "StateError",
    "UnreachableError",
]

#: Imported on first use, so that `import tunnel` (every room of it does that) costs nothing and makes no cycle.
_LAZY = {
    "connect": "tunnel.api",
    "expose": "tunnel.api",
    "lan": "tunnel.api.lan",
    "revoke": "tunnel.api",
    "Exposure": "tunnel.api",
    "Link": "tunnel.driver.link",
    "LinkStatus": "tunnel.driver.link",
    "TunnelStream": "tunnel.driver.stream",
    "StreamResetError": "tunnel.driver.stream",
    "StreamStoppedError": "tunnel.driver.stream",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tunnel' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name].endswith(f".{name}") else getattr(module, name)
