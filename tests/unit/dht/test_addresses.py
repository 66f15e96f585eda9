"""What is announced of a home beside the port that nodes see: a port that its router maps, and IPv6."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.dht import Home, World, cone, dual, packed, scattered
from tests.unit.dht.test_route import NAT, ROOM
from tunnel.rendezvous.messages import Introduced
from tunnel.units import Address, SocketId

HOST = "198.18.0.7"
MAPPED = Address(HOST, 45_678)
BOTH = (False, True)
IPV4, IPV6 = SocketId(0), SocketId(1)


class Forwarded(Home):
    """A home whose router lets in everybody at MAPPED."""

    def __init__(self, world: World, nat: Callable[[Address], Address]) -> None:
        self.heard_from: set[Address] = set()
        super().__init__(world, lambda target: MAPPED if target in self.heard_from else nat(target), seed=21)
        self.mappings[MAPPED] = set()
        self.part.set_mapped({IPV4: MAPPED})

    def let_in(self, source: Address, target: Address, data: bytes) -> None:
        if target == MAPPED:
            self.heard_from.add(source)
            self.take(source, data)
        else:
            super().let_in(source, target, data)


def kept(at: World, home: Home, *, is_ipv6: bool = False) -> set[bytes]:
    """The peers that the closest nodes keep under the home's only infohash."""
    info_hash = next(iter(home.part._appointments.values())).meeting.keys.info_hash
    return {peer for each in at.closest(info_hash, 8, is_ipv6=is_ipv6) for peer in each.peers.get(info_hash, ())}


def meet(at: World, home: Home, friend: Home, seconds: float = 20.0) -> Address:
    """At which address of the home."""
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 10.0, home)
    friend.part.dial(at.now, [ROOM])
    assert at.run(lambda: bool(friend.heard(Introduced)), seconds, home, friend)
    return friend.paths()[0]


def world(*families: bool) -> World:
    at = World()
    for is_ipv6 in families or (False,):
        at.add_nodes(200, is_ipv6=is_ipv6)
    return at


def test_a_mapped_port_is_announced_beside_the_one_that_is_seen() -> None:
    at = world()
    home = Forwarded(at, cone())
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 15.0, home)
    assert kept(at, home) == {packed(MAPPED), packed(Address(HOST, 40_000))}
    (topic,) = next(iter(home.part._appointments.values())).topics
    assert topic.holders >= 8


@pytest.mark.parametrize("theirs", [cone("198.18.0.9", 50_000), scattered("198.18.0.9")])
def test_a_home_whose_ports_are_by_chance_is_met_at_its_mapped_port(theirs: NAT) -> None:
    at = world()
    home = Forwarded(at, scattered(HOST, 6))
    friend = Home(at, theirs, seed=22)
    assert meet(at, home, friend) == MAPPED
    assert kept(at, home) >= {packed(MAPPED)}


def test_a_port_of_a_router_behind_another_one_is_not_announced() -> None:
    at = world()
    home = Home(at, cone(), seed=21)
    home.part.set_mapped({IPV4: Address("10.0.0.1", 45_678)})
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 15.0, home)
    assert kept(at, home) == {packed(Address(HOST, 40_000))}


def test_a_port_that_is_mapped_later_is_announced_then() -> None:
    at = world()
    home = Home(at, cone(), seed=21)
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 15.0, home)
    home.part.set_mapped({IPV4: MAPPED})
    at.run(lambda: False, 15.0, home)
    assert packed(MAPPED) in kept(at, home)


def test_a_pair_without_ipv4_meets() -> None:
    at = world(True)
    home = Home(at, cone("3fff:ffff:1::7"), seed=21, families=(True,))
    friend = Home(at, cone("3fff:ffff:2::9"), seed=22, families=(True,))
    assert meet(at, home, friend) == Address("3fff:ffff:1::7", 40_000)


def test_a_pair_with_both_families_announces_and_asks_in_both() -> None:
    at = world(*BOTH)
    home = Home(at, dual(cone(), "3fff:ffff:1::7"), seed=21, families=BOTH)
    friend = Home(at, dual(cone("198.18.0.9", 50_000), "3fff:ffff:2::9"), seed=22, families=BOTH)
    assert meet(at, home, friend) in {Address(HOST, 40_000), Address("3fff:ffff:1::7", 45_000)}
    assert kept(at, home) >= {packed(Address(HOST, 40_000))}
    assert kept(at, home, is_ipv6=True) >= {packed(Address("3fff:ffff:1::7", 45_000))}


@pytest.mark.parametrize("ipv6_works", [True, False])
def test_of_two_families_the_one_that_gets_through_is_enough(ipv6_works: bool) -> None:
    at = world(*BOTH)
    ours, theirs = (scattered(HOST, 6), scattered("198.18.0.9")) if ipv6_works else (cone(), cone("198.18.0.9", 50_000))
    home = Home(at, dual(ours, "3fff:ffff:1::7"), seed=21, families=BOTH)
    friend = Home(at, dual(theirs, "3fff:ffff:2::9"), seed=22, families=BOTH)
    if not ipv6_works:
        for each in at.nodes.values():
            each.is_dead |= each.address.is_ipv6
    assert meet(at, home, friend).is_ipv6 == ipv6_works


def test_a_home_with_one_family_meets_a_friend_with_both() -> None:
    at = world(*BOTH)
    home = Home(at, cone("3fff:ffff:1::7"), seed=21, families=(True,))
    friend = Home(at, dual(cone("198.18.0.9", 50_000), "3fff:ffff:2::9"), seed=22, families=BOTH)
    assert meet(at, home, friend).is_ipv6


def test_a_family_that_is_entered_later_is_announced_too() -> None:
    at = world(*BOTH)
    home = Home(at, dual(cone(), "3fff:ffff:1::7"), seed=21, entries=0, families=BOTH)
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 5.0, home)
    home.part.enter(at.now, [next(each for each in at.nodes if not each.is_ipv6)])
    home.part.enter(at.now, [next(each for each in at.nodes if each.is_ipv6)])
    at.run(lambda: False, 15.0, home)
    assert kept(at, home)
    assert kept(at, home, is_ipv6=True)
