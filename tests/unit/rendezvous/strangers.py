"""Strangers to a server: their addresses, what they ask by STUN, and what may be left of them."""

from __future__ import annotations

from typing import Any

from tests.unit.rendezvous.world import V4, World
from tunnel.nat import stun
from tunnel.rendezvous.server import Server
from tunnel.units import Address, SocketId

A = Address("198.18.0.1", 1000)
B = Address("198.18.0.2", 1000)


def has_no_state(server: Server) -> bool:
    return all(server.counters()[name] == 0 for name in ("sessions", "rooms", "nameplates", "mailboxes", "channels"))


# STUN and the open directory


def stun_ask(world: World, source: Address, **options: Any) -> list[tuple[SocketId, stun.StunMessage]]:
    world.server.handle_datagram(world.now, V4, source, stun.encode_binding_request(bytes(12), **options))
    answers = []
    while (transmit := world.server.poll_transmit(world.now)) is not None:
        answers.append((transmit.socket_id, stun.decode(transmit.buffer)))
    return answers
