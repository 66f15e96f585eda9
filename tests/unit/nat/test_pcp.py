"""NAT-PMP and PCP datagrams, against the layouts of the RFCs."""

from __future__ import annotations

import pytest

from tunnel.errors import MalformedPacket
from tunnel.nat import pcp
from tunnel.nat.pcp import Answer, Reply
from tunnel.units import Address

NONCE = bytes(range(12))
MAPPED_OWN = bytes(10) + b"\xff\xff" + bytes((192, 168, 1, 10))


def test_nat_pmp_requests() -> None:
    assert pcp.encode_external_request() == b"\0\0"
    assert pcp.encode_nat_pmp_map(40_000, 40_001, 3600) == bytes.fromhex("0001 0000 9c40 9c41 00000e10")


def test_nat_pmp_answers() -> None:
    external = bytes.fromhex("0080 0000 00000064 2c800001")
    assert pcp.decode_reply(external) == Reply(Answer.NAT_PMP_EXTERNAL, 0, 100, external_host="44.128.0.1")
    mapped = bytes.fromhex("0081 0000 00000064 9c40 9c41 00000e10")
    assert pcp.decode_reply(mapped) == Reply(Answer.NAT_PMP_MAPPING, 0, 100, 40_000, 40_001, lifetime=3600)
    refused = bytes.fromhex("0081 0002 00000064")
    assert pcp.decode_reply(refused).result == 2


def test_pcp_requests() -> None:
    assert pcp.encode_announce("192.168.1.10") == bytes.fromhex("0200 0000 00000000") + MAPPED_OWN
    wished = Address("44.128.0.1", 40_001)
    request = pcp.encode_pcp_map("192.168.1.10", NONCE, 40_000, wished, 3600)
    assert request[:24] == bytes.fromhex("0201 0000 00000e10") + MAPPED_OWN
    outside = bytes(10) + b"\xff\xff" + bytes((44, 128, 0, 1))
    assert request[24:] == NONCE + bytes.fromhex("11 000000 9c40 9c41") + outside


def test_pcp_answers() -> None:
    head = bytes.fromhex("0281 00 00 00000e10 00000064") + bytes(12)
    body = NONCE + bytes.fromhex("11 000000 9c40 9c41") + bytes(10) + b"\xff\xff" + bytes((44, 128, 0, 1))
    assert pcp.decode_reply(head + body) == Reply(Answer.PCP_MAPPING, 0, 100, 40_000, 40_001, "44.128.0.1", 3600, NONCE)
    announced = bytes.fromhex("0280 00 00 00000000 00000064") + bytes(12)
    assert pcp.decode_reply(announced) == Reply(Answer.PCP_ANNOUNCE, 0, 100)
    assert pcp.decode_reply(bytes.fromhex("0281 00 02 0000001e 00000064") + bytes(12)).lifetime == 30


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\0\0", b"\2\1" + bytes(58), bytes.fromhex("0080 0000 00000064"), bytes.fromhex("0280 0000"), bytes(2000),
     bytes.fromhex("0180 0000 00000064"), bytes.fromhex("0082 0000 00000064 9c40 9c41 00000e10"),
     bytes.fromhex("0281 00 00 00000e10 00000064") + bytes(12) + NONCE + b"\x06" + bytes(23)],
)  # fmt: skip
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        pcp.decode_reply(data)
