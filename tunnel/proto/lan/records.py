"""What a Room is remembered by, for whom it needs a key, and what it knows of a connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tunnel.proto.lan import addresses
from tunnel.units import Instant

MESSAGE_RATE: Final = 2.0  # messages a second from one member; a join costs three
MESSAGE_BURST: Final = 64  # messages; fifteen joins at once are thirty from the creator


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomState:
    """What a room is remembered by."""

    member_name: str  # how we introduce ourselves
    room: bytes  # the room's public key
    private_key: bytes | None = field(repr=False)  # the creator's alone
    secret: bytes = field(repr=False)
    roster: bytes  # signed
    psks: dict[bytes, bytes] = field(repr=False)  # by static key: the creator's with all members, a member's with the creator
    former: tuple[tuple[bytes, int], ...] = ()  # the creator's HostNumbers
    highest: int = addresses.CREATOR_HOST


class MemberPeer(NamedTuple):
    """Somebody for whom the endpoint needs a key."""

    static: bytes
    name: str
    psk: bytes


class MemberLink:
    """A connection to somebody."""

    __slots__ = ("allowance", "at", "told", "told_at", "version")

    def __init__(self, now: Instant) -> None:
        self.version = 0  # what they have at least
        self.told = 0  # the newest that we have sent there ...
        self.told_at = now  # ... and when
        self.allowance = float(MESSAGE_BURST)
        self.at = now

    def may_speak(self, now: Instant) -> bool:
        self.allowance = min(MESSAGE_BURST, self.allowance + max(0.0, now - self.at) * MESSAGE_RATE)
        self.at = now
        if self.allowance < 1.0:
            return False
        self.allowance -= 1.0
        return True
