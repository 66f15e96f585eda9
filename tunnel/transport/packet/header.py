"""The fixed header of a transport datagram, and the first byte that tells what any UDP payload is.

    0x00-0x03 STUN    0x40-0x43 rendezvous    0x69 open directory    0x70-0x74 handshake
    0x80-0xBF transport datagram              0xC0-0xFF relayed: 8-byte channel, then one of 0x70-0xBF

A transport datagram is type (0x80), receiver index (u32), sequence number (u64): 13 bytes, the associated data of the
AEAD; then sealed frames and the 16-byte tag.  The nonce is four zero bytes and the sequence number.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

TRANSPORT: Final = 0x80
HEADER: Final = Struct(">BIQ")
HEADER_SIZE: Final = HEADER.size  # 13 bytes
NUMBER_SIZE: Final = 8  # bytes: the last of them
TAG_SIZE: Final = 16  # bytes, of both AEADs
OVERHEAD: Final = HEADER_SIZE + TAG_SIZE

MAX_SEGMENTS: Final = 64  # datagrams in one GSO call (UDP_MAX_SEGMENTS of older kernels)
MAX_BURST: Final = 65_507  # bytes in one GSO call: the largest IPv4 UDP payload
CALL_ROOM: Final = 65_536  # bytes of a buffer for that; one with room for several calls is filled for several


def segments_a_call(size: int) -> int:
    """How many datagrams of `size` bytes one GSO call takes."""
    return min(MAX_SEGMENTS, MAX_BURST // size)


SMALLEST_PROBE: Final = 28  # bytes of frames in a probe: what is sent looks no different from a small packet

NONCE_PREFIX: Final = bytes(4)  # of a nonce, before the sequence number: together that is the number in 96 bits
