"""What the server tells clients unasked, repeated until acknowledged or too late."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from tunnel.proto.rendezvous import messages
from tunnel.proto.rendezvous.limits import ServerConfig
from tunnel.proto.rendezvous.registry import PendingPush, Registry, Session
from tunnel.proto.trace import Drops
from tunnel.units import Address, Instant, Seconds, SocketId

FIRST_PUSH_TIMEOUT: Final = Seconds(0.25)  # doubles each time; the server measures no round trips


class Pushes:
    """A queue by due time over the pushes that sessions hold."""

    __slots__ = ("_config", "_count", "_drops", "_due", "_entropy", "_registry", "_send")

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
        self._due: list[tuple[Instant, int, bytes, int]] = []  # due, tie-breaker, session, push id
        self._count = 0

    def next_due(self) -> Instant | None:
        return self._due[0][0] if self._due else None

    def push(self, now: Instant, session: Session, message: messages.PushMessage) -> None:
        if session.id not in self._registry.sessions:
            return
        if len(session.pushes) >= self._config.pushes_per_session:
            self._drops["server_pushes_full"] += 1
            return
        push_id = int.from_bytes(self._entropy(8), "big")
        push = PendingPush(push_id, message, Instant(now + self._config.push_lifetime))
        session.pushes[push_id] = push
        self._repeat(now, session, push)

    def once(self, session: Session, message: messages.PushMessage) -> None:
        """Without waiting for the acknowledgement."""
        push_id = int.from_bytes(self._entropy(8), "big")
        self._send(session.socket_id, session.remote, messages.encode_push(session.id, push_id, message))

    def forget_channel(self, session: Session, channel: bytes) -> None:
        """It has ended: who has not heard of it need not, and would use it in vain if the news came late."""
        for push_id, push in list(session.pushes.items()):
            if isinstance(push.message, messages.Introduced | messages.ClaimReceived) and push.message.channel == channel:
                del session.pushes[push_id]

    def on_ack(self, session_id: bytes, push_id: int) -> None:
        """The push id is random, so only who received the push can name it."""
        session = self._registry.sessions.get(session_id)
        if session is None or session.pushes.pop(push_id, None) is None:
            self._drops["server_ack_unknown"] += 1

    def on_timeout(self, now: Instant) -> list[messages.PushMessage]:
        """Repeat what is due; returns what never reached anybody."""
        expired: list[messages.PushMessage] = []
        while self._due and self._due[0][0] <= now:
            _, _, session_id, push_id = heappop(self._due)
            session = self._registry.sessions.get(session_id)
            push = session.pushes.get(push_id) if session is not None else None
            if session is None or push is None:
                continue
            if now < push.expires_at:
                self._repeat(now, session, push)
            else:
                del session.pushes[push_id]
                self._drops["server_push_expired"] += 1
                expired.append(push.message)
        return expired

    def _repeat(self, now: Instant, session: Session, push: PendingPush) -> None:
        due_at = Instant(min(push.expires_at, now + FIRST_PUSH_TIMEOUT * 2.0**push.attempts))
        push.attempts += 1
        self._count += 1
        heappush(self._due, (due_at, self._count, session.id, push.push_id))
        self._send(session.socket_id, session.remote, messages.encode_push(session.id, push.push_id, push.message))
