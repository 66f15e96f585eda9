"""IP packets through a connection: PACKET frames, one a datagram, past window, pacer and acknowledgements (RFC 8085 §3.1.11).

Outbound flow, in the order of the functions:

1. a burst begins for the current path; what does not fit it (another size, another ECN mark) begins the next one
2. a super-packet is cut at `step` borders: its head stands before every piece, so each datagram is a whole segment by itself
3. a packet that is whole goes as it is; one that the path cannot carry is split into pieces and rejoined

Inbound: segments of one super-packet that follow one another become one PacketRun, for one write to the far interface.
Nothing here knows what an IP packet is: the caller says where the head ends, and reads what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidTag

from tunnel.errors import MalformedPacket
from tunnel.proto.connection.paths import SILENCE, Path
from tunnel.proto.connection.shared import Shared
from tunnel.proto.packet.frames import (
    MAX_PACKET_HEAD,
    PACKET,
    PACKET_LAST,
    PACKET_PARTIAL,
    PACKET_SIZE,
    PACKET_SPLIT,
    Frame,
)
from tunnel.proto.packet.header import HEADER, HEADER_SIZE, MAX_BURST, MAX_SEGMENTS, NONCE_SIZE, OVERHEAD, TAG_SIZE, TRANSPORT
from tunnel.proto.packet.slots import Cells, Cuts, Slots
from tunnel.proto.recovery.pmtu import BASE_PLPMTU
from tunnel.units import Instant, Seconds, Transmit

__all__ = ["PACKET_PARTIAL", "PACKET_ROOM", "PacketBurst", "PacketJoiner", "PacketRun", "PacketSealer", "PacketSink"]

PACKET_ROOM: Final = PACKET_SIZE  # bytes that a caller leaves free in front of each packet; they are overwritten
SAMPLE_INTERVAL: Final = Seconds(1.0)  # of PINGs while packets flow: they measure round trip and loss
DOUBT_INTERVAL: Final = Seconds(0.2)  # of PINGs while packets flow and nothing comes back
LARGE_INTERVAL: Final = Seconds(0.25)  # of PINGs as large as the path carries: four lost ones make a black hole (RFC 8899 §4.3)
SPLIT_FLOW: Final = -1  # of pieces in the rejoiner; flows of datagrams are not negative
MAX_WHOLE: Final = 65_535  # bytes of an IP packet

_PACKET = int(Frame.PACKET)
_KEPT_FLAGS: Final = PACKET_PARTIAL


class PacketRun(NamedTuple):
    """What arrived of one packet: `head`, then `payloads`; views that are valid until the next datagrams are handled.

    `gso_size` 0: a whole packet, in one payload, without head.  Else segments `first`, `first` + 1 ... of a super-packet, of
    `gso_size` bytes each; only the last may be shorter, and only if `is_last` says that the super-packet ends with it.
    """

    head: bytes
    payloads: list[memoryview]
    size: int  # bytes of all payloads
    gso_size: int
    first: int
    is_last: bool
    is_partial: bool  # the transport checksum is not filled in
    ecn: int  # of the datagrams that brought it


PacketSink: TypeAlias = Callable[[Instant, list[PacketRun]], None]


class PacketBurst:
    """Datagrams of one connection on their way into one Transmit.  `out` has room for MAX_BURST bytes."""

    __slots__ = ("at", "count", "ecn", "is_closed", "out", "path", "size", "slots")

    def __init__(self, out: bytearray) -> None:
        self.out = memoryview(out)
        self.slots = Slots()
        self.path: Path | None = None
        self.at = 0  # bytes filled
        self.size = 0  # of the first datagram, and of all but the last
        self.count = 0
        self.ecn = 0
        self.is_closed = False  # a shorter datagram was the last

    def begin(self, path: Path, ecn: int) -> None:
        self.path = path
        self.at = self.size = self.count = 0
        self.ecn = ecn
        self.is_closed = False

    def transmit(self) -> Transmit | None:
        """What is in it; it is empty afterwards, but its buffer may not be filled before the Transmit has left."""
        path = self.path
        if path is None or not self.count:
            return None
        self.path = None
        return Transmit(path.key.socket_id, path.key.remote, self.size, self.out[: self.at], None, self.ecn)


class PacketSealer:
    """The outbound half.  Ask `room` first: it is None while the connection cannot carry packets."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._cuts = Cuts()
        self._next_split = 0
        self._next_sample = Instant(0.0)
        self._next_large = Instant(0.0)
        self.wants_flush = False  # something was queued that only a poll_transmit of the connection sends

    @property
    def room(self) -> int | None:
        """Bytes of head and payload that one datagram carries on the current path; None while nothing may be sent there."""
        path = self._shared.paths.current
        if not self._shared.paths.carries(path):
            return None
        return path.capacity - PACKET_SIZE

    # 1

    def begin(self, burst: PacketBurst, ecn: int) -> None:
        """An empty burst for the current path, with this ECN mark on its datagrams."""
        burst.begin(self._shared.paths.current, ecn)

    def goes_on(self, burst: PacketBurst, ecn: int) -> bool:
        """Whether the burst under way is for that."""
        return burst.path is self._shared.paths.current and burst.ecn == ecn

    @staticmethod
    def _fits(burst: PacketBurst, path: Path, whole: int) -> bool:
        """Whether a datagram of `whole` bytes may be the next one of the burst."""
        if burst.path is not path:
            return False
        if not burst.count:
            return True
        return not burst.is_closed and whole <= burst.size and burst.count < MAX_SEGMENTS and burst.at + whole <= MAX_BURST

    # 2

    def seal_segments(
        self,
        burst: PacketBurst,
        now: Instant,
        packet: memoryview,
        start: int,
        head: bytes,
        end: int,
        step: int,
        index: int,
        flags: int,
    ) -> int:
        """Seal the segments from `index` on of the super-packet at `packet[start:end]`, which begins with `head`.

        Each has `step` bytes of payload.  Returns the index of the first one that did not fit the burst, which then has to leave;
        the number of segments when all did.  `packet` is scratch: PACKET_ROOM bytes and the head are written in front of each
        payload, over what was sealed before.  The caller sees to it that head and step fit `room`, and that the head has at most
        MAX_PACKET_HEAD bytes and the super-packet at most 256 segments.
        """
        shared = self._shared
        path = shared.paths.current
        prefix = path.key.prefix
        skip = len(prefix)
        front = PACKET_SIZE + len(head)
        whole = skip + OVERHEAD + front + step
        size = end - start - len(head)
        total = -(-size // step)
        last = total - 1
        if not self._fits(burst, path, whole) or (burst.count and whole != burst.size):
            return index
        keypair = shared.keys.current
        receiver = keypair.remote_index
        seal = keypair.send.encrypt_into
        pack = HEADER.pack_into
        view = burst.out
        at = burst.at
        number = first = shared.next_number
        limit = min(total - index, MAX_SEGMENTS - burst.count, (MAX_BURST - at) // whole)
        block = bytearray(PACKET_SIZE) + head
        PACKET.pack_into(block, 0, _PACKET, flags, index, len(head), step)
        slots = burst.slots.of(view, whole, skip, front)[burst.count : burst.count + limit]
        cuts = self._cuts.of(packet, start + len(head), step, front)[index : index + limit]
        for (place, plain), (target, header, _, _, sealed) in zip(cuts, slots, strict=True):
            at += whole
            if index == last:
                short = index * step + step - size
                plain, sealed, at = plain[: len(place) + step - short], sealed[: len(sealed) - short], at - short
                block[1] = flags | PACKET_LAST
            block[2] = index
            place[:] = block
            if skip:
                target[:skip] = prefix
            pack(header, 0, TRANSPORT, receiver, number)
            seal(number.to_bytes(NONCE_SIZE, "big"), plain, header, sealed)
            number += 1
            index += 1
        self._filed(burst, now, path, at, number - first, whole)
        return index

    # 3

    def seal_packet(self, burst: PacketBurst, now: Instant, packet: memoryview, start: int, end: int, flags: int) -> bool:
        """Seal the packet at `packet[start:end]`, which fits `room`.  False when the burst has to leave first."""
        shared = self._shared
        path = shared.paths.current
        prefix = path.key.prefix
        whole = len(prefix) + OVERHEAD + PACKET_SIZE + end - start
        if not self._fits(burst, path, whole):
            return False
        begin = start - PACKET_SIZE
        PACKET.pack_into(packet, begin, _PACKET, flags, 0, 0, 0)
        self._seal(burst, now, path, packet[begin:end], whole)
        return True

    def seal_another(self, burst: PacketBurst, now: Instant, packet: memoryview, start: int, end: int, flags: int) -> bool:
        """seal_packet, where the packet is as large as all in the burst; False where it is not, or the burst does not go on."""
        shared = self._shared
        path, count, at = shared.paths.current, burst.count, burst.at
        prefix = path.key.prefix
        skip = len(prefix)
        whole = skip + OVERHEAD + PACKET_SIZE + end - start
        if burst.path is not path or whole != burst.size or burst.is_closed or not count:
            return False
        if count >= MAX_SEGMENTS or at + whole > MAX_BURST:
            return False
        slot = burst.slots.of(burst.out, whole, skip, PACKET_SIZE)[count]
        keypair, number = shared.keys.current, shared.next_number
        begin = start - PACKET_SIZE
        PACKET.pack_into(packet, begin, _PACKET, flags, 0, 0, 0)
        if skip:
            burst.out[at : at + skip] = prefix
        HEADER.pack_into(burst.out, at + skip, TRANSPORT, keypair.remote_index, number)
        keypair.send.encrypt_into(number.to_bytes(NONCE_SIZE, "big"), packet[begin:end], slot.header, slot.sealed)
        burst.count = count + 1
        burst.at = at + whole
        shared.next_number = number + 1
        keypair.sent_packets += 1
        shared.packets_sent += 1
        shared.bytes_sent += whole
        return True

    def seal_split(self, burst: PacketBurst, now: Instant, packet: memoryview, start: int, end: int) -> bool:
        """Seal a packet with finished checksums that is larger than `room`, in equal pieces: one whole burst.

        False when the burst has to leave first.  For paths under 1,280 bytes: IPv6 asks the link below for it (RFC 8200 §5).
        """
        path = self._shared.paths.current
        prefix = path.key.prefix
        room = path.capacity - PACKET_SIZE
        count = -(-(end - start) // room)
        step = -(-(end - start) // count)
        whole = len(prefix) + OVERHEAD + PACKET_SIZE + step
        if burst.count or burst.path is not path:
            return False
        self._next_split = (self._next_split + 1) & 0xFFFF
        piece = bytearray(PACKET_SIZE + step)
        for index in range(count):
            low = start + index * step
            size = min(step, end - low)
            PACKET.pack_into(piece, 0, _PACKET, PACKET_SPLIT, index, count, self._next_split)
            piece[PACKET_SIZE : PACKET_SIZE + size] = packet[low : low + size]
            self._seal(burst, now, path, memoryview(piece)[: PACKET_SIZE + size], whole - step + size)
        return True

    def _seal(self, burst: PacketBurst, now: Instant, path: Path, plain: memoryview, whole: int) -> None:
        shared = self._shared
        keypair = shared.keys.current
        number = shared.next_number
        view, at = burst.out, burst.at
        prefix = path.key.prefix
        head = at + len(prefix)
        view[at:head] = prefix
        HEADER.pack_into(view, head, TRANSPORT, keypair.remote_index, number)
        sealed = head + HEADER_SIZE
        after = sealed + len(plain) + TAG_SIZE
        keypair.send.encrypt_into(number.to_bytes(NONCE_SIZE, "big"), plain, view[head:sealed], view[sealed:after])
        self._filed(burst, now, path, after, 1, whole)

    def _filed(self, burst: PacketBurst, now: Instant, path: Path, at: int, count: int, whole: int) -> None:
        shared = self._shared
        size = at - burst.at
        if not burst.count:
            burst.size = whole if count > 1 else size
        burst.is_closed = at - burst.at < count * burst.size
        burst.count += count
        burst.at = at
        shared.next_number += count
        shared.keys.current.sent_packets += count
        shared.packets_sent += count
        shared.bytes_sent += size
        path.last_sent = now
        if now >= self._next_sample or (
            now > shared.last_heard + SILENCE and now >= self._next_sample - SAMPLE_INTERVAL + DOUBT_INTERVAL
        ):
            self._next_sample = Instant(now + SAMPLE_INTERVAL)
            shared.control.ping = self.wants_flush = True
        if burst.size > BASE_PLPMTU and now >= self._next_large:
            self._next_large = Instant(now + LARGE_INTERVAL)
            shared.control.large_ping = self.wants_flush = True


#: A PACKET frame and a head of so many bytes, read in one call.
_WITH_HEAD: Final = [Struct(f">BBBBH{size}s") for size in range(MAX_PACKET_HEAD + 1)]
#: (nonce, sealed bytes, associated data, buffer for the plaintext): raises InvalidTag.
Unseal: TypeAlias = Callable[[bytes, memoryview, memoryview, memoryview], int]


class PacketJoiner:
    """The inbound half: gathers the runs of one batch."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.sink: PacketSink | None = None
        self._runs: list[PacketRun] = []
        # the run being gathered
        self._head = b""
        self._payloads: list[memoryview] = []
        self._size = 0
        self._gso_size = 0
        self._index = 0  # of the first
        self._next = -1  # index of the segment that would go on with it; -1: none does
        self._flags = 0
        self._ecn = 0
        self._views: list[tuple[memoryview, memoryview, memoryview]] = []
        self._views_for: tuple[object, int, int] = (None, 0, 0)

    def add(self, now: Instant, plain: memoryview, at: int, end: int, ecn: int) -> None:
        """One PACKET frame, the whole of its datagram.  Raises MalformedPacket."""
        if at + PACKET_SIZE > end:
            raise MalformedPacket("PACKET: cut short")
        _, flags, index, head_size, gso_size = PACKET.unpack_from(plain, at)
        at += PACKET_SIZE
        if gso_size and not flags & PACKET_SPLIT:
            body = at + head_size
            size = end - body
            if size <= 0 or size > gso_size:
                raise MalformedPacket("PACKET: the segment is empty or larger than it says")
            head = _WITH_HEAD[head_size].unpack_from(plain, at - PACKET_SIZE)[5]
            if index == self._next and head == self._head and gso_size == self._gso_size and ecn == self._ecn:
                self._payloads.append(plain[body:end])
                self._size += size
                self._flags |= flags
            else:
                self._close()
                self._head, self._gso_size, self._index = head, gso_size, index
                self._payloads = [plain[body:end]]
                self._size = size
                self._flags, self._ecn = flags, ecn
            is_open = size == gso_size and not flags & PACKET_LAST
            self._next = index + 1 if is_open else -1
            return
        self._close()
        if flags & PACKET_SPLIT:
            whole = self._shared.rejoiner.add(now, SPLIT_FLOW, gso_size, index, head_size, bytes(plain[at:end]))
            if whole is None or len(whole) > MAX_WHOLE:
                return
            self._runs.append(PacketRun(b"", [memoryview(whole)], len(whole), 0, 0, True, False, ecn))
            return
        if head_size:
            raise MalformedPacket("PACKET: a head without segments")
        partial = bool(flags & PACKET_PARTIAL)
        self._runs.append(PacketRun(b"", [plain[at:end]], end - at, 0, 0, True, partial, ecn))

    def follow(
        self,
        unseal: Unseal,
        buffer: memoryview,
        position: int,
        stride: int,
        prefix: bytes,
        receiver: int,
        number: int,
        plain: memoryview,
        at: int,
        cells: Cells,
    ) -> int:
        """Open what goes on with the run that `add` has begun: full datagrams from `position` on, numbered on from `number`.

        The hot loop of a super-packet: no call but the opening, nothing stored but a view of each payload.  Returns how many it
        took; whatever is not just the next segment is left where it is, for the common way to judge.
        """
        head, gso_size, index, flags = self._head, self._gso_size, self._next, self._flags
        skip, front = len(prefix), PACKET_SIZE + len(head)
        size = stride - skip - OVERHEAD
        if size != front + gso_size:
            return 0
        first, rest = divmod(at, size)
        cell, crooked = divmod(position, stride)
        if rest or crooked:
            return 0
        block = bytearray(PACKET_SIZE) + head  # what the next segment has to begin with
        PACKET.pack_into(block, 0, _PACKET, flags, index, len(head), gso_size)
        unpack, append = HEADER.unpack_from, self._payloads.append
        taken = 0
        for (header, sealed), (opened, its_front, payload) in zip(
            cells.of(buffer, stride, skip)[cell:], self._views_of(plain, size, front)[first:], strict=False
        ):
            number += 1
            if unpack(header) != (TRANSPORT, receiver, number):
                break
            if skip and buffer[position : position + skip] != prefix:
                break
            position += stride
            try:
                unseal(number.to_bytes(NONCE_SIZE, "big"), sealed, header, opened)
            except InvalidTag:
                break
            block[2] = index
            if its_front != block:
                block[1] = flags | PACKET_LAST
                if its_front != block:
                    break
                append(payload)
                taken += 1
                index = -1
                self._flags |= PACKET_LAST
                break
            append(payload)
            index += 1
            taken += 1
        self._next = index
        self._size += taken * gso_size
        return taken

    def _views_of(self, plain: memoryview, size: int, front: int) -> list[tuple[memoryview, memoryview, memoryview]]:
        """Where full segments are opened to, their fronts and payloads; cut once, as slicing costs a third of opening."""
        if (plain.obj, size, front) != self._views_for:
            starts = range(0, len(plain) - size + 1, size)
            self._views = [(plain[at : at + size], plain[at : at + front], plain[at + front : at + size]) for at in starts]
            self._views_for = (plain.obj, size, front)
        return self._views

    @property
    def is_open(self) -> bool:
        """Whether the run that `add` has begun could go on."""
        return self._next >= 0

    def _close(self) -> None:
        if self._payloads:
            flags = self._flags
            self._runs.append(
                PacketRun(
                    self._head, self._payloads, self._size, self._gso_size, self._index,
                    bool(flags & PACKET_LAST), bool(flags & PACKET_PARTIAL), self._ecn,
                )
            )  # fmt: skip
            self._payloads = []
        self._next = -1

    def flush(self, now: Instant) -> None:
        """The batch is done: hand over what it brought, in order."""
        self._close()
        if not self._runs:
            return
        runs, self._runs = self._runs, []
        if self.sink is None:
            self._shared.drops["packet without an interface"] += len(runs)
        else:
            self.sink(now, runs)
