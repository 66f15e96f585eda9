"""ptunnel: a UDP tunnel and port forwarder over hole-punched connections, as a library for trio.

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
    RefusedError,
    ServerUnreachableError,
    StateError,
    TunnelError,
    UnreachableError,
    UntrustedServerError,
)

if TYPE_CHECKING:
    from tunnel import events, lan
    from tunnel.ports.connecting import connect
    from tunnel.ports.exposing import Exposure, expose
    from tunnel.ports.granting import revoke
    from tunnel.ports.public_link import Forwarding, Link, UdpFlow
    from tunnel.server_spec import TlsOptions
    from tunnel.shell.link import LinkStatus
    from tunnel.shell.stream import StreamResetError, StreamStoppedError, TunnelStream

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
    "connect": "tunnel.ports.connecting",
    "expose": "tunnel.ports.exposing",
    "lan": "tunnel.lan",
    "events": "tunnel.events",
    "revoke": "tunnel.ports.granting",
    "Exposure": "tunnel.ports.exposing",
    "Forwarding": "tunnel.ports.public_link",
    "Link": "tunnel.ports.public_link",
    "LinkStatus": "tunnel.shell.link",
    "TlsOptions": "tunnel.server_spec",
    "TunnelStream": "tunnel.shell.stream",
    "UdpFlow": "tunnel.ports.public_link",
    "StreamResetError": "tunnel.shell.stream",
    "StreamStoppedError": "tunnel.shell.stream",
}


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tunnel' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name].endswith(f".{name}") else getattr(module, name)
