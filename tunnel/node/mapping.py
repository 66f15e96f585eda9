"""What a driver needs of port mapping: the rooms of the core reach it through this one."""

from __future__ import annotations

from tunnel.nat import upnp
from tunnel.nat.mapping_states import LookUpPort, MapPort, PortMapping, Protocol, SearchRouter, UnmapPort, UpnpTask
from tunnel.nat.pcp import PORT as MAPPING_PORT
from tunnel.nat.portmap import LIFETIME, PortMapper

__all__ = [
    "LIFETIME",
    "MAPPING_PORT",
    "LookUpPort",
    "MapPort",
    "PortMapper",
    "PortMapping",
    "Protocol",
    "SearchRouter",
    "UnmapPort",
    "UpnpTask",
    "upnp",
]
