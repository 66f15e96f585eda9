"""A server and the DHT under one name: the server first, the DHT where the server is gone or does not know the peer.

Whoever waits for peers does so at both, since nobody knows which of them a peer can reach.  Whoever comes asks the server, and
strangers only when that has led to nobody.  What is asked for stands until it is taken back, so that a server which appears or
returns later hears of it too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.rendezvous.events import ChannelMoved, ClientEvent, FallbackWanted, Hearer, RelayChannel, Told
from tunnel.rendezvous.messages import Introduced
from tunnel.units import Address, Buffer, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.client import Client

HEAD_START: Final = Seconds(3.0)  # of the server, before the DHT is asked beside it
ABSENT_AFTER: Final = Seconds(13.0)  # of nobody in a room, before a person is told: the head start and what the DHT takes
LONG_NUMBERS: Final = range(10**7, 10**8)  # of codes that are announced in the DHT; those of servers are shorter


@dataclass(frozen=True, slots=True)
class _Through:
    """Whoever asked by the common name hears as if that had answered."""

    client: Alternatives
    hearer: Hearer

    def hear(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        self.client.note(event)
        self.hearer.hear(now, self.client, event)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Dialing:
    """A room that somebody dials."""

    hearer: Hearer | None
    wide_at: Instant | None  # when it is dialed in the DHT too, unless somebody was met before; None: it is due, or over
    is_due: bool = False


class Alternatives:
    """A client as the rendezvous one is, which passes on to two others; see there for the verbs."""

    def __init__(self, clients: Mapping[str, Client], names: tuple[str, str], now: Instant) -> None:
        """`clients` may have the two of these names now, or later."""
        self._clients = clients
        self.names = names
        self.drops = Drops()
        self._events: deque[ClientEvent] = deque()
        self._is_wanted = False  # the DHT
        self._alone_until: Instant | None = Instant(now + HEAD_START)  # the server, if it answers by then
        self._listening: dict[bytes, tuple[Hearer | None, bool]] = {}
        self._dialing: dict[bytes, _Dialing] = {}
        self._allocating: tuple[int, Hearer | None] | None = None
        self._claims: dict[int, tuple[bytes, Hearer | None]] = {}  # for a client that is not there yet

    @property
    def _first(self) -> Client | None:
        return self._clients.get(self.names[0])

    @property
    def _second(self) -> Any:
        return self._clients.get(self.names[1])

    @property
    def _both(self) -> list[Client]:
        return [each for each in (self._first, self._second) if each is not None]

    @property
    def _best(self) -> Client | None:
        """The one that answers, the server first."""
        return next((each for each in self._both if each.is_reached), self._first or self._second)

    # --- what is known

    @property
    def is_reached(self) -> bool:
        return any(each.is_reached for each in self._both)

    @property
    def reflexive(self) -> dict[SocketId, Address]:
        found: dict[SocketId, Address] = {}
        for each in reversed(self._both):
            found.update(each.reflexive)
        return found

    @property
    def mapping_varies(self) -> bool | None:
        return next((each.mapping_varies for each in self._both if each.mapping_varies is not None), None)

    @property
    def round_trip(self) -> Seconds | None:
        return None if self._best is None else self._best.round_trip

    @property
    def view(self) -> Address | None:
        return None if self._first is None else self._first.view

    @property
    def server(self) -> Address | None:
        return None if self._first is None else self._first.server

    @property
    def ipv4_address(self) -> Address | None:
        return None if self._first is None else self._first.ipv4_address

    @property
    def ways(self) -> list[tuple[SocketId, Address]]:
        """Those are the two's."""
        return []

    @property
    def channels(self) -> list[RelayChannel]:
        """Those are the two's."""
        return []

    @property
    def absent_after(self) -> Seconds:
        return ABSENT_AFTER

    def unix_time(self, now: Instant) -> float | None:
        return None if self._first is None else self._first.unix_time(now)

    def carries(self, channel: RelayChannel, path: PathKey) -> bool:
        by = self._first if channel.channel else self._second
        return by is not None and by.carries(channel, path)

    def follow(self, channel: bytes, hearer: Hearer) -> None:
        """The two are told by themselves."""

    # --- verbs

    def allocate(self, now: Instant, claims: int = 1, hearer: Hearer | None = None) -> None:
        self._want()
        self._allocating = claims, hearer
        self.look(now)

    def renew(self, now: Instant, nameplate: int) -> None:
        for each in self._both:
            each.renew(now, nameplate)

    def release(self, now: Instant, nameplate: int) -> None:
        for each in self._both:
            each.release(now, nameplate)

    def claim(self, now: Instant, nameplate: int, body: bytes, hearer: Hearer | None = None) -> None:
        if nameplate in LONG_NUMBERS:
            self._want()
        self._claims[nameplate] = body, hearer
        self.look(now)

    def post(self, now: Instant, mailbox: bytes, body: bytes) -> None:
        second = self._second
        if second is not None and second.knows_mailbox(mailbox):
            second.post(now, mailbox, body)
        elif self._first is not None:
            self._first.post(now, mailbox, body)

    def listen(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None, *, is_spare: bool = False) -> None:
        self._want()
        self._listening.update(dict.fromkeys(rooms, (hearer, is_spare)))
        for each in self._both:
            each.listen(now, rooms, self._through(hearer), is_spare=is_spare)

    def dial(
        self,
        now: Instant,
        rooms: list[bytes],
        hearer: Hearer | None = None,
        *,
        is_spare: bool = False,
        is_wide: bool = False,
    ) -> None:
        is_gone = self._alone_until is None and (self._first is None or not self._first.is_reached)
        wide_at = None if is_spare else now if is_gone else Instant(now + HEAD_START)
        self._dialing.update((room, _Dialing(hearer, wide_at)) for room in rooms)
        if self._first is not None:
            self._first.dial(now, rooms, self._through(hearer), is_spare=is_spare, is_wide=is_wide)

    def leave(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None) -> None:
        for room in rooms:
            listening, dialing = self._listening.get(room), self._dialing.get(room)
            if listening is not None and hearer in (None, listening[0]):
                del self._listening[room]
            if dialing is not None and hearer in (None, dialing.hearer):
                del self._dialing[room]
        for each in self._both:
            each.leave(now, rooms, self._through(hearer))

    def holds(self, path: PathKey) -> bool:
        return self._first is not None and self._first.holds(path)

    def waits_in(self, room: bytes) -> bool:
        return self._first is not None and self._first.waits_in(room)

    def relays(self, now: Instant) -> dict[int, Seconds]:
        return {} if self._first is None else self._first.relays(now)

    def describe(self, now: Instant) -> list[dict[str, Any]]:
        """Those are the two's."""
        return []

    def address_of(self, instance: int) -> Address | None:
        return None if self._first is None else self._first.address_of(instance)

    def instance_at(self, path: PathKey) -> int | None:
        return None if self._first is None else self._first.instance_at(path)

    def open_channel(self, now: Instant, instance: int, channel: bytes, token: bytes, side: int, hearer: Hearer) -> bool:
        first, through = self._first, _Through(self, hearer)
        return first is not None and first.open_channel(now, instance, channel, token, side, through)

    def leave_channel(self, now: Instant, channel: bytes) -> None:
        for each in self._both:
            each.leave_channel(now, channel)

    def leave_mailbox(self, now: Instant, mailbox: bytes) -> None:
        second = self._second
        if second is not None and second.knows_mailbox(mailbox):
            second.leave_mailbox(now, mailbox)
        elif self._first is not None:
            self._first.leave_mailbox(now, mailbox)

    def doubt(self, now: Instant, path: PathKey) -> None:
        if self._first is not None:
            self._first.doubt(now, path)

    def network_changed(self, now: Instant) -> None:
        """The two are told by themselves."""

    def close(self, now: Instant) -> None:
        """The two are told by themselves."""

    # --- inputs and outputs

    def note(self, event: Told | ChannelMoved) -> None:
        """One of the two tells somebody; whoever was led to a peer needs nobody else."""
        if isinstance(event, Told) and isinstance(event.message, Introduced):
            dialing = self._dialing.get(event.message.room)
            if dialing is not None:
                dialing.wide_at, dialing.is_due = None, False

    def appeared(self, now: Instant, name: str) -> None:
        """The client of that name is there now: what stands is asked of it."""
        client = self._clients[name]
        for room, (hearer, is_spare) in self._listening.items():
            client.listen(now, [room], self._through(hearer), is_spare=is_spare)
        if name == self.names[0]:
            for room, dialing in self._dialing.items():
                client.dial(now, [room], self._through(dialing.hearer))
        self.look(now)

    def look(self, now: Instant) -> None:
        """Pass on what waits for a client that answers, or for time to pass."""
        first, second = self._first, self._second
        if self._alone_until is not None and now >= self._alone_until:
            self._alone_until = None
            if first is None or not first.is_reached:
                self._want()
        if self._allocating is not None:
            by = first if first is not None and first.is_reached else second if self._alone_until is None else None
            if by is not None and by.is_reached:
                (claims, hearer), self._allocating = self._allocating, None
                by.allocate(now, claims, self._through(hearer))
        for nameplate, (body, hearer) in list(self._claims.items()):
            by = second if nameplate in LONG_NUMBERS else first
            if by is not None:
                del self._claims[nameplate]
                by.claim(now, nameplate, body, self._through(hearer))
        for room, dialing in self._dialing.items():
            if dialing.wide_at is not None and now >= dialing.wide_at:
                dialing.wide_at, dialing.is_due = None, True
                self._want()
            if dialing.is_due and second is not None:
                dialing.is_due = False
                second.dial(now, [room], self._through(dialing.hearer))

    def _want(self) -> None:
        if not self._is_wanted:
            self._is_wanted = True
            self._events.append(FallbackWanted())

    def _through(self, hearer: Hearer | None) -> Hearer | None:
        return None if hearer is None else _Through(self, hearer)

    def handle_datagram(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        """None is for us."""

    def handle_timeout(self, now: Instant) -> None:
        self.look(now)

    def poll_timeout(self) -> Instant | None:
        return earliest(self._alone_until, *(each.wide_at for each in self._dialing.values()))

    def poll_transmit(self, now: Instant) -> tuple[SocketId, Address, bytes] | None:
        return None

    def poll_event(self) -> ClientEvent | None:
        return self._events.popleft() if self._events else None
