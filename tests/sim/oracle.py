"""Which pairs of sites can meet directly, from first principles: the tests compare what happened with what was possible."""

from __future__ import annotations

from enum import Enum, auto

from tests.sim.nat import FILTER_APD, SITES, Behaviour, Ports
from tunnel.proto.nat.behaviour import Mapping


class Technique(Enum):
    OPENERS = auto()  # low-TTL openers, against the conntrack race
    PREDICTION = auto()  # of the next port of a NAT that allocates in steps
    BIRTHDAY = auto()  # many sockets on one side, many ports tried by the other


#: What the agent does today.
TODAY = frozenset({Technique.OPENERS})


def outermost(kind: str) -> Behaviour | None:
    """The box that decides: in every double NAT here the outer one is at least as hard as the inner."""
    boxes = SITES[kind]
    return boxes[-1] if boxes else None


def is_hard(kind: str) -> bool:
    return any(box.mapping is not Mapping.ENDPOINT_INDEPENDENT for box in SITES[kind])


def filters_ports(kind: str) -> bool:
    return any(box.filtering is FILTER_APD for box in SITES[kind])


def races(kind: str) -> bool:
    return any(box.races for box in SITES[kind])


def can_meet(a: str, b: str, techniques: frozenset[Technique] = TODAY, *, ipv6: bool = False, in_step: bool = True) -> bool:
    """Can a site of kind `a` and one of kind `b` have a direct path?

    `ipv6`: both have IPv6, behind stateful firewalls at worst.  `in_step`: both begin within the opener phase.
    """
    if ipv6:
        return True
    hard = [kind for kind in (a, b) if is_hard(kind)]
    easy = [kind for kind in (a, b) if not is_hard(kind)]
    if not hard:
        raced = any(races(kind) and filters_ports(other) for kind, other in ((a, b), (b, a)))
        return not raced or (in_step and Technique.OPENERS in techniques)
    if len(hard) == 1:
        if not filters_ports(easy[0]):
            return True  # the hard side sends, the other answers the source it sees
        return _predictable(hard[0], techniques) or Technique.BIRTHDAY in techniques
    if _predictable(a, techniques) and _predictable(b, techniques):
        return True
    address_dependent = any(box.mapping is Mapping.ADDRESS_DEPENDENT for kind in (a, b) for box in SITES[kind])
    return address_dependent and Technique.BIRTHDAY in techniques


def _predictable(kind: str, techniques: frozenset[Technique]) -> bool:
    box = outermost(kind)
    return Technique.PREDICTION in techniques and box is not None and box.ports is Ports.SEQUENTIAL
