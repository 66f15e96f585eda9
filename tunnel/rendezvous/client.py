"""A peer's side of the rendezvous: one server, reached over each of its addresses from the sockets that carry the tunnel.

Every address is greeted at once; the first to answer becomes the primary one, which carries all registrations.  The others
keep their NAT mapping warm, and take over when the primary one falls silent.  All that the owner asked for is remembered,
so that after a restart of the server everything is registered again without being asked.

Where UDP gets no answer the owner is asked for a TLS connection (see tls.py), which is one more address of the server.  UDP is
greeted on, and takes over as soon as it answers.

Long because verbs, answers and silence all act on the same state: what one server knows of us.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, assert_never

from tunnel.core.scope import may_name
from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.errors import MalformedPacket
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.events import ClientEvent, RelayChannel
from tunnel.rendezvous.messages import GoneKind, GoneReason, RefusalCode, Role
from tunnel.rendezvous.requests import PROBES, PROBES_PERIOD, PendingRequest, RequestTable, ServerAddress
from tunnel.rendezvous.seeking import ELSEWHERE, Searches
from tunnel.rendezvous.tls import MAX_TLS_ADDRESSES, TlsWish
from tunnel.rendezvous.wishes import ChannelBook, OwnNumber, Wishes, joins, may_be_second, refusal_of, role_name
from tunnel.units import Address, Buffer, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from random import Random

__all__ = ["Client", "ClientEvent", "RelayChannel"]

REFRESH_INTERVAL: Final = Seconds(7.0)  # some NATs forget a mapping after 8 s, and pushes must find us; ±10 % of jitter
STANDBY_REFRESH: Final = Seconds(20.0)  # of the addresses that carry no registration: nothing is pushed there
LOST_AFTER: Final = 3  # unanswered sendings in a row before Lost is reported and another address takes over
PROBE_ATTEMPTS: Final = 4  # sendings to the second socket before the mapping counts as unknown
POST_LIFETIME: Final = Seconds(60.0)  # a PAKE answer or claim later than this meets nobody
RETRY_AFTER_FULL: Final = Seconds(30.0)  # before asking again for what was full, at least; the server may say more
SURELY_KNOWN: Final = 0.75  # share of the lifetime that the server gives us; a request and its answer take their time too
FIRST_WELCOME: Final = Seconds(3.0 * REFRESH_INTERVAL)  # by then the first Refresh should have been answered
AFTER_BYE: Final = Seconds(1.0)  # a server that restarts is back by then
SEEN_PUSHES: Final = 256  # push ids remembered, so that repeats are acknowledged but not told again


class Client:
    """Talks to one server.  Never blocks, never gives up; see the verbs, then events.py for what comes back."""

    def __init__(
        self,
        *,
        servers: list[tuple[SocketId, Address]],
        now: Instant,
        rng: Random,
        entropy: Callable[[int], bytes],
        access_token: bytes = b"",
        tls: bool = False,
    ) -> None:
        """`tls`: the owner can open TLS connections, and wants to hear when one is needed."""
        self._entropy = entropy
        self._rng = rng
        self._access_token = access_token
        self._session = entropy(messages.SESSION_SIZE)
        self._homes = [ServerAddress(socket_id, address, now) for socket_id, address in servers]
        self._primary: ServerAddress | None = None
        self._requests = RequestTable(rng)
        self._out: deque[tuple[SocketId, Address, bytes]] = deque()
        self._events: deque[ClientEvent] = deque()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._wishes = Wishes()
        self._channels = ChannelBook()
        self._searches = Searches()
        self._rejoin_at: Instant | None = None
        self._full_until = now  # the server has no room for us: it is not asked for everything at each Refresh
        self._surely_known_until: Instant | None = None
        self._calendar: tuple[int, Instant] | None = None  # what the server said it was, and when
        self._is_closed = False
        self._tls = TlsWish(now) if tls else None
        self.drops = Drops()
        self.is_reached = False
        for home in self._homes:
            self._greet(now, home)

    # what is known

    @property
    def reflexive(self) -> dict[SocketId, Address]:
        """Where the server sees each of our UDP sockets, as far as it may say so (scope.may_name)."""
        return {
            home.socket_id: home.reflexive
            for home in self._homes
            if home.reflexive is not None and not home.is_tls and self._is_credible(home)
        }

    @property
    def view(self) -> Address | None:
        """Where the server sees us, where that cannot be our address on the internet: an address of its own local network.

        Then a proxy stands before the server, or it runs in our network.  None: its view is sound, or not known yet.
        """
        homes = [home for home in self._homes if home.reflexive is not None and not home.is_tls and not home.address.is_ipv6]
        if not homes or any(self._is_credible(home) for home in homes):
            return None
        return homes[0].reflexive

    @staticmethod
    def _is_credible(home: ServerAddress) -> bool:
        return home.reflexive is not None and may_name(home.address.host, home.reflexive.host)

    @property
    def mapping_varies(self) -> bool | None:
        """Whether the NAT maps one IPv4 socket differently for another port (or address) of the server; None if unknown."""
        views = [home for home in self._homes if home.second_reflexive is not None and self._is_credible(home)]
        for home in sorted(views, key=lambda home: home.address.is_ipv6):
            return home.second_reflexive != home.reflexive
        return None

    @property
    def round_trip(self) -> Seconds | None:
        return self._primary.round_trip if self._primary is not None else None

    @property
    def server(self) -> Address | None:
        """The address in use, once one has answered."""
        return self._primary.address if self._primary is not None else None

    @property
    def is_over_tls(self) -> bool:
        """Whether the address in use is that of a TLS connection, because UDP gets no answer."""
        return self._primary is not None and self._primary.is_tls

    @property
    def ipv4_address(self) -> Address | None:
        """An IPv4 address of the server that has answered over UDP, the one in use if it is one."""
        known = [h for h in self._homes if h.reflexive is not None and not h.address.is_ipv6 and not h.is_tls]
        return next((home.address for home in known if home is self._primary), known[0].address if known else None)

    def unix_time(self, now: Instant) -> float | None:
        """The server's calendar; None while it has not told."""
        return None if self._calendar is None else self._calendar[0] + (now - self._calendar[1])

    def is_server(self, socket_id: SocketId, address: Address) -> bool:
        """Whether that is one of the server's addresses, as we reach it from that socket."""
        return any(home.socket_id == socket_id and home.address == address for home in self._homes)

    @property
    def ways(self) -> list[tuple[SocketId, Address]]:
        """All of them."""
        return [(home.socket_id, home.address) for home in self._homes]

    @property
    def channels(self) -> list[RelayChannel]:
        return list(self._channels)

    # verbs

    def allocate(self, now: Instant, claims: int = 1) -> None:
        """Ask for a nameplate that so many may claim.  Answer: Allocated or Refused."""
        self._request(now, messages.Allocate(claims=claims))

    def renew(self, now: Instant, nameplate: int) -> None:
        """Keep one that many may claim from expiring.  No answer; NameplateLost when it is gone."""
        own = self._wishes.nameplates.get(nameplate)
        if own is not None:
            self._request(now, messages.Allocate(nameplate, *own), subject=nameplate)

    def release(self, now: Instant, nameplate: int) -> None:
        """The code is over; a claim that already came keeps its mailbox and channel."""
        if self._wishes.nameplates.pop(nameplate, None) is not None:
            self._requests.remove_where(lambda r: isinstance(r.message, messages.Allocate) and r.message.wanted == nameplate)
            self._request(now, messages.Release(nameplate), expires_at=Instant(now + POST_LIFETIME))

    def claim(self, now: Instant, nameplate: int, body: bytes) -> None:
        """Meet the owner of a nameplate, at whichever server of the name knows it.

        Answer: ClaimAccepted, then Posted; or Refused.
        """
        self._request(now, messages.Claim(nameplate, body, may_move=True), subject=nameplate)

    def post(self, now: Instant, mailbox: bytes, body: bytes) -> None:
        """Send through a mailbox.  Answer only when refused."""
        self._request(now, messages.Post(mailbox, body), subject=mailbox, expires_at=Instant(now + POST_LIFETIME))

    def listen(self, now: Instant, rooms: list[bytes]) -> None:
        """Wait in these rooms until leave().  Each dialer comes as Introduced with side 0."""
        fresh = [room for room in dict.fromkeys(rooms) if room not in self._wishes.listening]
        self._wishes.listening.update(dict.fromkeys(fresh))
        self._forget_leaving(now, fresh)
        self._join(now, joins(Role.LISTEN, fresh))

    def dial(self, now: Instant, rooms: list[bytes]) -> None:
        """Meet each listener of these rooms (all of one peer) once, now or when he comes: Introduced with side 1.

        Dialing again meets them again.  Leave the rooms when the peer has answered.
        """
        group = tuple(rooms[: messages.MAX_ROOMS])
        self._wishes.dialing.update(dict.fromkeys(group, group))
        self._forget_leaving(now, group)
        self._join(now, joins(Role.DIAL, group))

    def leave(self, now: Instant, rooms: list[bytes]) -> None:
        """Neither listen nor dial there any more."""
        gone = set(rooms)
        known = [room for room in dict.fromkeys(rooms) if self._wishes.knows_room(room)]
        for room in known:
            self._wishes.forget_room(room)
        self._requests.remove_where(lambda r: isinstance(r.message, messages.Join) and gone.issuperset(r.message.rooms))
        for start in range(0, len(known), messages.MAX_ROOMS):
            part = tuple(known[start : start + messages.MAX_ROOMS])
            self._request(now, messages.Leave(rooms=part), expires_at=Instant(now + POST_LIFETIME))

    def leave_channel(self, now: Instant, channel: bytes) -> None:
        """Give a relay channel back; the other side hears PeerGone."""
        if self._channels.remove(channel) is not None:
            self._request(now, messages.Leave(channels=(channel,)), expires_at=Instant(now + POST_LIFETIME))

    def leave_mailbox(self, now: Instant, mailbox: bytes) -> None:
        self._request(now, messages.Leave(mailboxes=(mailbox,)), expires_at=Instant(now + POST_LIFETIME))

    def network_changed(self, now: Instant) -> None:
        """The host roamed or woke up: greet every address at once instead of at the next refresh."""
        for home in self._homes:
            home.refresh_at = now
            home.round_trip = None
        self._requests.remove_where(lambda r: isinstance(r.message, messages.Hello | messages.Refresh))
        if self._tls is not None:
            self._tls.restart(now)
        self._refresh(now)

    def move(self, now: Instant, servers: Iterable[tuple[SocketId, Address]]) -> None:
        """The server's name leads here now.  New addresses are greeted beside those that we know.

        Where it led before is given up when another address has answered, and at once what never answered.
        """
        wanted = dict.fromkeys(servers)
        for home in self._homes:
            home.is_named = home.is_tls or (home.socket_id, home.address) in wanted
            wanted.pop((home.socket_id, home.address), None)
        self._give_up(lambda home: home.answered_at is None)
        for socket_id, address in wanted:
            home = ServerAddress(socket_id, address, now)
            self._homes.append(home)
            self._greet(now, home)

    def _give_up(self, condition: Callable[[ServerAddress], bool]) -> None:
        """Of the addresses that the name leads to no more, and that are not in use."""
        for home in [each for each in self._homes if not each.is_named and each is not self._primary and condition(each)]:
            self._homes.remove(home)
            self._requests.remove_where(lambda r, home=home: r.home is home)  # type: ignore[misc]

    def doubt(self, now: Instant) -> None:
        """Something that should come by way of the server does not: ask it at once, unless a question is on its way already."""
        if self._primary is not None and self._primary.asked_at is None:
            self._primary.refresh_at = now
            self._refresh(now)

    def tls_up(self, now: Instant, socket_id: SocketId, address: Address) -> None:
        """A TLS connection to the server stands, under this socket id: it is one more address of the server."""
        home = next((h for h in self._homes if h.is_tls and h.socket_id == socket_id and h.address == address), None)
        if home is None:
            home = ServerAddress(socket_id, address, now, is_tls=True)
            spare = [h for h in self._homes if h.is_tls and h is not self._primary]
            if len(spare) >= MAX_TLS_ADDRESSES:
                self._homes.remove(spare[0])
                self._requests.remove_where(lambda r: r.home is spare[0])
            self._homes.append(home)
        home.is_up = True
        home.cookie = b""  # the server sees this connection come from another port than the last
        home.asked_at = home.round_trip = None
        home.misses = 0
        self._requests.remove_where(lambda r: r.home is home and isinstance(r.message, messages.Hello))
        self._greet(now, home)
        for request in self._requests:
            if request.home is home and not isinstance(request.message, messages.Hello):
                request.attempts = 0
                self._send(now, request)

    def tls_down(self, now: Instant, socket_id: SocketId) -> None:
        """The TLS connection has ended.  What should have gone over it waits for the next one, or for UDP."""
        for home in self._homes:
            if home.is_tls and home.socket_id == socket_id:
                home.is_up = False

    def close(self, now: Instant) -> None:
        """Say goodbye once, without waiting for an answer."""
        if self._is_closed:
            return
        self._is_closed = True
        self._requests.remove_where(lambda request: True)
        if self._primary is not None and self._primary.cookie:
            transaction = int.from_bytes(self._entropy(8), "big")
            self._emit(self._primary.socket_id, self._primary.address, transaction, messages.Goodbye(), self._primary)

    # inputs and outputs

    def handle_datagram(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        """One datagram whose first byte is 0x41 or 0x42.  Rubbish is counted, nothing is raised."""
        if self._is_closed:
            return
        try:
            if data[0] == messages.RESPONSE:
                self._on_response(now, socket_id, remote, messages.decode_response(data))
            elif data[0] == messages.PUSH:
                self._on_push(now, socket_id, remote, messages.decode_push(data))
            else:
                self.drops["rendezvous_type"] += 1
        except (MalformedPacket, IndexError):
            self.drops["rendezvous_malformed"] += 1
        self._look_at_tls(now)

    def handle_timeout(self, now: Instant) -> None:
        if self._is_closed:
            return
        if self._rejoin_at is not None and now >= self._rejoin_at:
            self._rejoin_at = None
            self._join(now, self._wishes.refused_joins())
        self._refresh(now)
        for request in self._requests.due(now):
            home = request.home
            assert home is not None
            if request.is_probe and request.attempts >= PROBE_ATTEMPTS:
                self._requests.remove(request)
                continue
            if request.attempts and not request.is_probe and request.sent_at is not None:
                self._on_miss(now, home, request)
            self._send(now, request)
        self._seek(now)
        self._look_at_tls(now)

    def poll_timeout(self) -> Instant | None:
        if self._is_closed:
            return None
        refresh = min((home.refresh_at for home in self._homes), default=None)
        tls = self._tls.poll_timeout(self._primary) if self._tls is not None else None
        return earliest(self._requests.next_due(), refresh, self._rejoin_at, self._searches.poll_timeout(), tls)

    def poll_transmit(self, now: Instant) -> tuple[SocketId, Address, bytes] | None:
        return self._out.popleft() if self._out else None

    def poll_event(self) -> ClientEvent | None:
        return self._events.popleft() if self._events else None

    def _look_at_tls(self, now: Instant) -> None:
        change = self._tls.look(now, self._primary) if self._tls is not None else None
        if change is not None:
            self._events.append(change)

    # sending

    def _transaction(self) -> int:
        return int.from_bytes(self._entropy(8), "big")

    def _request(
        self,
        now: Instant,
        message: messages.RequestMessage,
        *,
        subject: object = None,
        expires_at: Instant | None = None,
        home: ServerAddress | None = None,
        is_probe: bool = False,
    ) -> None:
        """Send now, or as soon as a server address has answered."""
        if self._is_closed:
            return
        request = PendingRequest(
            self._transaction(),
            message,
            home or self._primary,
            now,
            subject=subject,
            expires_at=expires_at,
            is_probe=is_probe,
        )
        self._requests.add(request)
        if request.home is not None:
            self._send(now, request)

    def _send(self, now: Instant, request: PendingRequest) -> None:
        home = request.home
        assert home is not None
        message = request.message
        if isinstance(message, messages.Rebind):
            rebind = self._channels.next_rebind(message.channel, home.cookie)
            if rebind is None:
                self._requests.remove(request)
                return
            message = rebind
        target = home.second if request.is_probe and home.second is not None else home.address
        if home.asked_at is None and not request.is_probe:
            home.asked_at = now
        self._requests.on_sent(request, now)
        self._emit(home.socket_id, target, request.transaction, message, home)

    def _emit(
        self, socket_id: SocketId, target: Address, transaction: int, message: messages.RequestMessage, home: ServerAddress
    ) -> None:
        if not home.is_up:
            return
        cookie = b"" if isinstance(message, messages.Hello) else home.cookie
        datagram = messages.encode_request(transaction, self._session, message, cookie=cookie, access_token=self._access_token)
        self._out.append((socket_id, target, datagram))

    def _greet(self, now: Instant, home: ServerAddress) -> None:
        home.refresh_at = self._next_refresh(now, home)
        self._request(now, messages.Hello(), home=home)

    def _next_refresh(self, now: Instant, home: ServerAddress) -> Instant:
        is_standby = self._primary is not None and home is not self._primary
        interval = STANDBY_REFRESH if is_standby else REFRESH_INTERVAL
        return Instant(now + interval * (0.9 + 0.2 * self._rng.random()))

    def _refresh(self, now: Instant) -> None:
        for home in self._homes:
            if now < home.refresh_at:
                continue
            home.refresh_at = self._next_refresh(now, home)
            if any(r.home is home and isinstance(r.message, messages.Hello | messages.Refresh) for r in self._requests):
                continue  # the last one is still being repeated
            if home is self._primary:
                self._request(now, messages.Refresh(), home=home)
            else:
                self._request(now, messages.Hello(), home=home)

    # registrations

    def _join(self, now: Instant, wanted: Iterable[messages.Join]) -> None:
        for message in wanted:
            self._request(now, message)

    def _forget_leaving(self, now: Instant, rooms: Iterable[bytes]) -> None:
        """A Leave that is still being repeated must not undo the Join that comes after it."""
        wanted = set(rooms)
        for request in self._requests:
            message = request.message
            if isinstance(message, messages.Leave) and not wanted.isdisjoint(message.rooms):
                self._requests.remove(request)
                rest = tuple(room for room in message.rooms if room not in wanted)
                if rest:
                    self._request(now, messages.Leave(rooms=rest), expires_at=Instant(now + POST_LIFETIME))

    def _register(self, now: Instant) -> None:
        """Everything again: the server has forgotten us."""
        self._requests.remove_where(lambda r: isinstance(r.message, messages.Join | messages.Rebind | messages.Restore))
        self._join(now, self._wishes.all_joins())
        pending = {r.message.wanted for r in self._requests if isinstance(r.message, messages.Allocate)}
        for nameplate, own in self._wishes.nameplates.items():
            if nameplate not in pending:
                self._request(now, messages.Allocate(nameplate, *own), subject=nameplate)
        self._rebind_all(now)

    def _may_be_forgotten(self, now: Instant) -> bool:
        """After a sleep, another request may have made a new and empty session before this one asked whether there is one."""
        return self._surely_known_until is not None and now > self._surely_known_until

    def _rebind_all(self, now: Instant) -> None:
        """Our address changed, or the server forgot: claim our side of every channel."""
        for channel in self._channels:
            self._rebind(now, channel)

    def _rebind(self, now: Instant, info: RelayChannel) -> None:
        self._requests.remove_where(lambda r: isinstance(r.message, messages.Rebind) and r.message.channel == info.channel)
        self._request(now, messages.Rebind(info.channel, info.side, 0, bytes(messages.MAC_SIZE)), subject=info.channel)

    def _set_primary(self, now: Instant, home: ServerAddress) -> None:
        if self._primary is home:
            return
        former, self._primary = self._primary, home
        for request in self._requests:
            if request.is_probe or isinstance(request.message, messages.Hello):
                continue
            if request.home is None or request.home is former:
                request.home = home
                request.attempts = 0
                self._send(now, request)
        self._give_up(lambda each: home.is_named)
        if former is None:
            return
        self._events.extend(self._channels.move_all(home.socket_id, home.address))
        self._request(now, messages.Refresh(), home=home)
        if home.instance is not None and former.instance is not None and home.instance != former.instance:
            self._register(now)  # another server, which knows nothing of us whatever came first
        else:
            self._rebind_all(now)
        if former in self._homes:
            self._greet(now, former)

    # answers

    def _on_response(self, now: Instant, socket_id: SocketId, remote: Address, response: messages.Response) -> None:
        request = self._requests.get(response.transaction)
        home = request.home if request is not None else None
        if request is None or home is None or request.sent_at is None:
            self.drops["rendezvous_transaction"] += 1
            return
        if socket_id != home.socket_id or remote != (home.second if request.is_probe else home.address):
            self.drops["rendezvous_source"] += 1
            return
        if request.is_probe:
            self._on_probe_answer(home, request, response.message)
            return
        self._on_alive(now, home, request)
        message = response.message
        if isinstance(message, messages.Retry | messages.Welcome) and message.unix_time:
            self._calendar = message.unix_time, now
        if isinstance(message, messages.Retry):
            self._on_retry(now, home, request, message)
            return
        if isinstance(message, messages.Refused) and message.code in (RefusalCode.SLOW_DOWN, RefusalCode.CLOSING):
            request.due_at = Instant(now + max(1, message.retry_after_s))
            request.attempts = 0  # it was answered: what comes next is no repetition that the server has missed
            return
        self._requests.remove(request)
        match message:
            case messages.Welcome():
                you = messages.unpack_address(message.you)
                home.cookie = message.cookie
                self._on_instance(now, home, message.instance)
                self._on_reflexive(now, home, you)
                if (not message.known or self._may_be_forgotten(now)) and now >= self._full_until:
                    self._register(now)
                self._surely_known_until = Instant(now + SURELY_KNOWN * message.lifetime_s)
            case messages.Allocated(nameplate=nameplate, ticket=ticket):
                if not isinstance(request.message, messages.Allocate):
                    self.drops["rendezvous_answer"] += 1
                    return
                if request.subject is None or nameplate in self._wishes.nameplates:
                    self._wishes.nameplates[nameplate] = OwnNumber(request.message.claims, ticket)
                if request.subject is None:
                    self._events.append(events.Allocated(nameplate=nameplate, expires_s=message.expires_s))
            case messages.ClaimAccepted():
                if not isinstance(request.message, messages.Claim):
                    self.drops["rendezvous_answer"] += 1
                    return
                channel = self._add_channel(home, message.channel, message.token, message.side)
                self._searches.pop(request.message.nameplate, None)
                self._events.append(
                    events.ClaimAccepted(nameplate=request.message.nameplate, mailbox=message.mailbox, channel=channel)
                )
            case messages.Done():
                self._on_done(now, request, message.granted)
            case messages.Refused():
                self._on_refused(now, request, message)
            case _:
                assert_never(message)

    def _on_alive(self, now: Instant, home: ServerAddress, request: PendingRequest) -> None:
        if request.attempts == 1 and request.sent_at is not None:  # Karn: a repeated request's answer is ambiguous
            sample = Seconds(now - request.sent_at)
            home.round_trip = sample if home.round_trip is None else Seconds(0.75 * home.round_trip + 0.25 * sample)
        home.answered_at = now
        home.answered_after = Seconds(0.0 if home.asked_at is None else now - home.asked_at)
        home.asked_at = None
        home.misses = 0

    def _on_retry(self, now: Instant, home: ServerAddress, request: PendingRequest, message: messages.Retry) -> None:
        you = messages.unpack_address(message.you)
        second_host = messages.unpack_host(message.second_host) if message.second_host else home.address.host
        home.cookie = message.cookie
        is_hello = isinstance(request.message, messages.Hello)
        if is_hello:
            self._requests.remove(request)
        is_new = home.reflexive is None
        is_credible = bool(message.second_port) and may_be_second(home.address.host, second_host)
        home.second = Address(second_host, message.second_port) if is_credible else None
        if home.instance is None:
            home.instance = message.instance
        if self._primary is None:
            home.reflexive = you
            self._surely_known_until = Instant(now + FIRST_WELCOME)
            self._set_primary(now, home)
        elif self._is_better(now, home, self._primary):
            self._set_primary(now, home)
        self._on_instance(now, home, message.instance)
        self._on_reflexive(now, home, you)
        if is_new and not home.is_tls:
            self._events.append(events.ReflexiveChanged(socket_id=home.socket_id, address=you))
            self._probe_mapping(now, home)
        self._check_reached(home)
        self._seek(now)
        if not is_hello and request.home is not None:
            if request.attempts > 20 and now < request.due_at:
                return  # a server that never accepts its own cookies is repeated at the slow pace
            self._send(now, request)

    def _is_better(self, now: Instant, home: ServerAddress, primary: ServerAddress) -> bool:
        """Whether to leave the primary address for one that just answered: TLS for UDP at once, UDP for TLS when it is silent."""
        if home is primary:
            return False
        if primary.is_tls:
            return not home.is_tls or not primary.is_up
        if not self.is_reached:
            return True
        return home.is_tls and self._tls is not None and self._tls.is_silent(now, primary)

    def _check_reached(self, home: ServerAddress) -> None:
        if home is self._primary and not self.is_reached:
            self.is_reached = True
            self._events.append(
                events.Reached(server=home.address, reflexive=self.reflexive, round_trip=home.round_trip or Seconds(0.0))
            )

    def _probe_mapping(self, now: Instant, home: ServerAddress) -> None:
        home.second_reflexive = None
        may_ask = len(home.probes) < PROBES or now - home.probes[0] >= PROBES_PERIOD
        if home.second is not None and may_ask:
            home.probes.append(now)
            self._requests.remove_where(lambda r: r.is_probe and r.home is home)
            self._request(now, messages.Hello(), home=home, is_probe=True)

    def _on_probe_answer(self, home: ServerAddress, request: PendingRequest, message: messages.ResponseMessage) -> None:
        self._requests.remove(request)
        if isinstance(message, messages.Retry):
            home.second_reflexive = messages.unpack_address(message.you)

    def _on_reflexive(self, now: Instant, home: ServerAddress, address: Address) -> None:
        self._check_reached(home)
        if home.reflexive == address:
            return
        known = home.reflexive is not None
        home.reflexive = address
        if not may_name(home.address.host, address.host):
            self.drops["rendezvous_reflexive"] += 1
        if known:
            if not home.is_tls:
                self._events.append(events.ReflexiveChanged(socket_id=home.socket_id, address=address))
                self._probe_mapping(now, home)
            if home is self._primary:
                self._rebind_all(now)

    def _on_instance(self, now: Instant, home: ServerAddress, instance: int) -> None:
        known, home.instance = home.instance, instance
        if home is self._primary and known is not None and known != instance:
            self._register(now)

    def _on_done(self, now: Instant, request: PendingRequest, granted: int) -> None:
        message = request.message
        if not isinstance(message, messages.Join):
            return
        refused = tuple(room for index, room in enumerate(message.rooms) if not granted >> index & 1)
        if refused:
            self._rejoin_at = self._after_full(now)
            self._wishes.refuse(message, refused)
            self._events.append(
                events.Refused(
                    what=role_name(message.role),
                    code=RefusalCode.FULL,
                    text="the room or the server is full",
                    retry_after=RETRY_AFTER_FULL,
                    rooms=refused,
                )
            )

    def _after_full(self, now: Instant, told_s: int = 0) -> Instant:
        """When to ask again: not before we are told, and not all at once."""
        return Instant(now + max(RETRY_AFTER_FULL, told_s) * (1.0 + 0.1 * self._rng.random()))

    def _on_refused(self, now: Instant, request: PendingRequest, message: messages.Refused) -> None:
        if message.code == RefusalCode.FULL and not isinstance(request.message, messages.Claim | messages.Post):
            self._full_until = self._after_full(now, message.retry_after_s)
        match request.message:
            case messages.Allocate(wanted=wanted) if wanted:
                self._wishes.nameplates.pop(wanted, None)
                self._events.append(events.NameplateLost(nameplate=wanted))
                return
            case messages.Join() as join:
                self._rejoin_at = self._after_full(now, message.retry_after_s)
                self._wishes.refuse(join, join.rooms)
            case messages.Rebind(channel=identifier, side=side):
                info = self._channels.get(identifier)
                if info is not None and message.code in (RefusalCode.UNKNOWN_CHANNEL, RefusalCode.BAD_MAC):
                    self._request(now, messages.Restore(identifier, side, info.token))
                return
            case messages.Restore(channel=identifier):
                self._end_channel(identifier, GoneReason.UNKNOWN)
                return
            case messages.Release() | messages.Leave():
                return
            case messages.Claim() as claim if message.code in ELSEWHERE:
                self._searches.refused(now, claim, request.home.instance if request.home is not None else None, message)
                self._seek(now)
                return
            case _:
                pass
        self._events.append(refusal_of(request.message, message, bool(self._access_token)))

    def _seek(self, now: Instant) -> None:
        """Ask the next server of this name for codes that the others do not know.  We move there: that is where the peer is."""
        for nameplate, search in list(self._searches.items()):
            if search.is_asking:
                continue
            may_move = not any(self._channels)  # else what stands would be given up for what is only looked for
            home = search.next(self._homes) if may_move else None
            if home is not None:
                search.is_asking = True
                self._set_primary(now, home)
                self._request(now, search.claim, subject=nameplate)
            elif not may_move or search.is_over(now, self._homes):
                del self._searches[nameplate]
                self._events.append(refusal_of(search.claim, search.refusal, bool(self._access_token)))

    # pushes

    def _on_push(self, now: Instant, socket_id: SocketId, remote: Address, push: messages.Push) -> None:
        home = next((h for h in self._homes if h.socket_id == socket_id and h.address == remote), None)
        if home is None:
            self.drops["rendezvous_source"] += 1
            return
        if push.session != self._session:
            if push.session == bytes(messages.SESSION_SIZE) and isinstance(push.message, messages.Gone):
                self._on_hint(now, push.message)
            else:
                self.drops["rendezvous_session"] += 1
            return
        self._out.append((socket_id, remote, messages.encode_push_ack(self._session, push.push_id)))
        if push.push_id in self._seen:
            return
        self._seen[push.push_id] = None
        if len(self._seen) > SEEN_PUSHES:
            self._seen.popitem(last=False)
        match push.message:
            case messages.ClaimReceived(nameplate=nameplate, mailbox=mailbox, body=body) as message:
                if self._channels.is_full:
                    self._refuse_channel(now, message.channel)
                    return
                channel = self._add_channel(home, message.channel, message.token, message.side)
                self._events.append(events.ClaimReceived(nameplate=nameplate, mailbox=mailbox, body=body, channel=channel))
            case messages.Posted(mailbox=mailbox, body=body):
                self._events.append(events.Posted(mailbox=mailbox, body=body))
            case messages.Introduced(room=room) as message:
                if not self._wishes.knows_room(room) or self._channels.is_full:
                    self._refuse_channel(now, message.channel)
                    return
                channel = self._add_channel(home, message.channel, message.token, message.side)
                self._events.append(events.Introduced(room=room, channel=channel))
                if self._wishes.refused:  # a server that lets nobody wait but its guests: we may be one now
                    self._rejoin_at = now
            case messages.Gone(kind=kind, identifier=identifier, reason=reason):
                if kind == GoneKind.CHANNEL:
                    self._end_channel(identifier, reason)
                elif kind == GoneKind.MAILBOX:
                    self._events.append(events.PeerGone(channel=None, mailbox=identifier, reason=reason))
            case messages.Unmet(room=room):
                if room in self._wishes.listening:
                    self._events.append(events.Unmet(room=room))
            case messages.Bye():
                self._on_lost(now, now)
                for each in self._homes:
                    each.refresh_at = Instant(now + AFTER_BYE)
            case _:
                assert_never(push.message)

    def _refuse_channel(self, now: Instant, channel: bytes) -> None:
        """We do not wait there any more, or hold enough: what others open pushes out nothing that is in use."""
        self.drops["rendezvous_channel"] += 1
        self._request(now, messages.Leave(channels=(channel,)), expires_at=Instant(now + POST_LIFETIME))

    def _on_hint(self, now: Instant, message: messages.Gone) -> None:
        """The server does not know our channel from our address.  Anybody may say so; we only ask, and not often."""
        info = self._channels.take_hint(now, message.identifier)
        if info is None:
            self.drops["rendezvous_hint"] += 1
            return
        self._rebind(now, info)

    def _add_channel(self, home: ServerAddress, channel: bytes, token: bytes, side: int) -> RelayChannel:
        return self._channels.add(RelayChannel(channel, token, side, home.socket_id, home.address))

    def _end_channel(self, identifier: bytes, reason: int) -> None:
        info = self._channels.remove(identifier)
        if info is not None:
            with contextlib.suppress(ValueError):
                reason = GoneReason(reason)
            self._events.append(events.PeerGone(channel=info, mailbox=None, reason=reason))

    # silence

    def _on_miss(self, now: Instant, home: ServerAddress, request: PendingRequest) -> None:
        home.misses += 1
        if home is not self._primary:
            return
        if home.misses == 2:  # ask the other addresses whether they fare better
            for other in self._homes:
                if other is not home:
                    other.refresh_at = now
            self._refresh(now)
        if request.attempts < LOST_AFTER:
            return
        asked_at = home.asked_at if home.asked_at is not None else now
        for other in self._homes:
            if other is not home and other.is_up and other.answered_at is not None and other.answered_at > asked_at:
                self._set_primary(now, other)
                return
        self._on_lost(now, asked_at)

    def _on_lost(self, now: Instant, since: Instant) -> None:
        if self.is_reached:
            self.is_reached = False
            self._events.append(events.Lost(since=since))
