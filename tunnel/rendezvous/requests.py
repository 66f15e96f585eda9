"""Requests that await an answer: repeated with back-off until it comes, for ever if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.rendezvous.messages import RequestMessage
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from random import Random

    from tunnel.rendezvous.addresses import ServerAddress
    from tunnel.rendezvous.events import Hearer

MAX_TIMEOUT: Final = Seconds(5.0)  # an unreachable server is tried at least this often
MAX_REQUESTS: Final = 512  # requests; beyond it the owner is flooding us


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request on its way.  `home` is None while no address of the server has answered yet."""

    transaction: int
    message: RequestMessage
    home: ServerAddress | None
    due_at: Instant
    hearer: Hearer | None = None  # of the answer
    expires_at: Instant | None = None
    is_probe: bool = False  # goes to the server's second socket, only to see our mapping there
    sent_at: Instant | None = None
    attempts: int = 0
    misses: int = 0  # sendings without an answer, since the server answered anything
    answers: int = 0  # of the server, when that was counted

    def miss(self, answers: int) -> int:
        """Count a sending without an answer, where the server has given `answers` so far.  Return those in a row.

        A server that answers other requests is there: whatever this one lost before that says nothing.
        """
        if answers != self.answers:
            self.answers, self.misses = answers, 0
        self.misses += 1
        return self.misses


class RequestTable:
    """Pending requests by transaction, and when the next one is due."""

    __slots__ = ("_by_transaction", "_rng")

    def __init__(self, rng: Random) -> None:
        self._by_transaction: dict[int, PendingRequest] = {}
        self._rng = rng

    def __len__(self) -> int:
        return len(self._by_transaction)

    def __iter__(self) -> Iterator[PendingRequest]:
        return iter(list(self._by_transaction.values()))

    def add(self, request: PendingRequest) -> None:
        """Beyond MAX_REQUESTS the oldest goes."""
        if len(self._by_transaction) >= MAX_REQUESTS:
            del self._by_transaction[next(iter(self._by_transaction))]
        self._by_transaction[request.transaction] = request

    def get(self, transaction: int) -> PendingRequest | None:
        return self._by_transaction.get(transaction)

    def remove(self, request: PendingRequest) -> None:
        self._by_transaction.pop(request.transaction, None)

    def remove_where(self, condition: Callable[[PendingRequest], bool]) -> None:
        for request in self:
            if condition(request):
                self.remove(request)

    def next_due(self) -> Instant | None:
        return min((r.due_at for r in self._by_transaction.values() if r.home is not None), default=None)

    def due(self, now: Instant) -> list[PendingRequest]:
        """Those to be sent now; expired ones are forgotten."""
        ready = []
        for request in self:
            if request.expires_at is not None and now >= request.expires_at:
                self.remove(request)
            elif request.home is not None and request.due_at <= now:
                ready.append(request)
        return ready

    def on_sent(self, request: PendingRequest, now: Instant) -> None:
        """Double the wait each time, with a fifth of jitter, up to MAX_TIMEOUT; a server that is behind has longer at once."""
        assert request.home is not None
        wait = min(MAX_TIMEOUT, request.home.timeout() * max(2.0 ** min(request.attempts, 10), request.home.stretch))
        request.attempts += 1
        request.sent_at = now
        request.due_at = Instant(now + wait * (0.9 + 0.2 * self._rng.random()) if wait < MAX_TIMEOUT else now + wait)
