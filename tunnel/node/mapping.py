"""What a driver needs of port mapping: the rooms of the core reach it through this one."""

from __future__ import annotations

from tunnel.nat import upnp
from tunnel.nat.pcp import PORT as MAPPING_PORT
from tunnel.nat.portmap import LIFETIME, MapPort, PortMapper, PortMapping, Protocol, SearchRouter, UnmapPort, UpnpTask

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
