"""Catches what local programs broadcast or multicast on other interfaces, so that it can be sent into the LAN as well.

A game's 255.255.255.255 or 224.0.2.60 leaves by whatever interface has the default route, and the routes of that network are not
ours to change.  So one packet socket watches what leaves: UDP to a group or to everybody, sent by this machine itself.
Replies come to the inner address, so they reach every program whose socket is bound to no address, as discovery sockets are.
Source: packet(7); Documentation/networking/filter.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections import Counter, OrderedDict
from typing import Final

import trio

from tunnel.doors.tun.config import MAC_PREFIX
from tunnel.doors.tun.packet_filter import (
    AD_HATYPE,
    AD_IFINDEX,
    AD_PKTTYPE,
    AD_PROTOCOL,
    JEQ,
    JGE,
    JSET,
    LD_B,
    LD_W,
    LINK_HEADER,
    RET,
    assemble,
    attach,
)
from tunnel.doors.tun.routes import own_addresses
from tunnel.errors import ConfigurationError, MalformedPacket

ETH_P_ALL: Final = 3  # linux/if_ether.h: only who listens to all protocols hears what leaves
ETH_P_IP: Final = 0x0800
ETH_P_IPV6: Final = 0x86DD
ARPHRD_ETHER: Final = 1  # linux/if_arp.h
PACKET_OUTGOING: Final = 4  # linux/if_packet.h

MAX_PACKET: Final = 9_216  # bytes: a jumbo frame; what is larger is a super-packet, which no discovery sends
MAX_READS: Final = 64  # packets looked at in a row before the caller gets to do something else
REFRESH_INTERVAL: Final = 1.0  # seconds between looks at this machine's addresses, when an unknown one sends
REPEAT_WINDOW: Final = 0.2  # seconds within which the same payload again is the same announcement on another interface
MAX_REMEMBERED: Final = 256  # announcements of that window; the oldest is forgotten

_DHCP: Final = frozenset((67, 68, 546, 547))  # RFC 2131 §4.1, RFC 8415 §7.2: of one link and nobody else
#: Between these ports full responders speak, which send on each interface by themselves with its own addresses inside: mDNS (RFC
#: 6762 §11; a one-shot query comes from another port, §5.1), NetBIOS name and datagram service (RFC 1002).
_RESPONDERS: Final = frozenset((5353, 137, 138))
_LIMITED_BROADCAST: Final = b"\xff\xff\xff\xff"
_FRAGMENT: Final = 0x3FFF  # more fragments, or an offset (RFC 791 §3.1)

LOOPBACK_INDEX: Final = 1


def filter_program(own_index: int) -> bytes:
    """The filter for an interface of ours, whose packets are left out as those of `lo` are."""
    return assemble((
        ("", LD_W, AD_PKTTYPE, "", ""),
        ("", JEQ, PACKET_OUTGOING, "", "drop"),
        ("", LD_W, AD_IFINDEX, "", ""),
        ("", JEQ, own_index, "drop", ""),
        ("", JEQ, LOOPBACK_INDEX, "drop", ""),
        ("", LD_W, AD_PROTOCOL, "", ""),
        ("", JEQ, ETH_P_IPV6, "ipv6", ""),
        ("", JEQ, ETH_P_IP, "", "drop"),
        ("", LD_B, 9, "", ""),  # protocol
        ("", JEQ, socket.IPPROTO_UDP, "", "drop"),
        ("", LD_W, 16, "", ""),  # destination
        ("", JGE, 0xE000_0000, "accept", ""),  # multicast and 255.255.255.255, and the class E that nobody uses between them
        ("", LD_W, AD_HATYPE, "", ""),
        ("", JEQ, ARPHRD_ETHER, "", "drop"),
        ("", LD_B, LINK_HEADER, "", ""),  # destination MAC address: how a subnet's own broadcast address is known
        ("", JSET, 1, "accept", "drop"),
        ("ipv6", LD_B, 6, "", ""),  # next header
        ("", JEQ, socket.IPPROTO_UDP, "", "drop"),
        ("", LD_B, 24, "", ""),  # destination
        ("", JEQ, 0xFF, "accept", "drop"),
        ("accept", RET, 0xFFFF_FFFF, "", ""),
        ("drop", RET, 0, "", ""),
    ))  # fmt: skip


class Reflector:
    """The packet socket and what is left to judge of each packet.  Raises ConfigurationError when packet sockets are refused.

    Counters, by the reason for leaving a packet out: `foreign` (not sent by this machine itself: a bridge's, a container's; on a
    bridge or VLAN the same packet is seen at several interfaces, and only at that of its address it is ours), `fragment`,
    `length`, `dhcp`, `responder`, `lan` (another LAN interface of ours sent it), `repeat`, `copy` (from one of `copy_ports`: what
    doors/tun/ethernet.py carried out of the LAN); `reflected` counts the others.  Some of those are left out later: `family` (we
    have no address of it), `fault`.
    """

    def __init__(self, interface: str) -> None:
        self.counters: Counter[str] = Counter()
        self.copy_ports: set[int] = set()
        self._own: set[tuple[int, bytes]] = set()
        self._looked_at = float("-inf")
        self._remembered: OrderedDict[tuple[int, int, bytes], tuple[float, int]] = OrderedDict()
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ALL))
        except OSError as error:
            raise ConfigurationError(
                "What programs broadcast on other networks of this machine is not sent into the LAN: packet sockets need "
                "CAP_NET_RAW as well: run it with sudo."
            ) from error
        try:
            self._index = socket.if_nametoindex(interface)
            attach(self._socket, filter_program(self._index))
        except OSError as error:
            self._socket.close()
            why = os.strerror(error.errno or 0)
            raise ConfigurationError(f"What programs broadcast on other networks cannot be watched here: {why}.") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(RuntimeError):  # not inside trio: then nobody waits
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def read(self) -> bytes | None:
        """The next IP packet (UDP, without any link header) to send to all members; None: none now, wait_readable.

        Its source is still that of the other network, and its checksum may be missing: rewrite_source mends both.
        """
        for _ in range(MAX_READS):
            try:
                packet, address = self._socket.recvfrom(MAX_PACKET + 1)
            except BlockingIOError:
                return None
            except OSError as error:
                self.counters[errno.errorcode.get(error.errno or 0, "unknown")] += 1
                if self._socket.fileno() < 0:
                    return None
                continue  # ENETDOWN: some interface went away
            reason = self._why_not(packet, address[0], address[4])
            self.counters[reason or "reflected"] += 1
            if reason is None:
                return packet
        return None

    def note(self, packet: bytes | memoryview) -> bool:
        """This broadcast or multicast packet goes into the LAN by itself, or came from there: reflect no copy of it.

        True when another interface had it a moment ago, so that it was reflected already.  A program that sends on every
        interface is heard once, and a program that passes on between networks makes no loop.
        """
        with contextlib.suppress(MalformedPacket):
            return self._is_repeat(_payload_key(bytes(packet)), self._index)
        return False

    def _why_not(self, packet: bytes, interface: str, hardware_address: bytes) -> str | None:
        """The counter for a packet that is not to be reflected."""
        if hardware_address.startswith(MAC_PREFIX):
            return "lan"
        try:
            source, ports, _ = parse_udp(packet)
            key = _payload_key(packet)
        except MalformedPacket as error:
            return str(error)
        if not _DHCP.isdisjoint(ports):
            return "dhcp"
        if ports[0] == ports[1] and ports[0] in _RESPONDERS:
            return "responder"
        if ports[0] in self.copy_ports:
            return "copy"
        index = index_of(interface)
        if not self._is_own(index, source):
            return "foreign"
        return "repeat" if self._is_repeat(key, index) else None

    def _is_own(self, index: int, source: bytes) -> bool:
        if (index, source) in self._own:
            return True
        now = time.monotonic()
        if now - self._looked_at >= REFRESH_INTERVAL:
            self._looked_at = now
            with contextlib.suppress(OSError):
                self._own = own_addresses()
        return (index, source) in self._own

    def _is_repeat(self, key: tuple[int, int, bytes], index: int) -> bool:
        """Whether another interface had it a moment ago; remembers it otherwise."""
        now = time.monotonic()
        before = self._remembered.get(key)
        if before is not None and now - before[0] < REPEAT_WINDOW and before[1] != index:
            return True
        self._remembered[key] = (now, index)
        self._remembered.move_to_end(key)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return False


def index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def _payload_key(packet: bytes) -> tuple[int, int, bytes]:
    """(family, destination port, payload): what two copies of one announcement share."""
    _, ports, start = parse_udp(packet)
    return packet[0] >> 4, ports[1], packet[start:]


def parse_udp(packet: bytes) -> tuple[bytes, tuple[int, int], int]:
    """(source, ports, where the payload begins) of a whole UDP packet.

    Raises MalformedPacket with `fragment` or `length`, the latter for whatever does not hold together.
    """
    if len(packet) > MAX_PACKET or len(packet) < 28:
        raise MalformedPacket("length")
    version = packet[0] >> 4
    if version == 4:
        start = (packet[0] & 15) * 4
        total, _, fragment = struct.unpack_from("!HHH", packet, 2)
        if fragment & _FRAGMENT:
            raise MalformedPacket("fragment")
        source, protocol = packet[12:16], packet[9]
    elif version == 6 and len(packet) >= 48:
        start, total, source, protocol = 40, 40 + int.from_bytes(packet[4:6], "big"), packet[8:24], packet[6]
    else:
        raise MalformedPacket("length")
    if start < 20 or total != len(packet) or start + 8 > total or protocol != socket.IPPROTO_UDP:
        raise MalformedPacket("length")
    source_port, destination_port, length = struct.unpack_from("!HHH", packet, start)
    if length != total - start:
        raise MalformedPacket("length")
    return source, (source_port, destination_port), start + 8


def rewrite_source(packet: bytes, inner_v4: bytes, inner_v6: bytes = b"") -> bytes:
    """The packet as if our inner address (packed) had sent it; all checksums are computed anew.

    On a card that computes checksums the captured one is unfinished, so the old one says nothing.  The broadcast address of
    another subnet becomes 255.255.255.255, which every member understands.  IPv4 may be fragmented for a path that is narrower
    than that network's; then its checksum is its identification, so that fragments of another packet never fit (RFC 6864 §4).
    Raises MalformedPacket for what is no whole UDP packet, or of a family for which no address is given.
    """
    _, _, payload = parse_udp(packet)
    changed = bytearray(packet)
    start = payload - 8
    if packet[0] >> 4 == 4:
        source, target = inner_v4, packet[16:20]
        if target[0] < 224:
            target = _LIMITED_BROADCAST
        changed[12:20] = source + target
    else:
        source, target = inner_v6, packet[24:40]
        changed[8:24] = source
    if len(changed) != len(packet):
        raise MalformedPacket("family")
    changed[start + 6 : start + 8] = bytes(2)
    length = len(packet) - start
    pseudo = source + target + struct.pack("!II", length, socket.IPPROTO_UDP)
    # A sum of zero is sent as its other form, since zero means that there is none (RFC 768).
    checksum = checksum_of(pseudo + bytes(changed[start:])) or 0xFFFF
    struct.pack_into("!H", changed, start + 6, checksum)
    if packet[0] >> 4 == 4:
        struct.pack_into("!HH", changed, 4, checksum, 0)
        changed[10:12] = bytes(2)
        struct.pack_into("!H", changed, 10, checksum_of(changed[:start]))
    return bytes(changed)


def checksum_of(data: bytes | bytearray) -> int:
    """RFC 1071, over network byte order."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
