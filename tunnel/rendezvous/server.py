"""The rendezvous server without a socket, a clock or a store: who is answered at all, and who counts as there.

A datagram goes in, answers and pushes come out of poll_transmit; relayed bursts are returned by handle_batch at once, because
they are views of the buffer that came in.  Nothing that a stranger sends is remembered: state begins with a valid cookie.
How those who are there are led to each other stands in introductions.py.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tunnel.core.prefixes import prefixes
from tunnel.core.timers import earliest
from tunnel.core.trace import Drops, Trace
from tunnel.errors import MalformedPacket
from tunnel.rendezvous import messages
from tunnel.rendezvous.access import AccessList, Gate
from tunnel.rendezvous.admission import Cookies, TreeBuckets
from tunnel.rendezvous.codes import Codes, Refusal
from tunnel.rendezvous.counting import snapshot
from tunnel.rendezvous.introductions import RETRY_FULL, Introductions
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.load import TYPICAL, Cost, Kind, Load
from tunnel.rendezvous.messages import GoneReason, RefusalCode
from tunnel.rendezvous.numbers import Numbers
from tunnel.rendezvous.pushes import Pushes
from tunnel.rendezvous.refreshes import Refreshes
from tunnel.rendezvous.registry import Inbound, Registry, Session
from tunnel.rendezvous.relay import ChannelSide, Relay
from tunnel.rendezvous.strangers import Strangers
from tunnel.rendezvous.stun import ServerSocket, StunCodec
from tunnel.units import CHANNEL_BYTE, Address, Buffer, Instant, Seconds, SocketId, Transmit

if TYPE_CHECKING:
    from tunnel.rendezvous.fleet.fleet import Fleet

DIRECTORY_KINDS: Final = frozenset(b"i \t\r\n")  # `ip ver`, white space around it forgiven
SWEEP_INTERVAL: Final = Seconds(2.0)  # between looks for what has expired
CHANNEL_SWEEP_INTERVAL: Final = Seconds(15.0)  # between looks at all channels, which cost more
SLICE: Final = 256  # sessions that end in one turn; when all expire at once, the others wait milliseconds and not a second
CHANNEL_SLICE: Final = 2_048  # channels and accounts looked at in one turn, likewise
SLICE_PAUSE: Final = Seconds(0.01)  # between such turns
PAID_REFUSALS: Final = frozenset({RefusalCode.UNKNOWN_NAMEPLATE, RefusalCode.SPENT, RefusalCode.TAKEN})  # a repetition is free
MAX_QUEUE: Final = 4096  # answers waiting for a socket; more are dropped and asked for again
CROWDED: Final = "the server has too many clients, or too many from this address"


Answer: TypeAlias = tuple[SocketId, Address, bytes]


class Server:
    """One server.  Its neighbours keep what it decides about: registry, relay, pushes, strangers, admission."""

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
        fleet: Fleet | None = None,
    ) -> None:
        """`secret`: 32 random bytes of this server alone, the same after each restart; see numbers.py.

        `unix_time` is the calendar that clients are told, in seconds since 1970; 0: none.  `fleet`: this is one of its servers.
        """
        self.config = config
        self.drops = Drops()
        self.epoch = 0  # of the list of servers, in a fleet
        self._counts: Counter[str] = Counter()
        self.relay = Relay(config, entropy)
        self._kind = Kind.DROPPED  # of the batch that is handled, or was last
        self._charged = 0.0  # seconds, of those that it will turn out to have taken
        self._charges_now = True  # before it is measured, as more of the same source may come first and be asked about
        self._numbers = Numbers(config, entropy, secret) if fleet is None else fleet.numbers(config)
        self.registry = Registry(config, entropy, self._numbers, self.relay.has_met)
        self._refreshes = Refreshes(self.registry, unix_time)
        self._trace = trace
        self._unix_time = unix_time
        self._cookies = Cookies(entropy)
        self._instance = int.from_bytes(entropy(8), "big")
        self._strangers = Strangers(config, sockets, stun, entropy, self.drops)
        self._pushes = Pushes(config, self.registry, entropy, self.drops, self._queue)
        salt = entropy(16)  # of tables in which nobody shall choose whom he shares a slot with
        self._request_rate = TreeBuckets(config.requests_per_second, config.request_burst, salt)
        self.load = Load(self.relay.ceiling, salt, self.registry.session_shares.held)
        self._gate = Gate(config.access, entropy)
        self._codes = Codes(config, self.registry, self._numbers, entropy)
        self._introductions = Introductions(
            config,
            registry=self.registry,
            relay=self.relay,
            pushes=self._pushes,
            codes=self._codes,
            numbers=self._numbers,
            instance=self._instance,
            drops=self.drops,
            counts=self._counts,
            note=self._note,
            fleet=fleet,
        )
        self._out: deque[Answer] = deque()
        self._sweep_at = Instant(now + SWEEP_INTERVAL)
        self._channel_sweep_at = Instant(now + CHANNEL_SWEEP_INTERVAL)
        self._proofs = 0
        self._is_stopping = False
        self._to_leave: deque[Session] = deque()  # sessions that have not been told Bye
        self.fleet = self._codes.fleet = fleet
        if fleet is not None:
            fleet.attach(now, self, self._instance, self._pushes, self._codes, self._answer_late)

    def add_socket(self, socket: ServerSocket) -> None:
        """One more address of ours that a socket answers for; the owner bounds how many."""
        self._strangers.add_socket(socket)

    def replace_access(self, access: AccessList) -> None:
        """Serve those on another list: whoever is not on it is refused from its next request on."""
        self._gate.replace(access)
        self._refreshes.forget_all()
        self._strangers.access = access

    # inputs

    def handle_batch(
        self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int, ecn: int = 0
    ) -> list[Transmit]:
        """All datagrams of one receive.  What it returns are views of `buffer`: send them before the next receive."""
        relayed: list[Transmit] = []
        self._kind, self._charged, self._charges_now = Kind.DROPPED, 0.0, True
        length, start = len(buffer), 0
        while start < length:
            if buffer[start] >= CHANNEL_BYTE:
                strangers: list[tuple[bytes, int]] = []
                start = self.relay.forward(now, socket_id, remote, buffer, start, stride, ecn, relayed, strangers)
                for identifier, size in strangers:
                    self._on_lost(now, socket_id, remote, identifier, size)
                while self.relay.exhausted:
                    self._introductions.end_channel(now, self.relay.exhausted.pop(), GoneReason.QUOTA)
            else:
                self.handle_datagram(now, socket_id, remote, buffer[start : start + stride])
                start += stride
        self.load.bursts += len(relayed)
        return relayed

    def handle_alone(self, now: Instant, socket_id: SocketId, remote: Address, datagram: Buffer) -> Cost:
        """One datagram that came alone and is not relayed.  Its cost is for load.charge_all, when the answers have left."""
        self._kind, self._charged, self._charges_now = Kind.DROPPED, 0.0, self.load.is_low
        data = bytes(datagram)  # of which parts are had for less
        if data[0] == messages.REQUEST:  # most are
            self.relay.ceiling.others += 1
            try:
                self._on_request(now, socket_id, remote, data)
            except MalformedPacket:
                self.drops["server_malformed"] += 1
        else:
            self.handle_datagram(now, socket_id, remote, data)
        return remote.host, 1, self._kind, self._charged

    def refreshed(self, now: Instant, socket_id: SocketId, remote: Address, request: Buffer) -> bytes | None:
        """The answer to a request, if it is the Refresh of a client at rest.  None: it is for handle_batch."""
        answer = self._refreshes.answer(now, socket_id, remote, request, self.epoch)
        if answer is not None:
            self.relay.ceiling.others += 1
        return answer

    def passed_on(self, now: Instant, socket_id: SocketId, remote: Address, datagram: memoryview) -> ChannelSide | None:
        """Where to send one relayed datagram that came alone; its `remote` is None where it is lost.  None: for handle_batch."""
        side = self.relay.forward_one(now, socket_id, remote, datagram)
        if side is not None:
            self.load.bursts += 1
        return side

    def cost(self, remote: Address, count: int) -> Cost:
        """Of the `count` datagrams of the last handle_batch, likewise; relayed ones cost alike, and are only counted."""
        return remote.host, count, self._kind, self._charged

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

    def acknowledged(self, now: Instant, datagram: Buffer) -> None:
        """One push-ack that came alone, as handle_batch takes it."""
        self.relay.ceiling.others += 1
        try:
            session, push = messages.decode_push_ack(datagram)
        except MalformedPacket:
            self.drops["server_malformed"] += 1
        else:
            self._pushes.on_ack(now, session, push)

    def handle_timeout(self, now: Instant) -> None:
        for message in self._pushes.on_timeout(now):
            if isinstance(message, messages.ClaimReceived):
                self._introductions.on_deaf_owner(now, message)
        if now >= self._sweep_at:
            self._sweep_at = Instant(now + SWEEP_INTERVAL)
            self._sweep(now)
        if now >= self._channel_sweep_at:
            for channel in self.relay.expired(now, self.registry.sessions.__contains__, CHANNEL_SLICE):
                self._introductions.end_channel(now, channel, GoneReason.EXPIRED)
            self.relay.sweep(now, CHANNEL_SLICE)
            self._channel_sweep_at = Instant(now + (SLICE_PAUSE if self.relay.is_looking else CHANNEL_SWEEP_INTERVAL))
        if self.fleet is not None:
            self.fleet.handle_timeout(now)

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

    def answers(self) -> Sequence[Answer]:
        """All that there are, as poll_transmit gives them, but for goodbyes and the wrapping: socket, address, datagram."""
        if not self._out:
            return ()
        answers, self._out = self._out, deque()
        return answers

    def poll_transmit(self, now: Instant) -> Transmit | None:
        if not self._out:
            if not self._to_leave:
                return None
            self._pushes.once(self._to_leave.popleft(), messages.Bye())
        socket_id, remote, data = self._out.popleft()
        return tuple.__new__(Transmit, (socket_id, remote, len(data), memoryview(data), None, 0))

    def poll_timeout(self) -> Instant | None:
        fleet = None if self.fleet is None else self.fleet.poll_timeout()
        return earliest(self._pushes.next_due(), self._sweep_at, self._channel_sweep_at, fleet)

    @property
    def proofs(self) -> int:
        """Grows with each datagram of a client: a request by somebody who has proven an address, or one that was relayed."""
        return self._proofs + self.relay.relayed_bursts + self._refreshes.answered

    def counters(self) -> dict[str, int]:
        """A snapshot: what there is now, what was done, what was dropped (by reason)."""
        found = snapshot(self.registry, self.relay, self._counts, self.drops)
        return found if self.fleet is None else found | self.fleet.counters()

    def _note(self, now: Instant, name: str, **data: Any) -> None:
        """Count what was done and let a listener know; the shell logs, not we."""
        self._counts[name] += 1
        if self._trace is not None:
            self._trace.event(now, f"rendezvous:{name}", data)

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
        peek = messages.peek_request(data)
        if peek is None:
            version, transaction = messages.decode_request_head(data)
            if not self._may_ask(now, remote, Kind.UNPROVEN):
                return
            text = f"this server speaks version {messages.VERSION} of the protocol, not {version}"
            self._refuse(now, Refusal(RefusalCode.VERSION, text), socket_id, remote, transaction)
            return
        if self.fleet is not None and self.fleet.is_draining and peek.session not in self.registry.sessions:
            self.drops["server_drains"] += 1  # another server answers
            return
        if self.load.is_low and not self.load.admits(remote.host, self._has_relation(peek.session, remote)):
            self.drops["server_busy"] += 1
            return
        fresh = self._cookies.check(now, remote, peek.cookie)
        if fresh or peek.tag == messages.HELLO:
            if self._may_ask(now, remote, Kind.UNPROVEN):
                self._on_unproven(now, socket_id, remote, peek, fresh)
            return
        self._kind = Kind.PROVEN
        if self._charges_now:
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
                answer = self._answer(now, tuple.__new__(Inbound, (socket_id, remote, request, len(data))))
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
        port, host = self._strangers.second_of(socket_id)
        retry = messages.Retry(
            cookie or self._cookies.issue(now, remote),
            messages.pack_address(remote),
            port,
            host,
            self._instance,
            self._unix_time(),
            self.epoch,
        )
        self._counts["retry"] += 1
        self._queue(socket_id, remote, messages.encode_response(peek.transaction, retry))

    def _refuse(self, now: Instant, refusal: Refusal, socket_id: SocketId, remote: Address, transaction: int) -> None:
        self._queue(socket_id, remote, self._encode(now, remote, transaction, refusal))

    def _encode(self, now: Instant, remote: Address, transaction: int, answer: messages.ResponseMessage | Refusal) -> bytes:
        if isinstance(answer, Refusal):
            self._counts[f"refused_{answer.code.name.lower()}"] += 1
            self._tell(now, "refused", remote=remote, code=answer.code, text=answer.text)
            answer = messages.Refused(*answer)
        return messages.encode_response(transaction, answer)

    def _answer(self, now: Instant, inbound: Inbound) -> bytes | Refusal | None:
        """Answer a proven and permitted client."""
        socket_id, remote, request, size = inbound
        message = request.message
        if isinstance(message, messages.Goodbye):
            known = self.registry.sessions.get(request.session)
            if known is not None:
                self._introductions.end_session(now, known, GoneReason.LEFT)
            return None
        if isinstance(message, messages.Refresh):
            return self._on_refresh(now, inbound)
        if self._is_stopping:
            return Refusal(RefusalCode.CLOSING, "the server is shutting down")
        session = self.registry.sessions.get(request.session)
        if session is None:
            session = self.registry.enter(now, request.session, socket_id, remote)
            if session is None:
                return Refusal(RefusalCode.FULL, CROWDED, RETRY_FULL)
            self._note(now, "registered", remote=remote, clients=self.registry.session_shares.used)
        elif not self._is_at(now, session, socket_id, remote):
            return Refusal(RefusalCode.FULL, CROWDED, RETRY_FULL)
        self._pushes.heard(now, session, size)
        if (answered := session.answers.get(request.transaction)) is not None:
            if self.fleet is not None and self.fleet.codes.is_kept(inbound):
                return None
            self._pushes.answered(session, len(answered))
            session.has_asked = True
            return answered
        answer = self._answer_session  # with a fleet maybe None: _answer_late does
        return answer(now, session, inbound) if self.fleet is None else self.fleet.answer(now, session, inbound, answer)

    def _is_at(self, now: Instant, session: Session, socket_id: SocketId, remote: Address) -> bool:
        """A sign of life of that session; False when there is no room for it where it is now."""
        self._introductions.follow(now, session, socket_id, remote)
        return self.registry.touch(now, session, socket_id, remote)

    def _answer_session(self, now: Instant, session: Session, inbound: Inbound) -> bytes:
        _, remote, request, _ = inbound
        answer = self._introductions.answer(now, session, request.message, request.cookie)
        encoded = self._encode(now, remote, request.transaction, answer)
        if not isinstance(answer, Refusal) or answer.code in PAID_REFUSALS:
            session.remember(request.transaction, encoded)
        self._pushes.answered(session, len(encoded))
        return encoded

    def _answer_late(self, now: Instant, inbound: Inbound) -> None:
        """Answer a request that waited for the directory: its session may have gone, or moved, meanwhile."""
        session = self.registry.sessions.get(inbound.request.session)
        if session is not None and session.remote == inbound.remote:
            answer = session.answers.get(inbound.request.transaction) or self._answer_session(now, session, inbound)
            self._queue(inbound.socket_id, inbound.remote, answer)

    def _on_refresh(self, now: Instant, inbound: Inbound) -> bytes | Refusal:
        socket_id, remote, request, size = inbound
        session = self.registry.sessions.get(request.session)
        if session is not None:
            if not self._is_at(now, session, socket_id, remote):
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
            epoch=self.epoch,
        )
        encoded = messages.encode_response(request.transaction, welcome)
        if session is not None:
            self._pushes.answered(session, len(encoded))
            if welcome.known and not session.pushes:
                self._refreshes.keep(now, session, welcome, encoded)
            session.rest()
        return encoded

    # expiry

    def _sweep(self, now: Instant) -> None:
        registry, left = self.registry, SLICE
        for sessions in registry.sessions.parts:
            while sessions:
                oldest = next(iter(sessions.values()))
                if now - oldest.seen_at < self.config.session_lifetime:
                    break
                if not left:
                    self._sweep_at = Instant(now + SLICE_PAUSE)
                    break
                left -= 1
                self._counts["session_expired"] += 1
                self._introductions.end_session(now, oldest, GoneReason.EXPIRED)
        registry.sweep_codes(now)
        self._codes.sweep(now)
