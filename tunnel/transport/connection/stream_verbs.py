"""The part of a connection that programs need: streams and datagrams."""

from __future__ import annotations

from collections.abc import Callable

from tunnel.transport.connection.carried import Reset, StopSending
from tunnel.transport.connection.inflow import Inflow
from tunnel.transport.connection.shared import Shared
from tunnel.transport.connection.state import Life
from tunnel.transport.stream.datagrams import MAX_DATAGRAM
from tunnel.transport.stream.receive import StreamSink
from tunnel.transport.stream.send import StreamSource
from tunnel.units import Buffer, Instant, StreamId


class StreamVerbs:
    """A part of Connection."""

    _shared: Shared
    _inflow: Inflow
    _life: Life
    _touched: Callable[[], None]

    # streams

    @property
    def streams_accepted(self) -> int:
        """How many the peer has opened so far."""
        return self._shared.streams.accepted

    @property
    def can_open_stream(self) -> bool:
        """Whether the peer allows one more."""
        return self._shared.streams.can_open

    def open_stream(self) -> StreamId:
        """Raises StreamLimitError."""
        self._touched()  # one with an open stream may be silent for longer
        return self._shared.streams.open()

    def stream_space(self, stream_id: StreamId) -> memoryview:
        """Free contiguous room in the send buffer to read a socket into; empty when full or over (StreamWritable will tell)."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is None or self._life.is_over:
            return memoryview(b"")
        room = stream.space(0 if stream.is_roomy else self._ring_limit())
        if not len(room):
            stream.wants_space = True
        return room

    def stream_commit(self, stream_id: StreamId, count: int) -> None:
        """`count` bytes were put into what stream_space gave."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None:
            stream.commit(count)
            self._shared.streams.scheduler.wake(stream)
            self._touched()

    def set_stream_source(self, stream_id: StreamId, source: StreamSource | None) -> bool:
        """Let `source` put bytes into the send buffer when they are about to be sent, from inside poll_transmit.

        docs/transport.md says what it may do.  With the first bytes that it does not give it is let go.  False where it is of
        no use: fewer than MANY others have something to send, and a task that fills the buffer costs less.
        """
        streams = self._shared.streams
        stream = streams.sending.get(stream_id)
        if stream is None or self._life.is_over or stream.finished or stream.reset_code is not None:
            return False
        stream.source = source if streams.scheduler.is_busy(stream) else None
        if stream.source is None:
            return False
        stream.wants_space = False
        streams.scheduler.wake(stream)
        self._touched()
        return True

    def stream_write(self, stream_id: StreamId, data: Buffer) -> int:
        """Copy in what fits; returns how many bytes that was."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is None or self._life.is_over:
            return 0
        count = stream.write(memoryview(data), self._ring_limit())
        if count < len(data):
            stream.wants_space = True
        self._shared.streams.scheduler.wake(stream)
        self._touched()
        return count

    def _ring_limit(self) -> int:
        recovery = self._shared.paths.current.recovery
        in_flight = recovery.inflight_limit(self._shared.peer_receive_buffer)
        return self._shared.streams.ring_limit(in_flight, self._shared.losses.share)

    def stream_finish(self, stream_id: StreamId) -> None:
        """No more bytes: the FIN follows what was written."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None:
            stream.finish()
            self._shared.streams.scheduler.wake(stream)
            self._touched()

    def stream_reset(self, stream_id: StreamId, code: int) -> None:
        """Give up our sending half; what has not arrived the peer will not read."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None and not stream.is_done and stream.reset_code is None:
            stream.reset(code)
            self._shared.owe(Reset(stream_id))
            self._touched()

    def stream_stop(self, stream_id: StreamId, code: int) -> None:
        """Read no more; the peer is asked to stop sending."""
        stream = self._shared.streams.receiving.get(stream_id)
        if stream is None or stream.is_done or stream.stop_code is not None:
            return
        self._touched()
        before = stream.read_offset
        stream.stop(code)
        self._shared.owe(StopSending(stream_id))
        self._inflow.consumed(self._shared.last_heard, stream_id, stream.read_offset - before)
        self._shared.forget_if_done(stream_id)

    def stream_read(self, stream_id: StreamId, most: int = 256, now: Instant | None = None) -> list[bytes]:
        """Up to `most` chunks in order; reading returns the peer's credit.  Empty: nothing now (see stream_at_end)."""
        stream = self._shared.streams.receiving.get(stream_id)
        if stream is None:
            return []
        chunks = stream.read(most)
        if chunks or stream.is_readable:
            self._touched()
        if chunks:
            total = sum(map(len, chunks))
            self._inflow.consumed(self._shared.last_heard if now is None else now, stream_id, total)
        if stream.is_readable and not stream.is_at_end:
            self._shared.readable(stream_id)
        if stream.is_done:
            self._shared.forget_if_done(stream_id)
        return chunks

    def set_stream_sink(self, stream_id: StreamId, sink: StreamSink | None) -> None:
        """Let `sink` take what arrives from now on, from inside handle_datagrams; what it takes counts as read.

        docs/transport.md says what it may do.  The first bytes that it leaves, and all that come out of order, are read as
        ever: then it has been let go, and is to be handed in again.  Nothing happens while something waits to be read.
        """
        stream = self._shared.streams.receiving.get(stream_id)
        if stream is not None:
            stream.lend(sink)

    def stream_at_end(self, stream_id: StreamId) -> bool:
        """The peer's FIN was read (or the stream is over and forgotten)."""
        stream = self._shared.streams.receiving.get(stream_id)
        return stream is None or stream.is_at_end

    def stream_is_acked(self, stream_id: StreamId) -> bool:
        """The peer has everything that was written, or the stream is over."""
        stream = self._shared.streams.sending.get(stream_id)
        return stream is None or stream.is_done or stream.base == stream.written

    def stream_want_space(self, stream_id: StreamId) -> None:
        """Ask for a StreamWritable at the next acknowledgement."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None:
            stream.wants_space = True

    # datagrams

    def send_datagrams(self, now: Instant, flow: int, batch: list[bytes]) -> int:
        """Queue them; returns how many.  The others are larger than any UDP payload, or the connection is over."""
        shared = self._shared
        fitting = batch
        if self._life.is_over:
            fitting = []
        elif max(map(len, batch), default=0) > MAX_DATAGRAM:
            fitting = [data for data in batch if len(data) <= MAX_DATAGRAM]
            shared.drops["datagram too large"] += len(batch) - len(fitting)
        shared.datagrams.push(now, flow, fitting)
        self._touched()
        return len(fitting)

    @property
    def datagram_backlog(self) -> int:
        """How many are queued and not yet sent."""
        return len(self._shared.datagrams)

    def receive_datagrams(self) -> list[tuple[int, bytes]]:
        """All that arrived, as (flow, payload)."""
        taken = list(self._shared.received_datagrams)
        self._shared.received_datagrams.clear()
        self._shared.received_datagram_bytes = 0
        return taken
