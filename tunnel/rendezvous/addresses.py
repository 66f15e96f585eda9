"""Where one server is, and what each of its addresses has seen of us."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from tunnel.core.scope import is_local, may_name
from tunnel.rendezvous.messages import DRAINS
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.events import RelayChannel

FIRST_TIMEOUT: Final = Seconds(0.3)  # before the first round trip is known
MIN_TIMEOUT: Final = Seconds(0.1)
PROBES: Final = 4  # times that the server's second socket may be asked in PROBES_PERIOD: its address is only the server's word
PROBES_PERIOD: Final = Seconds(60.0)
LOST_AFTER: Final = 3  # unanswered sendings in a row before Lost is reported and another address takes over
MOST_STRETCHED: Final = 16.0  # times the first time-out of a request, while the server leaves others unanswered
#: What a server is to us, the most important first.
ROLES: Final = ("in_use", "stands_by", "idle", "ends", "silent")


class ServerAddress:
    """The state of one address of the server, as seen from one socket of ours."""

    def __init__(self, socket_id: SocketId, address: Address, now: Instant, *, is_fallback: bool = False) -> None:
        self.socket_id = socket_id
        self.address = address
        self.is_fallback = is_fallback  # reached by another route than UDP
        self.is_told = False  # a server of its fleet says so
        self.epoch = 0  # of the list of servers that it has; 0: it is in no fleet
        self.followed = 0  # the epoch of the list that we have asked it for
        self.load = 0  # per cent, as a server of its fleet has said
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
        self.is_held = False  # carries registrations though it is not the primary one: it is another server
        self.has_refused = False  # some of these, for now: they are asked for again
        self.full_until = now  # it has no room for us: it is not asked for everything at each Refresh
        self.surely_known_until: Instant | None = None  # by what it said last
        self.leaves_until: Instant | None = None  # it said that it ends: nothing is asked of it before that
        self.stretch = 1.0  # of time-outs, one for all requests: a server that is behind is asked less often
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
            self.stretch = 1.0
        self.answered_at = now
        self.answers += 1
        self.answered_after = Seconds(0.0 if self.asked_at is None else now - self.asked_at)
        self.asked_at = None
        self.misses = 0

    def on_missed(self, attempts: int) -> None:
        """A request was sent so often, the last time in vain too."""
        self.misses += 1
        if attempts >= LOST_AFTER:  # not mere loss
            self.stretch = min(MOST_STRETCHED, max(self.stretch, 2.0 ** min(attempts - 2, 10)))

    def is_well(self, now: Instant) -> bool:
        """Whether it answers, as far as we know, and means to go on."""
        is_there = self.is_up and self.instance is not None and self.misses < LOST_AFTER
        return is_there and self.load != DRAINS and not self.is_leaving(now)

    def is_leaving(self, now: Instant) -> bool:
        return self.leaves_until is not None and now < self.leaves_until

    def timeout(self) -> Seconds:
        if self.round_trip is None:
            return FIRST_TIMEOUT
        return Seconds(max(MIN_TIMEOUT, 3.0 * self.round_trip))


class Addresses:
    """All of one server.  The primary one, in use, is the first that answered, until it falls silent."""

    def __init__(self, homes: Iterable[ServerAddress]) -> None:
        self._homes = list(homes)
        self.has_new_ways = False  # whoever hands in datagrams has to know them: see `ways`
        self._primary: ServerAddress | None = None
        self._before: int | None = None  # the server that was in use before that

    @property
    def reflexive(self) -> dict[SocketId, Address]:
        """Where the server sees each of our UDP sockets, as far as it may say so (scope.may_name).

        One of several that stands in our own network does not see what the others see, and they know better.
        """
        known = [home for home in self._homes if home.reflexive is not None and not home.is_fallback and home.is_credible]
        known.sort(key=lambda home: (home.reflexive is not None and not is_local(home.reflexive.host), home is self._primary))
        return {home.socket_id: home.reflexive for home in known if home.reflexive is not None}

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
        return self._home_at(socket_id, address) is not None

    def carries(self, channel: RelayChannel, path: PathKey) -> bool:
        """Whether `path` is that channel, whichever of the server's addresses it leads through."""
        return path.prefix == channel.channel and self.is_server(path.socket_id, path.remote)

    @property
    def ways(self) -> list[tuple[SocketId, Address]]:
        """All of them."""
        return [(home.socket_id, home.address) for home in self._homes]

    # several servers under one name: each is known by its instance

    def _home_at(self, socket_id: SocketId, address: Address) -> ServerAddress | None:
        return next((each for each in self._homes if each.socket_id == socket_id and each.address == address), None)

    def _addresses_of(self, instance: int) -> list[ServerAddress]:
        """Those of one server over UDP, the best first: what is in use stays so while it answers, and then the quickest."""
        found = [each for each in self._homes if each.instance == instance and not each.is_fallback]
        found.sort(key=lambda each: (each.misses >= LOST_AFTER, each is not self._primary, not each.is_held, _quickness(each)))
        return found

    @property
    def _others(self) -> dict[int, ServerAddress]:
        """The servers that are not the primary one, by instance, each by its best address."""
        ours = self._primary.instance if self._primary is not None else None
        instances = dict.fromkeys(each.instance for each in self._homes if each.instance is not None and not each.is_fallback)
        return {each: self._addresses_of(each)[0] for each in instances if each != ours}

    def _substitute(self, now: Instant, home: ServerAddress, since: Instant) -> ServerAddress | None:
        """Another address that has answered since then: of the same server if there is one, and the quickest."""
        found = [
            each
            for each in self._homes
            if each is not home
            and each.is_up
            and each.answered_at is not None
            and each.answered_at > since
            and not each.is_leaving(now)
        ]
        return min(
            found, key=lambda each: (each.is_fallback, each.instance != home.instance, each.round_trip or 0.0), default=None
        )  # fmt: skip

    def relays(self, now: Instant) -> dict[int, Seconds]:
        """The servers that answer us over UDP, by instance, and how long each takes: of its quickest address."""
        found: dict[int, Seconds] = {}
        for home in self._homes:
            if home.instance is not None and not home.is_fallback and home.round_trip is not None and home.is_well(now):
                found[home.instance] = min(home.round_trip, found.get(home.instance, home.round_trip))
        return found

    def address_of(self, instance: int) -> Address | None:
        found = self._addresses_of(instance)
        return found[0].address if found else None

    def instance_at(self, path: PathKey) -> int | None:
        """Of the server that a relayed path leads through."""
        home = self._home_at(path.socket_id, path.remote)
        return None if home is None else home.instance

    def describe(self, now: Instant) -> list[dict[str, Any]]:
        """Each server of the name, and what it is to us, the one in use first; for `status`."""
        by_server: dict[int | Address, list[ServerAddress]] = {}
        for home in self._homes:
            if home.instance is not None or not home.is_fallback:
                by_server.setdefault(home.address if home.instance is None else home.instance, []).append(home)
        families = {home.address.is_ipv6 for home in self._homes if home.instance is not None}
        best = [min(homes, key=self._rank) for homes in by_server.values()]
        if families:  # what is of another one leads nowhere from here
            best = [home for home in best if home.instance is not None or home.address.is_ipv6 in families]
        best.sort(key=self._rank)
        shown = [(home, *self._role(now, home, is_only=len(best) == 1)) for home in best]
        shown.sort(key=lambda each: ROLES.index(each[1]))
        return [
            {"server": str(home.address), "role": role, "rtt_s": None if role == "silent" else home.round_trip, "why": why}
            for home, role, why in shown
        ]

    def _rank(self, home: ServerAddress) -> tuple[bool, bool, bool, float]:
        return home.misses >= LOST_AFTER, home is not self._primary, not home.is_held, _quickness(home)

    def _role(self, now: Instant, home: ServerAddress, *, is_only: bool) -> tuple[str, str]:
        """The place of a server among all, and why, in one clause for a person."""
        if home.instance is None or home.misses >= LOST_AFTER or not home.is_up:
            return "silent", "it has not answered yet" if home.instance is None else "it does not answer"
        if home is self._primary:
            is_first = self._before in (None, home.instance)
            return "in_use", "the only one" if is_only else "the first that answered" if is_first else "it took over from another"
        if not home.is_well(now):
            return "ends", "it has said so"
        if home.is_held:
            return "stands_by", "peers are awaited there, too"
        return "idle", "nothing is asked of it now"


def _quickness(home: ServerAddress) -> float:
    return float("inf") if home.round_trip is None else home.round_trip
