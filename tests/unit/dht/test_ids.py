from __future__ import annotations

import random

import pytest

from tunnel.dht.ids import is_bound, network_of


@pytest.mark.parametrize(
    ("host", "node_id"),
    [
        ("124.31.75.21", "5fbfbff10c5d6a4ec8a88e4c6ab4c28b95eee401"),
        ("21.75.31.124", "5a3ce9c14e7a08645677bbd1cfe7d8f956d53256"),
        ("65.23.51.170", "a5d43220bc8f112a3d426c84764f8c2a1150e616"),
        ("84.124.73.14", "1b0321dd1bb1fe518101ceef99462b947a01ff41"),
        ("43.213.53.83", "e56f6cbf5b7c4be0237986d5243b87aa6d51305a"),
    ],
)
def test_the_examples_of_bep_42_fit_their_addresses_and_no_other(host: str, node_id: str) -> None:
    assert is_bound(bytes.fromhex(node_id), host)
    assert not is_bound(bytes.fromhex(node_id), "198.51.100.1")
    assert not is_bound(bytes([1]) + bytes.fromhex(node_id)[1:], host)


def test_within_a_local_network_every_id_is_as_good_as_another() -> None:
    assert is_bound(random.Random(1).randbytes(20), "192.168.1.7")


def test_a_network_is_told_by_the_first_bits_of_an_address() -> None:
    assert network_of("44.1.2.3", 24, 64) == network_of("44.1.2.200", 24, 64) != network_of("44.1.3.3", 24, 64)
    assert network_of("3fff:1:2:3::1", 24, 64) == network_of("3fff:1:2:3:9::", 24, 64) != network_of("3fff:1:2:4::1", 24, 64)
