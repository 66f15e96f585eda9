"""Ranges of ports: from which one a NAT draws, as a few observed ports tell, and how many tries two such NATs take to meet.

Carriers give a home a block of ports of its own, often 512 to 2,048 in a row (RFC 6431 §3, RFC 7422 §2).  Let both NATs make a
new mapping for every destination and draw its port at random.  A try of ours is one mapping: we choose its destination among the
`b` ports of the peer's range, and our NAT draws its port among the `a` of ours.  A try of theirs is the mirror image.  They meet
when a try of each is the same pair of ports, so m tries of ours and n of theirs miss with a chance of exp(-m n / (a b)):

    ranges           half of all    95 %     99.9 %
    512 x 512                427      887      1,346    tries of each side
    1,024 x 1,024            853    1,773      2,692
    2,048 x 2,048          1,706    3,545      5,383
    512 x 64,512           4,785    9,947     15,105
    64,512 x 64,512       53,709  111,659    169,555
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from tunnel.nat.candidate import MIN_PORT
from tunnel.nat.hints import PortRange
from tunnel.units import Seconds

LAST_PORT: Final = 65_535
MAX_BLOCK: Final = 4_096  # ports between the lowest and the highest observed one; with more it is no block
LEAST_BLOCK: Final = 128  # ports; fewer come from a NAT that counts, in a busy home
MIN_OBSERVED: Final = 8  # ports; so many of 64,512 lie within a block by chance once in 200 million times
CERTAINTY: Final = 7.0  # m n / (a b) of a whole attempt: 999 of 1,000 meet
#: The pace of both: half of all pairs, and 95 %, have met after so long.  A faster one would only be nearer to a carrier's limit.
HALF_WITHIN: Final = Seconds(3.0)
MOST_WITHIN: Final = Seconds(6.3)
LEAST_CHANCE: Final = 1 / 3  # of meeting, for an attempt to begin


def every_port(tries: int) -> PortRange:
    """The range of a NAT that shows no block."""
    return PortRange(MIN_PORT, LAST_PORT + 1 - MIN_PORT, tries)


def is_scattered(ports: Sequence[int]) -> bool:
    """Whether these lie too far apart for one block."""
    return max(ports) - min(ports) >= MAX_BLOCK


def estimate(ports: Sequence[int], tries: int) -> PortRange:
    """The range that these were drawn from; beyond the outermost, the mean gap between them is added."""
    if len(ports) < MIN_OBSERVED or is_scattered(ports):
        return every_port(tries)
    low, high = min(ports), max(ports)
    gap = math.ceil((high - low) / (len(ports) - 1))
    first, last = max(MIN_PORT, low - gap), min(LAST_PORT, high + gap)
    return PortRange(first, last + 1 - first, tries)


def pace(ours: PortRange, theirs: PortRange) -> float:
    """Tries of ours a second that are enough."""
    half, most = (tries_wanted(ours, theirs, -math.log(1.0 - share)) for share in (0.5, 0.95))
    return max(half / HALF_WITHIN, most / MOST_WITHIN)


def tries_wanted(ours: PortRange, theirs: PortRange, certainty: float = CERTAINTY) -> int:
    """Tries of ours for it: as many as of theirs, or more where they can make fewer."""
    meetings = certainty * ours.ports * theirs.ports
    return math.ceil(max(math.sqrt(meetings), meetings / theirs.tries)) if theirs.tries else 0


def chance(ours: PortRange, theirs: PortRange, tries: int) -> float:
    """Of meeting by so many tries of ours, where they do their part."""
    of_theirs = min(theirs.tries, tries_wanted(theirs, ours))
    return 1.0 - math.exp(-tries * of_theirs / (ours.ports * theirs.ports))


def is_block(drawn: PortRange) -> bool:
    return drawn.ports <= 2 * MAX_BLOCK  # the gaps beyond the outermost ports are counted in


def next_ports(port: int, step: int, ports: int, tries: int) -> PortRange | None:
    """So many that a NAT allocates after `port`; None at the end of all ports, where it begins anew somewhere."""
    low, high = sorted((port + step, port + step * ports))
    return PortRange(low, high + 1 - low, tries) if low >= MIN_PORT and high <= LAST_PORT else None
