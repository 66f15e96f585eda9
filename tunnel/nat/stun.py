"""The STUN codec: binding requests and what answers them, for standard clients and for behaviour discovery.

Source: RFC 8489 (messages), RFC 5780 (CHANGE-REQUEST, OTHER-ADDRESS, RESPONSE-ORIGIN), RFC 3489 (clients without the cookie).
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from tunnel.errors import MalformedPacket
from tunnel.nat.candidate import canonical
from tunnel.units import Address, Buffer

BINDING_REQUEST: Final = 0x0001
BINDING_RESPONSE: Final = 0x0101
BINDING_ERROR: Final = 0x0111

MAPPED_ADDRESS: Final = 0x0001
CHANGE_REQUEST: Final = 0x0003
ERROR_CODE: Final = 0x0009
UNKNOWN_ATTRIBUTES: Final = 0x000A
XOR_MAPPED_ADDRESS: Final = 0x0020
PADDING: Final = 0x0026
SOFTWARE: Final = 0x8022
FINGERPRINT: Final = 0x8028
RESPONSE_ORIGIN: Final = 0x802B
OTHER_ADDRESS: Final = 0x802C

MAGIC_COOKIE: Final = 0x2112A442
HEADER_LENGTH: Final = 20
TRANSACTION_LENGTH: Final = 12  # of an RFC 8489 transaction ID; in an RFC 3489 one the four bytes before belong to it too
MAX_MESSAGE: Final = 1500  # bytes; longer ones are refused unread
MAX_ATTRIBUTES: Final = 32
CHANGE_ADDRESS_FLAG: Final = 0x04
CHANGE_PORT_FLAG: Final = 0x02
_FINGERPRINT_XOR: Final = 0x5354554E
_FAMILY_IPV4: Final = 1
_FAMILY_IPV6: Final = 2

_HEADER: Final = struct.Struct(">HHI12s")
_ATTRIBUTE: Final = struct.Struct(">HH")


@dataclass(frozen=True, slots=True)
class StunMessage:
    """One decoded message.  `cookie` differs from MAGIC_COOKIE exactly for RFC 3489 clients.  Unknown attributes stay bytes."""

    type: int
    transaction: bytes
    cookie: int = MAGIC_COOKIE
    attributes: dict[int, bytes] = field(default_factory=dict)

    @property
    def is_rfc3489(self) -> bool:
        return self.cookie != MAGIC_COOKIE

    @property
    def mapped_address(self) -> Address | None:
        """The reflexive address in a binding response.  Raises MalformedPacket."""
        value = self.attributes.get(XOR_MAPPED_ADDRESS)
        if value is not None:
            return _decode_address(value, self.cookie, self.transaction, xor=True)
        value = self.attributes.get(MAPPED_ADDRESS)
        return None if value is None else _decode_address(value, self.cookie, self.transaction, xor=False)

    @property
    def other_address(self) -> Address | None:
        """Raises MalformedPacket."""
        return self._plain(OTHER_ADDRESS)

    @property
    def response_origin(self) -> Address | None:
        """Raises MalformedPacket."""
        return self._plain(RESPONSE_ORIGIN)

    @property
    def change_request(self) -> tuple[bool, bool]:
        """(change address, change port).  Raises MalformedPacket."""
        value = self.attributes.get(CHANGE_REQUEST)
        if value is None:
            return False, False
        if len(value) != 4:
            raise MalformedPacket("CHANGE-REQUEST: not 4 bytes")
        return bool(value[3] & CHANGE_ADDRESS_FLAG), bool(value[3] & CHANGE_PORT_FLAG)

    @property
    def unknown_required(self) -> tuple[int, ...]:
        """Attributes that must be understood to answer (below 0x8000) and are not.  RFC 8489 §6.3.1."""
        return tuple(kind for kind in self.attributes if kind < 0x8000 and kind not in _UNDERSTOOD)

    def _plain(self, kind: int) -> Address | None:
        value = self.attributes.get(kind)
        return None if value is None else _decode_address(value, self.cookie, self.transaction, xor=False)


_UNDERSTOOD: Final = frozenset({MAPPED_ADDRESS, CHANGE_REQUEST, XOR_MAPPED_ADDRESS, PADDING})


def decode(buffer: Buffer) -> StunMessage:
    """One whole datagram.  A FINGERPRINT, if there, must be last and right.  Raises MalformedPacket."""
    view = memoryview(buffer)
    if not HEADER_LENGTH <= len(view) <= MAX_MESSAGE:
        raise MalformedPacket("STUN: impossible length")
    kind, length, cookie, transaction = _HEADER.unpack_from(view)
    if kind & 0xC000 or length % 4 or HEADER_LENGTH + length != len(view):
        raise MalformedPacket("STUN: header does not fit the datagram")
    attributes: dict[int, bytes] = {}
    position, count = HEADER_LENGTH, 0
    while position < len(view):
        count += 1
        if count > MAX_ATTRIBUTES:
            raise MalformedPacket("STUN: too many attributes")
        name, size = _ATTRIBUTE.unpack_from(view, position)  # a multiple of 4 is left, so 4 bytes are there
        start = position + 4
        if size > len(view) - start:
            raise MalformedPacket("STUN: attribute beyond the end")
        if name == FINGERPRINT:
            expected = zlib.crc32(view[:position]) ^ _FINGERPRINT_XOR
            if size != 4 or start + 4 != len(view) or int.from_bytes(view[start : start + 4], "big") != expected:
                raise MalformedPacket("STUN: wrong FINGERPRINT")
        attributes.setdefault(name, bytes(view[start : start + size]))  # RFC 8489 §14: the first of equal ones counts
        position = start + (size + 3) // 4 * 4
    return StunMessage(kind, transaction, cookie, attributes)


def encode_binding_request(
    transaction: bytes,
    *,
    software: str = "",
    padding_to: int = 0,
    change_address: bool = False,
    change_port: bool = False,
    fingerprint: bool = False,
) -> bytes:
    """A binding request of at least `padding_to` bytes (RFC 5780 PADDING, if more than 4 are missing)."""
    body = bytearray()
    if change_address or change_port:
        flags = (CHANGE_ADDRESS_FLAG if change_address else 0) | (CHANGE_PORT_FLAG if change_port else 0)
        body += _attribute(CHANGE_REQUEST, flags.to_bytes(4, "big"))
    if software:
        body += _attribute(SOFTWARE, software.encode()[:127])
    missing = padding_to - HEADER_LENGTH - len(body) - (8 if fingerprint else 0)
    if missing > 0:
        body += _attribute(PADDING, bytes(max(0, (missing - 4 + 3) // 4 * 4)))
    return _finish(BINDING_REQUEST, MAGIC_COOKIE, transaction, body, fingerprint)


def encode_binding_response(
    request: StunMessage,
    address: Address,
    *,
    other_address: Address | None = None,
    response_origin: Address | None = None,
    software: str = "",
    fingerprint: bool = False,
) -> bytes:
    """The answer to `request`: XOR-MAPPED-ADDRESS, or MAPPED-ADDRESS for a client of RFC 3489."""
    if request.is_rfc3489:
        body = _attribute(MAPPED_ADDRESS, _encode_address(address, None, b""))
        # RFC 3489 calls them SOURCE-ADDRESS (4) and CHANGED-ADDRESS (5), and its clients count on both
        if response_origin is not None:
            body += _attribute(0x0004, _encode_address(response_origin, None, b""))
        if other_address is not None:
            body += _attribute(0x0005, _encode_address(other_address, None, b""))
        return _finish(BINDING_RESPONSE, request.cookie, request.transaction, body, False)
    body = _attribute(XOR_MAPPED_ADDRESS, _encode_address(address, request.cookie, request.transaction))
    if response_origin is not None:
        body += _attribute(RESPONSE_ORIGIN, _encode_address(response_origin, None, b""))
    if other_address is not None:
        body += _attribute(OTHER_ADDRESS, _encode_address(other_address, None, b""))
    if software:
        body += _attribute(SOFTWARE, software.encode()[:127])
    return _finish(BINDING_RESPONSE, request.cookie, request.transaction, body, fingerprint)


def encode_binding_error(request: StunMessage, code: int, reason: str) -> bytes:
    """ERROR-CODE, with UNKNOWN-ATTRIBUTES for 420.  RFC 8489 §14.8, §14.13."""
    body = _attribute(ERROR_CODE, bytes((0, 0, code // 100, code % 100)) + reason.encode()[:127])
    if code == 420:
        body += _attribute(UNKNOWN_ATTRIBUTES, b"".join(kind.to_bytes(2, "big") for kind in request.unknown_required[:8]))
    return _finish(BINDING_ERROR, request.cookie, request.transaction, body, False)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _finish(kind: int, cookie: int, transaction: bytes, body: bytes | bytearray, fingerprint: bool) -> bytes:
    if len(transaction) != TRANSACTION_LENGTH:
        raise ValueError("a transaction ID has 12 bytes")
    length = len(body) + (8 if fingerprint else 0)
    message = _HEADER.pack(kind, length, cookie, transaction) + bytes(body)
    if fingerprint:
        message += _attribute(FINGERPRINT, (zlib.crc32(message) ^ _FINGERPRINT_XOR).to_bytes(4, "big"))
    return message


def _mask(cookie: int, transaction: bytes, length: int) -> int:
    return int.from_bytes((cookie.to_bytes(4, "big") + transaction)[:length], "big")


def _encode_address(address: Address, cookie: int | None, transaction: bytes) -> bytes:
    packed = ipaddress.ip_address(canonical(address.host)).packed
    family, port, host = (_FAMILY_IPV4 if len(packed) == 4 else _FAMILY_IPV6), address.port, int.from_bytes(packed, "big")
    if cookie is not None:
        port ^= cookie >> 16
        host ^= _mask(cookie, transaction, len(packed))
    return bytes((0, family)) + port.to_bytes(2, "big") + host.to_bytes(len(packed), "big")


def _decode_address(value: bytes, cookie: int, transaction: bytes, *, xor: bool) -> Address:
    lengths = {_FAMILY_IPV4: 4, _FAMILY_IPV6: 16}
    if len(value) < 4 or lengths.get(value[1]) != len(value) - 4:
        raise MalformedPacket("STUN: malformed address")
    port, host, length = int.from_bytes(value[2:4], "big"), int.from_bytes(value[4:], "big"), len(value) - 4
    if xor:
        port ^= cookie >> 16
        host ^= _mask(cookie, transaction, length)
    packed = host.to_bytes(length, "big")
    return Address(canonical(str(ipaddress.ip_address(packed))), port)
