"""Answers with a new number, kept back until the store has it: whoever is read the code may claim it at any server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from tunnel.rendezvous.registry import Inbound


class Unsaid:
    """Those of one server."""

    __slots__ = ("_due", "_keys", "_most", "_patience", "_ready", "_waiting")

    def __init__(self, most: int, patience: Seconds, ready: Callable[[Instant, Inbound], None]) -> None:
        """At most so many wait, each no longer than `patience`; `ready` hears of one whose answer may go."""
        self._most = most
        self._patience = patience
        self._ready = ready
        self._waiting: dict[int, Inbound] = {}  # by number
        self._keys: set[tuple[bytes, int]] = set()  # session and transaction
        self._due: deque[tuple[Instant, int]] = deque()

    def keep(self, now: Instant, number: int, inbound: Inbound) -> bool:
        """False: too many wait, the answer goes at once."""
        if len(self._waiting) >= self._most:
            return False
        self._waiting[number] = inbound
        self._keys.add(_key(inbound))
        self._due.append((Instant(now + self._patience), number))
        return True

    def is_kept(self, inbound: Inbound) -> bool:
        """Whether that repeats a request whose answer waits."""
        return _key(inbound) in self._keys

    def say(self, now: Instant, number: int) -> None:
        """The store has it, or will not have it soon."""
        inbound = self._waiting.pop(number, None)
        if inbound is not None:
            self._keys.discard(_key(inbound))
            self._ready(now, inbound)

    def handle_timeout(self, now: Instant) -> None:
        while self._due and self._due[0][0] <= now:
            self.say(now, self._due.popleft()[1])

    def poll_timeout(self) -> Instant | None:
        while self._due and self._due[0][1] not in self._waiting:
            self._due.popleft()
        return self._due[0][0] if self._due else None


def _key(inbound: Inbound) -> tuple[bytes, int]:
    return inbound.request.session, inbound.request.transaction
