"""The keypairs of a connection: the one in use, the one before it, and one that the peer has not yet confirmed.

As WireGuard §6.1 keeps them, but sequence numbers run on across all of them.  A keypair past REJECT_AFTER or
REJECT_AFTER_PACKETS seals and opens nothing: whoever could keep new keys away would else take forward secrecy away.
"""

from __future__ import annotations

from typing import Final

from tunnel.transport.crypto.keys import REJECT_AFTER, REJECT_AFTER_PACKETS, REKEY_AFTER, REKEY_AFTER_PACKETS, Keypair
from tunnel.units import Instant, Seconds

OVERLAP: Final = Seconds(30.0)  # how long the keypair before still opens what was under way
RESPONDER_PATIENCE: Final = Seconds(30.0)  # beyond REKEY_AFTER, before the responder of the last handshake begins one
MAX_PENDING: Final = 4  # inits in flight that an initiator still takes an answer to
RETRY_REKEY: Final = Seconds(10.0)  # before RekeyDue is said again
_LONG_AGO: Final = Instant(-1e9)


class Keyring:
    """Which keypair seals, and which may open."""

    __slots__ = (
        "_old_at",
        "_pending",
        "_previous",
        "_previous_until",
        "_said_at",
        "_seals_until",
        "by_index",
        "current",
        "expires_at",
    )

    def __init__(self, keypair: Keypair, now: Instant) -> None:
        if keypair.created_at is None:
            keypair.created_at = now
        self._seal_with(keypair)
        self._previous: Keypair | None = None
        self._previous_until = now
        self._pending: list[Keypair] = []  # answered inits; the initiator may have taken any of them
        self._said_at = _LONG_AGO
        self.by_index: dict[int, Keypair] = {keypair.local_index: keypair}
        self.expires_at = self._seals_until  # when `expire` has something to do

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
        self.expire(now)

    def authenticated(self, keypair: Keypair, now: Instant, packets: int = 1) -> bool:
        """So many packets under `keypair` opened; True when that confirmed a pending one."""
        keypair.received_packets += packets
        if keypair is self._previous:
            self._previous_until = Instant(min(now + OVERLAP, _ends_at(keypair)))  # crossed: the peer still seals with it
        if keypair.received_packets >= REJECT_AFTER_PACKETS:
            self.by_index.pop(keypair.local_index, None)
        if keypair not in self._pending:
            return False
        # Those answered before it will not be used; those answered after it may yet be: the peer may have gone on already.
        index = self._pending.index(keypair)
        for older in self._pending[:index]:
            self.by_index.pop(older.local_index, None)
        del self._pending[: index + 1]
        self._promote(keypair, now)
        self.expire(now)
        return True

    def _promote(self, keypair: Keypair, now: Instant) -> None:
        if self._previous is not None:
            self.by_index.pop(self._previous.local_index, None)
        self._previous = self.current
        self._previous_until = Instant(min(now + OVERLAP, _ends_at(self._previous)))
        self._seal_with(keypair)

    def _seal_with(self, keypair: Keypair) -> None:
        self.current = keypair
        self._seals_until = _ends_at(keypair)
        assert keypair.created_at is not None
        self._old_at = Instant(keypair.created_at + REKEY_AFTER + (0.0 if keypair.is_initiator else RESPONDER_PATIENCE))

    def expire(self, now: Instant) -> None:
        """Forget what must not, or no longer needs to, open anything."""
        if self._previous is not None and now >= self._previous_until:
            self.by_index.pop(self._previous.local_index, None)
            self._previous = None
        for keypair in [each for each in self.by_index.values() if now >= _ends_at(each)]:
            del self.by_index[keypair.local_index]
        self._pending = [keypair for keypair in self._pending if keypair.local_index in self.by_index]
        at = min(map(_ends_at, self.by_index.values()), default=Instant(float("inf")))
        self.expires_at = at if self._previous is None else min(at, self._previous_until)

    def may_seal(self, now: Instant) -> bool:
        """Whether the current keypair is still young enough, and not worn out."""
        return now < self._seals_until and self.current.sent_packets < REJECT_AFTER_PACKETS

    def is_over(self, now: Instant) -> bool:
        """Whether the current keypair has come to its end, rather than been given up before."""
        return now >= _ends_at(self.current) or self.current.sent_packets >= REJECT_AFTER_PACKETS

    def give_up(self, now: Instant) -> None:
        """Seal nothing more: somebody else may hold the same keys and numbers.  What the peer sent still opens."""
        self._seals_until = now
        self._said_at = _LONG_AGO

    def due_at(self) -> Instant:
        """When something changes by itself: one is to be replaced, opens nothing any more, or seals nothing any more."""
        return min(self.rekey_at(), self.expires_at, self._seals_until)

    def rekey_at(self) -> Instant:
        """When `wants_rekey` becomes true, if nothing is sealed until then."""
        due = self._old_at if self.current.sent_packets < REKEY_AFTER_PACKETS else self.current.created_at
        assert due is not None
        if due > self._seals_until:
            due = self._seals_until
        again = Instant(self._said_at + RETRY_REKEY)
        return due if due > again else again

    def wants_rekey(self, now: Instant) -> bool:
        """True when the current keypair is old, worn or given up; says so again only after RETRY_REKEY."""
        if now < self.rekey_at():
            return False
        self._said_at = now
        return True


def _ends_at(keypair: Keypair) -> Instant:
    assert keypair.created_at is not None
    return Instant(keypair.created_at + REJECT_AFTER)
