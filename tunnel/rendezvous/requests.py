"""Requests that await an answer: repeated with back-off until it comes, for ever if need be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from tunnel.rendezvous.messages import RequestMessage
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from random import Random

FIRST_TIMEOUT: Final = Seconds(0.3)  # before the first round trip is known
MIN_TIMEOUT: Final = Seconds(0.1)
MAX_TIMEOUT: Final = Seconds(5.0)  # an unreachable server is tried at least this often
PROBES: Final = 4  # times that the server's second socket may be asked in PROBES_PERIOD: its address is only the server's word
PROBES_PERIOD: Final = Seconds(60.0)
MAX_REQUESTS: Final = 512  # requests; beyond it the owner is flooding us


class ServerAddress:
    """What we know of one address of the server, as seen from one socket of ours."""

    __slots__ = (
        "address",
        "answered_after",
        "answered_at",
        "asked_at",
        "cookie",
        "instance",
        "is_named",
        "is_tls",
        "is_up",
        "misses",
        "probes",
        "reflexive",
        "refresh_at",
        "round_trip",
        "second",
        "second_reflexive",
        "socket_id",
    )

    def __init__(self, socket_id: SocketId, address: Address, now: Instant, *, is_tls: bool = False) -> None:
        self.socket_id = socket_id
        self.address = address
        self.is_tls = is_tls
        self.is_named = True  # the server's name still leads there
        self.is_up = True  # a TLS connection can be down; what is sent there then only waits
        self.cookie = b""
        self.instance: int | None = None
        self.reflexive: Address | None = None
        self.round_trip: Seconds | None = None
        self.second: Address | None = None
        self.second_reflexive: Address | None = None
        self.answered_at: Instant | None = None
        self.answered_after = Seconds(0.0)  # from the first sending of the last question, with its repetitions
        self.asked_at: Instant | None = None  # when the request was first sent that has no answer yet
        self.misses = 0  # time-outs since the last answer
        self.refresh_at = now
        self.probes: deque[Instant] = deque(maxlen=PROBES)  # when the second socket was last asked

    def timeout(self) -> Seconds:
        if self.round_trip is None:
            return FIRST_TIMEOUT
        return Seconds(max(MIN_TIMEOUT, 3.0 * self.round_trip))


class PendingRequest:
    """One request on its way.  `home` is None while no address of the server has answered yet."""

    __slots__ = ("attempts", "due_at", "expires_at", "home", "is_probe", "message", "sent_at", "subject", "transaction")

    def __init__(
        self,
        transaction: int,
        message: RequestMessage,
        home: ServerAddress | None,
        due_at: Instant,
        *,
        subject: object = None,
        expires_at: Instant | None = None,
        is_probe: bool = False,
    ) -> None:
        self.transaction = transaction
        self.message = message
        self.home = home
        self.subject = subject
        self.due_at = due_at
        self.expires_at = expires_at
        self.is_probe = is_probe  # goes to the server's second socket, only to see our mapping there
        self.sent_at: Instant | None = None
        self.attempts = 0


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
        """Doubles the wait each time, with a fifth of jitter, up to MAX_TIMEOUT."""
        assert request.home is not None
        wait = min(MAX_TIMEOUT, request.home.timeout() * 2.0 ** min(request.attempts, 10))
        request.attempts += 1
        request.sent_at = now
        request.due_at = Instant(now + wait * (0.9 + 0.2 * self._rng.random()) if wait < MAX_TIMEOUT else now + wait)
