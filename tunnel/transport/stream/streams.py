"""All streams of one connection: who exists, who may be opened, and who writes next."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from tunnel.core.ranges import RangeSet
from tunnel.errors import PeerError, StreamLimitError
from tunnel.transport.stream.flow import (
    CONNECTION_WINDOW,
    INITIAL_STREAM_WINDOW,
    MAX_STREAMS,
    Growth,
    ReceiveWindow,
    SendCredit,
)
from tunnel.transport.stream.receive import ReceiveStream
from tunnel.transport.stream.send import SMALLEST_RING, SendStream
from tunnel.units import StreamId

CONTROL_STREAM: Final = StreamId(0)  # open from the start, both ways
LAST_STREAM: Final = 0xFFFF_FFFF  # ids have 32 bits
QUANTUM: Final = 32 * 1024  # bytes a stream may send before the next one's turn, at least
#: The same on a fast path: nearly a full GSO burst, of 43 datagrams of 1,472 bytes.  Rather less than more, as what a turn has
#: left after a full burst leaves as a short one, which costs as many calls.
LARGEST_QUANTUM: Final = 122 * 1024
LEAST_TURN: Final = (
    8 * 1024
)  # bytes: the rest of a turn that is less is added to the next, as a short burst costs like a full one
TURN_MORE: Final = 4 * 1024  # bytes beyond its turn that a stream has at hand, as a turn is rounded up to whole datagrams
LARGEST_RING: Final = 8 * 1024 * 1024  # bytes a stream may hold for the network: 100 Mbit/s at 300 ms, twice
LOSSY: Final = 0.01
MANY: Final = 64  # streams; fewer have rings of whole turns, and a task that fills one beside the sends costs less
RINGS_IN_ALL: Final = 16 * 1024 * 1024  # bytes that all rings share; each gets its part, but never less than 64 KiB


class Scheduler:
    """The order of writing: deficit round robin that serves a stream which just woke before those that are always busy.

    So a keystroke does not wait behind bulk.  Source: fq_codel (RFC 8290 §4.2), without its queues' CoDel.
    Streams that the connection's credit holds back stand aside and come back one by one: a MAX_DATA costs what it lets through,
    not the number of those who wait for it.
    """

    __slots__ = ("_credit", "_held", "_new", "_old", "quantum", "ring_limit")

    def __init__(self) -> None:
        self.ring_limit = 4 * SMALLEST_RING
        self.quantum = QUANTUM  # of the turns that begin now
        self._new: deque[SendStream] = deque()
        self._old: deque[SendStream] = deque()
        self._held: OrderedDict[StreamId, SendStream] = OrderedDict()  # only the connection's credit is missing; first come first
        self._credit: dict[StreamId, int] = {}

    def wake(self, stream: SendStream) -> None:
        if not stream.scheduled:
            stream.scheduled = True
            self._credit[stream.stream_id] = self.quantum
            (self._new if stream.source is None else self._old).append(stream)  # bulk does not go before others
            if self._held:
                self._held.pop(stream.stream_id, None)

    def is_busy(self, stream: SendStream) -> bool:
        """Whether so many others than `stream` may have something to send that their rings are small."""
        return len(self._new) + len(self._old) + len(self._held) - stream.scheduled >= MANY

    def forget(self, stream: SendStream) -> None:
        """It is over.  In the round it may still stand: without work it leaves that by itself."""
        self._held.pop(stream.stream_id, None)

    def head(self, may_send_new: bool) -> SendStream | None:
        """The stream whose turn it is, of those that have work; `may_send_new` says that the connection has credit.

        A stream without work leaves the round until it is woken again, or until there is credit for it.
        """
        if may_send_new and self._held:
            self.wake(next(iter(self._held.values())))
        while True:
            if self._new:
                queue = self._new
            elif self._old:
                queue = self._old
            else:
                return None
            stream = queue[0]
            has_work = stream.has_work(may_send_new)
            if has_work and self._credit[stream.stream_id] < LEAST_TURN:
                self._credit[stream.stream_id] += self.quantum
                queue.popleft()
                self._old.append(stream)
            elif has_work and (stream.source is None or not may_send_new or self._pull(stream)):
                return stream
            else:
                queue.popleft()
                is_held = not may_send_new and stream.has_work()
                if queue is self._new and self._old and not is_held:
                    self._old.append(stream)  # one round as an old one, so that waking often does not starve the others
                else:
                    stream.scheduled = False
                    del self._credit[stream.stream_id]
                    if is_held:
                        self._held[stream.stream_id] = stream

    def _pull(self, stream: SendStream) -> bool:
        """Its turn has come: take what its source has.  False where it has nothing to send now."""
        are_others = len(self._new) + len(self._old) > 1
        is_ready = stream.pull(self.quantum + TURN_MORE, LEAST_TURN, self.ring_limit, are_others=are_others)
        return is_ready and stream.has_work()

    def set_pace(self, burst: int, ring_limit: int = LARGEST_RING) -> None:
        """`burst` bytes leave at about one instant: a turn is no more than that, so that fast paths have full bursts.

        Nor is it more than a ring holds, if each is `ring_limit` bytes at most.
        """
        self.ring_limit = ring_limit
        self.quantum = min(max(burst, QUANTUM), LARGEST_QUANTUM, ring_limit - TURN_MORE)

    def charge(self, stream: SendStream, count: int) -> None:
        self._credit[stream.stream_id] -= max(count, 1)

    def allowance(self, stream: SendStream) -> int:
        """Bytes it may send in this turn; all there is when nobody else waits."""
        if len(self._new) + len(self._old) == 1 and not self._held:
            return 1 << 30
        return self._credit[stream.stream_id]


class Streams:
    """The streams by id, with the connection's credit both ways.  Ids: even ones are opened by the initiator."""

    def __init__(self, *, is_initiator: bool) -> None:
        self._ours = 0 if is_initiator else 1
        self.sending: dict[StreamId, SendStream] = {}
        self.receiving: dict[StreamId, ReceiveStream] = {}
        self.scheduler = Scheduler()
        self._growth = Growth()
        self.receive_window = ReceiveWindow(CONNECTION_WINDOW)
        self.send_credit = SendCredit(CONNECTION_WINDOW)
        self._next_ours = 2 if is_initiator else 1
        self.peer_max_streams = MAX_STREAMS  # cumulative, in streams: what we may open in all
        self.max_streams = MAX_STREAMS  # cumulative: what the peer may open in all
        self._opened = 0
        self._accepted: int = 0  # ids of the peer below this ordinal are open or were, ...
        self._unnamed = RangeSet()  # ... but for these ordinals of them no frame has come yet: they cost nothing so far
        self._peer_closed = 0
        self.accepted = 0  # streams of the peer that were made
        self._add(CONTROL_STREAM)

    def __len__(self) -> int:
        return len(self.sending) - 1

    def _add(self, stream_id: StreamId) -> None:
        self.sending[stream_id] = SendStream(stream_id, INITIAL_STREAM_WINDOW)
        self.receiving[stream_id] = ReceiveStream(stream_id, self._growth)

    @property
    def can_open(self) -> bool:
        return self._opened < self.peer_max_streams and self._next_ours <= LAST_STREAM

    def open(self) -> StreamId:
        """Raises StreamLimitError."""
        if not self.can_open:
            raise StreamLimitError(f"the peer allows {MAX_STREAMS} open streams; wait for one to end")
        stream_id = StreamId(self._next_ours)
        self._next_ours += 2
        self._opened += 1
        self._add(stream_id)
        return stream_id

    def is_ours(self, stream_id: int) -> bool:
        return stream_id & 1 == self._ours

    def head(self) -> SendStream | None:
        """The stream to send from now."""
        return self.scheduler.head(self.send_credit.available > 0)

    def allow(self, limit: int) -> bool:
        """MAX_STREAMS came: true when we could open none, and now can."""
        could_open, self.peer_max_streams = self.can_open, max(self.peer_max_streams, limit)
        return not could_open and self.can_open

    def accept(self, stream_id: int) -> bool:
        """A frame names a stream that is not there: True when that opens it, False when it is over and the frame late.

        The streams below it are open too (RFC 9000 §2.1), but are made when a frame names them.
        Raises PeerError if the peer may not open it, or names one that we never opened.
        """
        if self.is_ours(stream_id):
            if stream_id >= self._next_ours:
                raise PeerError(f"stream {stream_id} was never opened")
            return False
        ordinal = stream_id // 2 if stream_id & 1 else stream_id // 2 - 1
        if ordinal < self._accepted:
            if ordinal not in self._unnamed:
                return False
            self._unnamed.remove(ordinal, ordinal + 1)
        elif ordinal >= self.max_streams:
            raise PeerError(f"stream {stream_id} is beyond the {self.max_streams} that were granted")
        else:
            self._unnamed.add(self._accepted, ordinal)
            self._accepted = ordinal + 1
        self._add(StreamId(stream_id))
        self.accepted += 1
        return True

    def forget_if_done(self, stream_id: StreamId) -> bool:
        """Drop a stream whose two halves are over; True when the peer may open more than it knows, and that is worth telling.

        It is when it doubles what the peer has left: at once where it has nothing left, and waits.
        """
        if stream_id == CONTROL_STREAM:
            return False
        sender, receiver = self.sending.get(stream_id), self.receiving.get(stream_id)
        if sender is None or receiver is None or not sender.is_done or not receiver.is_done:
            return False
        receiver.window.release()
        self.scheduler.forget(sender)
        del self.sending[stream_id], self.receiving[stream_id]
        if self.is_ours(stream_id):
            return False
        self._peer_closed += 1
        untold = self._peer_closed + MAX_STREAMS - self.max_streams
        if untold < min(self.max_streams - self._accepted, MAX_STREAMS // 8):
            return False
        self.max_streams = self._peer_closed + MAX_STREAMS
        return True

    def ring_limit(self, inflight_limit: int, lost: float = 0.0) -> int:
        """Bytes one stream may hold: at least twice what may be in flight, within a fair part of RINGS_IN_ALL; a power of two.

        Four times if a share of LOSSY or more is `lost`: what was lost twice keeps all behind it here for three round trips.
        """
        fair = RINGS_IN_ALL // max(len(self.sending) - 1, 1)  # the control stream needs next to nothing
        least = 4 * SMALLEST_RING
        most = max(min(LARGEST_RING, fair), least)
        return min(1 << (max((4 if lost >= LOSSY else 2) * inflight_limit, least) - 1).bit_length(), 1 << (most.bit_length() - 1))
