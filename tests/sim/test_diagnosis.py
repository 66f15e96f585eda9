"""`ptunnel doctor` names every kind of network rightly, whatever is lost on the way."""

from __future__ import annotations

import random

import pytest

from tests.sim.link import Link
from tests.sim.peers import ServerNode
from tests.sim.world import Host, World
from tunnel.nat.behaviour import Filtering, Mapping
from tunnel.nat.report import Findings, NetworkKind, Ports, describe
from tunnel.node.diagnosis import SOCKETS, Diagnosis
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.units import Address, Instant, Seconds, SocketId, Transmit

KINDS = {
    "open": NetworkKind.OPEN,
    "fw": NetworkKind.FIREWALL,
    "full": NetworkKind.NAT_OPEN,
    "restricted": NetworkKind.NAT_RESTRICTED,
    "prc": NetworkKind.NAT,
    "uprc": NetworkKind.NAT,
    "short": NetworkKind.NAT,
    "cgn": NetworkKind.NAT,
    "prcrace": NetworkKind.NAT_RACE,
    "sym": NetworkKind.NAT_HARD,
    "sympres": NetworkKind.NAT_HARD,
    "cgnsym": NetworkKind.NAT_HARD,
    "symseq": NetworkKind.NAT_HARD_SEQUENTIAL,
    "symad": NetworkKind.NAT_HARD_ADDRESS,
}


class TwoAddressServer(ServerNode):
    """A server whose machine has two addresses, each with two ports."""

    def boot(self) -> None:
        host, world = self.host, self.world
        if len(host.addresses) < 2:
            host.addresses.append("45.2.0.1")
            host.realm.attached["45.2.0.1"] = host
        first, second = self.addresses
        elsewhere = [Address("45.2.0.1", each.port) for each in (first, second)]
        self.sockets = {SocketId(number): each for number, each in enumerate((first, second, *elsewhere))}
        places = [ServerSocket(each, address, SocketId(each ^ 1)) for each, address in self.sockets.items()]
        entropy = random.Random(world.seed).randbytes
        self.server = Server(ServerConfig(), sockets=places, now=world.now, entropy=entropy, stun=ServerStun())
        world.attach(host, self, self.sockets)


class Patient:
    """A Diagnosis with the world's face."""

    def __init__(self, world: World, host: Host, server: Address) -> None:
        sockets = {SocketId(number): host.bind() for number in range(SOCKETS)}
        self.diagnosis = Diagnosis(
            server=server,
            own=host.addresses[0],
            ports=tuple(address.port for address in sockets.values()),
            now=world.now,
            entropy=random.Random(world.seed).randbytes,
        )
        world.attach(host, self, sockets)

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        for at in range(0, len(buffer), stride):
            self.diagnosis.handle_datagram(now, socket_id, buffer[at : at + stride])

    def handle_timeout(self, now: Instant) -> None:
        self.diagnosis.handle_timeout(now)

    def poll_timeout(self) -> Instant | None:
        return self.diagnosis.poll_timeout()

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        ready = self.diagnosis.poll_transmit()
        return None if ready is None else Transmit(ready[0], ready[1], len(ready[2]), memoryview(ready[2]))


def examine(kind: str, *, seed: int = 0, link: Link | None = None, two: bool = True, alive: bool = True) -> Findings:
    with World(seed, link) as world:
        node = (TwoAddressServer if two else ServerNode)(world, world.host("server"))
        patient = Patient(world, world.host("patient", world.site("home", kind)), node.addresses[0])
        if not alive:
            node.kill()
        world.run_until(lambda: patient.diagnosis.is_done, 10)
        return patient.diagnosis.findings


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_network_is_named(kind: str) -> None:
    for seed in range(5):
        found = examine(kind, seed=seed)
        assert found.kind is KINDS[kind], (seed, found)
        assert describe(found)[0].startswith("IPv4: ")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("symad", "restricted")])
def test_one_address_of_the_server_is_enough_for_most(kind: str) -> None:
    assert examine(kind, two=False).kind is KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lossy_line_makes_no_easy_network_hard(kind: str) -> None:
    for seed in range(20):
        found = examine(kind, seed=seed, link=Link(delay=Seconds(0.05), loss=0.05))
        if found.seen is not None and found.mapping is not Mapping.UNKNOWN and kind != "symad":
            assert found.kind.is_hard == KINDS[kind].is_hard, (seed, found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_next_door_is_no_different(kind: str) -> None:
    assert examine(kind, link=Link(delay=Seconds(0.0005))).kind is KINDS[kind]


def test_ports_and_sizes_are_told() -> None:
    assert examine("prc").ports is Ports.KEPT
    assert examine("uprc").ports is Ports.RANDOM
    found = examine("symseq")
    assert (found.ports, found.port_step) == (Ports.SEQUENTIAL, 1)
    assert found.mtu == 1_500
    assert found.hairpins is False
    assert found.round_trip is not None


def test_a_server_that_is_silent_leaves_everything_open() -> None:
    found = examine("prc", alive=False)
    assert found.kind is NetworkKind.SILENT
    assert found.mapping is Mapping.UNKNOWN
    assert found.filtering is Filtering.UNKNOWN
    assert "not running" in describe(found)[0]
