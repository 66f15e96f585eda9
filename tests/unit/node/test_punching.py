"""Which candidates a connection's puncher names."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tunnel.nat.candidate import CandidateKind
from tunnel.node.punching import LocalSocket, Puncher
from tunnel.units import Address, Instant, SocketId

V4 = SocketId(0)
SEEN = Address("203.0.113.7", 50_000)


def puncher(mapped: str, seen: Address | None = SEEN, view: Address | None = None) -> Puncher:
    client: Any = SimpleNamespace(reflexive={} if seen is None else {V4: seen}, mapping_varies=None, view=view)
    connection: Any = SimpleNamespace()
    return Puncher(
        connection,
        controlling=True,
        sockets=[LocalSocket(V4, False, 40_000)],
        local={
            CandidateKind.HOST: ((V4, Address("192.168.1.2", 40_000)),),
            CandidateKind.PORT_MAPPED: ((V4, Address(mapped, 41_000)),),
        },
        client=client,
        same_machine=False,
        now=Instant(0.0),
        rng=random.Random(1),
    )


def mapped_ports(made: Puncher) -> set[Address]:
    return {each.address for each in made.agent._sides.local if each.kind is CandidateKind.PORT_MAPPED}


@pytest.mark.parametrize("outside", ["192.168.100.2", "100.64.0.9", "10.0.0.2"])
def test_a_port_of_a_router_behind_a_modem_that_hands_everything_on_is_tried_at_the_modems_address(outside: str) -> None:
    assert mapped_ports(puncher(outside)) == {Address(outside, 41_000), Address("203.0.113.7", 41_000)}


def test_a_port_of_a_router_with_a_public_address_is_tried_there_alone() -> None:
    assert mapped_ports(puncher("203.0.113.7")) == {Address("203.0.113.7", 41_000)}
    assert mapped_ports(puncher("192.168.100.2", None)) == {Address("192.168.100.2", 41_000)}


@pytest.mark.parametrize(("view", "said"), [("192.168.1.2", "own network"), ("10.0.0.1", "sees this computer as 10.0.0.1")])
def test_a_server_that_cannot_see_us_is_the_reason_for_the_relay(view: str, said: str) -> None:
    assert said in puncher("203.0.113.7", None, Address(view, 1)).why_relayed


def test_an_address_of_any_kind_that_the_driver_has_found_is_offered_for_a_socket_that_punches() -> None:
    kinds = (CandidateKind.HOST, CandidateKind.PORT_MAPPED, CandidateKind.SERVER_REFLEXIVE, CandidateKind.PEER_REFLEXIVE)
    local: dict[CandidateKind, tuple[tuple[SocketId, Address], ...]] = {
        kind: ((V4, Address("198.51.100.1", 41_000 + kind.value)), (SocketId(9), Address("198.51.100.9", 41_000)))
        for kind in kinds
    }
    made = Puncher(
        SimpleNamespace(),  # type: ignore[arg-type]
        controlling=True,
        sockets=[LocalSocket(V4, False, 40_000)],
        local=local,
        client=None,
        same_machine=False,
        now=Instant(0.0),
        rng=random.Random(1),
    )
    found = {each.kind: each.address for each in made.agent._sides.local}
    assert found == {kind: Address("198.51.100.1", 41_000 + kind.value) for kind in kinds}
