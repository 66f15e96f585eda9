"""Prefixes are counted as a tree: nobody fills a table by the addresses of one prefix, and a full one lets newcomers in."""

from __future__ import annotations

import random

import pytest

from tunnel.core.prefixes import GROWTH, NEW_SITE, NEWCOMER, WIDEST_SHARE, RankedShares, Shares, limits, prefixes


def site(number: int) -> str:
    """An address of a /48 of its own."""
    return f"2a00:{number >> 8:x}:{number & 255:x}::1"


def fill(shares: Shares, hosts: list[str]) -> int:
    """Each takes what it gets; returns how much that is."""
    before = shares.used
    for host in hosts:
        while shares.has_room(prefixes(host)):
            shares.add(prefixes(host))
    return shares.used - before


def test_an_address_counts_with_the_prefixes_around_it() -> None:
    assert prefixes("198.18.0.7") == ("198.18.0.7", "198.18.0")
    assert prefixes("2a00:1:2:3344::9") == ("2a00000100023344", "2a000001000233", "2a0000010002", "2a000001")
    assert prefixes("fe80::1%eth0") == prefixes("fe80::1")
    assert prefixes("::ffff:198.18.0.7") == prefixes("198.18.0.7")
    with pytest.raises(ValueError, match="example"):
        prefixes("example:net")


@pytest.mark.parametrize(
    ("hosts", "most"),
    [
        (["2a00:1:2:3::1", "2a00:1:2:3:ffff::9"], 16),  # one /64
        ([f"2a00:1:2:33{n:02x}::1" for n in range(256)], 64),  # a home's /56
        ([f"2a00:1:2:{n:x}::1" for n in range(0, 65_536, 64)], 256),  # a /48
        ([f"2a00:1:{n:x}::1" for n in range(400)], 1024),  # a /32
        ([f"198.18.0.{n}" for n in range(256)], 64),
    ],
)
def test_a_wider_prefix_gets_four_times_as_much_and_not_the_sum_of_its_addresses(hosts: list[str], most: int) -> None:
    shares = Shares(total=10_000, each=16)
    assert fill(shares, hosts) == most
    assert limits(16, 10_000) == (16, 64, 256, 1024)
    assert fill(shares, ["198.19.0.1"]) == 16


def test_no_prefix_that_holds_several_addresses_gets_more_than_half_of_a_table() -> None:
    assert limits(8, 128) == (8, 32, 128 * WIDEST_SHARE, 128 * WIDEST_SHARE) == (8, 32, 64, 64)
    assert limits(100, 128) == (100, 100, 100, 100)


def test_the_last_tenth_is_for_newcomers() -> None:
    shares = Shares(total=1000, each=128)
    assert fill(shares, [site(256 * n) for n in range(8)]) == 900
    assert not shares.has_room(prefixes(site(0)))
    assert [fill(shares, [f"198.18.{n}.1"]) for n in range(3)] == [128 * NEWCOMER] * 3
    assert not shares.has_room(prefixes("198.18.1.1"))
    home = [f"2a00:700:1:33{n:02x}::1" for n in range(256)]
    assert fill(shares, home) == 128 * NEW_SITE  # its addresses are all new, but they are one site
    assert fill(shares, [f"198.18.9.{n}" for n in range(256)]) == 32
    assert fill(shares, ["198.18.77.1"]) == 2


def test_what_is_given_back_leaves_nothing_behind() -> None:
    rng = random.Random(3)
    shares = Shares(total=500, each=20)
    held: list[str] = []
    for _ in range(20_000):
        host = f"2a00:1:{rng.randrange(3)}:{rng.randrange(600):x}::1" if rng.random() < 0.5 else f"198.18.0.{rng.randrange(99)}"
        if held and rng.random() < 0.4:
            old = held.pop(rng.randrange(len(held)))
            if shares.may_move(prefixes(old), prefixes(host)):
                shares.move(prefixes(old), prefixes(host))
                held.append(host)
            else:
                shares.remove(prefixes(old))
        elif shares.has_room(prefixes(host)):
            shares.add(prefixes(host))
            held.append(host)
        assert shares.used == len(held) <= 500
        assert shares.held(prefixes(host)) <= 20
        assert sum(prefixes(each)[1] == prefixes(host)[1] for each in held) <= 20 * GROWTH
    for host in held:
        shares.remove(prefixes(host))
    assert not shares.used
    assert not any(shares._counts.values())


def test_the_last_that_came_to_hold_what_is_usual_is_found_whatever_came_before() -> None:
    rng = random.Random(4)
    shares = RankedShares(total=3_000, each=200)
    hosts = [f"198.18.{n}.1" for n in range(60)]
    came: dict[str, int] = {}  # when it got into its class
    for turn in range(20_000):
        host = rng.choice(hosts)
        keys, before = prefixes(host), shares.held(prefixes(host))
        count = rng.choice((1, 1, 1, 5, -1, -3, -before))
        if count > 0 and shares.has_room(keys, count):
            shares.add(keys, count)
        elif 0 <= -count <= before:
            shares.remove(keys, -count)
        if before.bit_length() != shares.held(keys).bit_length():
            came[host] = turn
        holding = [shares.held(prefixes(each)) for each in hosts if shares.held(prefixes(each))]
        if holding:
            mean = sum(holding) / len(holding)
            assert mean / 2 < shares.usual <= mean
            assert shares.latest()[1] == max(
                (each for each in hosts if shares.held(prefixes(each)) >= shares.usual), key=came.__getitem__
            )
        else:
            assert not shares.usual


def test_whoever_moves_within_a_prefix_is_not_stopped_by_what_he_holds_there_himself() -> None:
    shares = Shares(total=1000, each=2)
    for number in range(4):
        shares.add(prefixes(f"198.18.0.{number}"), 2)
    assert shares.crowded(prefixes("198.18.0.9")) == "198.18.0"
    assert shares.may_move(prefixes("198.18.0.1"), prefixes("198.18.0.9"), 2)
    assert not shares.may_move(prefixes("198.18.0.1"), prefixes("198.18.0.2"), 2)
    assert not shares.may_move(prefixes("198.19.0.1"), prefixes("198.18.0.9"), 1)
    assert shares.may_move(prefixes("198.19.0.1"), prefixes("198.18.0.9"), 0)
