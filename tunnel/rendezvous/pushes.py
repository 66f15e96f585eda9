"""Pushes: messages of the server that nobody asked for, repeated until acknowledged or too late.

Somebody else causes it, and whoever proved an address once may have left it.  So a session is sent no more bytes than it sent
itself, from the address where it is, but for those that it acknowledged; what is beyond waits until it is heard again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from tunnel.core.trace import Drops
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.registry import NO_DICT, PendingPush, Registry, Session
from tunnel.units import Address, Instant, Seconds, SocketId

FIRST_PUSH_TIMEOUT: Final = Seconds(0.25)  # doubles each time; the server measures no round trips
OF_CHANNELS: Final = (messages.Introduced, messages.ClaimReceived)  # that bring a relay channel
MAX_CREDIT: Final = 4_096  # bytes of pushes on their way to one session at most: fifty peers that come back at once


class Pushes:
    """Queues by due time over the pushes that sessions hold: of those that were sent once, which wait alike, and of others."""

    __slots__ = ("_config", "_count", "_drops", "_due", "_entropy", "_fresh", "_is_patient", "_registry", "_send")

    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        entropy: Callable[[int], bytes],
        drops: Drops,
        send: Callable[[SocketId, Address, bytes], None],
    ) -> None:
        self._config = config
        self._registry = registry
        self._entropy = entropy
        self._drops = drops
        self._send = send
        self._fresh: deque[tuple[Instant, Session, int]] = deque()  # due, session, push id
        self._due: list[tuple[Instant, int, Session, int]] = []  # due, tie-breaker, session, push id
        self._count = 0
        self._is_patient = config.push_lifetime > FIRST_PUSH_TIMEOUT

    def next_due(self) -> Instant | None:
        due = self._due[0][0] if self._due else None
        if self._fresh and (due is None or self._fresh[0][0] < due):
            return self._fresh[0][0]
        return due

    def push(self, now: Instant, session: Session, message: messages.PushMessage) -> None:
        if not session.is_here:
            return
        if len(session.pushes) >= self._config.pushes_per_session:
            self._drops["server_pushes_full"] += 1
            return
        push_id = int.from_bytes(self._entropy(8), "big")
        if session.pushes is NO_DICT:
            session.pushes = {}
        push = session.pushes[push_id] = PendingPush(push_id, message, Instant(now + self._config.push_lifetime))
        session.welcome = b""  # its next word lets more out
        data = messages.encode_push(session.id, push_id, message)
        size = len(data)
        if session.credit < size or not self._is_patient:
            self._repeat(now, session, push)
            return
        session.credit -= size
        push.spent, push.attempts = size, 1
        self._fresh.append((Instant(now + FIRST_PUSH_TIMEOUT), session, push_id))
        self._send(session.socket_id, session.remote, data)

    def heard(self, now: Instant, session: Session, size: int) -> None:
        """A request of so many bytes came from it: it may be told as much, and what waited for that goes first."""
        credit = session.credit + size
        session.credit = credit if credit < MAX_CREDIT else MAX_CREDIT
        if session.has_waiting:
            self._resume(now, session)

    def answered(self, session: Session, size: int) -> None:
        """That request has cost an answer of so many bytes."""
        session.credit -= size

    def once(self, session: Session, message: messages.PushMessage) -> None:
        """Without waiting for the acknowledgement."""
        push_id = int.from_bytes(self._entropy(8), "big")
        data = messages.encode_push(session.id, push_id, message)
        session.credit -= len(data)
        self._send(session.socket_id, session.remote, data)

    def forget_channel(self, session: Session, channel: bytes) -> None:
        """It has ended: who has not heard of it need not, and would use it in vain if the news came late."""
        for push_id, push in list(session.pushes.items()):
            if isinstance(push.message, OF_CHANNELS) and push.message.channel == channel:
                del session.pushes[push_id]

    def on_ack(self, now: Instant, session_id: bytes, push_id: int) -> None:
        """The push id is random, so only who received the push can name it."""
        session = self._registry.sessions.of(session_id).get(session_id)
        push = session.pushes.pop(push_id, None) if session is not None else None
        if session is None or push is None:
            self._drops["server_ack_unknown"] += 1
            return
        self.heard(now, session, push.spent)

    def on_timeout(self, now: Instant) -> list[messages.PushMessage]:
        """Repeat what is due; returns what never reached anybody."""
        expired: list[messages.PushMessage] = []
        while self._fresh and self._fresh[0][0] <= now:
            _, session, push_id = self._fresh.popleft()
            self._on_due(now, session, push_id, expired)
        while self._due and self._due[0][0] <= now:
            _, _, session, push_id = heappop(self._due)
            self._on_due(now, session, push_id, expired)
        return expired

    def _on_due(self, now: Instant, session: Session, push_id: int, expired: list[messages.PushMessage]) -> None:
        push = session.pushes.get(push_id)  # who has left has none
        if push is None:
            return
        if now < push.expires_at:
            self._repeat(now, session, push)
        else:
            del session.pushes[push_id]
            session.credit = 0  # nobody seems to be there
            self._drops["server_push_expired"] += 1
            expired.append(push.message)

    def _repeat(self, now: Instant, session: Session, push: PendingPush) -> None:
        data = messages.encode_push(session.id, push.push_id, push.message)
        size = len(data)
        if session.credit < size:
            self._drops["server_push_waits"] += 1
            push.is_waiting = session.has_waiting = True
            self._schedule(push.expires_at, session, push)
            return
        session.credit -= size
        push.spent += size
        self._schedule(Instant(min(push.expires_at, now + FIRST_PUSH_TIMEOUT * 2.0**push.attempts)), session, push)
        push.attempts += 1
        self._send(session.socket_id, session.remote, data)

    def _resume(self, now: Instant, session: Session) -> None:
        session.has_waiting = False
        for push in session.pushes.values():
            if push.is_waiting:
                push.is_waiting = False
                self._repeat(now, session, push)
                if push.is_waiting:
                    return

    def _schedule(self, due_at: Instant, session: Session, push: PendingPush) -> None:
        self._count += 1
        heappush(self._due, (due_at, self._count, session, push.push_id))
