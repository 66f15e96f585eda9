"""One stream of a connection as trio code sees it: a HalfCloseableStream, and beside it the verbs of the hot path.

The hot path copies nothing that it need not: `wait_send_space` lends the free part of the send buffer for a `recv_into`,
`receive_chunks` hands over what arrived as it lies, or lets a sink take it on arrival.  Neither is a checkpoint when it need not
wait.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel.errors import TunnelError, UnreachableError
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import StreamCode
from tunnel.transport.stream.receive import StreamSink
from tunnel.transport.stream.send import StreamSource
from tunnel.units import StreamId

__all__ = ["StreamCode", "StreamResetError", "StreamSink", "StreamSource", "StreamStoppedError", "TunnelStream"]

CLOSED_HERE = "this stream was closed by this program"
CHUNKS_A_READ = 256  # received pieces handed over at once: one GRO batch


class StreamResetError(TunnelError):
    """The peer gave up sending, with `code` of StreamCode; all that had come in order before was read."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer reset the stream (code {code})")
        self.code = code


class StreamStoppedError(TunnelError):
    """The peer reads no more, with `code` of StreamCode; nothing more can be sent."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer stopped reading the stream (code {code})")
        self.code = code


class TunnelStream(trio.abc.HalfCloseableStream):
    """Reliable bytes in both directions, each closed or reset by itself."""

    __slots__ = (
        "_at_end",
        "_connection",
        "_finished",
        "_flush",
        "_forget",
        "_is_closed",
        "_pushed_back",
        "_readable",
        "_receive_error",
        "_send_error",
        "_writable",
        "before_flush",
        "on_abort",
        "stream_id",
    )

    def __init__(
        self,
        connection: Connection,
        stream_id: StreamId,
        flush: Callable[[], None],
        forget: Callable[[TunnelStream], None],
        before_flush: Callable[[Callable[[], None]], None],
    ) -> None:
        #: Has something called back once, before the next datagram leaves: for a sink, which must not send by itself.
        self.before_flush = before_flush
        self.stream_id = stream_id
        #: Called once, without awaiting, with a StreamCode when the peer resets or stops the stream or the connection ends.
        self.on_abort: Callable[[int], None] | None = None
        self._connection = connection
        self._flush = flush
        self._forget = forget
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self._receive_error: TunnelError | None = None
        self._send_error: TunnelError | None = None
        self._pushed_back = b""
        self._at_end = False
        self._finished = False
        self._is_closed = False

    # --- the hot path

    async def wait_send_space(self) -> memoryview:
        """The free contiguous space of the send buffer, at least one byte; write there, then `commit`.

        Raises StreamStoppedError, StreamResetError (the connection is gone).  Valid until the next await.
        """
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError(CLOSED_HERE)
            if self._send_error is not None:
                raise self._send_error
            if self._finished:
                raise trio.ClosedResourceError("nothing can be sent behind send_eof()")
            space = self._connection.stream_space(self.stream_id)
            if len(space):
                return space
            waiter = self._writable = trio.Event()
            await waiter.wait()

    async def pull(self, source: StreamSource) -> bool:
        """Send what `source` puts into the room it is given, until that is less than all.  Raises as wait_send_space does.

        It is called when its turn to send has come, without a turn of this task.  False, at once, where few other streams have
        something to send.
        """
        if self._send_error is not None:
            raise self._send_error
        waiter = self._writable = trio.Event()

        def fill(room: memoryview) -> int:
            count = source(room)
            if count < len(room):
                waiter.set()
            return count

        if not self._connection.set_stream_source(self.stream_id, fill):
            return False
        self._flush()
        try:
            await waiter.wait()
        finally:
            self._connection.set_stream_source(self.stream_id, None)
        if self._send_error is not None:
            raise self._send_error
        return True

    def send_space(self) -> memoryview:
        """Return what wait_send_space would give now; empty where it would wait or raise."""
        if self._send_error is not None or self._finished:
            return memoryview(b"")
        return self._connection.stream_space(self.stream_id)

    def commit(self, count: int) -> None:
        """`count` bytes were written into the space lent by wait_send_space: send them."""
        if self._send_error is None:
            self._connection.stream_commit(self.stream_id, count)
            self._flush()

    async def receive_chunks(self, max_chunks: int = CHUNKS_A_READ, sink: StreamSink | None = None) -> list[bytes]:
        """Return what has arrived, in order; [] at the peer's FIN.  Raises StreamResetError, behind what came before the reset.

        While it waits, `sink` takes what arrives without waking this task; what it leaves, and all behind it, is returned.
        """
        while True:
            if self._pushed_back:
                chunk, self._pushed_back = self._pushed_back, b""
                return [chunk]
            if self._is_closed:
                raise trio.ClosedResourceError(CLOSED_HERE)
            if self._at_end:
                return []
            chunks = self._connection.stream_read(self.stream_id, max_chunks)
            if chunks:
                self._flush()  # reading gave credit back
                return chunks
            if self._receive_error is not None:
                raise self._receive_error
            if self._connection.stream_at_end(self.stream_id):
                self._at_end = True
                self._forget_if_done()
                return []
            waiter = self._readable = trio.Event()
            if sink is None:
                await waiter.wait()
                continue
            self._connection.set_stream_sink(self.stream_id, sink)
            try:
                await waiter.wait()
            finally:
                self._connection.set_stream_sink(self.stream_id, None)

    def finish(self) -> None:
        """No more bytes from us: FIN behind what was committed.  The other direction goes on."""
        if not self._finished and self._send_error is None:
            self._finished = True
            self._connection.stream_finish(self.stream_id)
            self._flush()
            self._forget_if_done()

    def reset(self, code: int) -> None:
        """Give up sending: what has not arrived yet is thrown away.  Nothing happens after finish()."""
        if self._send_error is None and not self._finished:
            self._finished = True
            self._send_error = StreamResetError(code)
            self._connection.stream_reset(self.stream_id, code)
            self._wake(writable=True)
            self._flush()
            self._forget_if_done()

    def stop(self, code: int) -> None:
        """Read no more: the peer is asked to stop sending."""
        if not self._at_end:
            self._receive_error = self._receive_error or StreamResetError(code)
            self._pushed_back = b""
            self._connection.stream_stop(self.stream_id, code)  # also of a stream that was reset, and not read to its end
            self._wake(readable=True)
            self._flush()
            self._forget_if_done()

    def push_back(self, data: bytes) -> None:
        """Put `data` in front of what receive_chunks returns next: it was read too far."""
        self._pushed_back = data + self._pushed_back

    async def wait_acked(self) -> None:
        """Wait until the peer has acknowledged everything we sent, FIN included."""
        while self._send_error is None and not self._connection.stream_is_acked(self.stream_id):
            self._connection.stream_want_space(self.stream_id)
            waiter = self._writable = trio.Event()
            await waiter.wait()

    # --- trio.abc.HalfCloseableStream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        await trio.lowlevel.checkpoint()
        while len(rest):
            space = await self.wait_send_space()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            self.commit(count)
            rest = rest[count:]

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        await self.wait_send_space()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.finish()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        data = b"".join(await self.receive_chunks())
        if max_bytes is not None and len(data) > max_bytes:
            self._pushed_back = data[max_bytes:]
            data = data[:max_bytes]
        return data

    async def receive_exactly(self, count: int) -> bytes:
        """`count` bytes, or fewer where the peer's FIN came before."""
        data = b""
        while len(data) < count:
            chunk = await self.receive_some(count - len(data))
            if not chunk:
                break
            data += chunk
        return data

    async def aclose(self) -> None:
        """Leave for good: what was not finished is reset, what was not read is stopped."""
        self._is_closed = True
        if not self._finished:
            self.reset(StreamCode.CANCELLED)
        self.stop(StreamCode.CANCELLED)
        self._forget(self)
        await trio.lowlevel.checkpoint()

    # --- told by the link

    def on_readable(self) -> None:
        """Told by the link."""
        self._wake(readable=True)

    def on_writable(self) -> None:
        """Told by the link."""
        self._wake(writable=True)
        self._forget_if_done()

    def on_reset(self, code: int) -> None:
        """Told by the link."""
        if not self._at_end:
            self._receive_error = self._receive_error or StreamResetError(code)
            self._abort(code)
        self._wake(readable=True)
        self._forget_if_done()

    def on_stopped(self, code: int) -> None:
        """Told by the link."""
        if self._send_error is None:
            self._send_error = StreamStoppedError(code)
            self._abort(code)
        self._wake(writable=True)
        self._forget_if_done()

    def on_connection_closed(self, text: str) -> None:
        """The connection is gone; both directions end here."""
        error = UnreachableError(text)
        self._send_error = self._send_error or error
        if not self._at_end:
            self._receive_error = self._receive_error or error
        self._wake(readable=True, writable=True)
        self._abort(StreamCode.CANCELLED)

    def _abort(self, code: int) -> None:
        callback, self.on_abort = self.on_abort, None
        if callback is not None:
            callback(code)

    def _wake(self, *, readable: bool = False, writable: bool = False) -> None:
        if readable and self._readable is not None:
            self._readable.set()
            self._readable = None
        if writable and self._writable is not None:
            self._writable.set()
            self._writable = None

    def _forget_if_done(self) -> None:
        if not self._at_end and self._receive_error is None:
            return
        if self._send_error is not None or (self._finished and self._connection.stream_is_acked(self.stream_id)):
            self._forget(self)
