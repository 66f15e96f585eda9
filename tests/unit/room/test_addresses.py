"""Subnets that clash with nobody, and host numbers."""

from __future__ import annotations

import ipaddress
import random

import pytest

from tunnel.room.core import addresses
from tunnel.room.core.addresses import HostNumbers, Prefix, choose_subnet, clashes, is_possible, is_spare, subnet_prefix


def routes(*texts: str) -> tuple[Prefix, ...]:
    return tuple(Prefix.parse(text) for text in texts)


@pytest.mark.parametrize("seed", range(50))
def test_a_subnet_overlaps_no_route_and_comes_from_ten_slash_eight_while_that_has_room(seed: int) -> None:
    rng = random.Random(seed)
    taken = tuple(
        Prefix.parse(f"{ipaddress.IPv4Address((10 << 24) + rng.getrandbits(24))}/{rng.randint(11, 32)}") for _ in range(40)
    )
    subnet = choose_subnet(rng.randbytes, taken)
    assert subnet is not None
    assert subnet[0] == 10
    assert subnet[3] == 0
    own = ipaddress.ip_network(str(subnet_prefix(subnet)))
    assert not any(own.overlaps(ipaddress.ip_network(str(route))) for route in taken)
    assert not clashes(subnet, taken)


def test_blocks_are_tried_in_order_to_the_last_free_subnet() -> None:
    rng = random.Random(3)
    everything = routes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    subnet = choose_subnet(rng.randbytes, everything[:1])
    assert subnet is not None
    assert subnet[:1] == b"\xac"
    subnet = choose_subnet(rng.randbytes, everything[:2])
    assert subnet is not None
    assert subnet[:2] == b"\xc0\xa8"
    spare = choose_subnet(rng.randbytes, everything)
    assert spare is not None
    assert spare[:2] == bytes((198, 19))
    assert is_spare(spare)
    assert choose_subnet(rng.randbytes, everything, may_be_spare=False) is None
    assert choose_subnet(rng.randbytes, everything + routes("198.18.0.0/15")) is None
    all_but_one = everything[:2] + tuple(Prefix((192 << 24) + (168 << 16) + (n << 8), 24) for n in range(256) if n != 77)
    assert choose_subnet(rng.randbytes, all_but_one) == bytes((192, 168, 77, 0))


def test_a_room_may_have_private_subnets_and_spare_ones_alone() -> None:
    for text in ("10.0.0.0", "10.255.255.0", "172.16.0.0", "172.31.255.0", "192.168.0.0", "192.168.255.0", "198.19.0.0"):
        assert is_possible(ipaddress.IPv4Address(text).packed), text
    for text in ("11.0.0.0", "172.32.0.0", "192.169.0.0", "100.64.0.0", "198.18.255.0", "198.20.0.0", "10.1.2.4", "0.0.0.0"):
        assert not is_possible(ipaddress.IPv4Address(text).packed), text
    assert not is_spare(bytes((198, 18, 1, 0)))


def test_a_default_route_and_halves_of_the_internet_clash_with_nothing() -> None:
    wide = routes("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "8.0.0.0/7")
    subnet = choose_subnet(random.Random(1).randbytes, wide)
    assert subnet is not None
    assert not clashes(subnet, wide)
    assert clashes(subnet, routes(f"{subnet[0]}.0.0.0/8"))
    assert clashes(subnet, routes(f"{ipaddress.IPv4Address(subnet[:3] + bytes((9,)))}/32"))


def test_subnets_are_spread() -> None:
    rng = random.Random(1)
    chosen = {choose_subnet(rng.randbytes, ()) for _ in range(200)}
    assert len(chosen) > 195


def test_what_follows_from_a_host_number() -> None:
    assert addresses.ipv4(bytes((10, 1, 2, 0)), 254) == bytes((10, 1, 2, 254))
    assert ipaddress.IPv6Address(addresses.link_local(7)) == ipaddress.IPv6Address("fe80::7074:0:0:7")
    assert addresses.mac(9).hex(":") == "02:70:74:00:00:09"
    ula = addresses.choose_ula(random.Random(1).randbytes)
    assert len(ula) == 8
    assert ipaddress.IPv6Address(addresses.ipv6(ula, 3)) in ipaddress.IPv6Network("fd00::/8")
    assert addresses.ipv6_text(ula, 3).endswith("::3")


def test_numbers_rise_come_back_to_their_owner_and_are_reused_as_late_as_possible() -> None:
    numbers = HostNumbers()
    used = {1}
    owners: dict[bytes, int] = {}
    for n in range(253):
        static = n.to_bytes(32, "big")
        owners[static] = numbers.take(static, used)
        numbers.give_back(static, owners[static])
    assert sorted(owners.values()) == list(range(2, 255))
    assert numbers.take((100).to_bytes(32, "big"), used) == owners[(100).to_bytes(32, "big")]
    used.add(owners[(100).to_bytes(32, "big")])
    assert numbers.take(b"new" + bytes(29), used) == 2  # that of the longest gone
    assert numbers.take((0).to_bytes(32, "big"), used | {2}) == 3  # its number is another's now


def test_numbers_survive_being_remembered() -> None:
    numbers = HostNumbers()
    static = bytes(32)
    first = numbers.take(static, {1})
    numbers.give_back(static, first)
    again = HostNumbers(numbers.former, numbers.highest)
    assert again.take(b"x" * 32, {1}) == first + 1
    assert again.take(static, {1, first + 1}) == first


def test_numbers_never_run_out_while_there_is_one() -> None:
    numbers = HostNumbers(highest=254)
    assert numbers.take(b"x" * 32, set(range(1, 255)) - {200}) == 200


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [("10.0.0.0/8", "10.1.2.0/24", True), ("10.1.2.0/24", "10.1.3.0/24", False), ("0.0.0.0/0", "1.2.3.4/32", True)],
)
def test_prefixes(one: str, other: str, overlap: bool) -> None:
    a, b = routes(one, other)
    assert a.overlaps(b) is b.overlaps(a) is overlap
    assert str(a) == one
