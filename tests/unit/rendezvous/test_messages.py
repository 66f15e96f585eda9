"""Every message there and back, the bounds that keep answers shorter than questions, addresses under their mask."""

from __future__ import annotations

import msgspec
import pytest

from tunnel.errors import MalformedPacket
from tunnel.rendezvous import messages as m
from tunnel.units import Address

U64 = 2**64 - 1
LONGEST_REQUESTS: list[m.RequestMessage] = [
    m.Hello(),
    m.Refresh(),
    m.Allocate(m.MAX_NAMEPLATE),
    m.Release(731),
    m.Claim(m.MAX_NAMEPLATE, b"b" * m.MAX_BODY),
    m.Post(b"m" * 8, b"b" * m.MAX_BODY),
    m.Join(1, (b"r" * 16,) * m.MAX_ROOMS),
    m.Leave((b"r" * 16,) * m.MAX_ROOMS, (b"c" * 8,) * m.MAX_ROOMS, (b"m" * 8,) * m.MAX_ROOMS),
    m.Rebind(b"c" * 8, 1, U64, b"m" * 16),
    m.Restore(b"c" * 8, 1, b"t" * 16),
    m.Goodbye(),
    m.Follow(2**32 - 1),
]
LONGEST_RESPONSES: list[m.ResponseMessage] = [
    m.Retry(b"c" * m.MAX_COOKIE, b"a" * 18, 65535, b"a" * 16, U64, 2**40 - 1, 2**32 - 1),
    m.Welcome(b"c" * m.MAX_COOKIE, b"a" * 18, 65535, True, U64, "ş" * 200, 2**40 - 1, 2**32 - 1),
    m.Allocated(m.MAX_NAMEPLATE, 65535),
    m.ClaimAccepted(b"m" * 8, b"c" * 8, b"t" * 16, 1),
    m.Done(2**32 - 1),
    m.Refused(255, "ş" * 200, 65535, (b"a" * 18,) * m.MAX_PLACES),
    m.Servers(2**32 - 1, 65535, (m.FleetServer(65535, m.DRAINS, U64, (b"a" * 6, b"a" * 18)),) * 11),
]
LONGEST_PUSHES: list[m.PushMessage] = [
    m.ClaimReceived(m.MAX_NAMEPLATE, b"m" * 8, b"b" * m.MAX_BODY, b"c" * 8, b"t" * 16, 1),
    m.Posted(b"m" * 8, b"b" * m.MAX_BODY),
    m.Introduced(b"r" * 16, b"c" * 8, b"t" * 16, 0),
    m.Gone(2, b"c" * 8, 255),
    m.Bye(),
    m.Elsewhere(b"r" * 16, 65535, (b"a" * 18,) * m.MAX_PLACES),
    m.MoveOn(65535, (b"a" * 18,) * m.MAX_PLACES),
]


@pytest.mark.parametrize("message", LONGEST_REQUESTS, ids=lambda x: type(x).__name__)
def test_requests_survive_the_wire_within_their_bounds(message: m.RequestMessage) -> None:
    data = m.encode_request(U64, b"s" * 16, message, cookie=b"c" * 17, access_token=b"secret")
    request = m.decode_request(data)
    assert (request.transaction, request.session, request.cookie, request.message) == (U64, b"s" * 16, b"c" * 17, message)
    assert request.proof == m.access_proof(b"secret", request.proven_part)
    assert m.MIN_REQUEST <= len(data) <= m.MAX_DATAGRAM
    assert m.decode_request_head(data) == (1, U64)
    with pytest.raises(MalformedPacket):
        m.decode_request(data[:511])


@pytest.mark.parametrize("message", LONGEST_RESPONSES, ids=lambda x: type(x).__name__)
def test_responses_survive_the_wire_and_are_shorter_than_any_request(message: m.ResponseMessage) -> None:
    data = m.encode_response(7, message)
    assert m.decode_response(data) == (7, message)
    assert len(data) <= m.MIN_REQUEST


@pytest.mark.parametrize("message", LONGEST_PUSHES, ids=lambda x: type(x).__name__)
def test_pushes_survive_the_wire(message: m.PushMessage) -> None:
    data = m.encode_push(b"s" * 16, U64, message)
    assert m.decode_push(data) == (b"s" * 16, U64, message)
    assert len(data) <= m.MAX_DATAGRAM
    assert m.decode_push_ack(m.encode_push_ack(b"s" * 16, U64)) == (b"s" * 16, U64)


def test_the_bytes_on_the_wire_are_those_of_the_protocol_document() -> None:
    data = m.encode_request(1, bytes(range(16)), m.Allocate(), cookie=b"CK")
    assert data[:33].hex(" ") == (
        "40 01 00 00 00 00 00 00 00 01 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 02 43 4b 00 00 06 94"
    )
    assert data[33:38].hex(" ") == "03 00 01 c4 00"
    assert not any(data[38:])
    assert m.encode_response(1, m.Done(5)).hex(" ") == "41 01 00 00 00 00 00 00 00 01 92 24 05"
    assert m.encode_push(bytes(16), 2, m.Bye()).hex() == "4201" + "00" * 23 + "02" + "9144"


def test_an_older_client_is_understood_without_the_later_fields() -> None:
    def without_last(message: m.RequestMessage) -> m.RequestMessage:
        data = bytearray(m.encode_request(1, b"s" * 16, message))
        body = msgspec.msgpack.encode(msgspec.msgpack.decode(msgspec.msgpack.encode(message))[:-1])
        data[28:] = len(body).to_bytes(2, "big") + body + bytes(480)
        return m.decode_request(data).message

    assert without_last(m.Allocate(731, 9, b"t")) == m.Allocate(731, 9)
    assert without_last(m.Claim(731, b"pake", True)) == m.Claim(731, b"pake")


def test_a_calendar_that_is_not_told_is_none_and_one_without_bounds_is_refused() -> None:
    retry = m.Retry(b"c" * 17, b"a" * 6, 0, b"", 1, 5)
    data = m.encode_response(1, retry)
    assert data[-2:] == b"\x05\x00"  # the calendar, and no fleet
    as_before = data[:10] + bytes((data[10] - 2,)) + data[11:-2]
    assert m.decode_response(as_before).message == m.Retry(b"c" * 17, b"a" * 6, 0, b"", 1, 0)
    for beyond in (-1, 2**40):
        with pytest.raises(MalformedPacket):
            m.decode_response(m.encode_response(1, msgspec.structs.replace(retry, unix_time=beyond)))


def test_later_fields_are_ignored_and_missing_ones_refused() -> None:
    head = m.encode_response(1, m.Done(5))[:10]
    assert m.decode_response(head + bytes((0x93, 36, 5, 77))).message == m.Done(5)
    for body in (
        b"",
        b"\x91\x22",
        b"\x93\x22\xa1x\x05",
        b"\x92\x99\x01",
        b"\xc1",
        b"\x91" * 600,
        b"\x94\x25\x01\xa2\xff\xff\x00",
    ):
        with pytest.raises(MalformedPacket):
            m.decode_response(head + body)


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1"])
def test_addresses_travel_masked(text: str) -> None:
    address = Address(text, 24531)
    packed = m.pack_address(address)
    assert m.unpack_address(packed) == address
    assert m.pack_host(text) == packed[:-2]
    assert bytes((192, 0, 2, 1)) not in packed


def test_mapped_and_zoned_addresses_become_canonical_and_others_are_refused() -> None:
    assert m.unpack_address(m.pack_address(Address("::ffff:192.0.2.1", 5))) == Address("192.0.2.1", 5)
    assert m.unpack_host(m.pack_host("fe80::1%eth0")) == "fe80::1"
    for length in (0, 3, 5, 7, 17, 19):
        with pytest.raises(MalformedPacket):
            m.unpack_address(bytes(length))
