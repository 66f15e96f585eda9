"""The rendezvous server's whole decision-making, without a socket, a clock or a store.

A datagram goes in, answers and pushes come out of poll_transmit; relayed bursts are returned by handle_batch at once, because
they are views of the buffer that came in.  Nothing that a stranger sends is remembered: state begins with a valid cookie.

Long because every request is answered here, beside the others: what each may do to the shared state is read in one place.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, assert_never

from tunnel.core.prefixes import prefixes
from tunnel.core.timers import earliest
from tunnel.core.trace import Drops, Trace
from tunnel.errors import MalformedPacket
from tunnel.rendezvous import messages
from tunnel.rendezvous.access import Gate
from tunnel.rendezvous.admission import Cookies, TreeBuckets
from tunnel.rendezvous.codes import Codes, Refusal
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.load import MOST_AT_ONCE, TYPICAL, Kind, Load
from tunnel.rendezvous.messages import GoneKind, GoneReason, RefusalCode, Role
from tunnel.rendezvous.numbers import Numbers
from tunnel.rendezvous.pushes import Pushes
from tunnel.rendezvous.registry import Dial, Mailbox, Registry, Session
from tunnel.rendezvous.relay import CHANNEL_BYTE, Channel, Moved, Relay
from tunnel.rendezvous.strangers import Strangers
from tunnel.rendezvous.stun import ServerSocket, StunCodec
from tunnel.units import Address, Buffer, Instant, Seconds, SocketId, Transmit

__all__ = ["Server", "ServerConfig", "ServerSocket", "StunCodec"]

DIRECTORY_KINDS: Final = frozenset(b"i \t\r\n")  # `ip ver`, white space around it forgiven
SWEEP_INTERVAL: Final = Seconds(2.0)  # between looks for what has expired
CHANNEL_SWEEP_INTERVAL: Final = Seconds(15.0)  # between looks at all channels, which cost more
OWNER_SIDE: Final = 0  # of a channel: whoever allocated or listened
PAID_REFUSALS: Final = frozenset({RefusalCode.UNKNOWN_NAMEPLATE, RefusalCode.SPENT, RefusalCode.TAKEN})  # a repetition is free
UNMET_INTERVAL: Final = Seconds(30.0)  # between words to one listener that dialers could not be led to it
MAX_QUEUE: Final = 4096  # answers waiting for a socket; more are dropped and asked for again
RETRY_FULL: Final = 30  # seconds after which who found no room asks again
CROWDED: Final = "the server has too many clients, or too many from this address"


class Inbound(NamedTuple):
    """Where a request came from and what it was."""

    socket_id: SocketId
    remote: Address
    request: messages.Request
    size: int  # bytes of it


class Server:
    """One server.  Its neighbours keep what it decides about: registry, relay, pushes, codes, strangers, admission."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        sockets: Sequence[ServerSocket],
        now: Instant,
        entropy: Callable[[int], bytes],
        stun: StunCodec | None = None,
        trace: Trace | None = None,
        secret: bytes | None = None,
        unix_time: Callable[[], int] = lambda: 0,
    ) -> None:
        """`secret`: 32 random bytes of this server alone, the same after each restart; see numbers.py.

        `unix_time` is the calendar that clients are told, in seconds since 1970; 0: none.
        """
        self.config = config
        self.drops = Drops()
        self.relay = Relay(config, entropy)
        self._kind = Kind.DROPPED  # of the batch that is handled, or was last
        self._charged = 0.0  # seconds, of those that it will turn out to have taken
        self._numbers = Numbers(config, entropy, secret)
        self.registry = Registry(config, entropy, self._numbers, self.relay.has_met)
        self._trace = trace
        self._unix_time = unix_time
        self._sockets = {each.socket_id: each for each in sockets}
        self._seconds: dict[SocketId, tuple[int, bytes]] = {}
        self._cookies = Cookies(entropy)
        self._instance = int.from_bytes(entropy(8), "big")
        self._strangers = Strangers(config, sockets, stun, entropy, self.drops)
        self._pushes = Pushes(config, self.registry, entropy, self.drops, self._queue)
        salt = entropy(16)  # of tables in which nobody shall choose whom he shares a slot with
        self._request_rate = TreeBuckets(config.requests_per_second, config.request_burst, salt)
        self.load = Load(self.relay.ceiling, salt, self.registry.session_shares.held)
        self._gate = Gate(config.access, entropy)
        self._codes = Codes(config, self.registry, self._numbers, entropy)
        self._out: deque[tuple[SocketId, Address, bytes]] = deque()
        self._sweep_at = Instant(now + SWEEP_INTERVAL)
        self._channel_sweep_at = Instant(now + CHANNEL_SWEEP_INTERVAL)
        self._counts: Counter[str] = Counter()
        self._proofs = 0
        self._is_stopping = False
        self._to_leave: deque[Session] = deque()  # sessions that have not been told Bye

    def add_socket(self, socket: ServerSocket) -> None:
        """One more address of ours that a socket answers for; the owner bounds how many."""
        self._sockets[socket.socket_id] = socket
        self._strangers.add_socket(socket)

    # inputs

    def handle_batch(
        self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int, ecn: int = 0
    ) -> list[Transmit]:
        """All datagrams of one receive.  What it returns are views of `buffer`: send them before the next receive."""
        relayed: list[Transmit] = []
        length = len(buffer)
        self._kind, self._charged = Kind.DROPPED, 0.0
        start = 0
        while start < length:
            if buffer[start] >= CHANNEL_BYTE:
                strangers: list[tuple[bytes, int]] = []
                start = self.relay.forward(now, socket_id, remote, buffer, start, stride, ecn, relayed, strangers)
                for identifier, size in strangers:
                    self._on_lost(now, socket_id, remote, identifier, size)
                while self.relay.exhausted:
                    self._end_channel(now, self.relay.exhausted.pop(), GoneReason.QUOTA)
            else:
                self.handle_datagram(now, socket_id, remote, buffer[start : start + stride])
                start += stride
        self.load.bursts += len(relayed)
        return relayed

    def charge(self, now: Instant, remote: Address, count: int, seconds: float) -> None:
        """Call after handle_batch, when its answers have left: what all `count` datagrams took of the processor.

        Not for those that are relayed: they cost alike, and are only counted.
        """
        rest = min(seconds, count * MOST_AT_ONCE) - self._charged
        if rest > 0.0:
            self.load.charge(now, self._kind, remote.host, rest)

    def handle_datagram(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        """One datagram that is not relayed (those go through handle_batch).  Rubbish is counted, nothing is raised."""
        if not len(data):
            return
        self.relay.ceiling.others += 1
        kind = data[0]
        try:
            if kind == messages.REQUEST:
                self._on_request(now, socket_id, remote, data)
            elif kind == messages.PUSH_ACK:
                self._pushes.on_ack(now, *messages.decode_push_ack(data))
            elif kind <= 3:
                self._on_stun(now, socket_id, remote, data)
            elif kind in DIRECTORY_KINDS:
                self._on_directory(now, socket_id, remote, data)
            else:
                self.drops["server_type"] += 1
        except MalformedPacket:
            self.drops["server_malformed"] += 1

    def handle_timeout(self, now: Instant) -> None:
        for message in self._pushes.on_timeout(now):
            if isinstance(message, messages.ClaimReceived):
                self._on_deaf_owner(now, message)
        if now >= self._sweep_at:
            self._sweep_at = Instant(now + SWEEP_INTERVAL)
            self._sweep(now)
        if now >= self._channel_sweep_at:
            self._channel_sweep_at = Instant(now + CHANNEL_SWEEP_INTERVAL)
            for channel in self.relay.expired(now, self.registry.sessions.__contains__):
                self._end_channel(now, channel, GoneReason.EXPIRED)
            self.relay.sweep(now)

    def look(self, now: Instant, is_behind: bool) -> None:
        """Call before handle_batch; `is_behind`: the socket's queue has not been empty for a while."""
        self.load.look(now, is_behind)

    def stop(self, now: Instant) -> None:
        """Tell every client Bye; afterwards drain poll_transmit, as fast as the sockets take it, and close them."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._to_leave.extend(self.registry.sessions.values())

    # outputs

    @property
    def has_transmits(self) -> bool:
        return bool(self._out or self._to_leave)

    def poll_transmit(self, now: Instant) -> Transmit | None:
        if not self._out and self._to_leave:
            self._pushes.once(self._to_leave.popleft(), messages.Bye())
        if not self._out:
            return None
        socket_id, remote, data = self._out.popleft()
        return Transmit(socket_id, remote, len(data), memoryview(data))

    def poll_timeout(self) -> Instant | None:
        return earliest(self._pushes.next_due(), self._sweep_at, self._channel_sweep_at)

    @property
    def proofs(self) -> int:
        """Grows with each datagram of a client: a request by somebody who has proven an address, or one that was relayed."""
        return self._proofs + self.relay.relayed_bursts

    def counters(self) -> dict[str, int]:
        """A snapshot: what there is now, what was done, what was dropped (by reason)."""
        return {
            "sessions": len(self.registry.sessions),
            "rooms": len(self.registry.rooms),
            "rooms_given_up": self.registry.given_up,
            "nameplates": len(self.registry.nameplates),
            "mailboxes": len(self.registry.mailboxes),
            "channels": len(self.relay),
            "relayed_bytes": self.relay.relayed_bytes,
            "relayed_bursts": self.relay.relayed_bursts,
            **{f"did_{name}": count for name, count in sorted(self._counts.items())},
            **{f"dropped_{name}": count for name, count in sorted((self.drops + self.relay.drops).items())},
        }

    def _note(self, now: Instant, name: str, **data: Any) -> None:
        """Count what was done and let a listener know; the shell logs, not we."""
        self._counts[name] += 1
        self._tell(now, name, **data)

    def _tell(self, now: Instant, name: str, **data: Any) -> None:
        if self._trace is not None:
            self._trace.event(now, f"rendezvous:{name}", data)

    def _queue(self, socket_id: SocketId, remote: Address, data: bytes) -> None:
        if len(self._out) >= MAX_QUEUE:
            self.drops["server_queue"] += 1
            return
        self._out.append((socket_id, remote, data))

    # the unproven

    def _may_ask(self, now: Instant, remote: Address, kind: Kind) -> bool:
        """Of strangers only as much is answered as leaves time for the others."""
        if self.load.admits_stranger(now, kind, remote.host):
            self._kind = max(self._kind, kind)
            return True
        self.drops["server_busy_strangers"] += 1
        return False

    def _on_lost(self, now: Instant, socket_id: SocketId, remote: Address, identifier: bytes, size: int) -> None:
        """Something to relay, on a channel that is not known to lead there."""
        if self._may_ask(now, remote, Kind.QUESTION):
            self.load.charge(now, Kind.QUESTION, remote.host, TYPICAL)
            hint = self._strangers.hint(now, remote, identifier, size)
            if hint is not None:
                self._queue(socket_id, remote, hint)

    def _on_stun(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        if not self._may_ask(now, remote, Kind.QUESTION):
            return
        answer = self._strangers.stun(now, socket_id, remote, data)
        if answer is not None:
            self._note(now, "stun", remote=remote)
            self._queue(answer[0], remote, answer[1])

    def _on_directory(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        if not self._may_ask(now, remote, Kind.QUESTION) or not self._strangers.may_ask_directory(remote, data):
            return
        answer = self._strangers.directory_answer(now, remote)
        if answer is not None:
            self._note(now, "directory", remote=remote, text=bytes(data).decode("ascii", "replace"))
            self._queue(socket_id, remote, answer)

    # requests

    def _on_request(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        if len(data) >= messages.MIN_REQUEST and data[1] != messages.VERSION:
            version, transaction = messages.decode_request_head(data)
            if not self._may_ask(now, remote, Kind.UNPROVEN):
                return
            text = f"this server speaks version {messages.VERSION} of the protocol, not {version}"
            self._refuse(now, Refusal(RefusalCode.VERSION, text), socket_id, remote, transaction)
            return
        peek = messages.peek_request(data)
        if self.load.is_low and not self.load.admits(remote.host, self._has_relation(peek.session, remote)):
            self.drops["server_busy"] += 1
            return
        fresh = self._cookies.check(now, remote, peek.cookie)
        if fresh or peek.tag == messages.HELLO:
            if self._may_ask(now, remote, Kind.UNPROVEN):
                self._on_unproven(now, socket_id, remote, peek, fresh)
            return
        self._kind = Kind.PROVEN
        self._charged += TYPICAL
        self.load.charge(now, Kind.PROVEN, remote.host, TYPICAL)
        transaction, request = peek.transaction, messages.decode_request(data, peek)
        keys = prefixes(remote.host)
        if not self._request_rate.take(now, keys):
            self.drops["server_request_rate"] += 1
            refusal = Refusal(RefusalCode.SLOW_DOWN, "too many requests from this address", 2)
            self._refuse(now, refusal, socket_id, remote, transaction)
            return
        answer: bytes | Refusal | None
        match self._gate.admits(now, remote.host, keys, request):
            case True:
                self._proofs += 1
                answer = self._answer(now, Inbound(socket_id, remote, request, len(data)))
            case False:
                self._counts["denied"] += 1
                answer = Refusal(RefusalCode.DENIED, messages.NOT_LISTED)
            case None:
                self.drops["server_proof_rate"] += 1
                answer = Refusal(RefusalCode.SLOW_DOWN, "too many access tokens are being tried", 2)
        if isinstance(answer, Refusal):
            self._refuse(now, answer, socket_id, remote, transaction)
        elif answer is not None:
            self._queue(socket_id, remote, answer)

    def _has_relation(self, identifier: bytes, remote: Address) -> bool:
        """Whether this client waits for somebody, is being led to somebody, or relays."""
        session = self.registry.sessions.get(identifier)
        if session is None or session.remote != remote:
            return False
        return bool(session.channels or session.mailboxes or session.nameplates or session.listening)

    def _on_unproven(self, now: Instant, socket_id: SocketId, remote: Address, peek: messages.Peek, cookie: bytes) -> None:
        """No state, an answer shorter than the question, and next to no work: nothing of what is asked has been decoded."""
        self._proofs += peek.session in self.registry.sessions  # its 16 bytes are as good as a cookie
        if peek.tag == messages.GOODBYE:
            return
        port, host = self._seconds.get(socket_id) or self._second(socket_id)
        retry = messages.Retry(
            cookie or self._cookies.issue(now, remote),
            messages.pack_address(remote),
            port,
            host,
            self._instance,
            self._unix_time(),
        )
        self._counts["retry"] += 1
        self._queue(socket_id, remote, messages.encode_response(peek.transaction, retry))

    def _second(self, socket_id: SocketId) -> tuple[int, bytes]:
        """Port and, where it differs, address of the other socket that a client may measure with."""
        here = self._sockets.get(socket_id)
        second = self._sockets.get(here.second) if here is not None and here.second is not None else None
        if here is None or second is None:
            return 0, b""
        host = b"" if second.local.host == here.local.host else messages.pack_host(second.local.host)
        found = self._seconds[socket_id] = (second.local.port, host)
        return found

    def _refuse(self, now: Instant, refusal: Refusal, socket_id: SocketId, remote: Address, transaction: int) -> None:
        self._queue(socket_id, remote, self._encode(now, remote, transaction, refusal))

    def _encode(self, now: Instant, remote: Address, transaction: int, answer: messages.ResponseMessage | Refusal) -> bytes:
        if isinstance(answer, Refusal):
            self._counts[f"refused_{answer.code.name.lower()}"] += 1
            self._tell(now, "refused", remote=remote, code=answer.code, text=answer.text)
            answer = messages.Refused(*answer)
        return messages.encode_response(transaction, answer)

    def _answer(self, now: Instant, inbound: Inbound) -> bytes | Refusal | None:
        """What a proven and permitted client gets."""
        socket_id, remote, request, size = inbound
        message = request.message
        if isinstance(message, messages.Goodbye):
            known = self.registry.sessions.get(request.session)
            if known is not None:
                self._end_session(now, known, GoneReason.LEFT)
            return None
        if isinstance(message, messages.Refresh):
            return self._on_refresh(now, inbound)
        if self._is_stopping:
            return Refusal(RefusalCode.CLOSING, "the server is shutting down")
        self._follow(now, inbound)
        is_new = request.session not in self.registry.sessions
        session = self.registry.session(now, request.session, socket_id, remote)
        if session is None:
            return Refusal(RefusalCode.FULL, CROWDED, RETRY_FULL)
        if is_new:
            self._note(now, "registered", remote=remote, clients=len(self.registry.sessions))
        self._pushes.heard(now, session, size)
        if request.transaction in session.answers:
            self._pushes.answered(session, len(session.answers[request.transaction]))
            return session.answers[request.transaction]
        answer: messages.ResponseMessage | Refusal
        match message:
            case messages.Allocate():
                answer = self._on_allocate(now, session, message)
            case messages.Release(nameplate=number):
                nameplate = self.registry.nameplates.get(number)
                if nameplate is not None and nameplate.owner is session:
                    self.registry.remove_nameplate(number)
                answer = messages.Done()
            case messages.Claim():
                answer = self._on_claim(now, session, message)
            case messages.Post():
                answer = self._on_post(now, session, message)
            case messages.Join():
                answer = self._on_join(now, session, message)
            case messages.Leave():
                answer = self._on_leave(now, session, message)
            case messages.Rebind() | messages.Restore():
                answer = self._on_channel(now, session, message, request.cookie)
            case messages.Hello():  # peek_request sees it, unless it is written as no client does
                answer = messages.Done()
            case _:
                assert_never(message)
        encoded = self._encode(now, remote, request.transaction, answer)
        if not isinstance(answer, Refusal) or answer.code in PAID_REFUSALS:
            session.remember(request.transaction, encoded)
        self._pushes.answered(session, len(encoded))
        return encoded

    def _on_refresh(self, now: Instant, inbound: Inbound) -> bytes | Refusal:
        socket_id, remote, request, size = inbound
        self._follow(now, inbound)
        session = self.registry.sessions.get(request.session)
        if session is not None:
            if not self.registry.touch(now, session, socket_id, remote):
                return Refusal(RefusalCode.FULL, CROWDED, RETRY_FULL)
            self._pushes.heard(now, session, size)
            session.knows_loss = session.has_lost
        welcome = messages.Welcome(
            cookie=self._cookies.issue(now, remote),
            you=messages.pack_address(remote),
            lifetime_s=int(self.config.session_lifetime),
            known=session is not None and not session.has_lost,  # else it registers again what it can
            instance=self._instance,
            software=self.config.software,
            unix_time=self._unix_time(),
        )
        encoded = messages.encode_response(request.transaction, welcome)
        if session is not None:
            self._pushes.answered(session, len(encoded))
        return encoded

    def _is_owner_host(self, session: Session) -> bool:
        return self.config.own_hosts is None or session.remote.host in self.config.own_hosts

    def _may_wait(self, session: Session) -> bool:
        """Whether others may be led to it: it is the server's own, or (in a room of many) has been led to an own one before."""
        return self._is_owner_host(session) or (self.config.has_guests and session.is_guest)

    def _on_allocate(self, now: Instant, session: Session, message: messages.Allocate) -> messages.ResponseMessage | Refusal:
        if not self._is_owner_host(session):
            return Refusal(RefusalCode.DENIED, "this server serves the codes of its own machine only")
        if message.wanted:
            refusal = self._codes.want(now, session, message.wanted, message.ticket, self._instance)
            if refusal is not None:
                return refusal
        number = self.registry.allocate(now, session, message.wanted, message.claims)
        if number is None:
            return Refusal(RefusalCode.FULL, "no more codes for now, or not for this address", RETRY_FULL)
        self._note(now, "allocated", remote=session.remote)
        lifetime = self.registry.nameplates[number].expires_at - now
        ticket = self._numbers.ticket(self._instance, session.id, number)
        return messages.Allocated(nameplate=number, expires_s=int(lifetime), ticket=ticket)

    def _on_claim(self, now: Instant, session: Session, message: messages.Claim) -> messages.ResponseMessage | Refusal:
        if not self.relay.may_open(session.keys):  # before the number is looked at, as what follows would tell that it is there
            return Refusal(RefusalCode.QUOTA, "no more relay channels for this address", 30)
        nameplate = self._codes.claim(now, session, message)
        if isinstance(nameplate, Refusal):
            self._counts["claim_refused"] += 1
            return nameplate
        owner = nameplate.owner
        channel = self._open_channel(now, owner, session)
        if channel is None:
            return Refusal(RefusalCode.QUOTA, "no more relay channels for these addresses", 30)
        mailbox = self.registry.open_mailbox(now, owner, session, channel.id, message.nameplate)
        self._note(now, "claimed", pair=channel.number, remote=session.remote, owner=owner.remote)
        self._push(
            now,
            owner,
            messages.ClaimReceived(message.nameplate, mailbox.id, message.body, channel.id, channel.token, 0),
        )
        return messages.ClaimAccepted(mailbox.id, channel.id, channel.token, 1)

    def _on_post(self, now: Instant, session: Session, message: messages.Post) -> messages.ResponseMessage | Refusal:
        mailbox = self.registry.mailboxes.get(message.mailbox)
        if mailbox is None or session not in mailbox.sides:
            return Refusal(RefusalCode.UNKNOWN_MAILBOX, "this mailbox is gone")
        if mailbox.posts >= self.config.posts_per_mailbox:
            return Refusal(RefusalCode.FULL, "this mailbox is full")
        mailbox.posts += 1
        self._push(now, _other(mailbox, session), messages.Posted(mailbox.id, message.body))
        return messages.Done()

    def _on_join(self, now: Instant, session: Session, message: messages.Join) -> messages.ResponseMessage | Refusal:
        granted = 0
        is_full = False
        if session.knows_loss:
            session.has_lost = session.knows_loss = False
        if message.role == Role.LISTEN:
            if not self._may_wait(session):
                return Refusal(RefusalCode.DENIED, "only the machine of this server may wait here")
            for index, name in enumerate(message.rooms):
                is_new = name not in session.listening
                if not self.registry.listen(session, name):
                    continue
                granted |= 1 << index
                if is_new:
                    for dial in list(self.registry.rooms[name].dialers.values()):
                        self._introduce(now, name, session, dial)
        else:
            dial = Dial(session, message.rooms)
            for index, name in enumerate(message.rooms):
                if not self.registry.dial(dial, name):
                    continue
                granted |= 1 << index
                for listener in list(self.registry.rooms[name].listeners.values()):
                    is_full |= not self._introduce(now, name, listener, dial)
        if is_full:
            return Refusal(RefusalCode.QUOTA, "no more relay channels for these addresses", 30)
        return messages.Done(granted)

    def _introduce(self, now: Instant, room: bytes, listener: Session, dial: Dial) -> bool:
        """Each dial meets each listener once, in whichever of its rooms comes first.  False: a quota forbids it."""
        dialer = dial.session
        if listener is dialer or listener.id in dial.introduced:
            return True
        channel = self._open_channel(now, listener, dialer, room)
        if channel is None:
            if listener.unmet_at is None or now - listener.unmet_at >= UNMET_INTERVAL:
                listener.unmet_at = now
                self._pushes.once(listener, messages.Unmet(room, int(RefusalCode.QUOTA)))
            return False
        dial.introduced.add(listener.id)
        self._note(now, "introduced", pair=channel.number, remote=dialer.remote, owner=listener.remote)
        self._push(now, listener, messages.Introduced(room, channel.id, channel.token, 0))
        self._push(now, dialer, messages.Introduced(room, channel.id, channel.token, 1))
        return True

    def _on_leave(self, now: Instant, session: Session, message: messages.Leave) -> messages.ResponseMessage:
        self.registry.leave(session, set(message.rooms))
        for identifier in message.channels:
            channel = self.relay.get(identifier)
            if channel is not None and any(side.session == session.id for side in channel.sides):
                self._end_channel(now, channel, GoneReason.LEFT, leaver=session)
        for identifier in message.mailboxes:
            mailbox = self.registry.mailboxes.get(identifier)
            if mailbox is not None and session in mailbox.sides:
                self._end_mailbox(now, mailbox, GoneReason.LEFT, leaver=session)
        return messages.Done()

    # channels

    def _follow(self, now: Instant, inbound: Inbound) -> None:
        """A session speaks from elsewhere: channels it was told of in vain move with it, the others wait for its Rebind."""
        socket_id, remote, request, _ = inbound
        session = self.registry.sessions.get(request.session)
        if session is None or (session.remote == remote and session.socket_id == socket_id):
            return
        for push in session.pushes.values():
            if isinstance(push.message, messages.Introduced | messages.ClaimReceived):
                self.relay.follow(now, push.message.channel, push.message.side, socket_id, remote, session.id)

    def _open_channel(self, now: Instant, first: Session, second: Session, room: bytes = b"") -> Channel | None:
        """Asked for by `second`, who pays for it.  In a full room one of its own makes way that came to nothing."""
        if room and self.relay.is_room_full(room):
            spare = self.relay.spare(now, room, second.id, second.channels)
            if spare is not None:
                self._end_channel(now, spare, GoneReason.LEFT)
        first_place, second_place = ((each.socket_id, each.remote, each.id) for each in (first, second))
        channel = self.relay.open(now, first_place, second_place, room)
        if channel is not None:
            first.channels.add(channel.id)
            second.channels.add(channel.id)
            second.is_guest = second.is_guest or self._is_owner_host(first)
        return channel

    def _on_channel(
        self, now: Instant, session: Session, message: messages.Rebind | messages.Restore, cookie: bytes
    ) -> messages.ResponseMessage | Refusal:
        """Rebind and Restore: one side of a channel speaks from here now."""
        if message.side == OWNER_SIDE and not self._may_wait(session):
            return Refusal(RefusalCode.DENIED, "this server relays for its own machine only")
        before = self.relay.get(message.channel)
        former = before.sides[message.side].session if before is not None else b""
        place = (session.socket_id, session.remote, session.id)
        if isinstance(message, messages.Rebind):
            done = self.relay.rebind(now, message.channel, message.side, message.counter, message.mac, cookie, *place)
        else:
            done = self.relay.restore(now, message.channel, message.side, message.token, *place)
        match done:
            case Moved.UNKNOWN:
                return Refusal(RefusalCode.UNKNOWN_CHANNEL, "this channel is not known here")
            case Moved.QUOTA:
                return Refusal(RefusalCode.QUOTA, "no more relay channels for this address", 30)
            case Moved.WRONG:
                self.drops["server_rebind_mac"] += 1
                return Refusal(RefusalCode.BAD_MAC, "wrong token or an old counter")
            case Moved.DONE:
                pass
        if former != session.id and former in self.registry.sessions:
            self.registry.sessions[former].channels.discard(message.channel)
        session.channels.add(message.channel)
        if isinstance(message, messages.Restore) and (channel := self.relay.get(message.channel)) is not None:
            self._note(now, "restored", pair=channel.number, remote=session.remote)
        return messages.Done()

    def _end_channel(self, now: Instant, channel: Channel, reason: GoneReason, *, leaver: Session | None = None) -> None:
        if not self.relay.close(channel):
            return  # all who are concerned have been told
        lasted, carried = now - channel.opened_at, channel.relayed_bytes
        self._note(now, "pair_ended", pair=channel.number, seconds=lasted, relayed=carried, reason=reason)
        for identifier in {side.session for side in channel.sides}:
            session = self.registry.sessions.get(identifier)
            if session is None:
                continue
            session.channels.discard(channel.id)
            self._pushes.forget_channel(session, channel.id)
            if session is not leaver:
                self._push(now, session, messages.Gone(GoneKind.CHANNEL, channel.id, reason))

    def _end_mailbox(self, now: Instant, mailbox: Mailbox, reason: GoneReason, *, leaver: Session | None = None) -> None:
        self.registry.remove_mailbox(mailbox)
        for session in mailbox.sides:
            if session is not leaver and session.id in self.registry.sessions:
                self._push(now, session, messages.Gone(GoneKind.MAILBOX, mailbox.id, reason))

    def _end_session(self, now: Instant, session: Session, reason: GoneReason) -> None:
        self.registry.remove_session(session)
        self._note(now, "left", remote=session.remote, reason=reason, clients=len(self.registry.sessions))
        for identifier in list(session.mailboxes):
            self._end_mailbox(now, self.registry.mailboxes[identifier], reason, leaver=session)
        for identifier in list(session.channels):
            channel = self.relay.get(identifier)
            if channel is not None:
                self._end_channel(now, channel, reason, leaver=session)
        session.pushes.clear()

    def _push(self, now: Instant, session: Session, message: messages.PushMessage) -> None:
        self._pushes.push(now, session, message)

    def _on_deaf_owner(self, now: Instant, message: messages.ClaimReceived) -> None:
        """The owner of a code never heard of a claim: the claimer is told, and the code is whole again."""
        mailbox = self.registry.mailboxes.get(message.mailbox)
        if mailbox is None:
            return
        nameplate = self.registry.nameplates.get(message.nameplate)
        if nameplate is not None and mailbox.id in nameplate.claims:
            nameplate.left += 1
        channel = self.relay.get(mailbox.channel)
        self._end_mailbox(now, mailbox, GoneReason.EXPIRED, leaver=mailbox.sides[0])
        if channel is not None:
            self._end_channel(now, channel, GoneReason.EXPIRED, leaver=mailbox.sides[0])

    # expiry

    def _sweep(self, now: Instant) -> None:
        registry = self.registry
        while registry.sessions:
            oldest = next(iter(registry.sessions.values()))
            if now - oldest.seen_at < self.config.session_lifetime:
                break
            self._counts["session_expired"] += 1
            self._end_session(now, oldest, GoneReason.EXPIRED)
        while registry.nameplates:
            number = next(iter(registry.nameplates))
            if now < registry.nameplates[number].expires_at:
                break
            registry.remove_nameplate(number)
        while registry.mailboxes:
            mailbox = next(iter(registry.mailboxes.values()))
            if now < mailbox.expires_at:
                break
            registry.remove_mailbox(mailbox)
        self._codes.sweep(now)


def _other(mailbox: Mailbox, session: Session) -> Session:
    return mailbox.sides[1] if mailbox.sides[0] is session else mailbox.sides[0]
