"""A Link without a network: two ends joined in memory, honest about order, flow control, half-close, RESET and STOP_SENDING."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from tunnel.errors import UnreachableError
from tunnel.faults import Faults
from tunnel.shell.stream import StreamCode, StreamResetError, StreamSink, StreamSource, StreamStoppedError

WINDOW = 64 * 1024  # bytes sent and not yet read, of one half


class Half:
    """One direction of a stream."""

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.held = 0
        self.finished = False
        self.reset: int | None = None
        self.stopped: int | None = None
        self.at_end = False
        self.gone = False
        self.sink: StreamSink | None = None
        self.changed = trio.Event()

    def wake(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


def soon(callback: Callable[[], None]) -> None:
    trio.lowlevel.current_trio_token().run_sync_soon(callback)


class FakeStream:
    def __init__(self, out: Half, into: Half) -> None:
        self.out = out
        self.into = into
        self.peer: FakeStream = self
        self.on_abort: Callable[[int], None] | None = None
        self.before_flush: Callable[[Callable[[], None]], None] = soon
        self._lent = memoryview(bytearray(16 * 1024))

    async def wait_send_space(self) -> memoryview:
        out = self.out
        while True:
            if out.gone:
                raise UnreachableError("closed")
            if out.stopped is not None:
                raise StreamStoppedError(out.stopped)
            if out.reset is not None:
                raise StreamResetError(out.reset)
            if out.finished:
                raise trio.ClosedResourceError
            if out.held < WINDOW:
                return self._lent[: WINDOW - out.held]
            await out.changed.wait()

    async def pull(self, source: StreamSource) -> bool:
        while True:
            space = await self.wait_send_space()
            count = source(space)
            if count:
                self.commit(count)
            if count < len(space):
                return True

    def send_space(self) -> memoryview:
        out = self.out
        if out.gone or out.finished or out.held >= WINDOW or (out.stopped, out.reset) != (None, None):
            return memoryview(b"")
        return self._lent[: WINDOW - out.held]

    def commit(self, count: int) -> None:
        assert 0 < count <= len(self._lent)
        if self.out.stopped is None and self.out.reset is None and not self.out.gone:
            taken = 0 if self.out.sink is None else self.out.sink([self._lent[:count]])
            if taken < count:
                self.out.sink = None
                self.out.chunks.append(bytes(self._lent[taken:count]))
                self.out.held += count - taken
                self.out.wake()

    async def receive_chunks(self, max_chunks: int = 64, sink: StreamSink | None = None) -> list[bytes]:
        into = self.into
        while True:
            if into.at_end:
                return []
            if into.gone:
                raise UnreachableError("closed")
            if into.stopped is not None:
                raise StreamResetError(into.stopped)
            if into.chunks:
                chunks = [into.chunks.popleft() for _ in range(min(len(into.chunks), max_chunks))]
                into.held -= sum(map(len, chunks))
                into.wake()
                return chunks
            if into.reset is not None:
                raise StreamResetError(into.reset)
            if into.finished:
                into.at_end = True
                return []
            into.sink = sink
            try:
                await into.changed.wait()
            finally:
                into.sink = None

    def push_back(self, data: bytes) -> None:
        self.into.chunks.appendleft(data)
        self.into.held += len(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while len(rest):
            space = await self.wait_send_space()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            self.commit(count)
            rest = rest[count:]

    def finish(self) -> None:
        if self.out.reset is None and self.out.stopped is None:
            self.out.finished = True
            self.out.wake()

    async def wait_acked(self) -> None:
        out = self.out
        while out.held and out.stopped is None and out.reset is None and not out.gone:
            await out.changed.wait()

    def reset(self, code: int) -> None:
        out = self.out
        if out.reset is None and out.stopped is None and not out.finished and not out.gone:
            out.reset = code
            out.wake()
            self.peer.abort(code)

    def stop(self, code: int) -> None:
        into = self.into
        if into.stopped is None and into.reset is None and not into.at_end and not into.gone:
            into.stopped = code
            into.wake()
            if not into.finished:
                self.peer.abort(code)

    def abort(self, code: int) -> None:
        callback, self.on_abort = self.on_abort, None
        if callback is not None:
            callback(code)

    def lose(self) -> None:
        for half in (self.out, self.into):
            half.gone = True
            half.wake()
        self.abort(StreamCode.CANCELLED)

    async def aclose(self) -> None:
        self.reset(StreamCode.CANCELLED)
        self.stop(StreamCode.CANCELLED)


class FakeFlows:
    def __init__(self) -> None:
        self.peer: FakeFlows = self
        self.callbacks: dict[int, Callable[[list[bytes]], None]] = {}
        self.unknown = 0
        self._next = 2

    def allocate(self) -> int:
        self._next += 2
        return self._next

    def send(self, flow: int, batch: list[bytes]) -> int:
        callback = self.peer.callbacks.get(flow)
        if callback is None:
            self.unknown += len(batch)
        else:
            callback(batch)
        return len(batch)

    backlog = 0

    def flush(self) -> None:
        pass

    def register(self, flow: int, callback: Callable[[list[bytes]], None]) -> None:
        self.callbacks[flow] = callback

    def unregister(self, flow: int) -> None:
        self.callbacks.pop(flow, None)


class FakeLink:
    """One end.  `streams` are those that were opened here, for tests that look behind the forward."""

    can_open = True

    def __init__(self, name: str) -> None:
        self.peer_name = name
        self.flows = FakeFlows()
        self.hurry: Callable[[], None] = lambda: None
        self.faults = Faults()
        self.direct_remote: tuple[str, int] | None = None
        self.peer: FakeLink = self
        self.streams: list[FakeStream] = []
        self._accepted: deque[FakeStream] = deque()
        self._changed = trio.Event()
        self._is_closed = False

    async def open_stream(self, open_message: bytes = b"") -> FakeStream:
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise UnreachableError("closed")
        there, back = Half(), Half()
        near, far = FakeStream(there, back), FakeStream(back, there)
        near.peer, far.peer = far, near
        self.streams.append(near)
        if open_message:
            await near.send_all(open_message)
        self.peer._accepted.append(far)
        self.peer.wake()
        return near

    async def serve_streams(self, handler: Callable[[FakeStream], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            while not self._is_closed:
                while self._accepted:
                    nursery.start_soon(handler, self._accepted.popleft())
                await self._changed.wait()
            nursery.cancel_scope.cancel()

    @property
    def close_reason(self) -> object:
        return "closed" if self._is_closed else None

    async def closed(self) -> None:
        while not self._is_closed:
            await self._changed.wait()

    def close(self) -> None:
        for link in (self, self.peer):
            link._is_closed = True
            for stream in self.streams:
                stream.lose()
                stream.peer.lose()
            link.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def linked_pair() -> tuple[FakeLink, FakeLink]:
    """The connecting side's link and the exposing side's."""
    near, far = FakeLink("home"), FakeLink("friend")
    near.peer, far.peer = far, near
    near.flows.peer, far.flows.peer = far.flows, near.flows
    return near, far
