"""Addresses as the messages of the rendezvous protocol carry them."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

from tunnel.errors import MalformedPacket
from tunnel.units import Address

ADDRESS_MASK: Final = 0xA5  # addresses are XORed, because some NATs rewrite whatever looks like one (RFC 8489 §14.2)
_MASKED: Final = {str(byte): byte ^ ADDRESS_MASK for byte in range(256)}  # by a part of an IPv4 address


@lru_cache(maxsize=4096)
def pack_host(host: str) -> bytes:
    """4 or 16 bytes, masked.  Any zone is left out.  Raises ValueError for what is no numeric address."""
    try:
        first, second, third, last = host.split(".")
        return bytes((_MASKED[first], _MASKED[second], _MASKED[third], _MASKED[last]))  # a sixth of the time of what follows
    except (ValueError, KeyError):
        return bytes(byte ^ ADDRESS_MASK for byte in ipaddress.ip_address(host.partition("%")[0]).packed)


def pack_address(address: Address) -> bytes:
    return pack_host(address.host) + (address.port ^ (ADDRESS_MASK << 8 | ADDRESS_MASK)).to_bytes(2, "big")


def unpack_host(data: bytes) -> str:
    """Canonical text; an IPv4-mapped IPv6 address becomes IPv4.  Raises MalformedPacket."""
    if len(data) not in (4, 16):
        raise MalformedPacket("rendezvous: an address of neither family")
    address = ipaddress.ip_address(bytes(byte ^ ADDRESS_MASK for byte in data))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def unpack_address(data: bytes) -> Address:
    """Raises MalformedPacket."""
    port = int.from_bytes(data[-2:], "big") ^ (ADDRESS_MASK << 8 | ADDRESS_MASK)
    return Address(unpack_host(data[:-2]), port)
