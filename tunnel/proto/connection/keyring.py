"""The keypairs of a connection: the one in use, the one before it, and one that the peer has not yet confirmed.

As WireGuard §6.1 keeps them, but sequence numbers run on across all of them.
"""

from __future__ import annotations

from typing import Final

from tunnel.proto.crypto.keys import REKEY_AFTER, REKEY_AFTER_PACKETS, Keypair
from tunnel.units import Instant, Seconds

OVERLAP: Final = Seconds(30.0)  # how long the keypair before still opens what was under way
RESPONDER_PATIENCE: Final = Seconds(30.0)  # beyond REKEY_AFTER, before the responder of the last handshake begins one
MAX_PENDING: Final = 4  # inits in flight that an initiator still takes an answer to
RETRY_REKEY: Final = Seconds(10.0)  # before RekeyDue is said again


class Keyring:
    """Which keypair seals, and which may open."""

    __slots__ = ("_pending", "_previous", "_previous_until", "_said_at", "by_index", "current")

    def __init__(self, keypair: Keypair, now: Instant) -> None:
        if keypair.created_at is None:
            keypair.created_at = now
        self.current = keypair
        self._previous: Keypair | None = None
        self._previous_until = now
        self._pending: list[Keypair] = []  # answered inits; the initiator may have taken any of them
        self._said_at = Instant(-1e9)
        self.by_index: dict[int, Keypair] = {keypair.local_index: keypair}

    def install(self, keypair: Keypair, now: Instant, *, confirmed: bool) -> None:
        """A handshake ended.  Its initiator seals with it at once, its responder when something under it has arrived."""
        keypair.created_at = now
        self.by_index[keypair.local_index] = keypair
        if confirmed:
            self._promote(keypair, now)
        else:
            self._pending.append(keypair)
            if len(self._pending) > MAX_PENDING:
                self.by_index.pop(self._pending.pop(0).local_index, None)

    def authenticated(self, keypair: Keypair, now: Instant) -> bool:
        """Something under `keypair` opened; True when that confirmed a pending one."""
        if keypair is self._previous:
            self._previous_until = Instant(now + OVERLAP)  # handshakes crossed: the peer still seals with it
        if keypair not in self._pending:
            return False
        # Those answered before it will not be used; those answered after it may yet be: the peer may have gone on already.
        index = self._pending.index(keypair)
        for older in self._pending[:index]:
            self.by_index.pop(older.local_index, None)
        del self._pending[: index + 1]
        self._promote(keypair, now)
        return True

    def _promote(self, keypair: Keypair, now: Instant) -> None:
        if self._previous is not None:
            self.by_index.pop(self._previous.local_index, None)
        self._previous = self.current
        self._previous_until = Instant(now + OVERLAP)
        self.current = keypair

    def expire(self, now: Instant) -> None:
        """Forget what no longer needs to open anything."""
        if self._previous is not None and now >= self._previous_until:
            self.by_index.pop(self._previous.local_index, None)
            self._previous = None

    def rekey_at(self) -> Instant:
        """When `wants_rekey` may become true by age."""
        created = self.current.created_at
        assert created is not None
        patience = 0.0 if self.current.is_initiator else RESPONDER_PATIENCE
        return Instant(max(created + REKEY_AFTER + patience, self._said_at + RETRY_REKEY))

    def previous_until(self) -> Instant | None:
        """When `expire` has something to do."""
        return self._previous_until if self._previous is not None else None

    def wants_rekey(self, now: Instant) -> bool:
        """True when the current keypair is old or worn; says so again only after RETRY_REKEY."""
        worn = self.current.sent_packets >= REKEY_AFTER_PACKETS and now >= self._said_at + RETRY_REKEY
        if now < self.rekey_at() and not worn:
            return False
        self._said_at = now
        return True
