"""The words between the agent and the costlier techniques: the scene that they are asked about, and what they want."""

from __future__ import annotations

from typing import NamedTuple

from tunnel.core.scope import is_local
from tunnel.nat.behaviour import Mapping
from tunnel.nat.candidate import Candidate, CandidateKind
from tunnel.units import Address, SocketId


def is_seen_by_the_world(candidate: Candidate) -> bool:
    """A server-reflexive IPv4 address, or that of a host with no NAT before it, whose reflexive address is its own."""
    if candidate.address.is_ipv6:
        return False
    if candidate.kind is CandidateKind.SERVER_REFLEXIVE:
        return True
    return candidate.kind is CandidateKind.HOST and not is_local(candidate.address.host)


class Measure(NamedTuple):
    """Ask the server where it sees this socket; `elsewhere`: ask at its other address, which it names itself.

    `second`: at that one too, or where it has none at another port, to see one more mapping.
    """

    socket_id: SocketId
    elsewhere: bool = False
    second: bool = False


class PoolSocket(NamedTuple):
    """An IPv4 socket that belongs to no pair."""

    socket_id: SocketId
    port: int


class Scene(NamedTuple):
    """The knowledge that both sides have of both sides.  `confirmed`: compared at two addresses of the server."""

    controlling: bool
    ours: Mapping
    ours_confirmed: bool
    theirs: Mapping
    theirs_confirmed: bool
    sockets: tuple[SocketId, ...]  # the plain IPv4 ones
    own_hosts: frozenset[str]  # where the world sees us
    remotes: tuple[Candidate, ...]  # of the peer, those that may be tried

    @property
    def target(self) -> Address | None:
        """Where the world sees the peer over IPv4, unless that is where it sees us too: a NAT that would have to hairpin."""
        is_inside = any(is_local(host) for host in self.own_hosts)  # our server is in a local network, and so is its view
        for candidate in self.remotes:
            if is_seen_by_the_world(candidate) and (is_inside or not is_local(candidate.address.host)):
                return None if candidate.address.host in self.own_hosts else candidate.address
        return None


class TechniqueStats(NamedTuple):
    """For `status`.  What was spent, and what may still be: packets, sockets, seconds."""

    name: str  # of what is under way, or ""
    sockets: int  # of the pool, held now
    probes_sent: int
    openers_sent: int
    seconds: float  # spent searching that way, over all attempts
    probes_left: int  # of the process
    openers_left: int
