"""A network in words: the names of its behaviours, and what they mean for reaching others.  Others observe it.

Words: RFC 4787 §4 and §5.  What follows from them was measured; docs/reach.md has the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tunnel.core.scope import is_local
from tunnel.nat.behaviour import SERVER_IS_BLIND, Filtering, Mapping, explain_relayed, explain_view
from tunnel.units import Address, Instant, Seconds

NARROW_MTU: Final = 1_280  # bytes: below it much of the internet's equipment misbehaves
SLOW_SERVER: Final = Seconds(0.4)  # introductions take several round trips


class Ports(Enum):
    """How external ports are chosen."""

    UNKNOWN = "unknown"
    KEPT = "kept"
    SEQUENTIAL = "sequential"
    RANDOM = "random"


class NetworkKind(Enum):
    """The kind of NAT or firewall between one machine and the internet, for one address family."""

    NONE = "none"  # no address of the family
    UNKNOWN = "unknown"  # the server has no address of the family
    SILENT = "silent"  # the server does not answer: nothing is known
    OPEN = "open"
    FIREWALL = "firewall"
    INSIDE = "inside"  # the server is in our own network, and shows nothing of what lies before it
    PROXIED = "proxied"  # something before the server hides our address from it
    NAT_UNKNOWN = "nat-unknown"  # translated, but the mapping could not be compared
    NAT_OPEN = "nat-open"  # endpoint-independent mapping and filtering
    NAT_RESTRICTED = "nat-restricted"  # filtering by address
    NAT = "nat"  # filtering by address and port, or not seen
    NAT_RACE = "nat-race"  # the same, and a stranger's datagram moves our mapping
    NAT_HARD = "nat-hard"  # a random port for every destination
    NAT_HARD_SEQUENTIAL = "nat-hard-sequential"
    NAT_HARD_ADDRESS = "nat-hard-address"  # one port for each destination address

    @property
    def is_hard(self) -> bool:
        return self in _HARD


#: What was observed says nothing about direct paths.
_UNKNOWN: Final = frozenset({NetworkKind.INSIDE, NetworkKind.PROXIED, NetworkKind.NAT_UNKNOWN})
_HARD: Final = frozenset({NetworkKind.NAT_HARD, NetworkKind.NAT_HARD_SEQUENTIAL, NetworkKind.NAT_HARD_ADDRESS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Observations over one address family.  None and UNKNOWN: not seen."""

    is_ipv6: bool
    own: str | None = None  # our address towards the server; None: no address of this family
    server: Address | None = None
    round_trip: Seconds | None = None  # to the server; None: it did not answer
    seen: Address | None = None  # our address as the server sees it
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    ports: Ports = Ports.UNKNOWN
    port_step: int | None = None
    hairpins: bool | None = None
    races: bool | None = None
    mtu: int | None = None  # bytes of the largest IP packet that the server answered
    second_port: int | None = None  # the server's other UDP port, by which mappings are compared
    calendar: tuple[int, Instant] | None = None  # the server's Unix time, and when it was heard
    is_refused: bool = False  # the server's machine says that nobody listens there
    tcp_answers: bool | None = None  # it answers TCP; only asked where it is silent over UDP

    @property
    def is_translated(self) -> bool | None:
        if self.seen is None or self.own is None:
            return None
        return self.seen.host != self.own

    @property
    def kind(self) -> NetworkKind:
        if self.own is None:
            return NetworkKind.NONE
        if self.server is None:
            return NetworkKind.UNKNOWN
        if self.seen is None:
            return NetworkKind.SILENT
        if is_local(self.seen.host):
            if not self.is_translated:
                return NetworkKind.INSIDE
            if not is_local(self.server.host):
                return NetworkKind.PROXIED
        if not self.is_translated:
            return NetworkKind.OPEN if self.filtering is Filtering.ENDPOINT_INDEPENDENT else NetworkKind.FIREWALL
        if self.mapping is Mapping.ADDRESS_DEPENDENT:
            return NetworkKind.NAT_HARD_ADDRESS
        if self.mapping.is_hard:
            return NetworkKind.NAT_HARD_SEQUENTIAL if self.ports is Ports.SEQUENTIAL else NetworkKind.NAT_HARD
        if self.mapping is Mapping.UNKNOWN:
            return NetworkKind.NAT_UNKNOWN
        if self.filtering is Filtering.ENDPOINT_INDEPENDENT:
            return NetworkKind.NAT_OPEN
        if self.filtering is Filtering.ADDRESS_DEPENDENT:
            return NetworkKind.NAT_RESTRICTED
        return NetworkKind.NAT_RACE if self.races else NetworkKind.NAT

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind.value,
            "own": self.own,
            "server": None if self.server is None else str(self.server),
            "rtt_s": self.round_trip,
            "seen": None if self.seen is None else str(self.seen),
            "mapping": _word(self.mapping),
            "filtering": _word(self.filtering),
            "ports": self.ports.value,
            "port_step": self.port_step,
            "hairpins": self.hairpins,
            "races": self.races,
            "mtu": self.mtu,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapFindings:
    """Whether the router maps ports on request."""

    protocol: str | None = None  # that made a mapping
    external: Address | None = None
    is_public: bool = False  # no further translator in front of it, as far as its address tells
    trouble: str = ""  # why there is none

    def to_dict(self) -> dict[str, object]:
        external = None if self.external is None else str(self.external)
        return {"protocol": self.protocol, "external": external, "public": self.is_public, "trouble": self.trouble}


_IS: Final = {
    NetworkKind.OPEN: "This machine has a public address, and strangers' datagrams reach it.",
    NetworkKind.FIREWALL: "This machine has a public address behind a firewall that lets in only answers.",
    NetworkKind.NAT_OPEN: "The router uses one port for all destinations and lets everybody in there.",
    NetworkKind.NAT_RESTRICTED: "The router uses one port for all destinations and lets in whom this machine has written to.",
    NetworkKind.NAT: "The router uses one port for all destinations and lets in only answers.",
    NetworkKind.NAT_RACE: "The router uses one port for all destinations, lets in only answers, "
    "and changes the port when the other side is first.",
    NetworkKind.NAT_HARD: "The router uses a new random port for every destination.",
    NetworkKind.NAT_HARD_SEQUENTIAL: "The router uses a new port for every destination, one after the other.",
    NetworkKind.NAT_HARD_ADDRESS: "The router uses a new port for every destination address.",
}

_MEANS: Final = {
    NetworkKind.OPEN: "Every peer whose network lets UDP out can be reached directly.",
    NetworkKind.FIREWALL: "Every peer whose network lets UDP out can be reached directly.",
    NetworkKind.NAT_OPEN: "Every peer whose network lets UDP out can be reached directly.",
    NetworkKind.NAT_RESTRICTED: "Every peer whose network lets UDP out can be reached directly.",
    NetworkKind.NAT: "Direct paths work to nearly every peer; to one whose router uses random ports they take some seconds.",
    NetworkKind.NAT_RACE: "Direct paths work to nearly every peer, with short-lived openers first; "
    "to one whose router uses random ports they take some seconds.",
    NetworkKind.NAT_HARD: "Direct paths take some seconds of guessing; to a peer with a router of the same sort there is only "
    "the relay.",
    NetworkKind.NAT_HARD_SEQUENTIAL: "Direct paths work by foretelling the next port; to a peer with random ports there is only "
    "the relay.",
    NetworkKind.NAT_HARD_ADDRESS: "Direct paths take some seconds of guessing.",
}


def describe(found: Findings) -> list[str]:
    """Sentences for a person about one address family: what it is, what that means, what would help."""
    family = "IPv6" if found.is_ipv6 else "IPv4"
    kind = found.kind
    if kind is NetworkKind.NONE:
        return [f"This machine has no {family} address that reaches the internet."]
    if found.server is None:
        return [f"The server has no {family} address, so nothing is known of {family} here."]
    if kind is NetworkKind.SILENT:
        if found.is_refused:
            return [f"The server's machine answers over {family}, but no ptunnel server listens at UDP port {found.server.port}."]
        if found.tcp_answers:
            return [
                f"The server's machine answers TCP over {family} but no UDP: a firewall on the way drops UDP, or no server runs."
            ]
        return [f"No answer from the server over {family}: it is not running, or a firewall on the way drops everything."]
    if kind in (NetworkKind.INSIDE, NetworkKind.PROXIED):
        assert found.seen is not None
        reason = explain_view(found.seen.host, kind is NetworkKind.INSIDE)
        return [f"{family}: Nothing is known of the way to the internet: {reason}."]
    if kind is NetworkKind.NAT_UNKNOWN:
        port = "" if found.second_port is None else f", UDP {found.second_port},"
        return [
            f"{family}: This machine is behind a router. Of which sort is not known: the server's second port{port} does not "
            "answer. Its operator should open it."
        ]
    sentences = [f"{family}: {_IS[kind]}", _MEANS[kind]]
    if found.hairpins is False and found.is_translated:
        sentences.append(
            "The router does not lead its own address back inside: behind it, peers meet by their LAN addresses only."
        )
    if found.mtu is not None and found.mtu < NARROW_MTU:
        sentences.append(f"Packets of more than {found.mtu} bytes get lost on the way to the server: transfers will be slower.")
    if found.round_trip is not None and found.round_trip > SLOW_SERVER:
        sentences.append("The server is far away: meeting a peer takes a second or more; a nearer server would help.")
    return sentences


def describe_portmap(found: PortMapFindings | None) -> str:
    """One sentence."""
    if found is None:
        return "There is no router to ask for a port, or none is needed."
    if found.external is None:
        return f"The router maps no port on request ({found.trouble}): UPnP-IGD, NAT-PMP or PCP in its settings would help."
    if not found.is_public:
        return (
            f"The router maps ports ({found.protocol}), but another NAT, the provider's or a modem's, stands before it: "
            "that helps only if that one hands everything on (DMZ)."
        )
    return f"The router maps ports on request ({found.protocol}, {found.external}): every peer with UDP can be reached directly."


def prospects(ipv4: Findings, ipv6: Findings, portmap: PortMapFindings | None) -> str:
    """The one sentence that sums it up."""
    if ipv4.seen is None and ipv6.seen is None:
        return "Without UDP to the server no peer can be met."
    if portmap is not None and portmap.external is not None and portmap.is_public:
        return "Direct paths to nearly every peer: the router maps a port."
    if ipv4.kind in _UNKNOWN and not (ipv6.seen is not None and ipv6.kind not in _UNKNOWN):
        return "Peers can be met; whether directly is not known from what this server shows."
    if ipv4.seen is None or ipv4.kind.is_hard:
        with6 = ipv6.seen is not None
        if ipv4.seen is None:
            return "Direct paths only to peers that have IPv6 too."
        return (
            "Direct paths to most peers; where the peer's router is as hard as this one, only over IPv6."
            if with6
            else "Direct paths to most peers; the relay where the peer's router is as hard as this one."
        )
    return "Direct paths to nearly every peer."


_TECHNIQUES: Final = {
    "prediction": "foretelling the next port",
    "birthday": "guessing ports",
    "blocks": "trying the few ports of a block",
}


def advise(kind: str, why: str, ours: str, theirs: str, technique: str = "") -> list[str]:
    """Sentences about one pair: why its path is direct or relayed, and what would change that.

    `kind` is direct or relay, `ours` and `theirs` are names of mappings as Findings.to_dict gives them.
    """
    if kind == "direct":
        how = _TECHNIQUES.get(technique)
        return [f"The path is direct{f', found by {how}' if how else ''}: nothing needs to change."]
    hard = [name in _MAPPINGS and _MAPPINGS[name].is_hard for name in (ours, theirs)]
    if all(hard) and "set to relay" not in why:
        why = explain_relayed(_MAPPINGS[ours], _MAPPINGS[theirs])
    sentences = [f"The path is relayed: {why or 'no direct path was found yet'}."]
    if "set to relay" in why:
        sentences.append("--path auto on both sides would let it be direct.")
    elif why.startswith(SERVER_IS_BLIND):
        pass  # the reason says what would help
    elif all(hard):
        sentences.append("Port mapping (UPnP-IGD, NAT-PMP or PCP) at either router, or IPv6 at both ends, would make it direct.")
    elif any(hard):
        where = "this router" if hard[0] else "the peer's router"
        sentences.append(f"Port mapping (UPnP-IGD, NAT-PMP or PCP) at {where}, or IPv6 at both ends, would make it direct.")
    else:
        sentences.append(
            "Look for a firewall that drops UDP at either end, or a router that both share and that does not hairpin."
        )
    return sentences


def _word(value: Mapping | Filtering) -> str:
    return value.name.lower().replace("_", "-")


_MAPPINGS: Final = {_word(mapping): mapping for mapping in Mapping}
