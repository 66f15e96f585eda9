"""The receiving side of all streams: open those that the peer names, hand bytes to a sink or keep them, return credit."""

from __future__ import annotations

from typing import Final

from tunnel.errors import PeerError
from tunnel.transport.connection.carried import MaxData, MaxStreamData
from tunnel.transport.connection.events import StreamOpened
from tunnel.transport.connection.shared import Shared
from tunnel.units import Instant, StreamId

MAX_GAPS_IN_ALL: Final = 65_536  # pieces held out of order in all streams: the connection window in datagrams of 1 KiB


class Inflow:
    """The receiving halves of all streams, with what is counted over all of them."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._early_pieces = 0  # held out of order
        self._received = 0  # bytes, gaps included: what counts against MAX_DATA

    def opens(self, number: int) -> bool:
        """Make sure the stream that a frame names exists; False if it is over and the frame is late."""
        streams = self.shared.streams
        if number in streams.receiving:
            return True
        if not streams.accept(number):
            return False
        self.shared.events.append(StreamOpened(StreamId(number)))
        return True

    def data(self, now: Instant, number: int, offset: int, pieces: list[memoryview], end: int, fin: bool) -> None:
        """The bytes of a stream from `offset` to `end`, which its sink takes as they lie, or of which it keeps a joined copy."""
        if not self.opens(number):
            return
        shared = self.shared
        stream_id = StreamId(number)
        stream = shared.streams.receiving[stream_id]
        before, early = stream.read_offset, stream.early_pieces
        grown = stream.admit(end, fin)
        if grown:
            self._count(grown)
        try:
            taken = stream.offer(offset, pieces, end - offset)
        except Exception as error:  # of the sink, which is let go: nothing is lost by it
            shared.sink_error, stream.sink, taken = error, None, 0
        if taken < end - offset:
            data = b"".join(pieces)
            stream.place(offset + taken, data[taken:] if taken else data)
        if early or stream.early_pieces:
            self._early_pieces += stream.early_pieces - early
            if self._early_pieces > MAX_GAPS_IN_ALL:
                raise PeerError(f"more than {MAX_GAPS_IN_ALL} gaps in all streams together")
        if stream.read_offset != before:  # its sink took it, or nobody reads it any more
            self.consumed(now, stream_id, stream.read_offset - before, at_once=stream.stop_code is None)
        shared.readable(stream_id)
        if stream.is_done:
            shared.forget_if_done(stream_id)

    def reset(self, now: Instant, stream_id: StreamId, code: int, final_size: int) -> bool:
        """The peer gave up a stream that exists, after `final_size` bytes; whether that is news."""
        stream = self.shared.streams.receiving[stream_id]
        known, early = stream.reset_code, stream.early_pieces
        grown = stream.reset(code, final_size)
        self._early_pieces -= early - stream.early_pieces
        self._count(grown)
        if stream.reset_code is None or known is not None:
            return False
        self.consumed(now, stream_id, final_size - stream.arrived)  # will never be read
        return True

    def _count(self, grown: int) -> None:
        self._received += grown
        limit = self.shared.streams.receive_window.limit
        if self._received > limit:
            raise PeerError(f"{self._received} bytes sent on all streams, {limit} granted")

    def consumed(self, now: Instant, stream_id: StreamId, count: int, *, at_once: bool = False) -> None:
        """The application took `count` bytes of a stream, or they were thrown away: return the credit."""
        shared = self.shared
        rtt = shared.paths.current.recovery.rtt.smoothed_rtt
        stream = shared.streams.receiving.get(stream_id)
        if stream is not None and stream.window.consume(count, now, rtt, at_once=at_once) and not stream.is_done:
            shared.owe(MaxStreamData(stream_id))
        if shared.streams.receive_window.consume(count, now, rtt):
            shared.owe(MaxData())
