from __future__ import annotations

import aioice.stun
import pytest

from tunnel.errors import MalformedPacket
from tunnel.nat import stun
from tunnel.units import Address

TRANSACTION = bytes(range(12))


def request() -> stun.StunMessage:
    return stun.decode(stun.encode_binding_request(TRANSACTION))


def test_the_oracle_reads_our_request() -> None:
    message = aioice.stun.parse_message(stun.encode_binding_request(TRANSACTION, software="ptunnel", fingerprint=True))
    assert message.message_method == aioice.stun.Method.BINDING
    assert message.message_class == aioice.stun.Class.REQUEST
    assert message.transaction_id == TRANSACTION
    assert message.attributes["SOFTWARE"] == "ptunnel"


@pytest.mark.parametrize("address", [Address("192.0.2.1", 32853), Address("2001:db8:1234:5678:11:2233:4455:6677", 32853)])
@pytest.mark.parametrize("fingerprint", [False, True])
def test_the_oracle_reads_our_response(address: Address, fingerprint: bool) -> None:
    response = stun.encode_binding_response(
        request(), address, response_origin=Address("192.0.2.9", 24531), software="x", fingerprint=fingerprint
    )
    message = aioice.stun.parse_message(response)
    assert message.attributes["XOR-MAPPED-ADDRESS"] == tuple(address)
    assert message.message_class == aioice.stun.Class.RESPONSE
    assert stun.decode(response).mapped_address == address


@pytest.mark.parametrize("address", [Address("192.0.2.1", 1), Address("2001:db8::1", 65535)])
def test_we_read_the_oracles_response(address: Address) -> None:
    message = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.RESPONSE, TRANSACTION)
    message.attributes["XOR-MAPPED-ADDRESS"] = tuple(address)
    message.add_fingerprint()
    assert stun.decode(bytes(message)).mapped_address == address


def test_rfc_5769_sample_response_is_read() -> None:
    """The sample IPv4 response of RFC 5769 §2.2: its MESSAGE-INTEGRITY is left alone, its FINGERPRINT is checked."""
    sample = bytes.fromhex(
        "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
        "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
    )
    message = stun.decode(sample)
    assert message.mapped_address == Address("192.0.2.1", 32853)
    with pytest.raises(MalformedPacket):
        stun.decode(sample[:-1] + bytes((sample[-1] ^ 1,)))


def test_discovery_attributes_come_back() -> None:
    encoded = stun.encode_binding_request(TRANSACTION, change_port=True)
    assert stun.decode(encoded).change_request == (False, True)
    both = stun.decode(stun.encode_binding_request(TRANSACTION, change_address=True, change_port=True))
    assert both.change_request == (True, True)
    assert both.unknown_required == ()
    other, origin = Address("198.51.100.2", 24532), Address("198.51.100.1", 24531)
    answer = stun.decode(
        stun.encode_binding_response(both, Address("203.0.113.5", 7), other_address=other, response_origin=origin)
    )
    assert (answer.other_address, answer.response_origin) == (other, origin)


def test_a_client_of_rfc_3489_gets_mapped_address() -> None:
    old = (1).to_bytes(2, "big") + bytes(2) + bytes(16)
    message = stun.decode(old)
    assert message.is_rfc3489
    encoded = stun.encode_binding_response(
        message, Address("192.0.2.1", 9), other_address=Address("192.0.2.3", 3479), response_origin=Address("192.0.2.2", 3478)
    )
    answer = stun.decode(encoded)
    assert stun.XOR_MAPPED_ADDRESS not in answer.attributes
    assert answer.mapped_address == Address("192.0.2.1", 9)
    assert encoded[4:20] == bytes(16)
    assert {4, 5} <= set(answer.attributes)


@pytest.mark.parametrize("size", [24, 40, 100, 548])
def test_a_request_is_padded(size: int) -> None:
    encoded = stun.encode_binding_request(TRANSACTION, padding_to=size)
    assert size <= len(encoded) < size + 8
    assert stun.decode(encoded).type == stun.BINDING_REQUEST


def test_an_unknown_required_attribute_is_named_in_the_error() -> None:
    asked = stun.StunMessage(stun.BINDING_REQUEST, TRANSACTION, attributes={0x0077: b"", 0x8077: b""})
    answer = aioice.stun.parse_message(stun.encode_binding_error(asked, 420, "Unknown Attribute"))
    assert answer.attributes["ERROR-CODE"] == (420, "Unknown Attribute")
    assert asked.unknown_required == (0x0077,)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        bytes(19),
        bytes(21),
        stun.encode_binding_request(TRANSACTION)[:2] + b"\x00\x04" + stun.encode_binding_request(TRANSACTION)[4:],
        b"\x40" + stun.encode_binding_request(TRANSACTION)[1:],
        bytes((0, 1, 0, 4)) + bytes(16) + b"\x00\x20\x00\x01",
        bytes((0, 1, 0, 132)) + bytes(16) + bytes(132),
        bytes(1504),
    ],
)
def test_malformed_datagrams_are_refused(datagram: bytes) -> None:
    with pytest.raises(MalformedPacket):
        stun.decode(datagram)


@pytest.mark.parametrize("value", [b"", b"\x00\x01\x00\x01\x7f", b"\x00\x03\x00\x01" + bytes(4), b"\x00\x02\x00\x01" + bytes(4)])
def test_malformed_addresses_are_refused(value: bytes) -> None:
    with pytest.raises(MalformedPacket):
        _ = stun.StunMessage(stun.BINDING_RESPONSE, TRANSACTION, attributes={stun.XOR_MAPPED_ADDRESS: value}).mapped_address
