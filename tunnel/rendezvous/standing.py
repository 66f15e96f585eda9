"""The standing wishes of a client's owner, kept to be asked again of a server that has forgotten.

Each entry makes the message that asks for it.  Channels, which the server gives, stand here too: they are shown to it again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from tunnel.rendezvous import messages
from tunnel.rendezvous.events import ChannelMoved, RelayChannel
from tunnel.rendezvous.messages import Role
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.events import Hearer

#: Nobody is nobody in particular, and None one who has not said who it is.
Hearers: TypeAlias = "tuple[Hearer | None, ...]"

HINT_INTERVAL: Final = Seconds(0.5)  # between Rebinds of one channel because of the server's hints
MAX_CHANNELS: Final = 1024  # relay channels of one client; the server's limit is lower
MAX_HEARERS: Final = 2_048  # nameplates and mailboxes whose messages have somebody to go to; the oldest is forgotten


def joins(role: Role, rooms: Iterable[bytes]) -> Iterator[messages.Join]:
    """As many messages as it takes."""
    wanted = list(rooms)
    for start in range(0, len(wanted), messages.MAX_ROOMS):
        yield messages.Join(int(role), tuple(wanted[start : start + messages.MAX_ROOMS]))


class OwnNumber(NamedTuple):
    """A nameplate of ours."""

    claims: int  # how many may use it
    ticket: bytes = b""  # what brings it back after a restart of the server


class Standing:
    """Rooms and nameplates, and who hears of what."""

    __slots__ = ("_hearers", "dialing", "listening", "nameplates", "refused", "wide")

    def __init__(self) -> None:
        self.listening: dict[bytes, Hearer | None] = {}
        #: By room, who dials, with all rooms of the dial it belongs to: it meets each listener once, in whichever of them.
        self.dialing: dict[bytes, dict[Hearer | None, tuple[bytes, ...]]] = {}
        self.nameplates: dict[int, OwnNumber] = {}
        self.refused: dict[bytes, Role] = {}  # rooms that were full, to be asked for again
        self.wide: set[bytes] = set()  # rooms that are dialed at each of several servers
        self._hearers: OrderedDict[int | bytes, Hearer | None] = OrderedDict()  # by nameplate and mailbox

    def knows_room(self, room: bytes) -> bool:
        return room in self.listening or room in self.dialing

    def waits_in(self, room: bytes) -> bool:
        """Whether that room is listened in, and is not full."""
        return room in self.listening and room not in self.refused

    @property
    def waits_everywhere(self) -> bool:
        """Whether something is asked of each of several servers."""
        return bool(self.listening or self.wide)

    def dial(self, rooms: tuple[bytes, ...], hearer: Hearer | None, *, is_wide: bool = False) -> None:
        if is_wide:
            self.wide.update(rooms)
        for room in rooms:
            self.dialing.setdefault(room, {})[hearer] = rooms

    def forget_room(self, room: bytes, hearer: Hearer | None) -> bool:
        """For `hearer`, None for all; True when nobody waits there any more."""
        if hearer is None or self.listening.get(room) == hearer:
            self.listening.pop(room, None)
        dials = self.dialing.get(room, {})
        dials.pop(hearer, None)
        if hearer is None or not dials:
            self.dialing.pop(room, None)
            self.wide.discard(room)
        if not self.knows_room(room):
            self.refused.pop(room, None)
        return not self.knows_room(room)

    def wanted(self) -> Iterator[messages.RequestMessage]:
        """That ask for everything."""
        self.refused.clear()
        yield from self._joins(self.dialing)
        for nameplate, own in self.nameplates.items():
            yield messages.Allocate(nameplate, *own)

    def wanted_elsewhere(self, is_everywhere: bool, led: Collection[bytes]) -> Iterator[messages.RequestMessage]:
        """That ask a second server, too, which knows no numbers of another one.

        `is_everywhere`: it knows of nobody else either.  `led`: rooms where somebody is there.
        """
        if is_everywhere:
            yield from self._joins(self.wide)
        else:
            for group in self.groups_of(led):
                yield from joins(Role.DIAL, group)

    def groups_of(self, rooms: Collection[bytes]) -> list[tuple[bytes, ...]]:
        """The rooms of each dial to which one of these belongs."""
        dials = (group for room in rooms for group in self.dialing.get(room, {}).values())
        return [tuple(room for room in group if room in self.dialing) for group in dict.fromkeys(dials)]

    def _joins(self, dialed: Collection[bytes]) -> Iterator[messages.RequestMessage]:
        """Of all rooms that are listened in, and these of those that are dialed."""
        yield from joins(Role.LISTEN, self.listening)
        for rooms in dict.fromkeys(rooms for dials in self.dialing.values() for rooms in dials.values()):
            yield from joins(Role.DIAL, [room for room in rooms if room in dialed])

    def refused_joins(self) -> list[messages.Join]:
        """Those that were full; afterwards they are pending again."""
        refused, self.refused = self.refused, {}
        again: list[messages.Join] = []
        for role in Role:
            again += joins(role, [room for room, wanted in refused.items() if wanted == role and self.knows_room(room)])
        return again

    def refuse(self, message: messages.Join, rooms: Collection[bytes]) -> None:
        self.refused.update(dict.fromkeys(rooms, Role(message.role)))

    def hear(self, key: int | bytes, hearer: Hearer | None) -> None:
        """Send the server's messages about that nameplate or mailbox to `hearer`, also the last one."""
        self._hearers[key] = hearer
        self._hearers.move_to_end(key)
        if len(self._hearers) > MAX_HEARERS:
            self._hearers.popitem(last=False)

    def hears(self, key: int | bytes) -> bool:
        return key in self._hearers

    def hearers_of(self, message: messages.ResponseMessage | messages.PushMessage | messages.RequestMessage) -> Hearers:
        """Return the hearers of messages about that room, nameplate or mailbox."""
        match message:
            case messages.Introduced(room=room, side=side) if side:
                return tuple(self.dialing.get(room, ()))
            case messages.Join(role=Role.DIAL, rooms=rooms):
                return tuple(dict.fromkeys(hearer for room in rooms for hearer in self.dialing.get(room, ())))
            case messages.Join(rooms=rooms):
                return tuple(dict.fromkeys(self.listening[room] for room in rooms if room in self.listening))
            case messages.OfRoom(room=room):
                return (self.listening.get(room),)
            case messages.Allocate(wanted=key) | messages.OfNameplate(nameplate=key):
                return (self._hearers.get(key),)
            case messages.OfMailbox(mailbox=key) | messages.Gone(identifier=key):
                return (self._hearers.get(key),)
            case _:
                return ()


class _Channel:
    __slots__ = ("counter", "hearers", "hinted_at", "info")

    def __init__(self, info: RelayChannel, hearers: Hearers) -> None:
        self.info = info
        self.hearers = dict.fromkeys(hearers)
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

    def add(self, info: RelayChannel, hearers: Hearers) -> RelayChannel:
        """Beyond MAX_CHANNELS the oldest goes."""
        if self.is_full:
            del self._channels[next(iter(self._channels))]
        self._channels[info.channel] = _Channel(info, hearers)
        return info

    def follow(self, identifier: bytes, hearer: Hearer) -> None:
        """`hearer` hears, too, where it moved and that it is gone."""
        if identifier in self._channels:
            self._channels[identifier].hearers[hearer] = None

    def hearers(self, identifier: bytes) -> Hearers:
        channel = self._channels.get(identifier)
        return () if channel is None else tuple(channel.hearers)

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

    def move(self, channels: Iterable[RelayChannel], socket_id: SocketId, server: Address) -> list[ChannelMoved]:
        """These are reached there from now on."""
        moves: list[ChannelMoved] = []
        for channel in [self._channels[each.channel] for each in channels]:
            old = channel.info
            channel.info = old._replace(socket_id=socket_id, server=server)
            moves += [ChannelMoved(old=old, new=channel.info, hearer=hearer) for hearer in channel.hearers or (None,)]
        return moves
