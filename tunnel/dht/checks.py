"""The exchange of two sides of a meeting that have found an address: checks that open both NATs, then messages.

Each datagram carries a MAC under the meeting's key, which nobody has who only saw an address.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import Final, NamedTuple

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer

FIRST_BYTE: Final = 0x50
CHECK: Final = 1  # may I hear you, and do you hear me?
MESSAGE: Final = 2  # something for the mailbox
RECEIPT: Final = 3  # a message has come
TAG_SIZE: Final = 8
NONCE_SIZE: Final = 8
HOST_SIZE: Final = 16  # of an address, IPv4 as IPv6 has it; zero: not known
MAILBOX_SIZE: Final = 16
MAC_SIZE: Final = 16
MAX_BODY: Final = 512  # bytes of a message; a PAKE message and its confirmation have some 100
_HEAD: Final = 2 + TAG_SIZE  # first byte, kind and side, tag


def tag_of(data: Buffer) -> bytes:
    """By which the meeting is found.  Raises MalformedPacket."""
    if not _HEAD + MAC_SIZE <= len(data) <= _HEAD + MAILBOX_SIZE + 1 + MAX_BODY + MAC_SIZE:
        raise MalformedPacket("meeting: too short or too long")
    return bytes(data[2:_HEAD])


def side_of(data: Buffer) -> int:
    """Of whoever says that; not yet authentic."""
    return data[1] >> 7


def pack_host(host: str | None) -> bytes:
    if host is None:
        return bytes(HOST_SIZE)
    address = ipaddress.ip_address(host.partition("%")[0])
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


class Said(NamedTuple):
    """A datagram that has the right MAC."""

    kind: int
    body: bytes


class Keys:
    """The keys that both sides make of their secret.  `side` is ours: 0 waits, 1 comes."""

    def __init__(self, secret: bytes, side: int) -> None:
        def derive(label: bytes) -> bytes:
            return hmac.digest(secret, b"ptunnel dht " + label, "sha256")

        self.info_hash = derive(b"infohash")[:20]
        self.tag = derive(b"tag")[:TAG_SIZE]
        self._key = derive(b"mac")
        self._side = side

    def seal(self, kind: int, body: bytes) -> bytes:
        head = bytes((FIRST_BYTE, kind | self._side << 7)) + self.tag + body
        return head + self._mac(head)

    def open(self, data: Buffer) -> Said | None:
        """None: it is not from the other side."""
        whole = bytes(data)
        head, mac = whole[:-MAC_SIZE], whole[-MAC_SIZE:]
        if head[1] >> 7 == self._side or not hmac.compare_digest(mac, self._mac(head)):
            return None
        return Said(head[1] & 0x7F, head[_HEAD:])

    def _mac(self, head: bytes) -> bytes:
        return hmac.digest(self._key, head, hashlib.sha256)[:MAC_SIZE]
