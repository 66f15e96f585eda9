"""Which pairs of sites can meet directly, from first principles: the tests compare what happened with what was possible."""

from __future__ import annotations

from enum import Enum, auto

from tests.sim.nat import CARRIERS, FILTER_APD, SITES, Behaviour, Ports
from tunnel.nat.behaviour import Mapping


class Technique(Enum):
    OPENERS = auto()  # low-TTL openers, against the conntrack race
    PREDICTION = auto()  # of the next port of a NAT that allocates in steps
    BIRTHDAY = auto()  # many sockets on one side, many ports tried by the other
    BLOCKS = auto()  # both try the few ports of the other's block, or of what it will use next


ALL = SITES | CARRIERS
#: What the agent does.
TODAY = frozenset(Technique)


def outermost(kind: str) -> Behaviour | None:
    """The box that decides: in every double NAT here the outer one is at least as hard as the inner."""
    boxes = ALL[kind]
    return boxes[-1] if boxes else None


def is_hard(kind: str) -> bool:
    return any(box.mapping is not Mapping.ENDPOINT_INDEPENDENT for box in ALL[kind])


def filters_ports(kind: str) -> bool:
    return any(box.filtering is FILTER_APD for box in ALL[kind])


def races(kind: str) -> bool:
    return any(box.races for box in ALL[kind])


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
    if Technique.BLOCKS in techniques and all(has_block(kind) or _counts(kind) for kind in hard) and any(map(has_block, hard)):
        return True
    return Technique.BIRTHDAY in techniques and any(
        _varies_by_address(one) and (_varies_by_address(other) or not has_quota(other)) for one, other in ((a, b), (b, a))
    )


def is_birthday(a: str, b: str) -> bool:
    """Is that the only way?"""
    return can_meet(a, b) and not can_meet(a, b, frozenset(Technique) - {Technique.BIRTHDAY})


def is_luck(a: str, b: str) -> bool:
    """Random ports from a NAT with a quota: a hundred of them, which may suffice."""
    return any(_varies_by_address(one) and is_hard(other) and has_quota(other) for one, other in ((a, b), (b, a)))


def has_quota(kind: str) -> bool:
    """Too few mappings to try random ports from a NAT that makes one for each."""
    return any(box.quota is not None for box in ALL[kind])


def has_block(kind: str) -> bool:
    """Ports of its own, each of which serves several mappings."""
    return any(box.block is not None and box.reuses for box in ALL[kind])


def _counts(kind: str) -> bool:
    box = outermost(kind)
    return box is not None and box.ports is Ports.SEQUENTIAL


def _varies_by_address(kind: str) -> bool:
    return any(box.mapping is Mapping.ADDRESS_DEPENDENT for box in ALL[kind])


def _predictable(kind: str, techniques: frozenset[Technique]) -> bool:
    box = outermost(kind)
    return Technique.PREDICTION in techniques and box is not None and box.ports is not Ports.RANDOM
