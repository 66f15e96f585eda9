"""ptunnel: a UDP tunnel and port forwarder over hole-punched connections, as a library for trio.

async with tunnel.connect("731-crossover-clockwork", server="rv.example.net") as link: ...
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
    RefusedError,
    ServerUnreachableError,
    StateError,
    TunnelError,
    UnreachableError,
    UntrustedServerError,
)

if TYPE_CHECKING:
    from tunnel import events, lan
    from tunnel.api import Exposure, connect, expose, revoke
    from tunnel.api.link import Forwarding, Link, UdpFlow
    from tunnel.driver.link import LinkStatus
    from tunnel.driver.stream import StreamResetError, StreamStoppedError, TunnelStream
    from tunnel.server_spec import TlsOptions

__version__ = "0.1.0"

__all__ = [
    "connect",
    "expose",
    "revoke",
    "lan",
    "events",
    "Exposure",
    "Forwarding",
    "Link",
    "LinkStatus",
    "TlsOptions",
    "TunnelStream",
    "UdpFlow",
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
    "RefusedError",
    "ServerUnreachableError",
    "StateError",
    "UnreachableError",
    "UntrustedServerError",
]

#: Imported on first use, so that `import tunnel` (every room of it does that) costs nothing and makes no cycle.
_LAZY = {
    "connect": "tunnel.api",
    "expose": "tunnel.api",
    "lan": "tunnel.lan",
    "events": "tunnel.events",
    "revoke": "tunnel.api",
    "Exposure": "tunnel.api",
    "Forwarding": "tunnel.api.link",
    "Link": "tunnel.api.link",
    "LinkStatus": "tunnel.driver.link",
    "TlsOptions": "tunnel.server_spec",
    "TunnelStream": "tunnel.driver.stream",
    "UdpFlow": "tunnel.api.link",
    "StreamResetError": "tunnel.driver.stream",
    "StreamStoppedError": "tunnel.driver.stream",
}


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tunnel' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name].endswith(f".{name}") else getattr(module, name)
