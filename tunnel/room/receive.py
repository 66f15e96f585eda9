"""From a member into the interface, in the order a run goes through:

1. parse: the inner headers, once for each super-packet
2. may this member send this, to us?  By the roster's addresses, never by what the packet says of itself
3. ECN: a mark that the outer path made is carried on inward (RFC 6040 §4.2)
4. a SYN's MSS is held to what our path back carries
5. one write: headers as the kernel wants them, all derived from what was parsed here, then the payloads where they lie

Nothing that came from a member is ever sent on to another, so nothing can loop.  Nothing that a packet makes this code raise
goes further than that packet.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import MalformedPacket
from tunnel.faults import Faults
from tunnel.room.core.discovery import is_for_everybody
from tunnel.room.ip import ecn, header, mss, offload
from tunnel.room.ip.filter import WRONG_DESTINATION
from tunnel.room.ip.icmp import prohibited
from tunnel.room.members import LanPeer, LanTable, shown
from tunnel.shell.packets import PacketRun
from tunnel.units import Buffer, Instant

if TYPE_CHECKING:
    from tunnel.doors.tun.device import TapDevice

BROADCAST_MAC: Final = b"\xff" * 6
CE: Final = 3  # congestion experienced, RFC 3168 §5
SYN_AT_MOST: Final = 160  # bytes
TCP: Final = 6
UDP: Final = 17
OFFLOAD_USO4: Final = 32  # linux/if_tun.h: what the kernel hands us; it takes super-packets of TCP from us in any case
#: A plain IPv4 header and UDP ports, but for identification and checksum: of a whole UDP packet, which has them.
_SHAPE: Final = Struct("4s2x4s2x12s")
_PLAIN_VIRTIO: Final = bytes(10)
_ETHERTYPE: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}


class LanReceiver:
    """Writes what may come in.  Called from inside the receiving of datagrams, so it never waits."""

    def __init__(
        self, table: LanTable, device: TapDevice, mac: bytes, send: Callable[[LanPeer, bytes], None], faults: Faults | None = None
    ) -> None:
        """`send` gives a member an IP packet of ours."""
        self._table = table
        self._send = send
        self._device = device
        self._faults = Faults() if faults is None else faults
        self.set_mac(mac)
        self._last: tuple[LanPeer, tuple[int, bool, int], tuple[bytes, ...], bytes] | None = None  # of this batch
        self.has_written = False  # since somebody set it to False
        self._waiting: dict[LanPeer, None] = {}  # members of whose flows something is held
        self.has_held = trio.Event()  # set when something is
        self._takes_uso = bool(device.offloads & OFFLOAD_USO4)

    def set_mac(self, mac: bytes) -> None:
        """The interface's own address, which follows our host number."""
        self._unicast = {version: mac + mac + kind for version, kind in _ETHERTYPE.items()}
        self._mac = mac

    def take(self, member: LanPeer, now: Instant, runs: list[PacketRun]) -> None:
        order = member.order
        if order or any(run.is_in_order for run in runs):
            runs = order.take(now, runs, member.wait)
            if order.due_at is not None:
                self._waiting[member] = None
                self.has_held.set()
        self._take(member, now, runs)

    def _take(self, member: LanPeer, now: Instant, runs: list[PacketRun]) -> None:
        drops = self._table.drops
        self._last = None
        self.has_written = True
        for run in runs:
            try:
                if run.gso_size:
                    self._segments(member, run)
                else:
                    self._whole(member, now, run)
            except MalformedPacket:
                drops["inner packet that does not parse"] += 1
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                drops["the interface is gone"] += 1  # whoever reads it says so
            except Exception as error:  # one packet of one member ends that packet
                self._last = None
                drops["inner packet that met a fault"] += 1
                error.add_note(shown(b"".join((run.head, *run.payloads[:1]))))
                self._faults.note("inner_packet", f"dropped a packet of {member.place.name}", error)

    @property
    def due_at(self) -> Instant | None:
        """When to call `release`."""
        return min((at for member in self._waiting if (at := member.order.due_at) is not None), default=None)

    def release(self, now: Instant) -> None:
        """Write what has waited in vain for something before it."""
        for member in list(self._waiting):
            if member.order.due_at is None:
                del self._waiting[member]
            else:
                before = member.order.given_up
                self._take(member, now, member.order.due(now))
                self._table.drops["waited in vain for a lost packet"] += member.order.given_up - before

    def _segments(self, member: LanPeer, run: PacketRun) -> None:
        head = run.head
        inner = header.parse_head(head)
        reason = member.filter.why_dropped(inner, head)
        if reason is None and run.ecn == CE and inner.ecn == 0:
            reason = "congestion mark on a packet that takes none"
        if reason is None and is_for_everybody(inner.destination, self._table.subnet):
            reason = "super-packet to everybody"
        if reason is not None:
            self._table.drops[reason] += len(run.payloads)
            return
        if run.ecn == CE and inner.ecn != CE:
            head = bytes(ecn.mark_congestion(head))
        ethernet = self._unicast[inner.version]
        count = len(run.payloads)
        if count == 1 or inner.protocol != UDP or self._takes_uso:
            front = offload.build_run(inner, head, run.first, count, run.size, run.gso_size, run.is_last, True, ethernet)
            self._write([front, *run.payloads])
            return
        payload = b"".join(run.payloads)
        for packet in offload.cut_in_software(inner, head, payload, run.gso_size, index=run.first, is_last=run.is_last):
            self._write([_PLAIN_VIRTIO, ethernet, packet])

    def _whole(self, member: LanPeer, now: Instant, run: PacketRun) -> None:
        packet = run.payloads[0]
        last = self._last
        if (
            last is not None
            and last[:2] == (member, (run.size, run.is_partial, run.ecn))
            and _SHAPE.unpack_from(packet) == last[2]
        ):
            self._write([last[3], packet])  # one more of the same UDP flow: all that was asked of that one holds
            return
        inner = header.parse(packet, 0, run.size)
        reason = member.filter.why_dropped(inner, packet)
        if reason is None and run.ecn == CE and inner.ecn == 0:
            reason = "congestion mark on a packet that takes none"
        is_for_all = is_for_everybody(inner.destination, self._table.subnet)
        if reason is None and is_for_all and not member.allowance.take(now, 1, run.size, self._table.weight):
            reason = "broadcasts over the rate"
        if reason is not None:
            self._table.drops[reason] += 1
            if reason == WRONG_DESTINATION and inner.destination == self._table.me.ipv4:
                self._refuse(member, now, inner, packet)
            return
        if run.ecn == CE and inner.ecn != CE:
            packet = memoryview(ecn.mark_congestion(packet))
        sealer = member.sealer
        if run.size <= SYN_AT_MOST and inner.protocol == TCP and sealer is not None and (room := sealer.room) is not None:
            scratch = memoryview(bytearray(packet))
            if mss.clamp(scratch, 0, inner, room, partial=run.is_partial):
                packet = scratch
        ethernet = self._unicast[inner.version]
        if is_for_all:
            if self._table.note is not None:
                self._table.note(packet)
            ethernet = _group_mac(inner.destination) + self._mac + _ETHERTYPE[inner.version]
        front = offload.build_prefix(inner, run.is_partial, ethernet)
        self._write([front, packet[: inner.total_size]])
        if (
            packet[0] == 0x45
            and inner.protocol == UDP
            and not inner.is_fragment  # a last one may end before the ports would
            and not is_for_all
            and run.ecn != CE
            and inner.total_size == run.size
        ):
            self._last = (member, (run.size, run.is_partial, run.ecn), _SHAPE.unpack_from(packet), front)

    def _refuse(self, member: LanPeer, now: Instant, inner: header.Inner, packet: Buffer) -> None:
        """We do without IPv4 here, and programs may try it first: so that they take our other address at once, we say so."""
        reply = prohibited(packet, inner, self._table.me.ipv4, (self._table.subnet_broadcast,))
        if reply is not None and member.allowance.take(now, 1, len(reply)):
            self._send(member, reply)

    def _write(self, pieces: list[Buffer]) -> None:
        if not self._device.writev(pieces):
            self._table.drops["the interface took no more"] += 1


def _group_mac(destination: bytes) -> bytes:
    """The Ethernet group that stands for a broadcast or multicast address (RFC 1112 §6.4, RFC 2464 §7)."""
    if len(destination) == 16:
        return b"\x33\x33" + destination[12:]
    if destination[0] >> 4 == 14:
        return b"\x01\x00\x5e" + bytes((destination[1] & 0x7F,)) + destination[2:]
    return BROADCAST_MAC
