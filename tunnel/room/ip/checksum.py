"""The internet checksum (RFC 1071), by the one way that is fast without a library: a number modulo 65,535.

A one's complement sum of 16-bit words is the whole run of bytes, read as one number, modulo 65,535; `int.from_bytes` and one
division do that at about 5 ns a word.  Zero and 0xFFFF are the same sum; where it matters, each function says which it gives.
"""

from __future__ import annotations

from typing import Final

from tunnel.units import Buffer

_MODULUS: Final = 0xFFFF


def word_sum(data: Buffer) -> int:
    """The sum of `data` as big-endian 16-bit words, an odd last byte padded with zero: 0 to 0xFFFE."""
    number = int.from_bytes(data, "big")
    return (number << 8 if len(data) & 1 else number) % _MODULUS


def complement(total: int) -> int:
    """The checksum field for words that add up to `total`: 0 to 0xFFFE, as the kernel writes it."""
    return -total % _MODULUS


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The folded sum of the pseudo-header: what stands in the field of a partial checksum.  1 to 0xFFFF, as the kernel has it.

    `length` counts transport header and data, in bytes.  RFC 9293 §3.1, RFC 8200 §8.1.
    """
    number = int.from_bytes(source + destination, "big") + protocol + length
    return number % _MODULUS or _MODULUS


def adjusted(field: int, old: int, new: int) -> int:
    """The checksum `field` once words that added up to `old` add up to `new`.  RFC 1624 §3, equation 3."""
    return (field + old - new) % _MODULUS
