"""What a client's owner asked for, kept so that all of it can be asked again of a server that has forgotten."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from tunnel.core.scope import is_local
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.events import RelayChannel
from tunnel.rendezvous.messages import RefusalCode, Role
from tunnel.units import Address, Instant, Seconds, SocketId

HINT_INTERVAL: Final = Seconds(0.5)  # between Rebinds of one channel because of the server's hints
MAX_CHANNELS: Final = 1024  # relay channels of one client; the server's limit is lower


def joins(role: Role, rooms: Iterable[bytes]) -> Iterator[messages.Join]:
    """As many messages as it takes."""
    wanted = list(rooms)
    for start in range(0, len(wanted), messages.MAX_ROOMS):
        yield messages.Join(int(role), tuple(wanted[start : start + messages.MAX_ROOMS]))


class OwnNumber(NamedTuple):
    """A nameplate of ours."""

    claims: int  # how many may use it
    ticket: bytes = b""  # what brings it back after a restart of the server


class Wishes:
    """Rooms and nameplates."""

    __slots__ = ("dialing", "listening", "nameplates", "refused")

    def __init__(self) -> None:
        self.listening: dict[bytes, None] = {}
        self.dialing: dict[bytes, tuple[bytes, ...]] = {}  # room → all rooms of the dial it belongs to
        self.nameplates: dict[int, OwnNumber] = {}
        self.refused: dict[bytes, Role] = {}  # rooms that were full, to be asked for again

    def knows_room(self, room: bytes) -> bool:
        return room in self.listening or room in self.dialing

    def forget_room(self, room: bytes) -> None:
        self.listening.pop(room, None)
        self.dialing.pop(room, None)
        self.refused.pop(room, None)

    def all_joins(self) -> Iterator[messages.Join]:
        self.refused.clear()
        yield from joins(Role.LISTEN, self.listening)
        for group in dict.fromkeys(self.dialing.values()):
            yield from joins(Role.DIAL, [room for room in group if room in self.dialing])

    def refused_joins(self) -> list[messages.Join]:
        """Those that were full; afterwards they are pending again."""
        refused, self.refused = self.refused, {}
        again: list[messages.Join] = []
        for role in Role:
            again += joins(role, [room for room, wanted in refused.items() if wanted == role and self.knows_room(room)])
        return again

    def refuse(self, message: messages.Join, rooms: Collection[bytes]) -> None:
        self.refused.update(dict.fromkeys(rooms, Role(message.role)))


class _Channel:
    __slots__ = ("counter", "hinted_at", "info")

    def __init__(self, info: RelayChannel) -> None:
        self.info = info
        self.counter = 0
        self.hinted_at: Instant | None = None


class ChannelBook:
    """The relay channels we have a side of, with their tokens."""

    __slots__ = ("_channels",)

    def __init__(self) -> None:
        self._channels: dict[bytes, _Channel] = {}

    def __iter__(self) -> Iterator[RelayChannel]:
        return iter([channel.info for channel in self._channels.values()])

    def get(self, identifier: bytes) -> RelayChannel | None:
        channel = self._channels.get(identifier)
        return channel.info if channel is not None else None

    @property
    def is_full(self) -> bool:
        return len(self._channels) >= MAX_CHANNELS

    def add(self, info: RelayChannel) -> RelayChannel:
        """Beyond MAX_CHANNELS the oldest goes."""
        if self.is_full:
            del self._channels[next(iter(self._channels))]
        self._channels[info.channel] = _Channel(info)
        return info

    def remove(self, identifier: bytes) -> RelayChannel | None:
        channel = self._channels.pop(identifier, None)
        return channel.info if channel is not None else None

    def next_rebind(self, identifier: bytes, cookie: bytes) -> messages.Rebind | None:
        """A fresh one each time, because its MAC covers the cookie it travels with."""
        channel = self._channels.get(identifier)
        if channel is None:
            return None
        channel.counter += 1
        info = channel.info
        mac = messages.rebind_mac(info.token, identifier, info.side, channel.counter, cookie)
        return messages.Rebind(identifier, info.side, channel.counter, mac)

    def take_hint(self, now: Instant, identifier: bytes) -> RelayChannel | None:
        """The channel, if it is ours and was not hinted at a moment ago."""
        channel = self._channels.get(identifier)
        if channel is None or (channel.hinted_at is not None and now - channel.hinted_at < HINT_INTERVAL):
            return None
        channel.hinted_at = now
        return channel.info

    def move_all(self, socket_id: SocketId, server: Address) -> list[events.ChannelMoved]:
        moves = []
        for channel in self._channels.values():
            old = channel.info
            channel.info = old._replace(socket_id=socket_id, server=server)
            moves.append(events.ChannelMoved(old=old, new=channel.info))
        return moves


_ADVICE: Final = {
    False: "it serves only whom its operator lists; set PTUNNEL_ACCESS_TOKEN to the token that you were given",
    True: "it does not know the token in PTUNNEL_ACCESS_TOKEN or config.toml; ask its operator for it",
}


def refusal_of(request: messages.RequestMessage, refused: messages.Refused, has_token: bool) -> events.Refused:
    """The event that tells which verb was turned down, and why; `has_token`: we have shown an access token."""
    code: RefusalCode | int = refused.code
    if code in RefusalCode._value2member_map_:
        code = RefusalCode(code)
    what, nameplate, mailbox = "greet", 0, b""
    rooms: tuple[bytes, ...] = ()
    match request:
        case messages.Allocate():
            what = "allocate"
        case messages.Claim(nameplate=nameplate):
            what = "claim"
        case messages.Post(mailbox=mailbox):
            what = "post"
        case messages.Join(role=role, rooms=rooms):
            what = role_name(role)
        case _:
            pass
    return events.Refused(
        what=what,
        code=code,
        text=_ADVICE[has_token] if refused.text == messages.NOT_LISTED else refused.text,
        retry_after=Seconds(float(refused.retry_after_s)),
        nameplate=nameplate,
        mailbox=mailbox,
        rooms=rooms,
    )


def may_be_second(first: str, second: str) -> bool:
    """Whether a server at `first` may send us to `second` to see our mapping there: not to our loopback or LAN from outside."""
    if first == second:
        return True
    ours, other = ipaddress.ip_address(first.partition("%")[0]), ipaddress.ip_address(second)
    is_special = other.is_loopback or other.is_multicast or other.is_unspecified or other.is_link_local or other.is_reserved
    return not is_special and ours.version == other.version and is_local(first) == is_local(second)


def role_name(role: int) -> str:
    return "listen" if role == Role.LISTEN else "dial"
