"""The datagrams of NAT-PMP (RFC 6886) and of its successor PCP (RFC 6887), as far as mapping a UDP port needs them."""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import Final, NamedTuple

from tunnel.core.wire import Reader, Writer
from tunnel.errors import MalformedPacket
from tunnel.units import Address, Buffer

PORT: Final = 5351  # where the router listens; RFC 6886 §1.1, RFC 6887 §19.1
MAX_DATAGRAM: Final = 1100  # bytes; RFC 6887 §7
NONCE_SIZE: Final = 12
UDP: Final = 17
SUCCESS: Final = 0
UNSUPPORTED_VERSION: Final = 1  # in both protocols

_NAT_PMP_VERSION: Final = 0
_PCP_VERSION: Final = 2
_RESPONSE: Final = 0x80  # set in the opcode of an answer, in both protocols
_EXTERNAL, _MAP_UDP = 0, 1  # opcodes of NAT-PMP
_ANNOUNCE, _MAP = 0, 1  # opcodes of PCP
_PCP_MAP: Final = 36

#: What the result codes mean to a person; RFC 6886 §3.5 and RFC 6887 §7.4.
NAT_PMP_RESULTS: Final = {
    1: "it does not speak this version",
    2: "it refuses",
    3: "it has no address of its own just now",
    4: "it has no ports left",
    5: "it does not know how",
}
PCP_RESULTS: Final = {
    1: "it does not speak this version",
    2: "it refuses",
    3: "it did not understand",
    4: "it does not know how",
    5: "it does not know an option",
    6: "it did not understand an option",
    7: "it has no address of its own just now",
    8: "it has no ports left",
    9: "it does not know UDP",
    10: "this machine has its share of ports already",
    11: "that port is taken",
    12: "another router stands between",
    13: "it keeps too many filters",
}


class Answer(Enum):
    """The request that an answer belongs to."""

    NAT_PMP_EXTERNAL = "external address"
    NAT_PMP_MAPPING = "NAT-PMP mapping"
    PCP_ANNOUNCE = "announcement"
    PCP_MAPPING = "PCP mapping"


class Reply(NamedTuple):
    """One answer of the router.  Fields that its kind lacks are zero or empty, and so are most when `result` is not SUCCESS."""

    answer: Answer
    result: int
    epoch: int  # seconds since the router lost its memory
    internal_port: int = 0
    external_port: int = 0
    external_host: str = ""  # canonical
    lifetime: int = 0  # seconds; of an error in PCP: how long it will stay so
    nonce: bytes = b""


def encode_external_request() -> bytes:
    """RFC 6886 §3.2."""
    return bytes((_NAT_PMP_VERSION, _EXTERNAL))


def encode_nat_pmp_map(internal_port: int, external_port: int, lifetime: int) -> bytes:
    """RFC 6886 §3.3 for UDP; with both zero after the internal port it removes the mapping (§3.4)."""
    writer = Writer().u8(_NAT_PMP_VERSION).u8(_MAP_UDP).u16(0)
    return writer.u16(internal_port).u16(external_port).u32(lifetime).finish()


def encode_announce(own: str) -> bytes:
    """RFC 6887 §14.1: asks nothing of the router but its epoch.  `own` is our address as the router sees it."""
    return _pcp_header(_ANNOUNCE, 0, own).finish()


def encode_pcp_map(own: str, nonce: bytes, internal_port: int, external: Address | None, lifetime: int) -> bytes:
    """RFC 6887 §11.1 for UDP.  `external` is what we would like; `lifetime` 0 removes the mapping (§15)."""
    writer = _pcp_header(_MAP, lifetime, own).raw(nonce).u8(UDP).raw(bytes(3)).u16(internal_port)
    host, port = external if external is not None else ("0.0.0.0", 0)
    return writer.u16(port).raw(_packed(host)).finish()


def decode_reply(data: Buffer) -> Reply:
    """Read a datagram from the router's port 5351.  Raises MalformedPacket, also for requests and unwanted answers."""
    if len(data) > MAX_DATAGRAM:
        raise MalformedPacket(f"a router's answer of {len(data)} bytes")
    reader = Reader(data)
    version, opcode = reader.u8(), reader.u8()
    if not opcode & _RESPONSE:
        raise MalformedPacket("not an answer")
    opcode &= ~_RESPONSE
    if version == _NAT_PMP_VERSION:
        return _decode_nat_pmp(reader, opcode)
    if version == _PCP_VERSION:
        return _decode_pcp(reader, opcode, len(data))
    raise MalformedPacket(f"port mapping of version {version}")


def _decode_nat_pmp(reader: Reader, opcode: int) -> Reply:
    result = reader.u16()
    if opcode == _EXTERNAL:
        epoch = reader.u32()
        host = _host(reader.take(4)) if result == SUCCESS else ""
        return Reply(Answer.NAT_PMP_EXTERNAL, result, epoch, external_host=host)
    if opcode != _MAP_UDP:
        raise MalformedPacket(f"an answer to opcode {opcode} of NAT-PMP")
    epoch = reader.u32()
    if result != SUCCESS:  # some routers cut it short here
        return Reply(Answer.NAT_PMP_MAPPING, result, epoch, reader.u16() if reader.remaining >= 2 else 0)
    internal, external, lifetime = reader.u16(), reader.u16(), reader.u32()
    return Reply(Answer.NAT_PMP_MAPPING, result, epoch, internal, external, lifetime=lifetime)


def _decode_pcp(reader: Reader, opcode: int, length: int) -> Reply:
    if length % 4:
        raise MalformedPacket("PCP of a length that is no multiple of four")
    reader.u8()
    result, lifetime, epoch = reader.u8(), reader.u32(), reader.u32()
    reader.take(12)
    if opcode == _ANNOUNCE:
        return Reply(Answer.PCP_ANNOUNCE, result, epoch, lifetime=lifetime)
    if opcode != _MAP:
        raise MalformedPacket(f"an answer to opcode {opcode} of PCP")
    if reader.remaining < _PCP_MAP and result != SUCCESS:
        return Reply(Answer.PCP_MAPPING, result, epoch, lifetime=lifetime)
    nonce, protocol = reader.take(NONCE_SIZE), reader.u8()
    reader.take(3)
    internal, external, host = reader.u16(), reader.u16(), _host(reader.take(16))
    if protocol != UDP:
        raise MalformedPacket(f"a PCP mapping of protocol {protocol}")
    return Reply(Answer.PCP_MAPPING, result, epoch, internal, external, host, lifetime, nonce)


def _pcp_header(opcode: int, lifetime: int, own: str) -> Writer:
    return Writer(MAX_DATAGRAM).u8(_PCP_VERSION).u8(opcode).u16(0).u32(lifetime).raw(_packed(own))


def _packed(host: str) -> bytes:
    """Sixteen bytes; IPv4 is written as IPv4-mapped IPv6."""
    address = ipaddress.ip_address(host)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def _host(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
