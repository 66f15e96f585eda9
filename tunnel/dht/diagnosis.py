"""How a dozen nodes of the DHT see one socket of ours.  Hand in the datagrams that it receives, until `is_done`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from tunnel.dht.client import DhtClient
from tunnel.dht.ids import ID_SIZE
from tunnel.dht.views import Views
from tunnel.units import Address, Buffer, Instant, Seconds

WANTED: Final = 12  # views of different networks: eight tell a mapping for certain, and some of them may lie
MAX_LOOKUPS: Final = 4  # for chance targets, so that ever other nodes are asked
PATIENCE: Final = Seconds(6.0)  # for all of it
LINGER: Final = Seconds(0.3)  # for the answers that are on their way, once there are enough


class Diagnosis:
    """Of one address family."""

    def __init__(self, *, is_ipv6: bool, entry: Iterable[Address], entropy: Callable[[int], bytes], now: Instant) -> None:
        self._entropy = entropy
        self._client = DhtClient(is_ipv6=is_ipv6, entry=entry, entropy=entropy, now=now)
        self._ends_at = Instant(now + PATIENCE)
        self._lookups = 0
        self.is_done = False
        self._next(now)

    @property
    def views(self) -> Views:
        return self._client.views

    @property
    def round_trip(self) -> Seconds | None:
        """To the nodes, in the middle; None: none has answered."""
        return self._client.round_trip

    def handle_datagram(self, now: Instant, remote: Address, data: Buffer) -> None:
        self._client.handle_datagram(now, remote, data)
        self._look(now)

    def handle_timeout(self, now: Instant) -> None:
        self._client.handle_timeout(now)
        self._look(now)

    def poll_timeout(self) -> Instant:
        at = self._client.poll_timeout()
        return self._ends_at if at is None else min(at, self._ends_at)

    def poll_transmit(self) -> tuple[Address, bytes] | None:
        return self._client.poll_transmit()

    def _look(self, now: Instant) -> None:
        if len(self.views) >= WANTED:
            self._ends_at = min(self._ends_at, Instant(now + LINGER))
        elif self._client.is_idle:
            if self._lookups >= MAX_LOOKUPS or self.round_trip is None:
                self.is_done = True
            else:
                self._next(now)
        self.is_done = self.is_done or now >= self._ends_at

    def _next(self, now: Instant) -> None:
        self._lookups += 1
        self._client.look_up(now, self._entropy(ID_SIZE))
