"""Groups whose route leads into the room are carried over to the ethernet and from it, so that neighbours at home stay found.

What a program here sends to such a group leaves by the LAN interface; a copy goes out by each ethernet, from its own address.
What a neighbour there sends is handed in by the LAN interface with the neighbour's own source, as Minecraft joins that address.
Nothing of a member goes to the ethernet, and nothing of a neighbour into the room; the copies are told from what other programs
send by their ports.  Source: packet(7), ip(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import trio

from tunnel.core.bucket import Bucket
from tunnel.doors.tun.config import MAC_PREFIX
from tunnel.doors.tun.packet_filter import AD_HATYPE, AD_IFINDEX, AD_PKTTYPE, JEQ, LD_B, LD_W, RET, Line, assemble, attach
from tunnel.doors.tun.reflector import ARPHRD_ETHER, ETH_P_IP, MAX_PACKET, index_of, parse_udp, rewrite_source
from tunnel.doors.tun.routes import own_addresses
from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.units import Instant

LOOK_INTERVAL: Final = 5.0  # seconds between looks at which ethernets there are
MAX_ETHERNETS: Final = 8  # that are served, in the order of their numbers; a machine with more has them for containers
CARRIED_RATE: Final = 20.0  # packets a second, each way; a game announces itself every 1.5 s
CARRIED_BURST: Final = 40  # packets
GAME_PORT: Final = (
    4445  # Minecraft's, the only one that is carried: what is handed in has not passed the firewall of its ethernet
)
READS_A_TURN: Final = 64  # packets handled before others get their turn

PACKET_MULTICAST: Final = 2  # linux/if_packet.h
_SIOCGIFHWADDR: Final = 0x8927  # linux/sockios.h
_IFREQ: Final = struct.Struct("=16sH6s16x")
_IP_MULTICAST_ALL: Final = 49  # linux/in.h
_VIRTIO: Final = bytes(10)  # no offload


class Ethernets:
    """The sockets.  Raises ConfigurationError where packet sockets are refused; after that no privilege is needed.

    Counters: `sent` (copies to an ethernet), `heard` (handed in), and the reasons for leaving a packet out: `fragment`, `length`,
    `port` (another than the game's), `own` (this machine's, come back by some bridge), `foreign` (seen at another interface
    besides), `rate`, or the name of an errno.
    """

    def __init__(self, interface: str, groups: Collection[bytes], clock: Callable[[], float] = time.monotonic) -> None:
        """`groups`: packed IPv4 addresses."""
        self.counters: Counter[str] = Counter()
        self._groups = frozenset(groups)
        self._index = socket.if_nametoindex(interface)
        self._clock = clock
        self._out, self._in = Bucket(CARRIED_BURST, CARRIED_RATE), Bucket(CARRIED_BURST, CARRIED_RATE)
        self._senders: dict[tuple[int, bytes], socket.socket] = {}  # by index and address
        self._own: frozenset[bytes] = frozenset()
        self.ports: set[int] = set()  # from which copies leave; the same set, whatever is in it
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_IP))
            attach(self._socket, filter_program(self._index, self._groups))
        except OSError as error:
            raise ConfigurationError("Neighbours on this machine's own network are not carried into the LAN.") from error
        self.look()

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()
        self._senders.clear()
        with contextlib.suppress(RuntimeError):  # not inside trio: then nobody waits
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def look(self) -> None:
        """Find the ethernets that this machine has now."""
        try:
            found = sorted(own_addresses())
        except OSError:
            return
        self._own = frozenset(raw for _, raw in found)
        wanted = {(index, raw) for index, raw in found if len(raw) == 4 and index != self._index and _is_ethernet(index)}
        for key in set(self._senders) - wanted:
            self._senders.pop(key).close()
        for key in sorted(wanted - set(self._senders))[: MAX_ETHERNETS - len(self._senders)]:
            with contextlib.suppress(OSError):  # it has just gone
                self._senders[key] = self._open(*key)
        self.ports.clear()
        self.ports.update(int(sender.getsockname()[1]) for sender in self._senders.values())

    def _open(self, index: int, address: bytes) -> socket.socket:
        """Sends from that address by that interface, and is a member of the groups there; nothing is delivered to it."""
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            opened.bind((socket.inet_ntoa(address), 0))
            opened.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(4) + address + struct.pack("=i", index))
            for group in sorted(self._groups):
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + address + struct.pack("=i", index))
        except OSError:
            opened.close()
            raise
        return opened

    def carry_out(self, packet: bytes | memoryview) -> None:
        """A packet of this machine to everybody, which goes into the LAN: copies, if it is for one of the groups."""
        if packet[0] >> 4 != 4 or bytes(packet[16:20]) not in self._groups:
            return
        whole = bytes(packet)
        try:
            _, (_, port), start = parse_udp(whole)
        except MalformedPacket as error:
            self.counters[str(error)] += 1
            return
        if port != GAME_PORT:
            self.counters["port"] += 1
            return
        if not self._out.take(Instant(self._clock())):
            self.counters["rate"] += 1
            return
        group = socket.inet_ntoa(whole[16:20])
        for sender in self._senders.values():
            try:
                sender.sendto(whole[start:], (group, port))
            except OSError as error:
                self.counters[errno.errorcode.get(error.errno or 0, "unknown")] += 1
            else:
                self.counters["sent"] += 1

    def read(self) -> list[bytes] | None:
        """The pieces of the next frame to hand in; None: none now."""
        for _ in range(READS_A_TURN):
            try:
                packet, address = self._socket.recvfrom(MAX_PACKET + 1)
            except BlockingIOError:
                return None
            except OSError as error:
                self.counters[errno.errorcode.get(error.errno or 0, "unknown")] += 1
                return None
            reason = self._why_not(packet, address[0], address[4])
            self.counters[reason or "heard"] += 1
            if reason is None:
                group = packet[16:20]
                mac = b"\x01\x00\x5e" + bytes((group[1] & 0x7F,)) + group[2:]  # RFC 1112 §6.4
                ethernet = mac + MAC_PREFIX + bytes(3) + struct.pack("!H", ETH_P_IP)
                return [_VIRTIO, ethernet, rewrite_source(packet, packet[12:16])]  # its checksum may be missing
        return None

    def _why_not(self, packet: bytes, interface: str, sender: bytes) -> str | None:
        try:
            source, (_, port), _ = parse_udp(packet)
        except MalformedPacket as error:
            return str(error)
        if packet[0] >> 4 != 4:  # a packet socket has what the IP layer would refuse: the frame's type alone says IPv4
            return "length"
        if port != GAME_PORT:
            return "port"
        if source in self._own or sender.startswith(MAC_PREFIX):
            return "own"
        if index_of(interface) not in {index for index, _ in self._senders}:
            return "foreign"
        return None if self._in.take(Instant(self._clock())) else "rate"

    async def run(self, write: Callable[[list[bytes]], object]) -> None:
        """Hand frames to `write`, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_looking)
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                for _ in range(READS_A_TURN):
                    pieces = self.read()
                    if pieces is None:
                        break
                    write(pieces)

    async def _keep_looking(self) -> None:
        while True:
            await trio.sleep(LOOK_INTERVAL)
            self.look()


def filter_program(own_index: int, groups: Collection[bytes]) -> bytes:
    """UDP to one of the groups that came in by an ethernet; the socket has IPv4 alone."""
    head: list[Line] = [
        ("", LD_W, AD_PKTTYPE, "", ""),
        ("", JEQ, PACKET_MULTICAST, "", "drop"),
        ("", LD_W, AD_IFINDEX, "", ""),
        ("", JEQ, own_index, "drop", ""),
        ("", LD_W, AD_HATYPE, "", ""),
        ("", JEQ, ARPHRD_ETHER, "", "drop"),
        ("", LD_B, 9, "", ""),  # protocol
        ("", JEQ, socket.IPPROTO_UDP, "", "drop"),
        ("", LD_W, 16, "", ""),  # destination
    ]
    wanted: list[Line] = [("", JEQ, int.from_bytes(group, "big"), "accept", "") for group in sorted(groups)]
    return assemble([*head, *wanted, ("drop", RET, 0, "", ""), ("accept", RET, 0xFFFF_FFFF, "", "")])


def _is_ethernet(index: int) -> bool:
    """An ethernet or what looks like one, and no LAN interface of this or another program."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        name = socket.if_indextoname(index)
        _, kind, mac = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFHWADDR, _IFREQ.pack(os.fsencode(name), 0, b"")))
        is_overlay = Path("/sys/class/net", name, "tun_flags").exists()
        return kind == ARPHRD_ETHER and not is_overlay and not bytes(mac).startswith(MAC_PREFIX)
    return False
