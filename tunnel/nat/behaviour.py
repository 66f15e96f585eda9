"""Behaviour discovery: which mapping and filtering our NAT shows right now, knowing that it can change.

Source: RFC 4787 §4.1 and §5 for the words, RFC 5780 §4.3 and §4.4 for the observations.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from tunnel.units import Address


class Mapping(Enum):
    """How the NAT chooses the external address of a flow.  RFC 4787 §4.1.  The values go over the wire."""

    UNKNOWN = 0
    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3
    DEPENDENT = 4  # varies with the destination; one server address was not enough to say on what

    @property
    def is_hard(self) -> bool:
        """Does the address that the server saw say nothing about the address that a peer will see?"""
        return self in _HARD


_HARD: Final = frozenset({Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT, Mapping.DEPENDENT})


class Filtering(Enum):
    """The senders whose datagrams the NAT lets in.  RFC 4787 §5."""

    UNKNOWN = 0
    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


def observe(primary: Address | None, other_port: Address | None = None, other_address: Address | None = None) -> Mapping:
    """Judge three reflexive addresses of one socket: seen by the server's port, by its second port, by its second address.

    None stands for "no answer" or "the server has none".  A kept port proves nothing: only equality to another view does.
    Source: RFC 5780 §4.3.
    """
    if primary is None:
        return Mapping.UNKNOWN
    if other_address is not None:
        if other_address == primary and other_port in (None, primary):
            return Mapping.ENDPOINT_INDEPENDENT
        if other_port is None:
            return Mapping.DEPENDENT
        return Mapping.ADDRESS_DEPENDENT if other_port == primary else Mapping.ADDRESS_AND_PORT_DEPENDENT
    if other_port is None:
        return Mapping.UNKNOWN
    # With one server address an address-dependent mapping looks endpoint-independent: the common case is meant.
    return Mapping.ENDPOINT_INDEPENDENT if other_port == primary else Mapping.ADDRESS_AND_PORT_DEPENDENT


def observe_filtering(from_other_address: bool | None, from_other_port: bool | None) -> Filtering:
    """Judge the answers to CHANGE-REQUEST with both flags and with the port flag alone; None: not tried.  RFC 5780 §4.4."""
    if from_other_address:
        return Filtering.ENDPOINT_INDEPENDENT
    if from_other_address is None or from_other_port is None:
        return Filtering.UNKNOWN
    return Filtering.ADDRESS_DEPENDENT if from_other_port else Filtering.ADDRESS_AND_PORT_DEPENDENT


SERVER_IS_BLIND: Final = "the server "  # how the sentences of explain_view begin, and no other reason


def explain_view(seen: str, is_own: bool) -> str:
    """Why the server's word about our address is no use: it sees us at `seen`, a local address; `is_own`: one of ours."""
    if is_own:
        return (
            "the server runs in this computer's own network, so it cannot tell how the router shows this computer: "
            "a server outside, or port mapping at the router, would help"
        )
    return (
        f"the server sees this computer as {seen}, so a proxy or a container's network before the server hides addresses: "
        "its operator should run it with the host's own network"
    )


def explain_relayed(ours: Mapping, theirs: Mapping) -> str:
    """One sentence for a person: why the two of them are relayed."""
    if ours.is_hard and theirs.is_hard:
        return "both routers use a new port for every destination, so neither side can guess where to send"
    if ours.is_hard:
        return "our router uses a new port for every destination, and the peer's router lets in only what it asked for"
    if theirs.is_hard:
        return "the peer's router uses a new port for every destination, and ours lets in only what we asked for"
    if Mapping.UNKNOWN in (ours, theirs):
        return "no direct check was answered, and what the routers do is not known yet"
    return "no direct check was answered: a firewall drops UDP, or both sides sit behind one router that does not hairpin"
