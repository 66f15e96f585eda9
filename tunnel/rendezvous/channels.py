"""A client's relay channels, each at one of the servers of its name, and the servers that are held beside the primary one.

A server is held where a channel of ours is, and where somebody may look for us: who waits in rooms does so at each of several
servers that know nothing of each other.  When the primary server is gone, what it had goes to the next one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from tunnel.rendezvous import messages
from tunnel.rendezvous.beside import Beside
from tunnel.rendezvous.events import Hearer, RelayChannel
from tunnel.rendezvous.messages import GoneKind, GoneReason
from tunnel.rendezvous.standing import ChannelBook, Hearers
from tunnel.units import Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.rendezvous.addresses import ServerAddress
    from tunnel.rendezvous.requests import PendingRequest

POST_LIFETIME: Final = Seconds(60.0)  # a PAKE answer, a claim or a farewell later than this meets nobody
MAX_HELD: Final = 3  # servers beside the primary one at which somebody waits: each is one more Refresh every 7 s
AFTER_BYE: Final = Seconds(1.0)  # a server that restarts is back by then ...
AFTER_BYE_JITTER: Final = Seconds(2.0)  # ... and its clients come one after the other, within so long
LEAVES: Final = Seconds(30.0)  # for so long nothing is asked of a server that said goodbye, where another one answers


class Channels(Beside):
    """A part of Client."""

    _channels: ChannelBook

    @property
    @abstractmethod
    def _waits_everywhere(self) -> bool:
        """Whether somebody is to be found at each of several servers."""

    @abstractmethod
    def _tell(
        self,
        message: messages.ResponseMessage | messages.PushMessage,
        hearers: Hearers,
        *,
        request: messages.RequestMessage | None = None,
        channel: RelayChannel | None = None,
    ) -> None:
        """To whoever asked."""

    @abstractmethod
    def _led_to(self, home: ServerAddress) -> set[bytes]:
        """The rooms that are dialed at that server because another one has led us there."""

    @property
    def channels(self) -> list[RelayChannel]:
        return list(self._channels)

    def holds(self, path: PathKey) -> bool:
        """Whether a channel of ours is reached there."""
        info = self._channels.get(path.prefix)
        return info is not None and info.path_key == path

    # verbs

    def follow(self, channel: bytes, hearer: Hearer) -> None:
        """`hearer` hears from now on what becomes of a relay channel, beside whoever asked for it."""
        self._channels.follow(channel, hearer)

    def open_channel(self, now: Instant, instance: int, channel: bytes, token: bytes, side: int, hearer: Hearer) -> bool:
        """Make a channel at that server, of which both sides know the token: it forwards once the other side does the same.

        Done (with the channel) follows, or Gone.  False: that server does not answer, or we have too many channels.
        """
        homes = self._addresses_of(instance)
        if not homes or self._channels.is_full or self._channels.get(channel) is not None:
            return False
        home = homes[0]
        self._hold(now, home)
        self._channels.add(RelayChannel(channel, token, side, home.socket_id, home.address), (hearer,))
        self._request(now, messages.Restore(channel, side, token), hearer=hearer, home=home)
        return True

    def leave_channel(self, now: Instant, channel: bytes) -> None:
        """Give a relay channel back; the other side hears Gone."""
        info = self._channels.remove(channel)
        if info is None:
            return
        moving = messages.Rebind | messages.Restore
        self._requests.remove_where(lambda r: isinstance(r.message, moving) and r.message.channel == channel)
        self._request(now, messages.Leave(channels=(channel,)), lifetime=POST_LIFETIME, home=self._home_of(info))
        self._hold(now)

    # servers

    def _places(self) -> list[ServerAddress | None]:
        """Where registrations are: the primary address, None while there is none, and those that are held."""
        return [self._primary, *(each for each in self._homes if each.is_held)]

    def _hold(self, now: Instant, also: ServerAddress | None = None) -> None:
        others = self._others
        if not others and not any(home.is_held for home in self._homes):
            return  # one server, as most have
        with_channel = {self.instance_at(each.path_key) for each in self._channels}
        # Whoever waits at a server that we were told to leave was told so, too.
        with_channel.update(home.instance for home in others.values() if self._led_to(home) and not home.is_leaving(now))
        well = [home for home in others.values() if home.is_well(now)] if self._waits_everywhere else []
        well.sort(key=lambda home: (not home.is_held, home.round_trip or 0.0))
        wanted = {home for instance, home in others.items() if instance in with_channel}
        wanted.update(well[:MAX_HELD])
        if also is not None and also in others.values():
            wanted.add(also)
        for home in [each for each in self._homes if each.is_held and each not in wanted]:
            home.is_held = home.has_refused = False
            self._take_leave(now, home)
            other = others.get(home.instance) if home.instance is not None else None
            if other is not None:
                self._move(now, other, partial(self._is_at, home))
        for home in [each for each in self._homes if each in wanted and not each.is_held]:
            home.is_held = True
            self._part_there(home)
            home.refresh_at = min(home.refresh_at, self._next_refresh(now, home))
            self._register(now, home)

    def _say_goodbye_to(
        self, now: Instant, home: ServerAddress, message: messages.Bye | messages.MoveOn, within: float | None = None
    ) -> None:  # fmt: skip
        """The server there ends, or wants us elsewhere `within` so long: go to another one at once, where one answers."""
        leaving = [each for each in self._homes if each is home or (home.instance is not None and each.instance == home.instance)]
        again_at = Instant(now + AFTER_BYE + AFTER_BYE_JITTER * self._rng.random())
        for each in leaving:
            each.leaves_until = Instant(now + max(LEAVES, within or 0.0))
            if within is None:
                each.refresh_at = again_at
        for info in self._channels:
            if self._home_of(info) in leaving:
                self._tell(message, self._channels.hearers(info.channel), channel=info)
        if self._primary in leaving:
            others = [each for each in self._homes if each.is_well(now) and not each.is_fallback]
            if others:
                self._set_primary(now, min(others, key=lambda each: each.round_trip or 0.0), moves_channels=within is None)
                if within is not None and not home.is_held:
                    self._take_leave(now, home)
                return
            if within is None:
                self._on_lost(now)
            for each in self._homes:
                if each not in leaving or within is None:
                    each.refresh_at = min(each.refresh_at, again_at if within is None else now)
        self._hold(now)

    def _take_leave(self, now: Instant, home: ServerAddress) -> None:
        """Nothing of ours is left at a server that waits for its clients to go."""
        if home.is_leaving(now) and home.cookie:
            self._emit(home.address, self._transaction(), messages.Goodbye(), home)

    # channels

    def _home_of(self, info: RelayChannel) -> ServerAddress | None:
        return self._home_at(info.socket_id, info.server)

    def _is_at(self, home: ServerAddress, info: RelayChannel) -> bool:
        return self._home_of(info) is home

    def _is_there(self, info: RelayChannel, home: ServerAddress) -> bool:
        """Whether that channel is at the server of `home`."""
        where = self._home_of(info)
        return where is None or where is home or (home.instance is not None and where.instance == home.instance)

    def _on_moved(self, now: Instant, former: ServerAddress, home: ServerAddress) -> None:
        self._move(now, home, lambda info: self._is_there(info, former))

    def _move(self, now: Instant, home: ServerAddress, which: Callable[[RelayChannel], bool]) -> None:
        found = [info for info in self._channels if which(info)]
        self._events.extend(self._channels.move(found, home.socket_id, home.address))

    def _rebind_at(self, now: Instant, home: ServerAddress) -> None:
        """Our address changed, or the server forgot: claim our side of every channel there."""
        for channel in self._channels:
            if self._is_there(channel, home):
                self._rebind(now, channel)

    def _rebind(self, now: Instant, info: RelayChannel) -> None:
        self._requests.remove_where(lambda r: isinstance(r.message, messages.Rebind) and r.message.channel == info.channel)
        rebind = messages.Rebind(info.channel, info.side, 0, bytes(messages.MAC_SIZE))
        self._request(now, rebind, home=self._home_of(info))

    def _current(self, request: PendingRequest, home: ServerAddress) -> messages.RequestMessage | None:
        message = request.message
        if isinstance(message, messages.Rebind):
            return self._channels.next_rebind(message.channel, home.cookie)
        return message

    def _on_back(self, back: messages.Restore | messages.Rebind) -> None:
        """The server knows our side of that channel, or knows it again."""
        info = self._channels.get(back.channel)
        if info is not None:
            self._tell(messages.Done(), self._channels.hearers(back.channel), request=back, channel=info)

    def _on_hint(self, now: Instant, message: messages.Gone) -> None:
        """The server does not know our channel from our address.  Anybody may say so; we only ask, and not often."""
        info = self._channels.take_hint(now, message.identifier)
        if info is None:
            self.drops["rendezvous_hint"] += 1
            return
        self._rebind(now, info)

    def _add_channel(self, home: ServerAddress, message: messages.ChannelMessage, hearers: Hearers) -> RelayChannel:
        info = RelayChannel(message.channel, message.token, message.side, home.socket_id, home.address)
        return self._channels.add(info, hearers)

    def _end_channel(self, now: Instant, message: messages.Gone) -> None:
        hearers = self._channels.hearers(message.identifier)
        info = self._channels.remove(message.identifier)
        if info is not None:
            self._tell(message, hearers, channel=info)
            self._hold(now)

    def _gone(self, now: Instant, channel: bytes) -> None:
        """The server has not taken it back."""
        self._end_channel(now, messages.Gone(GoneKind.CHANNEL, channel, GoneReason.UNKNOWN))
