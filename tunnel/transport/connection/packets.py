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
from functools import lru_cache
from itertools import repeat
from operator import setitem
from struct import Struct
from typing import Final, NamedTuple, TypeAlias, cast

from tunnel.errors import MalformedPacket
from tunnel.transport.connection.carried import Ping
from tunnel.transport.connection.paths import SILENCE, Path
from tunnel.transport.connection.repair import Kept
from tunnel.transport.connection.repeats import MOST_IN_ONE
from tunnel.transport.connection.shared import Shared
from tunnel.transport.crypto.batch import run_through, seal_batch
from tunnel.transport.packet.frames import (
    MAX_PACKET_HEAD,
    PACKET,
    PACKET_AGAIN,
    PACKET_IN_ORDER,
    PACKET_KEPT,
    PACKET_LAST,
    PACKET_PARTIAL,
    PACKET_SIZE,
    PACKET_SPLIT,
    Frame,
)
from tunnel.transport.packet.header import HEADER, MAX_BURST, MAX_SEGMENTS, NUMBER_SIZE, OVERHEAD, TRANSPORT
from tunnel.transport.packet.slots import MAX_PLAINS, PieceCutter, Plains, SlotCutter
from tunnel.transport.recovery.pmtu import BASE_PLPMTU
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds, Transmit

PACKET_ROOM: Final = PACKET_SIZE  # bytes that a caller leaves free in front of each packet; they are overwritten
SAMPLE_INTERVAL: Final = Seconds(1.0)  # of PINGs while packets flow: they measure round trip and loss
DOUBT_INTERVAL: Final = Seconds(0.2)  # of PINGs while packets flow and nothing comes back
LARGE_INTERVAL: Final = Seconds(0.25)  # of PINGs as large as the path carries: four lost ones make a black hole (RFC 8899 §4.3)
SPLIT_FLOW: Final = -1  # of pieces in the rejoiner; flows of datagrams are not negative
MAX_WHOLE: Final = 65_535  # bytes of an IP packet
MAX_INDEX: Final = 255  # of a segment: a byte

_PACKET = int(Frame.PACKET)
_WHOLE: Final = [PACKET.pack(_PACKET, flags, 0, 0, 0) for flags in range(2 * PACKET_IN_ORDER)]  # by flags, before a whole packet
_ALL: Final = slice(None)
_put: Final = cast("Callable[[memoryview, slice, memoryview], None]", setitem)


class PacketRun(NamedTuple):
    """The received part of one packet: `head`, then `payloads`; views, valid until the next datagrams are handled.

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
    is_in_order: bool = False  # it may wait for what was lost of its flow, which is sent again
    is_again: bool = False  # it is that


PacketSink: TypeAlias = Callable[[Instant, list[PacketRun]], None]


class PacketBurst:
    """Datagrams of one connection on their way into one Transmit.  `out` has room for MAX_BURST bytes."""

    __slots__ = ("at", "count", "ecn", "is_closed", "out", "path", "size", "slots")

    def __init__(self, out: bytearray) -> None:
        self.out = memoryview(out)
        self.slots = SlotCutter()
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
        """Take what is in it.  Fill its buffer again only when the Transmit has left."""
        path = self.path
        if path is None or not self.count:
            return None
        self.path = None
        return Transmit(path.key.socket_id, path.key.remote, self.size, self.out[: self.at], None, self.ecn)


class PacketSealer:
    """The outbound half.  Ask `room` first: it is None while the connection cannot carry packets."""

    def __init__(self, shared: Shared, touched: Callable[[], None] = lambda: None) -> None:
        """`touched` is called when something was queued that only a poll_transmit of the connection sends."""
        self._shared = shared
        self._touched = touched
        self._pieces = PieceCutter()
        self._next_split = 0
        self._next_sample = Instant(0.0)
        self._next_large = Instant(0.0)

    @property
    def room(self) -> int | None:
        """Bytes of head and payload that one datagram carries on the current path; None while nothing may be sent there."""
        path = self._shared.paths.current
        if not self._shared.paths.carries(path):
            return None
        return path.capacity - PACKET_SIZE

    @property
    def repeats(self) -> bool:
        """Whether small packets are to be sent twice: see `repeat`."""
        return self._shared.repeats.is_on

    def repeat(self, now: Instant, packet: memoryview, start: int, end: int) -> None:
        """Have the packet that `seal_packet` has just sealed sent once more, if it is small."""
        if end - start + PACKET_SIZE <= MOST_IN_ONE:
            self._shared.repeats.add(now, self._shared.next_number - 1, bytes(packet[start - PACKET_SIZE : end]))
            self._touched()

    # 1

    def begin(self, burst: PacketBurst, ecn: int) -> None:
        """An empty burst for the current path, with this ECN mark on its datagrams."""
        burst.begin(self._shared.paths.current, ecn)

    def goes_on(self, burst: PacketBurst, ecn: int) -> bool:
        """Whether the burst under way is for that."""
        return burst.path is self._shared.paths.current and burst.ecn == ecn

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
        the number of segments when all did.  `packet` is a view of a whole buffer, the same one every time, and stays as it is.
        The caller sees to it that head and step fit `room`, and that the head has at most MAX_PACKET_HEAD bytes and the
        super-packet at most 256 segments.
        """
        shared = self._shared
        path = shared.paths.current
        prefix = path.key.prefix
        skip, head_size = len(prefix), len(head)
        whole = skip + OVERHEAD + PACKET_SIZE + head_size + step
        size = end - start - head_size
        total = -(-size // step)
        if burst.path is not path or (burst.count and (burst.is_closed or whole != burst.size)):
            return index
        count = min(total - index, MAX_SEGMENTS - burst.count, (MAX_BURST - burst.at) // whole)
        if not count:
            return index
        short = total * step - size if index + count == total else 0
        at = burst.at + count * whole - short
        keypair, number = shared.keys.current, shared.take_numbers(count, at - burst.at)
        slots = burst.slots.of(burst.out, whole, skip, PACKET_SIZE + head_size).part(burst.count, count)
        places, headers, payloads, plains, sealed = slots
        pieces = self._pieces.of(packet, start + head_size, step)[index : index + count]
        pack = _segment(head_size).pack_into
        ours = HEADER.pack(TRANSPORT, keypair.remote_index, 0)[:-NUMBER_SIZE]
        tail = PACKET.pack(_PACKET, flags, 0, head_size, step)[3:] + head
        slots.put_prefix(prefix)
        numbers, indices = range(number, number + count), range(index, index + count)
        run_through(
            map(pack, places, repeat(skip), repeat(ours), numbers, repeat(bytes((_PACKET, flags))), indices, repeat(tail))
        )
        if index + count == total:
            pack(places[-1], skip, ours, numbers[-1], bytes((_PACKET, flags | PACKET_LAST)), indices[-1], tail)
            if short:
                slots.shorten_last(short)
                pieces[-1] = pieces[-1][: step - short]
        run_through(map(_put, payloads, repeat(_ALL), pieces))
        seal_batch(keypair.send.encrypt_into, number, count, plains, headers, sealed)
        if flags & PACKET_KEPT:
            end = start + head_size + min((index + count) * step, size)
            data = bytes(packet[start + head_size + index * step : end])
            self._keep(
                now, Kept(data, step, index, flags, tail, is_last=index + count == total), number, count, whole, whole - short
            )
        self._filed(burst, now, path, at, count, whole)
        return index + count

    # 3

    def seal_packet(self, burst: PacketBurst, now: Instant, packet: memoryview, start: int, end: int, flags: int) -> bool:
        """Seal the packet at `packet[start:end]`, which fits `room`.

        False when the burst has to leave first: then nothing was written in front of the packet either.
        """
        return self._append(burst, now, packet, start, end, _WHOLE[flags])

    def _append(self, burst: PacketBurst, now: Instant, packet: memoryview, start: int, end: int, frame: bytes) -> bool:
        """One datagram of `frame` and what stands at `packet[start:end]`, where the frame is put before it."""
        shared = self._shared
        path, at, count = shared.paths.current, burst.at, burst.count
        prefix, begin = path.key.prefix, start - PACKET_SIZE
        whole = len(prefix) + OVERHEAD + end - begin
        if burst.path is not path:
            return False
        if count and (burst.is_closed or whole > burst.size or count >= MAX_SEGMENTS or at + whole > MAX_BURST):
            return False
        packet[begin:start] = frame
        after = shared.seal(prefix, burst.out, at, packet[begin:end])
        if frame[1] & PACKET_KEPT:
            self._keep(now, Kept(bytes(packet[begin:end])), shared.next_number - 1, 1, whole, whole)
        if count and whole == burst.size:
            burst.count, burst.at = count + 1, after
        else:
            self._filed(burst, now, path, after, 1, whole)
        return True

    def seal_split(self, burst: PacketBurst, now: Instant, packet: memoryview, start: int, end: int) -> bool:
        """Seal a packet with finished checksums that is larger than `room`, in equal pieces: one whole burst.

        False when the burst has to leave first.  For paths under 1,280 bytes: IPv6 asks the link below for it (RFC 8200 §5).
        """
        path = self._shared.paths.current
        room = path.capacity - PACKET_SIZE
        count = -(-(end - start) // room)
        step = -(-(end - start) // count)
        if burst.count or burst.path is not path:
            return False
        self._next_split = (self._next_split + 1) & 0xFFFF
        piece = memoryview(bytearray(PACKET_SIZE + step))
        for index in range(count):
            data = packet[start + index * step : min(start + (index + 1) * step, end)]
            stop = PACKET_SIZE + len(data)
            piece[PACKET_SIZE:stop] = data
            frame = PACKET.pack(_PACKET, PACKET_SPLIT, index, count, self._next_split)
            self._append(burst, now, piece, PACKET_SIZE, stop, frame)
        return True

    @property
    def repair_flags(self) -> int:
        """Flags of `seal_` for packets that are to be sent again where they are lost; 0: that is not done now."""
        return self._shared.repair.flags

    def _keep(self, now: Instant, kept: Kept, number: int, count: int, size: int, last: int) -> None:
        """File a burst that has just been sealed: it is acknowledged, and not in flight."""
        shared, path = self._shared, self._shared.paths.current
        shared.repair.keep(now, kept, count)
        path.recovery.on_sent(SentBurst(number, count, size, last, now, kept, in_flight=False, path=path.number), now)

    def _filed(self, burst: PacketBurst, now: Instant, path: Path, at: int, count: int, whole: int) -> None:
        shared = self._shared
        if not burst.count:
            burst.size = whole if count > 1 else at - burst.at
        burst.is_closed = at - burst.at < count * burst.size
        burst.count += count
        burst.at = at
        path.last_sent = now
        if now >= self._next_sample or (
            now > shared.last_heard + SILENCE and now >= self._next_sample - SAMPLE_INTERVAL + DOUBT_INTERVAL
        ):
            self._next_sample = Instant(now + SAMPLE_INTERVAL)
            shared.owe(Ping())
            self._touched()
        if burst.size > BASE_PLPMTU and now >= self._next_large:
            self._next_large = Instant(now + LARGE_INTERVAL)
            shared.owes_large_ping = True
            self._touched()


#: A PACKET frame and a head of so many bytes, read in one call.
_WITH_HEAD: Final = [Struct(f">BBBBH{size}s") for size in range(MAX_PACKET_HEAD + 1)]


@lru_cache(maxsize=MAX_PACKET_HEAD + 1)
def _segment(head_size: int) -> Struct:
    """Header, PACKET frame and head of one segment: type and receiver index, number, frame type and flags, index, the rest.

    Only number and index differ between the segments of a burst: what stands between is given in one piece.
    """
    return Struct(f">5sQ2sB{PACKET_SIZE - 3 + head_size}s")


class PacketJoiner:
    """The inbound half: gathers the runs of one batch."""

    def __init__(self, shared: Shared, plains: Plains) -> None:
        """`plains` is where the batches are opened to."""
        self._shared = shared
        self._plains = plains
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

    def take(self, now: Instant, at: int, size: int, count: int, ecn: int) -> int:
        """The datagram of `size` bytes that was opened to `at`, and those of the `count` from there that go on with its run.

        Returns how many that is.  Raises MalformedPacket.
        """
        self.add(now, self._plains.view, at, at + size, ecn)
        return 1 if count == 1 or self._next < 0 else 1 + self._follow(at + size, size, count - 1)

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
            if (
                index == self._next
                and head == self._head
                and gso_size == self._gso_size
                and ecn == self._ecn
                and not (flags ^ self._flags) & PACKET_AGAIN
            ):
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
        self._runs.append(
            PacketRun(
                b"",
                [plain[at:end]],
                end - at,
                0,
                0,
                True,
                partial,
                ecn,
                bool(flags & PACKET_IN_ORDER),
                bool(flags & PACKET_AGAIN),
            )
        )

    def _follow(self, at: int, size: int, count: int) -> int:
        """Take what goes on with the run that `add` has begun: full segments, judged all together by how they begin."""
        head, gso_size, index, flags = self._head, self._gso_size, self._next, self._flags
        front = PACKET_SIZE + len(head)
        first, misaligned = divmod(at, size)
        count = min(count, MAX_INDEX + 1 - index, MAX_PLAINS - first)
        if size != front + gso_size or misaligned or count <= 0:
            return 0
        found = b"".join(self._plains.fronts(size, front)[first : first + count])
        wanted = bytearray((PACKET.pack(_PACKET, flags, index, len(head), gso_size) + head) * count)
        wanted[2::front] = bytes(range(index, index + count))
        last = found[1::front].find(flags | PACKET_LAST)  # its flags: the super-packet ends there
        if last >= 0:
            wanted[last * front + 1] |= PACKET_LAST
            count = last + 1
        taken = count
        if found[: count * front] != wanted[: count * front]:
            taken = next(i for i in range(count) if found[i * front : (i + 1) * front] != wanted[i * front : (i + 1) * front])
        self._payloads.extend(self._plains.bodies(size, front)[first : first + taken])
        self._size += taken * gso_size
        self._next = index + taken
        if last >= 0 and taken == count:
            self._flags |= PACKET_LAST
            self._next = -1
        return taken

    def _close(self) -> None:
        if self._payloads:
            flags = self._flags
            self._runs.append(
                PacketRun(
                    self._head, self._payloads, self._size, self._gso_size, self._index,
                    bool(flags & PACKET_LAST), bool(flags & PACKET_PARTIAL), self._ecn,
                    bool(flags & PACKET_IN_ORDER), bool(flags & PACKET_AGAIN),
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
            try:
                self.sink(now, runs)
            except Exception as error:  # raised when the batch is done: what it holds beside is not to suffer
                self._shared.sink_error = error
