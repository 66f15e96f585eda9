"""Where one server is, and what each of its addresses has seen of us."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tunnel.core.scope import may_name
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.events import RelayChannel

FIRST_TIMEOUT: Final = Seconds(0.3)  # before the first round trip is known
MIN_TIMEOUT: Final = Seconds(0.1)
PROBES: Final = 4  # times that the server's second socket may be asked in PROBES_PERIOD: its address is only the server's word
PROBES_PERIOD: Final = Seconds(60.0)


class ServerAddress:
    """The state of one address of the server, as seen from one socket of ours."""

    def __init__(self, socket_id: SocketId, address: Address, now: Instant, *, is_fallback: bool = False) -> None:
        self.socket_id = socket_id
        self.address = address
        self.is_fallback = is_fallback  # reached by another route than UDP
        self.is_named = True  # the server's name still leads there
        self.is_up = True  # a fallback can be down; what is sent there then only waits
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
        self.answers = 0  # so far
        self.refresh_at = now
        self.probes: deque[Instant] = deque(maxlen=PROBES)  # when the second socket was last asked

    @property
    def is_credible(self) -> bool:
        """Whether the server may say of us what it says (scope.may_name)."""
        return self.reflexive is not None and may_name(self.address.host, self.reflexive.host)

    def begin_anew(self) -> None:
        """The connection that it stands for is another one now, which the server sees come from another port."""
        self.is_up = True
        self.cookie = b""
        self.asked_at = self.round_trip = None
        self.misses = 0

    def on_answered(self, now: Instant, sent_at: Instant | None) -> None:
        """`sent_at`: when the question was sent, if once only: the answer to a repeated one is ambiguous (Karn)."""
        if sent_at is not None:
            sample = Seconds(now - sent_at)
            self.round_trip = sample if self.round_trip is None else Seconds(0.75 * self.round_trip + 0.25 * sample)
        self.answered_at = now
        self.answers += 1
        self.answered_after = Seconds(0.0 if self.asked_at is None else now - self.asked_at)
        self.asked_at = None
        self.misses = 0

    def timeout(self) -> Seconds:
        if self.round_trip is None:
            return FIRST_TIMEOUT
        return Seconds(max(MIN_TIMEOUT, 3.0 * self.round_trip))


class Addresses:
    """All of one server.  The primary one, in use, is the first that answered, until it falls silent."""

    def __init__(self, homes: Iterable[ServerAddress]) -> None:
        self._homes = list(homes)
        self._primary: ServerAddress | None = None

    @property
    def reflexive(self) -> dict[SocketId, Address]:
        """Where the server sees each of our UDP sockets, as far as it may say so (scope.may_name)."""
        return {
            home.socket_id: home.reflexive
            for home in self._homes
            if home.reflexive is not None and not home.is_fallback and home.is_credible
        }

    @property
    def view(self) -> Address | None:
        """Where the server sees us, where that cannot be our address on the internet: an address of its own local network.

        Then a proxy stands before the server, or it runs in our network.  None: its view is sound, or not known yet.
        """
        homes = self._answered_ipv4
        return None if not homes or any(home.is_credible for home in homes) else homes[0].reflexive

    @property
    def _answered_ipv4(self) -> list[ServerAddress]:
        """Those of UDP."""
        return [each for each in self._homes if each.reflexive is not None and not each.is_fallback and not each.address.is_ipv6]

    @property
    def mapping_varies(self) -> bool | None:
        """Whether the NAT maps one IPv4 socket differently for another port (or address) of the server; None if unknown."""
        views = [home for home in self._homes if home.second_reflexive is not None and home.is_credible]
        for home in sorted(views, key=lambda home: home.address.is_ipv6):
            return home.second_reflexive != home.reflexive
        return None

    @property
    def round_trip(self) -> Seconds | None:
        return self._primary.round_trip if self._primary is not None else None

    @property
    def server(self) -> Address | None:
        """The address in use, once one has answered."""
        return self._primary.address if self._primary is not None else None

    @property
    def ipv4_address(self) -> Address | None:
        """An IPv4 address of the server that has answered over UDP, the one in use if it is one."""
        known = self._answered_ipv4
        return next((home.address for home in known if home is self._primary), known[0].address if known else None)

    def is_server(self, socket_id: SocketId, address: Address) -> bool:
        """Whether that is one of the server's addresses, as we reach it from that socket."""
        return any(home.socket_id == socket_id and home.address == address for home in self._homes)

    def carries(self, channel: RelayChannel, path: PathKey) -> bool:
        """Whether `path` is that channel, whichever of the server's addresses it leads through."""
        return path.prefix == channel.channel and self.is_server(path.socket_id, path.remote)

    @property
    def ways(self) -> list[tuple[SocketId, Address]]:
        """All of them."""
        return [(home.socket_id, home.address) for home in self._homes]
