"""Rooms of many, each member with an interface in one subnet: `create` one, or `join` one."""

from __future__ import annotations

from tunnel.room.verbs import LanMember, LanRoom, create, forget, join, kept, no_interface, no_routes

__all__ = ["LanMember", "LanRoom", "create", "forget", "join", "kept", "no_interface", "no_routes"]
