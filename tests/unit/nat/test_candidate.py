from __future__ import annotations

import pytest

from tunnel.errors import MalformedPacket
from tunnel.nat.behaviour import Mapping
from tunnel.nat.candidate import (
    MAX_CANDIDATES,
    MIN_PORT,
    Candidate,
    CandidateKind,
    Offer,
    canonical,
    compute_priority,
    decode_candidates,
    decode_offer,
    encode_candidates,
    encode_offer,
    is_allowed,
    make_candidate,
)
from tunnel.units import Address, SocketId


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1"],
)
def test_loopback_in_any_dress_is_refused_unless_both_are_on_one_machine(host: str) -> None:
    assert not is_allowed(Address(host, 5000))
    if host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert is_allowed(Address(host, 5000), same_machine=True)
    else:
        assert not is_allowed(Address(host, 5000), same_machine=True)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0", "0.1.2.3", "224.0.0.251", "239.255.255.250", "255.255.255.255", "240.0.0.1", "169.254.169.254",
        "64:ff9b:1::a9fe:a9fe", "2001:0:5ef5:79fd::1", "::ffff:0:7f00:1",
        "169.254.170.2", "100.100.100.200", "::", "ff02::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fd20:ce::254",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "example.net", "1.2.3", "",
    ],
)  # fmt: skip
def test_addresses_that_no_check_may_go_to(host: str) -> None:
    assert not is_allowed(Address(host, 5000))
    assert not is_allowed(Address(host, 5000), same_machine=True)


@pytest.mark.parametrize(
    "host",
    ["10.0.0.1", "192.168.1.1", "100.64.1.1", "8.8.8.8", "203.0.113.5", "192.88.99.1", "3fff::1", "2001:db8::1",
     "fd12:3456::1", "64:ff9b::808:808"],
)  # fmt: skip
def test_lans_carriers_and_documentation_prefixes_are_tried(host: str) -> None:
    assert is_allowed(Address(host, 5000))


@pytest.mark.parametrize("port", [7, 53, 123, 161, MIN_PORT - 1, 1900, 5351, 5353, 11_211])
def test_ports_of_services_that_answer_strangers_are_refused(port: int) -> None:
    assert not is_allowed(Address("203.0.113.5", port))
    assert not is_allowed(Address("3fff::1", port))
    assert is_allowed(Address("127.0.0.1", port), same_machine=True)
    assert is_allowed(Address("203.0.113.5", MIN_PORT))


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_impossible_ports_are_refused(port: int) -> None:
    assert not is_allowed(Address("8.8.8.8", port))


def test_one_spelling_each() -> None:
    assert canonical("::ffff:1.2.3.4") == "1.2.3.4"
    assert canonical("2001:DB8:0:0::1") == "2001:db8::1"
    with pytest.raises(MalformedPacket):
        canonical("localhost")


def test_kinds_rank_before_families_and_ipv6_before_ipv4() -> None:
    v4, v6 = Address("1.2.3.4", 5), Address("3fff::1", 5)
    order = [
        compute_priority(CandidateKind.HOST, v6),
        compute_priority(CandidateKind.HOST, v4),
        compute_priority(CandidateKind.PEER_REFLEXIVE, v4),
        compute_priority(CandidateKind.PORT_MAPPED, v4),
        compute_priority(CandidateKind.SERVER_REFLEXIVE, v4),
        compute_priority(CandidateKind.RELAYED, v4),
    ]
    assert order == sorted(order, reverse=True)
    assert all(0 < priority < 2**32 for priority in order)


def test_candidates_come_back_without_their_base() -> None:
    sent = tuple(
        make_candidate(kind, Address(host, 4000 + kind.value), SocketId(7))
        for kind, host in zip(CandidateKind, ["192.168.1.2", "3fff::1", "1.2.3.4", "::ffff:9.9.9.9", "5.6.7.8"], strict=True)
    )
    assert decode_candidates(encode_candidates(sent)) == tuple(c._replace(base=SocketId(0)) for c in sent)


def test_no_more_than_the_limit_are_written_or_read() -> None:
    many = [Candidate(CandidateKind.HOST, Address("10.0.0.1", port)) for port in range(1, 40)]
    encoded = encode_candidates(many)
    assert len(decode_candidates(encoded)) == MAX_CANDIDATES
    with pytest.raises(MalformedPacket):
        decode_candidates(bytes((MAX_CANDIDATES + 1,)) + encoded[1:] + encoded[1:])


def test_a_kind_of_a_later_version_is_left_out() -> None:
    encoded = bytearray(encode_candidates([Candidate(CandidateKind.HOST, Address("10.0.0.1", 1))] * 2))
    encoded[1] = 200
    assert len(decode_candidates(bytes(encoded))) == 1


def test_an_offer_comes_back() -> None:
    offer = Offer(7, (Candidate(CandidateKind.HOST, Address("10.0.0.1", 1), SocketId(0), 9),), Mapping.ADDRESS_DEPENDENT)
    assert decode_offer(encode_offer(offer)) == offer
    assert decode_offer(encode_offer(Offer(9, opened=True, searching=False))) == Offer(9, opened=True, searching=False)
    assert decode_offer(encode_offer(offer) + b"from a later version") == offer
