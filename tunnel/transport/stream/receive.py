"""The receiving half of a stream: puts bytes back in order and counts what the application has not read."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from tunnel.errors import PeerError
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW, Growth, ReceiveWindow
from tunnel.units import StreamId

JOIN_BELOW: Final = 1024  # bytes; smaller neighbours become one piece, so that tiny frames cost no more memory than bytes
MAX_GAPS: Final = 8_192  # pieces held out of order; 8 MiB of window in datagrams of 1 KiB

#: Takes stream bytes at once, in order: how many of them it took.  The views are valid during the call only.
StreamSink: TypeAlias = Callable[[list[memoryview]], int]


class ReceiveStream:
    """Finishes when the application has read up to the FIN, or what was in order when a RESET came.

    `arrived` is the end of what is in order, `highest` the end of anything received: what counts against credit.
    A `sink` takes bytes past the stream while nothing waits to be read; it is let go with the first byte that has to wait.
    """

    __slots__ = (
        "_early",
        "_ready",
        "announced",
        "arrived",
        "final_size",
        "highest",
        "read_offset",
        "reset_code",
        "sink",
        "stop_code",
        "stream_id",
        "window",
    )

    def __init__(self, stream_id: StreamId, growth: Growth | None = None) -> None:
        self.stream_id = stream_id
        self.window = ReceiveWindow(INITIAL_STREAM_WINDOW, growth)
        self._ready: deque[bytes] = deque()
        self._early: list[tuple[int, bytes]] = []  # sorted by offset, disjoint, all above `arrived`
        self.arrived = 0
        self.highest = 0
        self.read_offset = 0
        self.final_size: int | None = None
        self.reset_code: int | None = None
        self.stop_code: int | None = None  # the application wants no more
        self.sink: StreamSink | None = None
        self.announced = False  # a StreamReadable is on its way and not yet answered by a read

    @property
    def is_at_end(self) -> bool:
        """The application has read everything, the FIN included."""
        return self.final_size is not None and self.read_offset == self.final_size and self.reset_code is None

    @property
    def is_done(self) -> bool:
        return self.is_at_end or (self.reset_code is not None and not self._ready)

    @property
    def is_readable(self) -> bool:
        return bool(self._ready) or self.is_at_end

    @property
    def early_pieces(self) -> int:
        """How many pieces wait for what is missing before them."""
        return len(self._early)

    def admit(self, stop: int, fin: bool) -> int:
        """Bytes up to `stop` have come, to be offered or placed then; returns by how much `highest` grew.

        Raises PeerError on a breach of flow control or a moved final size (RFC 9000 §4.1, §4.5).
        """
        if stop > self.window.limit:
            raise PeerError(f"stream {self.stream_id}: {stop} bytes sent, {self.window.limit} granted")
        if self.final_size is not None and (stop > self.final_size or (fin and stop != self.final_size)):
            raise PeerError(f"stream {self.stream_id}: its final size changed")
        if fin:
            if stop < self.highest:
                raise PeerError(f"stream {self.stream_id}: its final size is below what was sent")
            self.final_size = stop
        growth = max(0, stop - self.highest)
        self.highest += growth
        return growth

    def offer(self, offset: int, pieces: list[memoryview], size: int) -> int:
        """Let the sink have what was admitted, if it is what comes next: how many of the `size` bytes it took."""
        if self.sink is None or offset != self.arrived or not size:
            return 0
        taken = self.sink(pieces)
        self.arrived += taken
        self.read_offset += taken
        if self._early and taken == size:
            self._collect()
        return taken

    def place(self, offset: int, data: bytes) -> None:
        """Keep what was admitted until it is read."""
        stop = offset + len(data)
        if self.reset_code is not None or not data or stop <= self.arrived:
            return
        if offset <= self.arrived:
            self._append(data[self.arrived - offset :] if offset < self.arrived else data)
            self.arrived = stop
            if self._early:
                self._collect()
        else:
            self._keep(offset, data)
        if self.stop_code is not None:
            self._discard_ready()

    def lend(self, sink: StreamSink | None) -> None:
        """The sink from now on; none where something waits to be read already, or the stream is over."""
        self.sink = None if self._ready or self.is_done or self.stop_code is not None else sink

    def _append(self, data: bytes) -> None:
        self.sink = None  # what comes next must not overtake this
        ready = self._ready
        if ready and len(data) + len(ready[-1]) <= JOIN_BELOW:
            ready[-1] += data
        else:
            ready.append(data)

    def _collect(self) -> None:
        taken = 0
        for offset, data in self._early:
            if offset > self.arrived:
                break
            taken += 1
            stop = offset + len(data)
            if stop > self.arrived:
                self._append(data[self.arrived - offset :])
                self.arrived = stop
        del self._early[:taken]

    def _keep(self, offset: int, data: bytes) -> None:
        """File what came early, without the parts that are there already."""
        early = self._early
        if not early or offset >= early[-1][0] + len(early[-1][1]):
            if early and offset == early[-1][0] + len(early[-1][1]) and len(data) + len(early[-1][1]) <= JOIN_BELOW:
                early[-1] = (early[-1][0], early[-1][1] + data)
            else:
                early.append((offset, data))
        else:
            index = bisect_left(early, (offset,))
            if index and early[index - 1][0] + len(early[index - 1][1]) > offset:
                index -= 1
            stop = offset + len(data)
            position = offset
            fresh: list[tuple[int, bytes]] = []
            while position < stop:
                have_start, have_stop = stop, stop
                if index < len(early):
                    have_start, have_stop = early[index][0], early[index][0] + len(early[index][1])
                if position < have_start:
                    until = min(have_start, stop)
                    fresh.append((position, data[position - offset : until - offset]))
                position = max(position, have_stop)
                index += 1
            for piece in fresh:
                early.insert(bisect_left(early, (piece[0],)), piece)
        if len(early) > MAX_GAPS:
            raise PeerError(f"stream {self.stream_id}: more than {MAX_GAPS} gaps")

    def reset(self, code: int, final_size: int) -> int:
        """The peer gave up.  What is in order can still be read: it may be an answer, whole, of a program that then hung up.

        Returns by how much `highest` grew.  Raises PeerError on an impossible final size.
        Source: RFC 9000 §3.2, which leaves it to us whether to deliver what came before.
        """
        if final_size < self.highest or final_size > self.window.limit or self.final_size not in (None, final_size):
            raise PeerError(f"stream {self.stream_id}: RESET with an impossible final size")
        growth = final_size - self.highest
        was_at_end = self.is_at_end  # a RESET after everything was read says nothing new (RFC 9000 §3.2)
        self.highest = self.final_size = final_size
        if not was_at_end and self.reset_code is None:
            self.reset_code = code
            self.sink = None
            self._early.clear()
        return growth

    def read(self, most: int) -> list[bytes]:
        """Up to `most` chunks in order; the caller counts them as consumed."""
        self.announced = False
        ready = self._ready
        if len(ready) <= most:
            chunks = list(ready)
            ready.clear()
        else:
            chunks = [ready.popleft() for _ in range(most)]
        for chunk in chunks:
            self.read_offset += len(chunk)
        return chunks

    def stop(self, code: int) -> None:
        """The application reads no more; what comes is counted as read and dropped."""
        if self.stop_code is None and not self.is_done:
            self.stop_code = code
            self.sink = None
            self._discard_ready()

    def _discard_ready(self) -> None:
        for chunk in self._ready:
            self.read_offset += len(chunk)
        self._ready.clear()
