"""Node ids: 160 bits, the distance between two of them (BEP 5), and how an id is bound to an address (BEP 42)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

from tunnel.core.scope import is_local

ID_SIZE: Final = 20  # bytes
_MASKS: Final = {4: bytes.fromhex("030f3fff"), 6: bytes.fromhex("0103070f1f3f7fff")}
_POLYNOMIAL: Final = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def distance(one: bytes, other: bytes) -> int:
    return int.from_bytes(one, "big") ^ int.from_bytes(other, "big")


def bound_id(host: str, entropy: Callable[[int], bytes]) -> bytes:
    """An id that a node at `host` may have: 21 bits of it follow from the address and three bits of chance."""
    tail = entropy(ID_SIZE - 2)
    number = tail[-1] & 7
    crc = _crc(host, number)
    return crc.to_bytes(4, "big")[:2] + bytes([(crc >> 8) & 0xF8 | tail[0] & 7]) + tail[1:]


def is_bound(node_id: bytes, host: str) -> bool:
    """Whether whoever is at `host` may have that id.  Within a local network every id is as good as another."""
    if is_local(host):
        return True
    crc = _crc(host, node_id[-1] & 7)
    return node_id[:2] == crc.to_bytes(4, "big")[:2] and node_id[2] & 0xF8 == (crc >> 8) & 0xF8


def network_of(host: str, ipv4_bits: int, ipv6_bits: int) -> int:
    """The network that a host is in, as a number that tells it from others of its family."""
    address = ipaddress.ip_address(host.partition("%")[0])
    bits = ipv4_bits if address.version == 4 else ipv6_bits
    return int(address) >> (address.max_prefixlen - bits)


def _crc(host: str, number: int) -> int:
    address = ipaddress.ip_address(host.partition("%")[0])
    mask = _MASKS[address.version]
    packed = bytearray(byte & keep for byte, keep in zip(address.packed, mask, strict=False))
    packed[0] |= number << 5
    crc = 0xFFFFFFFF
    for byte in packed:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
