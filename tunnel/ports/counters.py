"""Counters of forwards, and notices for people that do not flood the screen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import trio

from tunnel.ports.link import Notice

if TYPE_CHECKING:
    from tunnel.shell.link import Link

NOTICE_INTERVAL: Final = 10.0  # seconds between two sentences about the same thing
MAX_NOTICES: Final = 20  # sentences about whatever in NOTICE_INTERVAL: a peer that asks for every port fills no screen
MAX_NOTICE_SUBJECTS: Final = 256  # subjects remembered; the eldest is forgotten
#: Counters of forwards that are no drops: how much went through, and what is open.
TRAFFIC: Final = frozenset((
    "tcp_opened", "tcp_active", "udp_flows_opened", "udp_flows_active", "udp_datagrams_in", "udp_datagrams_out",
))  # fmt: skip


@dataclass(slots=True)
class ForwardCounters:
    """Plain ints since the process began; each drop has its name."""

    tcp_opened: int = 0
    tcp_active: int = 0
    tcp_refused: int = 0  # the exposed program did not accept, or could not be reached
    tcp_denied: int = 0  # no grant
    tcp_resets: int = 0  # ended by a reset, from whichever side
    tcp_capped: int = 0  # turned away at MAX_CONNECTIONS
    tcp_straight: int = 0  # writes to local sockets of bulk that had just arrived, without a task's turn
    tcp_small: int = 0  # the same of a few bytes
    tcp_heard: int = 0  # answers of local programs that came at once, and left with the ACK
    tcp_shed: int = 0  # turned away because descriptors or socket memory ran out
    udp_flows_opened: int = 0
    udp_flows_active: int = 0
    udp_flows_idle: int = 0  # ended after FLOW_IDLE
    udp_flows_evicted: int = 0  # the oldest, at MAX_FLOWS
    udp_flood_dropped: int = 0  # datagrams of new clients beyond NEW_FLOW_RATE
    udp_held_dropped: int = 0  # datagrams beyond MAX_HELD while a flow opened
    udp_queue_dropped: int = 0  # the connection's queue was full
    udp_rate_dropped: int = 0  # datagrams beyond a limit of rate
    udp_overrun: int = 0  # from local programs, while our socket was full: they came faster than they could be carried
    udp_local_dropped: int = 0  # the local socket was full or refused the datagram
    udp_denied: int = 0  # flows without a grant
    udp_refused: int = 0  # datagrams of flows that the exposer turned away
    udp_datagrams_in: int = 0  # from local programs
    udp_datagrams_out: int = 0  # to local programs
    socks_refused: int = 0  # clients of the SOCKS door that got an error
    socks_dropped: int = 0  # datagrams to it that came from somebody else, or made no sense
    loops: int = 0  # connections that came back through a forward of their own
    tcp_waiting: int = 0  # connections that had to wait, as the peer allowed no more streams
    misled: int = 0  # a name that was given to expose led to this machine, or to a reserved address
    malformed_opens: int = 0
    untold: int = 0  # events that a foreground command did not read in time
    revoked: int = 0  # streams and flows that ended because their grant was taken back

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Notices:
    """Passes on at most one sentence per subject and NOTICE_INTERVAL, and MAX_NOTICES in all."""

    def __init__(self, notice: Notice | None = None, clock: Callable[[], float] = trio.current_time) -> None:
        self._notice = notice
        self._clock = clock
        self._said: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=MAX_NOTICES)

    def say(self, subject: str, text: str) -> None:
        if self._notice is None:
            return
        now = self._clock()
        said = self._said.pop(subject, None)
        if said is not None and now - said < NOTICE_INTERVAL:
            self._said[subject] = said
            return
        if len(self._recent) == MAX_NOTICES and now - self._recent[0] < NOTICE_INTERVAL:
            return
        self._recent.append(now)
        if len(self._said) >= MAX_NOTICE_SUBJECTS:
            del self._said[next(iter(self._said))]
        self._said[subject] = now
        self._notice(text)


def drops_by_place(
    endpoint: Mapping[str, Mapping[str, int]], forwards: Mapping[str, int], links: Iterable[Link]
) -> dict[str, dict[str, int]]:
    """Every drop of a process: what `ptunnel status --json` shows as `drops`.

    Counts by place and reason; a place that dropped nothing is there too, empty: it was looked at.
    Places are `endpoint`, `server NAME`, `udp ADDRESS`, `forwards`, and `link PEER` for every connection.
    """
    drops = {place: dict(sorted(counts.items())) for place, counts in endpoint.items()}
    drops["forwards"] = {name: count for name, count in forwards.items() if count and name not in TRAFFIC}
    for link in links:
        drops[f"link {link.peer_name}"] = dict(sorted(link.status().drops.items()))
    return drops
