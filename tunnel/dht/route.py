"""The DHT in place of a rendezvous server: codes and rooms as a server has them, and paths where a server has channels.

What a server would carry, claims and posts, goes over the path that the two sides have opened to each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.dht import checks, krpc
from tunnel.dht.client import DhtClient
from tunnel.dht.ledger import Ledger
from tunnel.dht.meeting import MAX_CHECKS, MAX_CHECKS_IN_WINDOW, Heard, Meeting, Opened, Way
from tunnel.dht.stretch import BORDER, FIRST_NUMBER, HOUR, NUMBERS, Stretch, hours_to_try
from tunnel.dht.topic import Topic
from tunnel.errors import MalformedPacket
from tunnel.rendezvous.events import NO_PATH, ClientEvent, Hearer, Reached, ReflexiveChanged, RelayChannel, Told
from tunnel.rendezvous.messages import (
    Allocate,
    Allocated,
    Claim,
    ClaimAccepted,
    ClaimReceived,
    Introduced,
    Posted,
    RefusalCode,
    Refused,
)
from tunnel.units import Address, Buffer, Instant, PathKey, Seconds, SocketId

CODE_LIFETIME: Final = 600  # seconds, as people are told
RELEASED: Final = Seconds(60.0)  # for which a code that is over still carries what was said through it
NOBODY_AFTER: Final = Seconds(20.0)  # of nobody under a code, before that is told
NO_PATH_AFTER: Final = Seconds(12.0)  # of nothing that gets through to whoever was found, likewise
POLL_INTERVAL: Final = Seconds(3.0)  # between two questions to the nodes that hold an address of ours ...
TOPIC_SHARE: Final = Seconds(1.5)  # ... and more where there are many: so long for each, so that all cost no more than two
MAX_MAILBOXES: Final = 64  # of all meetings; the oldest goes
CLAIM: Final = 1  # first byte of what is said through a mailbox: who comes, ...
POST: Final = 2  # ... and everything after that


class _Appointment:
    """A meeting and where it is announced."""

    __slots__ = (
        "begun_at",
        "body",
        "hearer",
        "hour",
        "is_over_at",
        "is_released",
        "meeting",
        "nameplate",
        "polled_at",
        "room",
        "topics",
    )

    def __init__(self, meeting: Meeting, topics: list[Topic], now: Instant) -> None:
        self.meeting = meeting
        self.topics = topics
        self.begun_at = self.polled_at = now
        self.nameplate: int | None = None
        self.room = b""
        self.body: bytes | None = None  # of a claim that nobody has got yet
        self.is_over_at: Instant | None = None
        self.hearer: Hearer | None = None
        self.hour = 0  # of a code
        self.is_released = False  # a code that takes no claim any more


class DhtRoute:
    """A client as the rendezvous one is; see there for the verbs."""

    def __init__(
        self,
        *,
        sockets: Mapping[SocketId, bool],
        entry: Iterable[Address],
        now: Instant,
        entropy: Callable[[int], bytes],
        unix_time: Callable[[], float],
        order: Callable[[Stretch], None],
    ) -> None:
        """`sockets`: which of ours speak to the DHT, and whether that is over IPv6; the first of each family does.

        `order` begins a slow hash, whose result comes by `stretched`.
        """
        self.drops = Drops()
        self._order_hash = order
        self.is_reached = False
        self._entropy = entropy
        self._unix_time = unix_time
        self._checks = Ledger(MAX_CHECKS, MAX_CHECKS_IN_WINDOW)
        entry = list(entry)
        self._clients: dict[SocketId, DhtClient] = {}
        for socket_id, is_ipv6 in sockets.items():
            of_family = [each for each in entry if each.is_ipv6 == is_ipv6]
            if of_family and all(each.is_ipv6 != is_ipv6 for each in self._clients.values()):
                self._clients[socket_id] = DhtClient(is_ipv6=is_ipv6, entry=of_family, entropy=entropy, now=now)
        self._events: deque[ClientEvent] = deque()
        self._by_tag: dict[bytes, _Appointment] = {}
        #: By number and hour: is it claimed, with which body, and by whom.
        self._wanted: dict[tuple[int, int], tuple[bool, bytes, Hearer | None]] = {}
        self._claims: dict[int, tuple[Instant, Hearer | None]] = {}  # by number: when it was claimed, until somebody was met
        self._mailboxes: dict[bytes, tuple[_Appointment, Way]] = {}
        self._seen: dict[SocketId, Address] = {}
        self._is_closed = False
        for client in self._clients.values():
            client.look_up(now, client.id)

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
        known = [each for each in self._by_tag.values() if each.nameplate == nameplate and each.meeting.side == 0]
        if known and all(each.hour != hour for each in known) and (nameplate, hour) not in self._wanted:
            for each in known:
                each.is_over_at = Instant(now + BORDER)
            self._order(nameplate, hour, False, b"", known[0].hearer)

    def release(self, now: Instant, nameplate: int) -> None:
        for each in self._by_tag.values():
            if each.nameplate == nameplate and each.meeting.side == 0 and not each.is_released:
                each.is_over_at, each.is_released = Instant(now + RELEASED), True
                self._close_topics(each)

    def claim(self, now: Instant, nameplate: int, body: bytes, hearer: Hearer | None = None) -> None:
        open_ones = [each for each in self._by_tag.values() if each.nameplate == nameplate and each.meeting.side == 1]
        for each in open_ones:
            each.body = body
            for way in each.meeting.open_ways[-1:]:
                self._send_claim(now, each, way)
        if not open_ones:
            self._claims[nameplate] = now, hearer
            for hour in hours_to_try(self._unix_time()):
                self._order(nameplate, hour, True, body, hearer)

    def post(self, now: Instant, mailbox: bytes, body: bytes) -> None:
        known = self._mailboxes.get(mailbox)
        if known is not None:
            known[0].meeting.say(now, known[1], mailbox, bytes((POST,)) + body)

    def listen(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None) -> None:
        self._meet(now, rooms, 0, hearer)

    def dial(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None) -> None:
        self._meet(now, rooms, 1, hearer)

    def leave(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None) -> None:
        for tag, each in list(self._by_tag.items()):
            if each.room and each.room in rooms and hearer in (None, each.hearer):
                self._close_topics(each)
                del self._by_tag[tag]

    def leave_channel(self, now: Instant, channel: bytes) -> None:
        """A path is no channel that anybody keeps for us."""

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
        is_first = all(each.nameplate != order.number for each in self._by_tag.values())
        appointment = self._begin(now, secret, int(is_claimed))
        appointment.nameplate, appointment.hour, appointment.hearer = order.number, order.hour, hearer
        if is_claimed:
            appointment.body = body
        elif is_first:
            self._events.append(Told(Allocated(order.number, CODE_LIFETIME), Allocate(), hearer=hearer))

    def network_changed(self, now: Instant) -> None:
        for client in self._clients.values():
            client.network_changed(now)
        for each in self._by_tag.values():
            each.polled_at = now

    def doubt(self, now: Instant) -> None:
        """Nothing goes by way of the DHT that could be missed."""

    def close(self, now: Instant) -> None:
        self._is_closed = True
        self._by_tag.clear()

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
        for tag, each in list(self._by_tag.items()):
            each.meeting.handle_timeout(now)
            if each.is_over_at is not None and now >= each.is_over_at:
                self._close_topics(each)
                del self._by_tag[tag]
            elif each.topics and now >= self._poll_at(each):
                each.polled_at = now
                for topic in each.topics:
                    topic.poll(now)
        for number, (since, hearer) in list(self._claims.items()):
            self._give_up(now, number, since, hearer)
        self._look(now)

    def poll_timeout(self) -> Instant | None:
        if self._is_closed:
            return None
        at = earliest(*(client.poll_timeout() for client in self._clients.values()))
        for each in self._by_tag.values():
            poll = self._poll_at(each) if each.topics else None
            at = earliest(at, each.meeting.poll_timeout(), each.is_over_at, poll)
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
        for each in self._by_tag.values():
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
            known = next((each for each in self._by_tag.values() if each.room == room), None)
            if known is None:
                fresh = self._begin(now, room, side)
                fresh.room, fresh.hearer = room, hearer
            elif known.meeting.side == side and known.meeting.open_ways:
                known.meeting.look_again(now)

    def _begin(self, now: Instant, secret: bytes, side: int) -> _Appointment:
        meeting = Meeting(secret, side, entropy=self._entropy, ledger=self._checks, drops=self.drops, own_host=self._own_host)
        appointment = _Appointment(meeting, [], now)
        self._by_tag[meeting.keys.tag] = appointment
        for socket_id, client in self._clients.items():

            def found(at: Instant, address: Address, node: str, socket_id: SocketId = socket_id) -> None:
                meeting.found(at, socket_id, address, node)

            appointment.topics.append(Topic(client, meeting.keys.info_hash, now, found=found))
        return appointment

    def _own_host(self, socket_id: SocketId) -> str | None:
        client = self._clients.get(socket_id)
        seen = None if client is None else client.views.seen
        return None if seen is None else seen.host

    @staticmethod
    def _close_topics(appointment: _Appointment) -> None:
        for topic in appointment.topics:
            topic.close()
        appointment.topics.clear()

    def _poll_at(self, appointment: _Appointment) -> Instant:
        count = sum(len(each.topics) for each in self._by_tag.values())
        return Instant(appointment.polled_at + max(POLL_INTERVAL, TOPIC_SHARE * count))

    def _on_peer(self, now: Instant, way: Way, data: Buffer) -> None:
        try:
            appointment = self._by_tag.get(checks.tag_of(data))
        except MalformedPacket:
            self.drops["meeting datagram malformed"] += 1
            return
        if appointment is None:
            self.drops["meeting datagram for nobody"] += 1
            return
        appointment.meeting.handle_datagram(now, way, data)
        while appointment.meeting.events:
            match appointment.meeting.events.popleft():
                case Opened(way=opened):
                    self._on_opened(now, appointment, opened)
                case Heard(way=source, mailbox=mailbox, body=body):
                    self._on_heard(appointment, source, mailbox, body)

    def _on_opened(self, now: Instant, appointment: _Appointment, way: Way) -> None:
        if appointment.meeting.side == 0:
            return
        if appointment.nameplate is None:
            channel = self._way(way, 1)
            introduced = Introduced(appointment.room, channel.channel, channel.token, 1)
            self._events.append(Told(introduced, channel=channel, hearer=appointment.hearer))
        elif appointment.body is not None:
            self._send_claim(now, appointment, way)

    def _send_claim(self, now: Instant, appointment: _Appointment, way: Way) -> None:
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

    def _on_heard(self, appointment: _Appointment, way: Way, mailbox: bytes, body: bytes) -> None:
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

    def _open_mailbox(self, mailbox: bytes, appointment: _Appointment, way: Way) -> None:
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
        meetings = (each.meeting for each in self._by_tag.values() if each.nameplate == number and each.meeting.side == 1)
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
        for tag, each in list(self._by_tag.items()):
            if each.nameplate == number and each.meeting.side == 1:
                self._close_topics(each)
                del self._by_tag[tag]
        code = NO_PATH if found else RefusalCode.UNKNOWN_NAMEPLATE
        text = self._why_no_path(found) if found else ""
        self._events.append(Told(Refused(code, text), Claim(number, b""), hearer=hearer))

    def _why_no_path(self, found: list[Meeting]) -> str:
        ours, theirs = bool(self.mapping_varies), any(meeting.is_marked for meeting in found)
        if ours and theirs:
            why = "both routers use a new port for every destination"
        elif ours:
            why = "the router here uses a new port for every destination"
        elif theirs:
            why = "the other side's router uses a new port for every destination"
        else:
            why = "a firewall drops UDP, or both are behind one router that does not lead back inside"
        return (
            f"The other side was found in the DHT, but no packet gets through to it: {why}. The DHT has no relay; port mapping "
            "(UPnP-IGD, NAT-PMP or PCP) at either router, IPv6 at both ends, or a server with a relay would help."
        )
