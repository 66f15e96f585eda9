"""From the interface to the members, in the order a frame goes through:

1. read: one frame, which may be a super-packet of 64 KB; of ACKs that a newer one makes needless, the newest goes on
2. for whom: the inner destination names a member, or everybody
3. what does not fit the path: a smaller MSS beforehand, an ICMP answer into the interface, or pieces
4. sealed into a burst, which leaves when it is full, when the next packet does not fit it, or when nothing more is to be read

There is no queue.  An ACK is kept back until it is known what comes next, and leaves in the turn that read it.  Where a socket
would block, the bursts of the frame at hand wait, nothing more is read, and the kernel's own queue of the interface fills.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.faults import Faults
from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.room.core.discovery import is_for_everybody
from tunnel.room.ip import acks, header, icmp, mss, offload
from tunnel.room.members import LanPeer, LanTable, shown
from tunnel.shell.packets import PACKET_PARTIAL, PacketBurst, PacketDoor, PacketSealer
from tunnel.units import Instant, Transmit

if TYPE_CHECKING:
    from tunnel.doors.tun.device import TapDevice

FRAMES_A_TURN: Final = (
    512  # read before others get their turn: some 2 ms of small packets, about as many as a turn of receiving ...
)
BYTES_A_TURN: Final = 512 * 1024  # ... or of super-packets
VIRTIO_SIZE: Final = 10
ETHERNET_SIZE: Final = 14
FRONT: Final = 64  # bytes free in front of a frame: a sealed packet's own header is made there
BUFFER: Final = FRONT + VIRTIO_SIZE + ETHERNET_SIZE + 65_536
SMALLEST_MTU: Final = 1280  # bytes that every member can count on (RFC 8200 §5): packets up to it are split for a smaller path
MOST_STUCK: Final = 4 * MAX_MEMBERS  # bursts that wait for a socket: of an ACK, of one frame to all, and of the reflector
NEEDLESS_IN_A_ROW: Final = (
    16  # ACKs that one newer one stands for, a megabyte of super-packets: what the sender learns late if that one is lost
)
SYN_AT_MOST: Final = 160  # bytes of a packet worth looking at for a SYN: IPv6, TCP and all options are 100

_ETHERTYPES: Final = {0x0800, 0x86DD}
TCP: Final = 6
UDP: Final = 17
EXPEDITED: Final = 46  # DSCP
SMALLEST_KEPT: Final = 200  # bytes of a packet of TCP that is worth repair: a newer ACK stands for one that was lost
WITH_PORTS: Final = 28  # bytes of an IPv4 and a UDP header
_CHECKSUM_AT: Final = {(6, 16), (UDP, 6)}  # protocol, and where its header has the checksum
#: Of a frame with a plain IPv4 header: virtio-net header, EtherType, IP but for identification and checksum, UDP ports.
_SHAPE: Final = Struct("10s12x2s4s2x4s2x12s")
_IP_AT: Final = FRONT + VIRTIO_SIZE + ETHERNET_SIZE
_ACK_FRAMES: Final = frozenset(VIRTIO_SIZE + ETHERNET_SIZE + size for size in acks.ACK_SIZES)
_TYPE_AT: Final = _IP_AT - 2
_NO_OFFLOAD: Final = offload.Offload(False, offload.GSO_NONE, 0, 0, 0)


class LanSender:
    """One task reads the interface; `send_to_all` takes what came some other way (the reflector)."""

    def __init__(
        self,
        table: LanTable,
        device: TapDevice,
        *,
        clock: Callable[[], Instant],
        answer: Callable[[bytes], None],
        faults: Faults | None = None,
    ) -> None:
        """`answer` writes an IP packet of ours into the interface."""
        self._table = table
        self._device = device
        self._clock = clock
        self._answer = answer
        self._faults = Faults() if faults is None else faults
        self._buffer = memoryview(bytearray(BUFFER))
        self._frame_view = self._buffer[FRONT:]
        self._ack: acks.PureAck | None = None  # the newest that was read
        self._kept = memoryview(bytearray(FRONT + max(_ACK_FRAMES)))  # its frame, while that is kept back ...
        self._kept_end = 0  # ... and where it ends; 0: none is
        self._needless = 0  # that it stands for
        self._burst = PacketBurst(bytearray(65_536))
        self._spare = [PacketBurst(bytearray(65_536))]
        self._door: PacketDoor | None = None  # by which the burst under way leaves
        self._last: tuple[PacketSealer, tuple[bytes, ...], int, int] | None = None  # of this turn: a whole UDP packet that left
        self._stuck: deque[tuple[PacketDoor, Transmit, PacketBurst]] = deque()  # bounded: of one frame, as no other is read
        self._got_stuck = trio.Event()
        self._is_free = trio.Event()  # nothing is stuck
        self._is_free.set()

    async def run(self) -> None:
        """Until cancelled.  Raises ConfigurationError when the interface is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_stuck)
            try:
                while True:
                    await self._device.wait_readable()
                    while not self.pump():
                        await self._is_free.wait()  # and where nothing is stuck, a turn for the others
            except trio.BrokenResourceError:
                raise ConfigurationError(f"The interface {self._device.name} was removed: start ptunnel again.") from None

    def pump(self) -> bool:
        """Read what the interface has now, and send it; False when there may be more.

        Not only `run` calls it: who has just written into the interface need not wait for the next turn to see what came of it.
        Raises trio.BrokenResourceError when the interface is gone.
        """
        if self._stuck:
            return False
        read, frame = self._device.read_into, self._frame_view
        frames, left = FRAMES_A_TURN, BYTES_A_TURN
        now = self._clock()
        self._last = None
        size = 1
        while frames and left > 0 and not self._stuck and (size := read(frame)):
            frames -= 1
            left -= size
            end = FRONT + size
            try:
                if self._last is not None and not self._kept_end and self._another(now, end):
                    continue
                if size in _ACK_FRAMES and self._keep(now, end):
                    continue
                if self._kept_end:
                    self._send_kept(now)
                self._frame(now, end)
            except Exception as error:
                self._met(error, end)
        if self._kept_end:
            try:
                self._send_kept(now)
            except Exception as error:
                self._met(error, _IP_AT)
        self._leave()
        if self._door is not None:
            self._door.flush()
        return not size

    def _met(self, error: Exception, end: int) -> None:
        """One packet of our own kernel's, or of the reflector's, goes no further."""
        self._last = None
        error.add_note(shown(self._buffer[_IP_AT:end]))
        self._table.drops["packet of ours that met a fault"] += 1
        self._faults.note("outgoing_packet", "dropped a packet of this machine", error)

    # 1

    def _keep(self, now: Instant, end: int) -> bool:
        """Keep the frame back if it is a pure ACK, and no duplicate; the one that was kept leaves then, or is needless."""
        ack = acks.read_ack(self._buffer, _IP_AT, end)
        if ack is None:
            return False
        before, self._ack = self._ack, ack
        if before is not None and acks.is_repeated(before, ack):
            return False
        if self._kept_end:
            assert before is not None
            if (
                self._needless < NEEDLESS_IN_A_ROW
                and acks.is_needless(before, ack)
                and self._kept[FRONT:_IP_AT] == self._buffer[FRONT:_IP_AT]  # what would become of the older, becomes of the newer
            ):
                self._needless += 1
                self._table.drops["ACK that a newer one made needless"] += 1
            else:
                self._send_kept(now)
        self._kept[FRONT:end] = self._buffer[FRONT:end]
        self._kept_end = end
        return True

    def _send_kept(self, now: Instant) -> None:
        """It leaves ahead of the frame that was read meanwhile, so nothing is overtaken."""
        end, self._kept_end, self._needless = self._kept_end, 0, 0
        buffer, self._buffer = self._buffer, self._kept
        try:
            self._frame(now, end)
        finally:
            self._buffer = buffer

    def _another(self, now: Instant, end: int) -> bool:
        """One more datagram of the UDP flow that the last one was of, as large as it: all that was asked of that one holds."""
        last = self._last
        assert last is not None
        sealer, shape, flags, its_end = last
        if end != its_end or _SHAPE.unpack_from(self._buffer, FRONT) != shape:
            return False
        if not sealer.seal_packet(self._burst, now, self._buffer, _IP_AT, end, flags):
            return False
        if sealer.repeats:
            sealer.repeat(now, self._buffer, _IP_AT, end)
        return True

    # 2

    def _frame(self, now: Instant, end: int) -> None:
        view, table = self._buffer, self._table
        if end <= _IP_AT or (view[_TYPE_AT] << 8 | view[_TYPE_AT + 1]) not in _ETHERTYPES:
            table.drops["frame that is not IP"] += 1
            return
        destination = header.destination_of(view, _IP_AT, end)
        if destination is None:
            table.drops["packet of ours that does not parse"] += 1
            return
        member = table.by_address.get(destination)
        try:
            if member is not None:
                self._for_member(now, member, offload.decode_offload(view, FRONT), end)
            elif is_for_everybody(destination, table.subnet):
                self._for_all(now, offload.decode_offload(view, FRONT), end)
            else:
                table.drops["packet to no member"] += 1
        except MalformedPacket:  # only raw sockets make such
            table.drops["packet of ours that does not parse"] += 1

    def _for_all(self, now: Instant, virtio: offload.Offload, end: int) -> None:
        """Broadcast and multicast: a copy for each member who is there."""
        if virtio.gso_type:
            self._table.drops["super-packet to everybody"] += 1
        elif self._table.note is not None and self._table.note(self._buffer[_IP_AT:end]):
            self._table.drops["broadcast that the reflector has sent"] += 1
        elif not self._table.allowance.take(now, 1, end - _IP_AT, self._table.weight):
            self._table.drops["broadcasts over the rate"] += 1
        else:
            if virtio.needs_checksum:  # once: what is finished for one member must not be for the next
                offload.finish_foreign_checksum(self._buffer, FRONT + VIRTIO_SIZE, end, virtio)
            self._to_each(now, end)

    def _to_each(self, now: Instant, end: int) -> None:
        """A copy for each member who is there; checksums are finished."""
        for member in self._table.members.values():
            try:
                self._whole(now, member, _NO_OFFLOAD, end)
            except MalformedPacket:
                self._table.drops["packet of ours that does not parse"] += 1
            except Exception as error:
                self._met(error, end)
        self._last = None  # what follows is for everybody again

    def send_to(self, member: LanPeer, packet: bytes) -> None:
        """An IP packet of ours, with finished checksums and small enough for any path, to a member."""
        sealer = self._sealer(member)
        if sealer is not None and sealer.room is not None:
            self._put(self._clock(), member, sealer, memoryview(bytearray(FRONT) + packet), FRONT, FRONT + len(packet), 0)
            self._leave()

    def send_to_all(self, packet: bytes) -> None:
        """An IP packet of ours, with our inner source and finished checksums, to every member who is there."""
        now = self._clock()
        if not self._table.allowance.take(now, 1, len(packet), self._table.weight):
            self._table.drops["broadcasts over the rate"] += 1
            return
        if len(packet) < header.IPV4_HEADER:
            self._table.drops["packet of ours that does not parse"] += 1
            return
        buffer, self._buffer = self._buffer, memoryview(bytearray(_IP_AT) + packet)
        try:
            self._to_each(now, len(self._buffer))
        finally:
            self._buffer = buffer
        self._leave()

    # 3

    def _for_member(self, now: Instant, member: LanPeer, virtio: offload.Offload, end: int) -> None:
        if not virtio.gso_type:
            self._whole(now, member, virtio, end)
            return
        sealer = self._sealer(member)
        if sealer is None or (room := sealer.room) is None or self._is_own(member, end):
            return
        view = self._buffer
        inner = header.parse(view, _IP_AT, end)
        cut = offload.wants_cut(virtio, inner, end - _IP_AT)
        if cut is None:
            self._whole(now, member, virtio, end)
            return
        head_size, step = cut
        if head_size + step > room:
            self._too_big(member, inner, end, room)
            return
        head = bytes(view[_IP_AT : _IP_AT + head_size])
        count = -(-(end - _IP_AT - head_size) // step)
        flags = PACKET_PARTIAL
        if sealer.repair_flags and _is_for_repair(view, _IP_AT, inner.protocol):
            flags |= sealer.repair_flags
        self._aim(member, sealer, inner.ecn)
        index = 0
        while True:
            index = sealer.seal_segments(self._burst, now, view, _IP_AT, head, end, step, index, flags)
            if index >= count:
                return
            self._leave()
            self._aim(member, sealer, inner.ecn)

    def _whole(self, now: Instant, member: LanPeer, virtio: offload.Offload, end: int) -> None:
        """A packet that is no super-packet."""
        sealer = self._sealer(member)
        if sealer is None or (room := sealer.room) is None or self._is_own(member, end):
            return
        view = self._buffer
        flags = 0
        if virtio.needs_checksum:
            if _is_plain_transport(view, virtio):
                flags = PACKET_PARTIAL
            else:
                offload.finish_foreign_checksum(view, FRONT + VIRTIO_SIZE, end, virtio)
        size = end - _IP_AT
        if size <= SYN_AT_MOST and mss.may_be_syn(view, _IP_AT, end):
            mss.clamp(view, _IP_AT, header.parse(view, _IP_AT, end), room, partial=bool(flags))
        if size <= room:
            if size >= WITH_PORTS and view[_IP_AT] == 0x45 and view[_IP_AT + 9] == UDP:
                self._last = (sealer, _SHAPE.unpack_from(view, FRONT), flags, end)  # before its Ethernet header is written over
            self._put(now, member, sealer, view, _IP_AT, end, flags)
            return
        inner = header.parse(view, _IP_AT, end)
        if flags:
            offload.finish_checksum(view, _IP_AT, end, inner)
        if size <= SMALLEST_MTU:
            self._aim(member, sealer, inner.ecn)
            if not sealer.seal_split(self._burst, now, view, _IP_AT, end):
                self._leave()
                self._aim(member, sealer, inner.ecn)
                sealer.seal_split(self._burst, now, view, _IP_AT, end)
            self._leave()
        elif inner.version == 4 and not inner.dont_fragment:
            for piece in icmp.fragment(view[_IP_AT:end], inner, room):
                self._put(now, member, sealer, memoryview(bytearray(FRONT) + piece), FRONT, FRONT + len(piece), 0)
        else:
            self._too_big(member, inner, end, room)

    def _is_own(self, member: LanPeer, end: int) -> bool:
        """A datagram of our own sockets, led here by a route: it would go round for ever.

        A room whose subnet is also that of a member's real network makes such a route.
        """
        view, door = self._buffer, member.link.door if member.link is not None else None
        if view[_IP_AT] >> 4 == 4:
            if (view[_IP_AT + 6] & 0x1F) or view[_IP_AT + 7]:
                return False  # a fragment but the first: it has no ports, and is nothing without the first
            protocol, at = view[_IP_AT + 9], _IP_AT + (view[_IP_AT] & 15) * 4
        else:
            protocol, at = view[_IP_AT + 6], _IP_AT + 40
        if protocol != UDP or at + 2 > end or door is None or not door.is_ours(view[at] << 8 | view[at + 1]):
            return False
        self._table.drops["our own datagram, routed into the interface"] += 1
        return True

    def _too_big(self, member: LanPeer, inner: header.Inner, end: int, room: int) -> None:
        """Tell our own stack what the path to this member carries; IPv6 is never told less than its minimum (RFC 8201 §4)."""
        self._table.drops["packet too big for the path"] += 1
        mtu = room if inner.version == 4 else max(room, SMALLEST_MTU)
        source = member.place.ipv4 if inner.version == 4 else member.place.ipv6[0]
        reply = icmp.too_big(self._buffer[_IP_AT:end], inner, mtu, source, (self._table.subnet_broadcast,))
        if reply is not None:
            self._answer(reply)

    def _sealer(self, member: LanPeer) -> PacketSealer | None:
        sealer = member.sealer
        if sealer is None:
            self._table.drops["member is not connected"] += 1
        return sealer

    # 4

    def _aim(self, member: LanPeer, sealer: PacketSealer, ecn: int) -> None:
        """Make the burst one for this member's path and ECN mark."""
        if not sealer.goes_on(self._burst, ecn):
            assert member.link is not None
            self._leave()
            sealer.begin(self._burst, ecn)
            self._door = member.link.door

    def _put(
        self, now: Instant, member: LanPeer, sealer: PacketSealer, view: memoryview, start: int, end: int, flags: int
    ) -> None:
        ecn = view[start + 1] & 3 if view[start] >> 4 == 4 else view[start + 1] >> 4 & 3
        protocol = _protocol(view, start)
        if sealer.repair_flags and end - start >= SMALLEST_KEPT and _is_for_repair(view, start, protocol):
            flags |= sealer.repair_flags
        self._aim(member, sealer, ecn)
        if not sealer.seal_packet(self._burst, now, view, start, end, flags):
            self._leave()
            self._aim(member, sealer, ecn)
            sealer.seal_packet(self._burst, now, view, start, end, flags)
        if sealer.repeats and protocol != TCP:
            sealer.repeat(now, view, start, end)

    def _leave(self) -> None:
        """Send the burst under way; one that would block is kept until `_unstick`."""
        burst, door = self._burst, self._door
        count, transmit = burst.count, burst.transmit()
        if transmit is None or door is None:
            return
        if len(self._stuck) >= MOST_STUCK:
            self._table.drops["socket would block"] += count
        elif self._stuck or not door.send(transmit):
            if not self._stuck:
                self._is_free = trio.Event()
                self._got_stuck.set()
            self._stuck.append((door, transmit, burst))
            self._burst = self._spare.pop() if self._spare else PacketBurst(bytearray(65_536))

    async def _run_stuck(self) -> None:
        while True:
            await self._got_stuck.wait()
            self._got_stuck = trio.Event()
            while self._stuck:
                door, transmit, burst = self._stuck[0]
                if door.send(transmit):
                    self._stuck.popleft()
                    self._spare.append(burst)
                else:
                    await door.wait_writable(transmit)
            self._is_free.set()


def _protocol(view: memoryview, start: int) -> int:
    """Of an IP packet, extension headers not looked at."""
    return view[start + 9] if view[start] >> 4 == 4 else view[start + 6]


def _is_for_repair(view: memoryview, start: int, protocol: int) -> bool:
    """Of TCP, unless it is marked as one that would rather lose packets than wait (Expedited Forwarding, RFC 3246)."""
    traffic_class = view[start + 1] if view[start] >> 4 == 4 else (view[start] & 15) << 4 | view[start + 1] >> 4
    return protocol == TCP and traffic_class >> 2 != EXPEDITED


def _is_plain_transport(view: memoryview, virtio: offload.Offload) -> bool:
    """Whether the partial checksum is that of a TCP or UDP header right behind a plain IP header, where the far side looks."""
    if view[_IP_AT] >> 4 == 4:
        start, protocol = ETHERNET_SIZE + (view[_IP_AT] & 15) * 4, view[_IP_AT + 9]
        if (view[_IP_AT + 6] & 0x3F) or view[_IP_AT + 7]:
            return False  # a fragment
    else:
        start, protocol = ETHERNET_SIZE + 40, view[_IP_AT + 6]
    return virtio.checksum_start == start and (protocol, virtio.checksum_offset) in _CHECKSUM_AT
