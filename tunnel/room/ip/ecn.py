"""The congestion mark on an inner packet: what the outer path says is carried inward.  Source: RFC 6040 §4.2, RFC 3168 §5."""

from __future__ import annotations

from typing import Final

from tunnel.room.ip.checksum import adjusted
from tunnel.units import Buffer

CE: Final = 3  # congestion experienced


def mark_congestion(packet: Buffer) -> bytearray:
    """A copy of the packet (or of a super-packet's head) with CE set; IPv4's header checksum is kept right (RFC 1624).

    `packet` has been parsed already.
    """
    out = bytearray(packet)
    if out[0] >> 4 == 4:
        old = out[0] << 8 | out[1]
        out[1] |= CE
        field = adjusted(out[10] << 8 | out[11], old, out[0] << 8 | out[1])
        out[10:12] = field.to_bytes(2, "big")
    else:
        out[1] |= CE << 4
    return out
