"""How many nodes see us, and what that tells of our NAT: each answers with the address that our question came from (BEP 42).

One network has one voice, and most of them decide, so that one liar changes nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import pairwise
from typing import Final, NamedTuple

from tunnel.dht.ids import network_of
from tunnel.ends import MAX_PORT
from tunnel.units import Address, Instant

MAX_VIEWS: Final = 64  # remembered; the oldest goes
ENOUGH: Final = 3  # views of different networks, before anything is concluded
VIEW_BITS: Final = 16  # of an IPv4 address: networks that have a voice each
IPV6_VIEW_BITS: Final = 32  # likewise
CHANGES: Final = 2  # networks that see us elsewhere than they did, before all older views are forgotten
AGREED: Final = 2 / 3  # of the voices
ONE_PORT: Final = 1 / 3  # of the voices: if so many name one port, it is one for all, since ports that differ are easily made up
MAX_STEP: Final = 8  # between ports that are given out one after the other, on the average of all steps


class _View(NamedTuple):
    seen: Address
    asked_at: Instant


class Views:
    """Of one socket."""

    def __init__(self) -> None:
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._changed: set[int] = set()  # networks that see us elsewhere than they did

    def __len__(self) -> int:
        return len(self._views)

    def note(self, node: str, seen: Address, asked_at: Instant) -> None:
        """The node at the host `node` saw us at `seen`, when it was asked at `asked_at`."""
        network = network_of(node, VIEW_BITS, IPV6_VIEW_BITS)
        known = self._views.get(network)
        if known is None:
            while len(self._views) >= MAX_VIEWS:
                self._views.popitem(last=False)
        elif known.seen != seen:
            self._changed.add(network)
        self._views[network] = _View(seen, asked_at)
        if len(self._changed) >= CHANGES:  # the NAT has another mapping for us: what was seen before is no longer true
            self._views = OrderedDict((each, self._views[each]) for each in self._changed if each in self._views)
            self._changed.clear()

    @property
    def seen(self) -> Address | None:
        """Our address in the eyes of most; its port is good for one of them only, where `varies`.  None: too few agree."""
        sound = self._sound()
        return Counter(each.seen for each in sound).most_common(1)[0][0] if sound else None

    @property
    def varies(self) -> bool | None:
        """Whether the NAT uses another port for each destination; None: not known."""
        sound = self._sound()
        if not sound:
            return None
        needed = max(ONE_PORT * len(sound), min(ENOUGH, AGREED * len(sound)))
        return Counter(each.seen.port for each in sound).most_common(1)[0][1] < needed

    @property
    def step(self) -> int | None:
        """By how much the next port differs from the last, where they are given out in order; None: in none that is seen."""
        if not self.varies:
            return None
        ports = [each.seen.port for each in sorted(self._sound(), key=lambda each: each.asked_at)]
        steps = Counter(after - before for before, after in pairwise(ports) if after > before)
        if sum(steps.values()) < AGREED * (len(ports) - 1) or ports[-1] - ports[0] > MAX_STEP * (len(ports) - 1):
            return None
        return steps.most_common(1)[0][0]

    @property
    def next_port(self) -> int | None:
        """The port of our next mapping, where they are given out one after the other; None also past the last port there is."""
        step = self.step
        port = 0 if step is None else max(each.seen.port for each in self._sound()) + step
        return port if 0 < port <= MAX_PORT else None

    def _sound(self) -> list[_View]:
        """Those that agree about our host with most others; none, if that is no majority."""
        hosts = Counter(each.seen.host for each in self._views.values())
        host, votes = hosts.most_common(1)[0] if hosts else ("", 0)
        if votes < ENOUGH or votes < AGREED * len(self._views):
            return []
        return [each for each in self._views.values() if each.seen.host == host]
