"""The talk with one server, whatever it is about: its addresses, which of them is in use, cookies, questions and silence.

Every address is greeted at once; the first to answer becomes the primary one, which carries all requests.  The others
keep their NAT mapping warm, and take over when the primary one falls silent.  Several servers may go by one name: then some
addresses are of another server than the primary one, and are held where that knows something of us too.

Where UDP gets no answer the owner is asked for another route (see fallback.py), which is one more address of the server.  UDP is
greeted on, and takes over as soon as it answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from tunnel.core.scope import may_be_second, may_name
from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.addresses import LOST_AFTER, PROBES, PROBES_PERIOD, Addresses, ServerAddress
from tunnel.rendezvous.events import ClientEvent, Hearer
from tunnel.rendezvous.fallback import FallbackWish
from tunnel.rendezvous.messages import RefusalCode
from tunnel.rendezvous.requests import PendingRequest, RequestTable
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    from random import Random

REFRESH_INTERVAL: Final = Seconds(7.0)  # some NATs forget a mapping after 8 s, and pushes must find us; ±10 % of jitter
STANDBY_REFRESH: Final = Seconds(20.0)  # of the addresses that carry no registration: nothing is pushed there
TOLD_REFRESH: Final = Seconds(300.0)  # of those of other servers in a fleet: they are asked at once when they are needed
PROBE_ATTEMPTS: Final = 4  # sendings to what is only a server's word, the second socket for one, before it counts as unknown
SURELY_KNOWN: Final = 0.75  # share of the lifetime that the server gives us; a request and its answer take their time too
FIRST_WELCOME: Final = Seconds(3.0 * REFRESH_INTERVAL)  # by then the first Refresh should have been answered
ENDLESS_RETRY: Final = 20  # Retrys of one request, after which it is repeated at the slow pace only
PARTINGS: Final = 3  # goodbyes for each former self, as none is answered ...
PARTING_INTERVAL: Final = Seconds(1.0)  # ... and the time between two of them


class Contact(Addresses, ABC):
    """Never blocks, never gives up.  What is asked for, and what follows from the answers, is the subclass's."""

    def __init__(
        self,
        *,
        servers: list[tuple[SocketId, Address]],
        now: Instant,
        rng: Random,
        entropy: Callable[[int], bytes],
        access_token: bytes = b"",
        has_fallback: bool = False,
        former: Iterable[bytes] = (),
    ) -> None:
        """`has_fallback`: the owner can open another route, and wants to hear when one is needed.

        `former`: sessions of processes of ours that died without a goodbye.  It is said for them before anything else.
        """
        self._entropy = entropy
        self._rng = rng
        self._access_token = access_token
        self._session = entropy(messages.SESSION_SIZE)
        self._former = tuple(former)
        self._partings = PARTINGS if self._former else 0
        self._part_at = now  # once there is somebody to say it to
        super().__init__(ServerAddress(socket_id, address, now) for socket_id, address in servers)
        self._requests = RequestTable(rng)
        self._out: deque[tuple[SocketId, Address, bytes]] = deque()
        self._events: deque[ClientEvent] = deque()
        self._calendar: tuple[int, Instant] | None = None  # what the server said it was, and when
        self._is_closed = False
        self._fallback = FallbackWish(now) if has_fallback else None
        self.drops = Drops()
        self.is_reached = False
        for home in self._homes:
            self._greet(now, home)

    # what the subclass does

    @abstractmethod
    def _on_answer(self, now: Instant, home: ServerAddress, request: PendingRequest, message: messages.ResponseMessage) -> None:
        """The answer to a request that is not about the contact itself."""

    @abstractmethod
    def _register(self, now: Instant, home: ServerAddress) -> None:
        """The server there has forgotten us: ask for everything again."""

    @abstractmethod
    def _on_moved(self, now: Instant, former: ServerAddress, home: ServerAddress) -> None:
        """Go on at `home` with all that we had with the server at `former`."""

    @abstractmethod
    def _rebind_at(self, now: Instant, home: ServerAddress) -> None:
        """The server there sees us elsewhere than before."""

    @abstractmethod
    def _hold(self, now: Instant) -> None:
        """Which servers answer, or which is the primary one, may have changed: hold those that should know of us too."""

    @abstractmethod
    def _current(self, request: PendingRequest, home: ServerAddress) -> messages.RequestMessage | None:
        """The message as it has to be sent now; None: no more."""

    @property
    def session(self) -> bytes:
        """The secret by which the server knows us."""
        return self._session

    def unix_time(self, now: Instant) -> float | None:
        """The server's calendar; None while it has not told."""
        return None if self._calendar is None else self._calendar[0] + (now - self._calendar[1])

    # verbs

    def network_changed(self, now: Instant) -> None:
        """The host roamed or woke up: greet every address at once instead of at the next refresh."""
        for home in self._homes:
            home.refresh_at = now
            home.round_trip = None
        self._requests.remove_where(lambda r: isinstance(r.message, messages.Hello | messages.Refresh))
        if self._fallback is not None:
            self._fallback.restart(now)
        self._refresh(now)

    def move(self, now: Instant, servers: Iterable[tuple[SocketId, Address]]) -> None:
        """The server's name leads here now.  New addresses are greeted beside those that we know.

        Where it led before is given up when another address has answered, and at once what never answered.
        """
        wanted = dict.fromkeys(servers)
        for home in self._homes:
            home.is_named = home.is_fallback or home.is_told or (home.socket_id, home.address) in wanted
            wanted.pop((home.socket_id, home.address), None)
        self._give_up(lambda home: home.answered_at is None)
        for socket_id, address in wanted:
            home = ServerAddress(socket_id, address, now)
            self._homes.append(home)
            self._greet(now, home)

    def _give_up(self, condition: Callable[[ServerAddress], bool]) -> None:
        """Of the addresses that the name leads to no more, and that are not in use."""
        for home in [
            each
            for each in self._homes
            if not (each.is_named or each.is_told) and each is not self._primary and not each.is_held and condition(each)
        ]:
            self._forget_home(home)

    def _forget_home(self, home: ServerAddress) -> None:
        self._homes.remove(home)
        self._requests.remove_where(lambda r: r.home is home)

    def doubt(self, now: Instant, path: PathKey) -> None:
        """Something that should come by that path does not: ask the server there at once, unless a question is under way."""
        for home in (self._primary, self._home_at(path.socket_id, path.remote)):
            if home is not None and home.asked_at is None:
                home.refresh_at = now
                self._refresh(now)

    def close(self, now: Instant) -> None:
        """Say goodbye once, without waiting for an answer."""
        if self._is_closed:
            return
        self._is_closed = True
        self._requests.remove_where(lambda request: True)
        if self._primary is not None and self._primary.cookie:
            self._emit(self._primary.address, self._transaction(), messages.Goodbye(), self._primary)

    # time and outputs

    def handle_timeout(self, now: Instant) -> None:
        self._part(now)
        self._refresh(now)
        for request in self._requests.due(now):
            home = request.home
            assert home is not None
            is_unproven = request.is_probe or (home.answered_at is None and not home.is_named)
            if is_unproven and request.attempts >= PROBE_ATTEMPTS:
                self._requests.remove(request)
                continue
            if request.attempts and not request.is_probe and request.sent_at is not None:
                self._on_miss(now, home, request)
            self._send(now, request)

    def poll_timeout(self) -> Instant | None:
        refresh = min((home.refresh_at for home in self._homes), default=None)
        fallback = self._fallback.poll_timeout(self._primary) if self._fallback is not None else None
        parting = self._part_at if self._partings and self._primary is not None else None
        return earliest(self._requests.next_due(), refresh, fallback, parting)

    def poll_transmit(self, now: Instant) -> tuple[SocketId, Address, bytes] | None:
        return self._out.popleft() if self._out else None

    def poll_event(self) -> ClientEvent | None:
        return self._events.popleft() if self._events else None

    # sending

    def _transaction(self) -> int:
        return int.from_bytes(self._entropy(8), "big")

    def _request(
        self,
        now: Instant,
        message: messages.RequestMessage,
        *,
        hearer: Hearer | None = None,
        lifetime: Seconds | None = None,
        home: ServerAddress | None = None,
        is_probe: bool = False,
    ) -> None:
        """Send now, or as soon as a server address has answered.  With `lifetime` it is not repeated for longer."""
        if self._is_closed:
            return
        request = PendingRequest(
            self._transaction(),
            message,
            home or self._primary,
            now,
            hearer=hearer,
            expires_at=None if lifetime is None else Instant(now + lifetime),
            is_probe=is_probe,
        )
        self._requests.add(request)
        if request.home is not None:
            self._send(now, request)

    def _send(self, now: Instant, request: PendingRequest) -> None:
        home = request.home
        assert home is not None
        message = self._current(request, home)
        if message is None:
            self._requests.remove(request)
            return
        target = home.second if request.is_probe and home.second is not None else home.address
        if home.asked_at is None and not request.is_probe:
            home.asked_at = now
        self._requests.on_sent(request, now)
        self._emit(target, request.transaction, message, home)

    def _emit(
        self, target: Address, transaction: int, message: messages.RequestMessage, home: ServerAddress, session: bytes = b""
    ) -> None:
        """`session`: for whom; empty: for ourselves."""
        if not home.is_up:
            return
        session = session or self._session
        cookie = b"" if isinstance(message, messages.Hello) else home.cookie
        datagram = messages.encode_request(transaction, session, message, cookie=cookie, access_token=self._access_token)
        self._out.append((home.socket_id, target, datagram))

    def _part(self, now: Instant) -> None:
        """Say goodbye for former selves, where that is due: the server would lead others, and us, to them for a while."""
        home = self._primary
        if not self._partings or now < self._part_at or home is None:
            return
        self._partings -= 1
        self._part_at = Instant(now + PARTING_INTERVAL)
        self._part_there(home)

    def _part_there(self, home: ServerAddress) -> None:
        for session in self._former:
            self._emit(home.address, self._transaction(), messages.Goodbye(), home, session)

    def _greet(self, now: Instant, home: ServerAddress) -> None:
        home.refresh_at = self._next_refresh(now, home)
        self._request(now, messages.Hello(), home=home)

    def _next_refresh(self, now: Instant, home: ServerAddress) -> Instant:
        is_standby = self._primary is not None and home is not self._primary and not home.is_held
        interval = (TOLD_REFRESH if home.is_told else STANDBY_REFRESH) if is_standby else REFRESH_INTERVAL
        return Instant(now + interval * (0.9 + 0.2 * self._rng.random()))

    def _refresh(self, now: Instant) -> None:
        for home in self._homes:
            if now < home.refresh_at:
                continue
            home.refresh_at = self._next_refresh(now, home)
            if any(r.home is home and isinstance(r.message, messages.Hello | messages.Refresh) for r in self._requests):
                continue  # the last one is still being repeated
            is_registered = home is self._primary or home.is_held
            self._request(now, messages.Refresh() if is_registered else messages.Hello(), home=home)

    def _set_primary(self, now: Instant, home: ServerAddress, *, moves_channels: bool = True) -> None:
        if self._primary is home:
            return
        former, self._primary = self._primary, home
        self._before = None if former is None else former.instance
        home.is_held = False
        self._part(now)  # before what is asked for now: else the server leads us to ourselves
        for request in self._requests:
            if request.is_probe or isinstance(request.message, messages.Hello):
                continue
            if not moves_channels and isinstance(request.message, messages.Rebind | messages.Restore):
                continue
            if request.home is None or request.home is former:
                request.home = home
                request.attempts = 0
                self._send(now, request)
        self._give_up(lambda each: home.is_named)
        if former is None:
            return
        if moves_channels:
            self._on_moved(now, former, home)
        self._request(now, messages.Refresh(), home=home)
        if home.instance is not None and former.instance is not None and home.instance != former.instance:
            self._register(now, home)  # another server, which knows nothing of us whatever came first
        else:
            self._rebind_at(now, home)
        if former in self._homes and former.leaves_until is None:
            self._greet(now, former)
        self._hold(now)

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
        message = response.message
        if request.is_probe:
            self._requests.remove(request)
            if isinstance(message, messages.Retry):
                home.second_reflexive = messages.unpack_address(message.you)
            return
        home.on_answered(now, request.sent_at if request.attempts == 1 else None)
        match message:
            case messages.Retry():
                self._on_retry(now, home, request, message)
            case messages.Refused(code=RefusalCode.SLOW_DOWN | RefusalCode.CLOSING, retry_after_s=seconds):
                request.due_at = Instant(now + max(1, seconds))
                request.attempts = 0  # it was answered: what comes next is no repetition that the server has missed
            case messages.Welcome():
                self._requests.remove(request)
                self._on_welcome(now, home, message)
            case _:
                self._requests.remove(request)
                self._on_answer(now, home, request, message)

    def _on_welcome(self, now: Instant, home: ServerAddress, message: messages.Welcome) -> None:
        you = messages.unpack_address(message.you)
        if message.unix_time:
            self._calendar = message.unix_time, now
        home.cookie = message.cookie
        self._on_instance(now, home, message.instance)
        self._on_reflexive(now, home, you)
        is_registered = home is self._primary or home.is_held
        is_forgotten = not message.known or home.has_refused or self._may_be_forgotten(now, home)
        if is_registered and is_forgotten and now >= home.full_until:
            self._register(now, home)
        home.surely_known_until = Instant(now + SURELY_KNOWN * message.lifetime_s)
        self._on_epoch(now, home, message.epoch)

    @staticmethod
    def _may_be_forgotten(now: Instant, home: ServerAddress) -> bool:
        """After a sleep, another request may have made a new and empty session before this one asked whether there is one."""
        return home.surely_known_until is not None and now > home.surely_known_until

    def _on_retry(self, now: Instant, home: ServerAddress, request: PendingRequest, message: messages.Retry) -> None:
        if message.unix_time:
            self._calendar = message.unix_time, now
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
        elif home.instance != message.instance:  # it has begun anew, and what it left unanswered before is not its fault
            for each in self._requests:
                if each.home is home:
                    each.attempts, each.due_at = 0, now
        if self._primary is None:
            home.reflexive = you
            home.surely_known_until = Instant(now + FIRST_WELCOME)
            self._set_primary(now, home)
        elif self._is_better(now, home, self._primary):
            self._set_primary(now, home)
        self._on_instance(now, home, message.instance)
        self._on_reflexive(now, home, you)
        if is_new and not home.is_fallback:
            self._events.append(events.ReflexiveChanged(socket_id=home.socket_id, address=you))
            self._probe_mapping(now, home)
        self._check_reached(home)
        self._hold(now)
        self._on_epoch(now, home, message.epoch)
        self._on_greeted(now)
        if not is_hello and request.home is not None and not (request.attempts > ENDLESS_RETRY and now < request.due_at):
            self._send(now, request)

    @abstractmethod
    def _on_epoch(self, now: Instant, home: ServerAddress, epoch: int) -> None:
        """The server has said which list of servers it has."""

    def _on_greeted(self, now: Instant) -> None:
        """One more address has answered, maybe."""

    def _is_better(self, now: Instant, home: ServerAddress, primary: ServerAddress) -> bool:
        """Whether to leave the primary address for one that just answered: a fallback for UDP when that is silent, UDP for a
        fallback at once."""
        if home is primary:
            return False
        if primary.is_leaving(now) and home.is_well(now) and not home.is_fallback:
            return True
        if primary.is_fallback:
            return not home.is_fallback or not primary.is_up
        if not self.is_reached:
            return True
        return home.is_fallback and self._fallback is not None and self._fallback.is_silent(now, primary)

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

    def _on_reflexive(self, now: Instant, home: ServerAddress, address: Address) -> None:
        self._check_reached(home)
        if home.reflexive == address:
            return
        known = home.reflexive is not None
        home.reflexive = address
        if not may_name(home.address.host, address.host):
            self.drops["rendezvous_reflexive"] += 1
        if known:
            if not home.is_fallback:
                self._events.append(events.ReflexiveChanged(socket_id=home.socket_id, address=address))
                self._probe_mapping(now, home)
            if home is self._primary or home.is_held:
                self._rebind_at(now, home)

    def _on_instance(self, now: Instant, home: ServerAddress, instance: int) -> None:
        known, home.instance = home.instance, instance
        if known is None or known == instance:
            return
        home.leaves_until, home.load = None, 0
        for other in self._homes:  # that were of the same server: of which are they now?
            if other.instance == known and other is not self._primary and not other.is_held:
                other.instance, other.leaves_until = None, None
                other.refresh_at = min(other.refresh_at, now)
        if home is self._primary or home.is_held:
            self._register(now, home)

    # silence

    def _on_miss(self, now: Instant, home: ServerAddress, request: PendingRequest) -> None:
        home.on_missed(request.attempts)
        misses = request.miss(home.answers)
        if home is not self._primary:
            if home.is_held and home.misses == LOST_AFTER:
                self._hold(now)
            return
        if home.misses == 2:  # ask the other addresses whether they fare better
            for other in self._homes:
                if other is not home:
                    other.refresh_at = now
            self._refresh(now)
        if misses < LOST_AFTER:
            return
        asked_at = home.asked_at if home.asked_at is not None else now
        substitute = self._substitute(now, home, asked_at)
        if substitute is not None:
            self._set_primary(now, substitute)
        else:
            self._on_lost(asked_at)

    def _on_lost(self, since: Instant) -> None:
        if self.is_reached:
            self.is_reached = False
            self._events.append(events.Lost(since=since))
