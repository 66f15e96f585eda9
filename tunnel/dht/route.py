"""The DHT in place of a rendezvous server: codes and rooms as a server has them, and paths where a server has channels.

What a server would carry, claims and posts, goes over the path that the two sides have opened to each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.dht import checks, krpc
from tunnel.dht.appointment import Appointment, Rounds, why_no_path
from tunnel.dht.client import DhtClient
from tunnel.dht.ledger import Ledger
from tunnel.dht.meeting import MAX_CHECKS, MAX_CHECKS_IN_WINDOW, Heard, Meeting, Opened, Way
from tunnel.dht.stretch import BORDER, FIRST_NUMBER, HOUR, NUMBERS, Stretch, hours_to_try
from tunnel.errors import MalformedPacket
from tunnel.rendezvous.events import NO_PATH, ClientEvent, Hearer, Reached, ReflexiveChanged, RelayChannel, Told
from tunnel.rendezvous.messages import (
    Allocate,
    Allocated,
    Claim,
    ClaimAccepted,
    ClaimReceived,
    Introduced,
    Join,
    Posted,
    RefusalCode,
    Refused,
    Role,
)
from tunnel.units import Address, Buffer, Instant, PathKey, Seconds, SocketId

CODE_LIFETIME: Final = 600  # seconds, as people are told
RELEASED: Final = Seconds(60.0)  # for which a code that is over still carries what was said through it
NOBODY_AFTER: Final = Seconds(20.0)  # of nobody under a code, before that is told
NO_PATH_AFTER: Final = Seconds(8.0)  # of nothing that gets through to whoever was found, likewise
ABSENT_AFTER: Final = Seconds(10.0)  # of nobody in a room, likewise
MAX_MAILBOXES: Final = 64  # of all meetings; the oldest goes
CLAIM: Final = 1  # first byte of what is said through a mailbox: who comes, ...
POST: Final = 2  # ... and everything after that


class DhtRoute:
    """A client as the rendezvous one is; see there for the verbs."""

    def __init__(
        self,
        *,
        sockets: Mapping[SocketId, bool],
        entry: Iterable[Address],
        saved: Iterable[Address] = (),
        now: Instant,
        entropy: Callable[[int], bytes],
        unix_time: Callable[[], float],
        order: Callable[[Stretch], None],
    ) -> None:
        """`sockets`: which of ours speak to the DHT, and whether that is over IPv6; the first of each family does.

        `saved`: nodes that answered in an earlier run.  `order` begins a slow hash, whose result comes by `stretched`.
        """
        self.drops = Drops()
        self._order_hash = order
        self.is_reached = False
        self._entropy = entropy
        self._unix_time = unix_time
        self._checks = Ledger(MAX_CHECKS, MAX_CHECKS_IN_WINDOW)
        self._clients: dict[SocketId, DhtClient] = {}
        self._sockets = dict(sockets)
        self._mapped: dict[SocketId, Address] = {}
        self._rounds = Rounds()
        self._events: deque[ClientEvent] = deque()
        #: By tag and our side: who waits for a peer may come to it, too.
        self._appointments: dict[tuple[bytes, int], Appointment] = {}
        #: By number and hour: is it claimed, with which body, and by whom.
        self._wanted: dict[tuple[int, int], tuple[bool, bytes, Hearer | None]] = {}
        self._claims: dict[int, tuple[Instant, Hearer | None]] = {}  # by number: when it was claimed, until somebody was met
        self._mailboxes: dict[bytes, tuple[Appointment, Way]] = {}
        self._seen: dict[SocketId, Address] = {}
        self._is_closed = False
        self.enter(now, entry, saved)

    def enter(self, now: Instant, entry: Iterable[Address], saved: Iterable[Address] = ()) -> None:
        """Come in by these nodes too, whose names were not known before."""
        entry, saved = list(entry), list(saved)
        for socket_id, is_ipv6 in self._sockets.items():
            of_family = [each for each in entry if each.is_ipv6 == is_ipv6]
            known = [each for each in saved if each.is_ipv6 == is_ipv6]
            same = [each for each in self._clients.values() if each.is_ipv6 == is_ipv6]
            if same:
                same[0].add_entries(now, of_family)
            elif of_family or known:
                client = DhtClient(is_ipv6=is_ipv6, entry=of_family, saved=known, entropy=self._entropy, now=now)
                client.mapped = self._mapped.get(socket_id)
                self._clients[socket_id] = client
                client.look_up(now, client.id)
                for each in self._appointments.values():
                    if not each.is_released:
                        self._announce(now, each, socket_id, client)

    def nodes(self, count: int) -> list[Address]:
        """Return the nodes that answer: of each family so many, to begin with another time."""
        return [node.address for client in self._clients.values() for node in client.table.best(count)]

    def set_mapped(self, mapped: Mapping[SocketId, Address]) -> None:
        """Set the ports that our router maps: they are announced as soon as it is their turn."""
        self._mapped = dict(mapped)
        for socket_id, client in self._clients.items():
            client.mapped = self._mapped.get(socket_id)

    # --- what is known

    @property
    def reflexive(self) -> dict[SocketId, Address]:
        """Where nodes see each of our sockets, where that is one address."""
        return dict(self._seen)

    @property
    def mapping_varies(self) -> bool | None:
        varies = [client.views.varies for client in self._clients.values() if not client.is_ipv6]
        return varies[0] if varies else None

    @property
    def round_trip(self) -> Seconds | None:
        known = [client.round_trip for client in self._clients.values() if client.round_trip is not None]
        return min(known, default=None)

    @property
    def absent_after(self) -> Seconds:
        """Nobody in a room is a matter of seconds longer than at a server: addresses have to be found and checked."""
        return ABSENT_AFTER

    @property
    def view(self) -> None:
        """Nodes are on the internet: what they see is as sound as it can be."""

    @property
    def server(self) -> None:
        """There is none."""

    @property
    def ipv4_address(self) -> None:
        """Nobody who answers STUN."""

    @property
    def ways(self) -> list[tuple[SocketId, Address]]:
        return []

    @property
    def channels(self) -> list[RelayChannel]:
        """None that would have to be given back."""
        return []

    def unix_time(self, now: Instant) -> None:
        """The DHT has no calendar."""

    def carries(self, channel: RelayChannel, path: PathKey) -> bool:
        return path == channel.path_key

    def follow(self, channel: bytes, hearer: Hearer) -> None:
        """A path does not move, and nobody else can end it."""

    # --- verbs

    def allocate(self, now: Instant, claims: int = 1, hearer: Hearer | None = None) -> None:
        number = FIRST_NUMBER + int.from_bytes(self._entropy(8), "big") % NUMBERS
        self._order(number, int(self._unix_time()) // HOUR, False, b"", hearer)

    def renew(self, now: Instant, nameplate: int) -> None:
        """Whoever comes an hour later looks under another infohash; who came just before still finds the last."""
        hour = int(self._unix_time()) // HOUR
        known = [each for each in self._appointments.values() if each.nameplate == nameplate and each.meeting.side == 0]
        if known and all(each.hour != hour for each in known) and (nameplate, hour) not in self._wanted:
            for each in known:
                each.is_over_at = Instant(now + BORDER)
            self._order(nameplate, hour, False, b"", known[0].hearer)

    def release(self, now: Instant, nameplate: int) -> None:
        for each in self._appointments.values():
            if each.nameplate == nameplate and each.meeting.side == 0 and not each.is_released:
                each.is_over_at, each.is_released = Instant(now + RELEASED), True
                each.close_topics()

    def claim(self, now: Instant, nameplate: int, body: bytes, hearer: Hearer | None = None) -> None:
        open_ones = [each for each in self._appointments.values() if each.nameplate == nameplate and each.meeting.side == 1]
        for each in open_ones:
            each.body = body
            for way in each.meeting.open_ways[-1:]:
                self._send_claim(now, each, way)
        if not open_ones:
            self._claims[nameplate] = now, hearer
            for hour in hours_to_try(self._unix_time()):
                self._order(nameplate, hour, True, body, hearer)

    def knows_mailbox(self, mailbox: bytes) -> bool:
        """Whether it is one of ours."""
        return mailbox in self._mailboxes

    def post(self, now: Instant, mailbox: bytes, body: bytes) -> None:
        known = self._mailboxes.get(mailbox)
        if known is not None:
            known[0].meeting.say(now, known[1], mailbox, bytes((POST,)) + body)

    def listen(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None, *, is_spare: bool = False) -> None:
        """Each room is announced and asked for, as long as it is waited in: spare ones are not."""
        if is_spare:
            self.leave(now, rooms, hearer)
        else:
            self._meet(now, rooms, 0, hearer)

    def dial(
        self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None, *, is_spare: bool = False, is_wide: bool = False
    ) -> None:  # fmt: skip
        if not is_spare:
            self._meet(now, rooms, 1, hearer)

    def leave(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None) -> None:
        for key, each in list(self._appointments.items()):
            if each.room and each.room in rooms and hearer in (None, each.hearer):
                each.close_topics()
                del self._appointments[key]

    def holds(self, path: PathKey) -> bool:
        """Nobody keeps channels."""
        return False

    def waits_in(self, room: bytes) -> bool:
        """Nor is there one to let go of."""
        return False

    def leave_channel(self, now: Instant, channel: bytes) -> None:
        """A path is no channel that anybody keeps for us."""

    def relays(self, now: Instant) -> dict[int, Seconds]:
        """Nobody relays."""
        return {}

    def describe(self, now: Instant) -> list[dict[str, Any]]:
        """There is no server."""
        return []

    def instance_at(self, path: PathKey) -> None:
        """Likewise."""

    def address_of(self, instance: int) -> None:
        """Likewise."""

    def open_channel(self, now: Instant, instance: int, channel: bytes, token: bytes, side: int, hearer: Hearer) -> bool:
        return False

    def leave_mailbox(self, now: Instant, mailbox: bytes) -> None:
        known = self._mailboxes.pop(mailbox, None)
        if known is not None:
            known[0].meeting.forget(mailbox)

    def stretched(self, now: Instant, order: Stretch, secret: bytes) -> None:
        """Take the result of an order."""
        wanted = self._wanted.pop((order.number, order.hour), None)
        if wanted is None or self._is_closed:
            return
        is_claimed, body, hearer = wanted
        is_first = all(each.nameplate != order.number for each in self._appointments.values())
        appointment = self._begin(now, secret, int(is_claimed))
        appointment.nameplate, appointment.hour, appointment.hearer = order.number, order.hour, hearer
        if is_claimed:
            appointment.body = body
        elif is_first:
            self._events.append(Told(Allocated(order.number, CODE_LIFETIME), Allocate(), hearer=hearer))

    def network_changed(self, now: Instant) -> None:
        for client in self._clients.values():
            client.network_changed(now)

    def doubt(self, now: Instant, path: PathKey) -> None:
        """Nothing goes by way of the DHT that could be missed."""

    def close(self, now: Instant) -> None:
        self._is_closed = True
        self._appointments.clear()

    # --- inputs and outputs

    def handle_datagram(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        """One that begins as those of nodes do, or as those of meetings.  Rubbish is counted, nothing is raised."""
        if self._is_closed:
            return
        if data[0] == krpc.FIRST_BYTE:
            client = self._clients.get(socket_id)
            if client is None:
                self.drops["DHT message at a socket that asks nobody"] += 1
            elif client.handle_datagram(now, remote, data):
                self._look(now)
        else:
            self._on_peer(now, (socket_id, remote), data)

    def handle_timeout(self, now: Instant) -> None:
        if self._is_closed:
            return
        for client in self._clients.values():
            client.handle_timeout(now)
        for key, each in list(self._appointments.items()):
            each.meeting.handle_timeout(now)
            self._pump(now, each)
            if each.is_over_at is not None and now >= each.is_over_at:
                each.close_topics()
                del self._appointments[key]
            elif each.room:
                self._look_for_path(now, each)
        self._rounds.handle_timeout(now)
        for number, (since, hearer) in list(self._claims.items()):
            self._give_up(now, number, since, hearer)
        self._look(now)

    def poll_timeout(self) -> Instant | None:
        if self._is_closed:
            return None
        at = earliest(self._rounds.poll_timeout(), *(client.poll_timeout() for client in self._clients.values()))
        for each in self._appointments.values():
            at = earliest(at, each.meeting.poll_timeout(), each.is_over_at, self._tells_at(each))
        for number, (since, _) in self._claims.items():
            at = earliest(at, self._gives_up_at(number, since))
        return at

    def poll_transmit(self, now: Instant) -> tuple[SocketId, Address, bytes] | None:
        if self._is_closed:
            return None
        for socket_id, client in self._clients.items():
            ready = client.poll_transmit()
            if ready is not None:
                return (socket_id, *ready)
        for each in self._appointments.values():
            found = each.meeting.poll_transmit()
            if found is not None:
                return found
        return None

    def poll_event(self) -> ClientEvent | None:
        return self._events.popleft() if self._events else None

    # --- inside

    def _order(self, number: int, hour: int, is_claimed: bool, body: bytes, hearer: Hearer | None) -> None:
        self._wanted[number, hour] = is_claimed, body, hearer
        self._order_hash(Stretch(number, hour))

    def _meet(self, now: Instant, rooms: list[bytes], side: int, hearer: Hearer | None) -> None:
        for room in rooms:
            known = next((each for each in self._appointments.values() if (each.room, each.meeting.side) == (room, side)), None)
            if known is None:
                fresh = self._begin(now, room, side)
                fresh.room, fresh.hearer = room, hearer
            elif known.meeting.open_ways:
                known.meeting.look_again(now)

    def _begin(self, now: Instant, secret: bytes, side: int) -> Appointment:
        meeting = Meeting(secret, side, entropy=self._entropy, ledger=self._checks, drops=self.drops, own_host=self._own_host)
        appointment = Appointment(meeting)
        self._appointments[meeting.keys.tag, side] = appointment
        for socket_id, client in self._clients.items():
            self._announce(now, appointment, socket_id, client)
        return appointment

    def _own_host(self, socket_id: SocketId) -> str | None:
        client = self._clients.get(socket_id)
        seen = None if client is None else client.views.seen
        return None if seen is None else seen.host

    def _announce(self, now: Instant, appointment: Appointment, socket_id: SocketId, client: DhtClient) -> None:
        def found(at: Instant, address: Address, node: str) -> None:
            appointment.meeting.found(at, socket_id, address, node)

        self._rounds.add(now, appointment.announce(now, client, found))

    @staticmethod
    def _tells_at(appointment: Appointment) -> Instant | None:
        """When a person hears that nothing gets through to the peer whose address is in its room."""
        at = appointment.meeting.found_at
        if not appointment.room or appointment.meeting.side == 0 or appointment.is_told or at is None:
            return None
        return Instant(at + NO_PATH_AFTER)

    def _look_for_path(self, now: Instant, appointment: Appointment) -> None:
        at = self._tells_at(appointment)
        if at is None or now < at:
            return
        appointment.is_told = True
        if not appointment.meeting.open_ways:
            text = why_no_path([appointment.meeting], varies=bool(self.mapping_varies), may_have_gone=True)
            refused, request = Refused(NO_PATH, text), Join(Role.DIAL, (appointment.room,))
            self._events.append(Told(refused, request, hearer=appointment.hearer))

    def _on_peer(self, now: Instant, way: Way, data: Buffer) -> None:
        try:
            appointment = self._appointments.get((checks.tag_of(data), 1 - checks.side_of(data)))
        except MalformedPacket:
            self.drops["meeting datagram malformed"] += 1
            return
        if appointment is None:
            self.drops["meeting datagram for nobody"] += 1
            return
        appointment.meeting.handle_datagram(now, way, data)
        self._pump(now, appointment)

    def _pump(self, now: Instant, appointment: Appointment) -> None:
        while appointment.meeting.events:
            match appointment.meeting.events.popleft():
                case Opened(way=opened):
                    self._on_opened(now, appointment, opened)
                case Heard(way=source, mailbox=mailbox, body=body):
                    self._on_heard(appointment, source, mailbox, body)

    def _on_opened(self, now: Instant, appointment: Appointment, way: Way) -> None:
        if appointment.meeting.side == 0:
            return
        if appointment.nameplate is None:
            channel = self._way(way, 1)
            introduced = Introduced(appointment.room, channel.channel, channel.token, 1)
            self._events.append(Told(introduced, channel=channel, hearer=appointment.hearer))
        elif appointment.body is not None:
            self._send_claim(now, appointment, way)

    def _send_claim(self, now: Instant, appointment: Appointment, way: Way) -> None:
        assert appointment.nameplate is not None
        assert appointment.body is not None
        mailbox = self._entropy(checks.MAILBOX_SIZE)
        self._open_mailbox(mailbox, appointment, way)
        appointment.meeting.say(now, way, mailbox, bytes((CLAIM,)) + appointment.body)
        appointment.body = None
        self._claims.pop(appointment.nameplate, None)
        channel = self._way(way, 1)
        accepted = ClaimAccepted(mailbox, channel.channel, channel.token, 1)
        request = Claim(appointment.nameplate, b"")
        self._events.append(Told(accepted, request, channel, appointment.hearer))

    def _on_heard(self, appointment: Appointment, way: Way, mailbox: bytes, body: bytes) -> None:
        kind, rest = body[:1], body[1:]
        if mailbox in self._mailboxes:
            if kind == bytes((POST,)):
                self._events.append(Told(Posted(mailbox, rest), hearer=appointment.hearer))
        elif kind == bytes((CLAIM,)) and appointment.meeting.side == 0 and appointment.nameplate is not None:
            if appointment.is_released:
                self.drops["claim of a code that is over"] += 1
                return
            self._open_mailbox(mailbox, appointment, way)
            channel = self._way(way, 0)
            claim = ClaimReceived(appointment.nameplate, mailbox, rest, channel.channel, channel.token, 0)
            self._events.append(Told(claim, channel=channel, hearer=appointment.hearer))

    def _open_mailbox(self, mailbox: bytes, appointment: Appointment, way: Way) -> None:
        while len(self._mailboxes) >= MAX_MAILBOXES:
            del self._mailboxes[next(iter(self._mailboxes))]
        self._mailboxes[mailbox] = appointment, way

    @staticmethod
    def _way(way: Way, side: int) -> RelayChannel:
        """A path that both sides have opened: nothing stands before its datagrams."""
        return RelayChannel(b"", b"", side, *way)

    def _look(self, now: Instant) -> None:
        """Has the first node answered; do nodes see us elsewhere?"""
        for socket_id, client in self._clients.items():
            seen = client.views.seen
            if seen is None or client.views.varies or self._seen.get(socket_id) == seen:
                continue
            self._seen[socket_id] = seen
            if self.is_reached:
                self._events.append(ReflexiveChanged(socket_id=socket_id, address=seen))
        if not self.is_reached and (round_trip := self.round_trip) is not None:
            self.is_reached = True
            node = next(node.address for client in self._clients.values() for node in client.table.closest(client.id))
            self._events.append(Reached(server=node, reflexive=self.reflexive, round_trip=round_trip))

    def _found_of(self, number: int) -> list[Meeting]:
        meetings = (each.meeting for each in self._appointments.values() if each.nameplate == number and each.meeting.side == 1)
        return [meeting for meeting in meetings if meeting.has_candidates]

    def _gives_up_at(self, number: int, since: Instant) -> Instant:
        found = [at for meeting in self._found_of(number) if (at := meeting.found_at) is not None]
        return Instant(min(found) + NO_PATH_AFTER) if found else Instant(since + NOBODY_AFTER)

    def _give_up(self, now: Instant, number: int, since: Instant, hearer: Hearer | None) -> None:
        """Nobody was met by a code: say why."""
        if now < self._gives_up_at(number, since):
            return
        del self._claims[number]
        self._wanted = {key: value for key, value in self._wanted.items() if key[0] != number}
        found = self._found_of(number)
        for key, each in list(self._appointments.items()):
            if each.nameplate == number and each.meeting.side == 1:
                each.close_topics()
                del self._appointments[key]
        code = NO_PATH if found else RefusalCode.UNKNOWN_NAMEPLATE
        text = why_no_path(found, varies=bool(self.mapping_varies), may_have_gone=False) if found else ""
        self._events.append(Told(Refused(code, text), Claim(number, b""), hearer=hearer))
