"""What a rendezvous client tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tunnel.rendezvous.messages import GoneReason, RefusalCode
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId


class RelayChannel(NamedTuple):
    """One pair's way through the server.  Both sides use the same `channel`; the server tells them apart by address."""

    channel: bytes  # 8 bytes, the header of every relayed datagram
    token: bytes  # 16 bytes; whoever holds it may move this side's address
    side: int  # 0 the owner of the code or the listener, 1 who claimed or dialed
    socket_id: SocketId
    server: Address

    @property
    def path_key(self) -> PathKey:
        return PathKey(self.socket_id, self.server, self.channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The server answered, for the first time or again after Lost.  More reflexive addresses may follow."""

    server: Address
    reflexive: dict[SocketId, Address]
    round_trip: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflexiveChanged:
    """The server sees us elsewhere than before (or sees another socket of ours for the first time)."""

    socket_id: SocketId
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """Put this number in front of the words.  Comes once for each allocate()."""

    nameplate: int
    expires_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NameplateLost:
    """The server cannot keep a nameplate that was allocated (it expired, or was given away after a restart)."""

    nameplate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimReceived:
    """Somebody claims our nameplate; `body` is his PAKE message.  Answer with post(); that spends the code."""

    nameplate: int
    mailbox: bytes
    body: bytes
    channel: RelayChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimAccepted:
    """The owner of the nameplate is being told; his answer comes as Posted."""

    nameplate: int
    mailbox: bytes
    channel: RelayChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """The other side of a mailbox says this."""

    mailbox: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduced:
    """Somebody is on the other side of a room, and this fresh channel leads to him.  Side 1 dialed."""

    room: bytes
    channel: RelayChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """Somebody dialed a room in which we listen, and the server had no channel for it."""

    room: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """`what` is the verb: allocate, claim, post, listen, dial.  The subject is filled in where there is one."""

    what: str
    code: RefusalCode | int
    text: str
    retry_after: Seconds
    nameplate: int = 0
    mailbox: bytes = b""
    rooms: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMoved:
    """A channel is reached by another socket or server address now; its PathKey changed from `old` to `new`.

    The server will soon let nothing more through on the old one.
    """

    old: RelayChannel
    new: RelayChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    """The other side of a channel or mailbox left; one of the two is None."""

    channel: RelayChannel | None
    mailbox: bytes | None
    reason: GoneReason | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The server has been silent since then, or said goodbye.  The client goes on trying for ever."""

    since: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsWanted:
    """UDP does not get through to the server: open a TLS connection, keep it open, and tell tls_up and tls_down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsUnwanted:
    """UDP carries everything again: the TLS connection may go."""


ClientEvent: TypeAlias = (
    Reached
    | ReflexiveChanged
    | Allocated
    | NameplateLost
    | ClaimReceived
    | ClaimAccepted
    | Posted
    | Introduced
    | Unmet
    | Refused
    | ChannelMoved
    | PeerGone
    | Lost
    | TlsWanted
    | TlsUnwanted
)
