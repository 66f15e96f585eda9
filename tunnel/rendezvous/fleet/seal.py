"""The fleet's key: names in the store that say nothing, records that nobody else can write, tickets for numbers.

So the store, and whoever reads along there, learns how much is going on and which servers there are, and can withhold or repeat a
record; it can make none.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b, sha256
from typing import Final, NamedTuple

from tunnel.rendezvous.messages import MAX_NAMEPLATE

MIN_KEY: Final = 32  # characters of a fleet's key, so that records cannot be searched for it
NAME_SIZE: Final = 12  # bytes: of a million rooms no two share a name
SEAL_SIZE: Final = 16  # bytes of a MAC
MARK_SIZE: Final = 8  # bytes that stay with a number, whichever server has it
_TICKET_BODY: Final = 4 + 2 + MARK_SIZE  # when it ends, how often it moved, its mark


class FleetTicket(NamedTuple):
    """The right to a number, at any server of the fleet."""

    ends_at: int  # Unix time
    moves: int  # of the number from one server to another, before the ticket was given
    mark: bytes


class Seal:
    """Everything that is done with the key."""

    __slots__ = ("_names", "_seals", "_tickets", "secret")

    def __init__(self, key: bytes) -> None:
        self._names, self._seals, self._tickets, self.secret = (
            hmac.digest(key, b"ptunnel fleet " + purpose, sha256) for purpose in (b"names", b"seals", b"tickets", b"numbers")
        )

    def name(self, kind: bytes, of: bytes) -> bytes:
        """The key in the store of something of that kind."""
        digest = blake2b(of, digest_size=NAME_SIZE, key=self._names, person=b"ptunnel fleet").digest()
        return b"ptunnel:" + kind + b":" + digest

    def close(self, place: bytes, body: bytes) -> bytes:
        """A record that is good in that place only."""
        return self._mac(place, body) + body

    def open(self, place: bytes, data: bytes) -> bytes | None:
        """The body of a record; None for one of somebody else, or of another place."""
        mac, body = data[:SEAL_SIZE], data[SEAL_SIZE:]
        return body if hmac.compare_digest(mac, self._mac(place, body)) else None

    def _mac(self, place: bytes, body: bytes) -> bytes:
        text = len(place).to_bytes(2, "big") + place + body
        return blake2b(text, digest_size=SEAL_SIZE, key=self._seals, person=b"ptunnel record").digest()

    def ticket(self, number: int, ticket: FleetTicket) -> bytes:
        body = ticket.ends_at.to_bytes(4, "big") + min(ticket.moves, 0xFFFF).to_bytes(2, "big") + ticket.mark
        return body + self._ticket_mac(number, body)

    def open_ticket(self, unix_time: int, number: int, data: bytes) -> FleetTicket | None:
        """None unless it is for that number, and has not ended."""
        body = data[:_TICKET_BODY]
        if len(data) != _TICKET_BODY + SEAL_SIZE or not 0 < number <= MAX_NAMEPLATE:
            return None
        if not hmac.compare_digest(data[_TICKET_BODY:], self._ticket_mac(number, body)):
            return None
        found = FleetTicket(int.from_bytes(body[:4], "big"), int.from_bytes(body[4:6], "big"), body[6:])
        return found if unix_time < found.ends_at else None

    def _ticket_mac(self, number: int, body: bytes) -> bytes:
        text = number.to_bytes(4, "big") + body
        return blake2b(text, digest_size=SEAL_SIZE, key=self._tickets, person=b"ptunnel ticket").digest()
