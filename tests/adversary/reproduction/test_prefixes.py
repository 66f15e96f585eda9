"""What one household with an IPv6 /56 can fill at a server."""

from __future__ import annotations

import itertools

from tests.adversary.reproduction.wire import DIAL, DONE, JOIN, LISTEN, RESTORE, Rendezvous
from tunnel.units import Address

NEWCOMERS = Address("198.18.0.1", 1_000), Address("198.18.1.1", 1_000)
ROOM = b"of two newcomers"


def household(count: int) -> list[Address]:
    return [Address(f"2a00:1:2:33{number:02x}::1", 1_000) for number in range(count)]


def session(source: Address, number: int) -> bytes:
    return f"{source.host[10:14]} {number:011}".encode()


def meet(rendezvous: Rendezvous) -> list[int]:
    """Two who were never there before: what the listener is granted, and the kind of answer that the dialer gets."""
    listening = rendezvous.insist(NEWCOMERS[0], [JOIN, LISTEN, [ROOM]])
    dialing = rendezvous.insist(NEWCOMERS[1], [JOIN, DIAL, [ROOM]])
    return [listening[1] if listening[0] == DONE else 0, dialing[0]]


def test_a_household_cannot_fill_the_rooms_of_a_server() -> None:
    """25 networks of /64, within the limits of each."""
    rendezvous = Rendezvous()
    joins = 0
    for _ in range(43):
        for number, source in itertools.product(range(8), household(25)):
            rooms = [(joins * 24 + n).to_bytes(16, "big") for n in range(24)]
            rendezvous.ask(source, [JOIN, LISTEN, rooms], session(source, number))
            joins += 1
            rendezvous.pass_time(0.01)
    assert meet(rendezvous) == [1, DONE], f"newcomers get no room after {joins} requests"


def test_a_household_cannot_fill_the_relay_of_a_server() -> None:
    """64 networks of /64, a session each, that restore channels which never were."""
    rendezvous = Rendezvous()
    for number in range(256):
        for source in household(64):
            channel = b"\xc0" + source.host[10:14].encode() + number.to_bytes(3, "big")
            rendezvous.ask(source, [RESTORE, channel, 0, bytes(16)], session(source, 0))
        rendezvous.pass_time(0.05)
    assert meet(rendezvous) == [1, DONE], "newcomers get no channel"
