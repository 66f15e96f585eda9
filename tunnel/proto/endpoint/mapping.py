"""What a driver needs of port mapping: the rooms of the core reach it through this one."""

from __future__ import annotations

from tunnel.proto.nat import upnp
from tunnel.proto.nat.pcp import PORT as MAPPING_PORT
from tunnel.proto.nat.portmap import (
    LIFETIME,
    MapPort,
    PortMapper,
    PortMapping,
    Protocol,
    SearchRouter,
    UnmapPort,
    UpnpTask,
)

__all__ = [
    "LIFETIME",
    "MAPPING_PORT",
    "MapPort",
    "PortMapper",
    "PortMapping",
    "Protocol",
    "SearchRouter",
    "UnmapPort",
    "UpnpTask",
    "upnp",
]
