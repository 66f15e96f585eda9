"""Events of a rendezvous client for its owner: the server's messages as they are, and the client's own conclusions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from msgspec import Struct

from tunnel.rendezvous.messages import PushMessage, RequestMessage, ResponseMessage
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.client import Client


NO_PATH: Final = 0  # code of Refused where there is no server that could have sent it: the text is for a person as it is


class RelayChannel(NamedTuple):
    """One pair's way through the server.  Both sides use the same `channel`; the server tells them apart by address."""

    channel: bytes  # 8 bytes, the header of every relayed datagram
    token: bytes  # 16 bytes; whoever holds it may move this side's address
    side: int  # 0 the owner of the code or the listener, 1 who claimed or dialed
    socket_id: SocketId
    server: Address

    @property
    def key(self) -> bytes | Address:
        """The key that its datagrams are known by."""
        return self.channel or self.server

    @property
    def path_key(self) -> PathKey:
        return PathKey(self.socket_id, self.server, self.channel)


class Hearer(Protocol):
    """The one that asked the server for something and hears the result."""

    def hear(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None: ...


class Told(NamedTuple):
    """A message of the server.

    A push of which a channel is part comes once the client holds the channel.  An answer comes with its request: Allocated,
    ClaimAccepted, and Refused for whatever was asked for, as Join with the rooms that were full.
    """

    message: ResponseMessage | PushMessage
    request: RequestMessage | None = None
    channel: RelayChannel | None = None  # that it brings, or that is gone
    hearer: Hearer | None = None


class Reached(Struct, frozen=True, kw_only=True):
    """The server answered, for the first time or again after Lost.  More reflexive addresses may follow."""

    server: Address
    reflexive: dict[SocketId, Address]
    round_trip: Seconds


class ReflexiveChanged(Struct, frozen=True, kw_only=True):
    """The server sees us elsewhere than before (or sees another socket of ours for the first time)."""

    socket_id: SocketId
    address: Address


class ChannelMoved(Struct, frozen=True, kw_only=True):
    """A channel is reached by another socket or server address now; its PathKey changed from `old` to `new`.

    The server will soon let nothing more through on the old one.
    """

    old: RelayChannel
    new: RelayChannel
    hearer: Hearer | None = None


class Lost(Struct, frozen=True, kw_only=True):
    """The server has been silent since then, or said goodbye.  The client goes on trying for ever."""

    since: Instant


class FallbackWanted(Struct, frozen=True, kw_only=True):
    """UDP does not get through to the server: keep another route open, and tell fallback_up and fallback_down."""


class FallbackUnwanted(Struct, frozen=True, kw_only=True):
    """UDP carries everything again: the other route may be closed."""


ClientEvent: TypeAlias = Told | Reached | ReflexiveChanged | ChannelMoved | Lost | FallbackWanted | FallbackUnwanted
