"""The state that the sending and the receiving half of one connection share."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Final

from tunnel.core.trace import Drops, Trace
from tunnel.transport.connection.carried import BulkRun, MaxStreams, OwedFrame
from tunnel.transport.connection.events import ConnectionEvent, ConnectionStats, PathKind, StreamReadable, StreamWritable
from tunnel.transport.connection.keyring import Keyring
from tunnel.transport.connection.paths import Paths
from tunnel.transport.connection.repair import Kept, Repair
from tunnel.transport.connection.repeats import Repeats
from tunnel.transport.crypto.batch import nonce_of
from tunnel.transport.crypto.keys import Keypair
from tunnel.transport.crypto.replay import ReplayWindow
from tunnel.transport.packet.header import HEADER, HEADER_SIZE, TAG_SIZE, TRANSPORT
from tunnel.transport.recovery.acks import ACK_ELICITING_MOST, AckTracker
from tunnel.transport.recovery.lossiness import LossMeter
from tunnel.transport.recovery.pmtu import BASE_PLPMTU
from tunnel.transport.stream.datagrams import DatagramQueue, Rejoiner
from tunnel.transport.stream.send import SendStream
from tunnel.transport.stream.streams import Streams
from tunnel.units import Instant, PathKey, StreamId

if TYPE_CHECKING:
    import random


ACK_SHARE: Final = 3  # of what our socket holds may wait for an ACK: the peer has no more in flight, and must not wait for us

#: Send records only after so many datagrams without a loss: the parts of a record are lost together.  At a random loss of
#: 0.01 % that costs 0.1 % more; at 0.1 % there are hardly any records.
RECORDS_AFTER: Final = 4_096

#: Sequence numbers from one that is left out to the next, at random: whoever acknowledges what it did not get cannot know them
#: (RFC 9000 §21.4).  A gap costs the receiver an ACK and a range in those that follow, so a flow that goes on has fewer of them:
#: each time the distance may be twice as long, from SKIP_FIRST to SKIP_MOST.
SKIP_LEAST: Final = 64
SKIP_FIRST: Final = 4_096
SKIP_MOST: Final = 16_384  # some forty a second at 4 Gbit/s
MAX_SKIPPED: Final = 64  # numbers left out that are remembered: what is in flight lies behind far fewer

RECORDS_AFTER_KEYS: Final = 64  # datagrams: who answers a handshake learns by a packet, not by parts, that its key is used


class Shared:
    """One connection's state, composed of the rooms' values.  `send.py` and `receive.py` work on it; `connection.py` owns it."""

    def __init__(
        self,
        *,
        is_initiator: bool,
        keypair: Keypair,
        receive_buffer: int,
        peer_receive_buffer: int,
        peer_record_parts: int,
        path: PathKey,
        path_kind: PathKind,
        now: Instant,
        rng: random.Random,
        trace: Trace | None,
    ) -> None:
        self.drops = Drops()
        self.keys = Keyring(keypair, now)
        self.peer_receive_buffer = peer_receive_buffer  # bytes the peer's socket holds
        self.peer_record_parts = peer_record_parts  # datagrams that a record to the peer may have
        self.records_from = RECORDS_AFTER  # the number from which on records may be sent
        self.paths = Paths(path, path_kind, now, rng, self.drops)
        self.replay = ReplayWindow()
        self.acks = AckTracker(most=min(ACK_ELICITING_MOST, receive_buffer // ACK_SHARE // BASE_PLPMTU))
        self.streams = Streams(is_initiator=is_initiator)
        self.datagrams = DatagramQueue(self.drops)
        self.rejoiner = Rejoiner(self.drops)
        self.repeats = Repeats(self.drops)
        self.repair = Repair(self.drops)
        self.losses = LossMeter()  # of the current path
        self.received_datagrams: deque[tuple[int, bytes]] = deque()
        self.received_datagram_bytes = 0
        self.owed: dict[OwedFrame, None] = {}  # in the order in which they were asked for; `owe` adds to it
        self.owes_large_ping = False  # one as large as the path carries: a packet of its own
        self.events: deque[ConnectionEvent] = deque()
        self.trace = trace
        self.next_number = 0  # the last one sealed, and one, over all keys and paths: take_numbers writes it, and nobody else
        self._rng = rng
        self._skip_most = SKIP_FIRST  # how far off the next one may be
        self._skip_at = rng.randint(SKIP_LEAST, SKIP_FIRST)  # from this number on the next one is left out
        self._skipped: list[int] = []  # the last of those
        self.unacknowledged_acks: deque[tuple[int, int]] = deque(maxlen=64)  # (our packet, largest it acknowledged)
        self.stats = ConnectionStats()
        self.last_heard = now
        self.sink_error: Exception | None = None  # what a sink raised in the batch at hand
        self.mtu_changed = False  # of the current path, not yet announced

    # sequence numbers

    def take_numbers(self, count: int, size: int) -> int:
        """The first of `count` sequence numbers in a row, for packets of `size` bytes together.

        Call it before sealing: whatever happens there, no number is sealed under twice.
        """
        first = self.next_number
        if first >= self._skip_at:
            first = self._skip(first)
        self.next_number = first + count
        self.keys.current.sent_packets += count
        stats = self.stats
        stats.packets_sent += count
        stats.sent_bytes += size
        return first

    def seal(self, prefix: bytes, out: memoryview, at: int, plain: memoryview) -> int:
        """Write `plain` as one packet to `out`, at `at`; returns its end.  The plaintext may lie where it is sealed to.

        Bursts of equal packets are sealed in one go, where they are made: bursts.py, send.py (DATAGRAM) and packets.py (PACKET).
        """
        head = at + len(prefix)
        sealed = head + HEADER_SIZE
        end = sealed + len(plain) + TAG_SIZE
        keypair, number = self.keys.current, self.take_numbers(1, end - at)
        out[at:head] = prefix
        HEADER.pack_into(out, head, TRANSPORT, keypair.remote_index, number)
        keypair.send.encrypt_into(nonce_of(number), plain, out[head:sealed], out[sealed:end])
        return end

    def _skip(self, number: int) -> int:
        """Leave `number` out; returns the next one."""
        self._skipped.append(number)
        del self._skipped[:-MAX_SKIPPED]
        self._skip_most = min(2 * self._skip_most, SKIP_MOST)
        self._skip_at = number + self._rng.randint(SKIP_LEAST, self._skip_most)
        return number + 1

    def was_sent(self, ranges: list[tuple[int, int]]) -> bool:
        """Whether all of these numbers (low, high inclusive, highest first) were sealed, as far as is remembered."""
        if ranges[0][1] >= self.next_number:
            return False
        skipped = self._skipped
        for low, high in ranges:
            index = bisect_left(skipped, low)
            if index < len(skipped) and skipped[index] <= high:
                return False
        return True

    def on_ack(self, ranges: list[tuple[int, int]], now: Instant) -> None:
        """An ACK, which tells how lossy the current path is."""
        if self.losses.on_ack(ranges, self._skipped, now):
            self.repeats.judge(now, self.losses, self.paths.current.recovery.rtt)
        self.repair.look(now, self.losses, self.paths.current.recovery.rtt)

    def owe(self, frame: OwedFrame) -> None:
        """Have `frame` told, once, as of when it is written."""
        self.owed[frame] = None

    def readable(self, stream_id: StreamId) -> None:
        """Announce a stream once until the application reads it."""
        stream = self.streams.receiving[stream_id]
        if not stream.announced and stream.is_readable:
            stream.announced = True
            self.events.append(StreamReadable(stream_id))

    def settled(self, stream: SendStream) -> None:
        """Bytes of `stream` were acknowledged: its writer may go on."""
        if (stream.wants_space and not stream.is_half_full) or stream.is_done:
            stream.wants_space = False
            if stream.source is None:
                self.events.append(StreamWritable(stream.stream_id))
        if stream.source is not None and not stream.wants_space:
            self.streams.scheduler.wake(stream)
        if stream.is_done:
            self.forget_if_done(stream.stream_id)

    def forget_if_done(self, stream_id: StreamId) -> None:
        if self.streams.forget_if_done(stream_id):
            self.owe(MaxStreams())

    # what the datagrams carried

    def content_acked(self, content: object, mask: int, count: int) -> None:
        """The packets in `mask` of a burst of `count` arrived."""
        if type(content) is BulkRun:
            content.settle(mask, count, self, acked=True)
        elif content is not None and type(content) is not Kept:
            for item in content:  # type: ignore[attr-defined]  # a list of items, see send.py
                item.acked(self)

    def content_lost(self, content: object, mask: int, count: int) -> None:
        """The packets in `mask` of a burst of `count` are lost; what they carried is sent again if it still matters."""
        self.stats.packets_lost += mask.bit_count()
        self.records_from = self.next_number + RECORDS_AFTER
        if type(content) is BulkRun:
            content.settle(mask, count, self, acked=False)
        elif type(content) is Kept:
            self.repair.on_lost(content, mask)
        elif content is not None:
            for item in content:  # type: ignore[attr-defined]
                item.lost(self)
