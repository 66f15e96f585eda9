"""The twin of the TAP device: two queues of frames and the same methods, to test what stands behind a TAP."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

import trio

from tunnel.doors.tun.tap import (
    HEADROOM,
    OFFLOAD_CSUM,
    OFFLOAD_TSO4,
    OFFLOAD_TSO6,
    OFFLOAD_USO4,
    OFFLOAD_USO6,
    Pieces,
)

#: Frames that the host's side keeps for us, as a TAP's transmit queue does: more are dropped (`overrun`).
MIN_FRAME: Final = HEADROOM + 1  # bytes; the kernel refuses less
QUEUE_LENGTH: Final = 500
ALL_OFFLOADS: Final = OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_USO4 | OFFLOAD_USO6


class MemoryTap:
    """See TapDevice.  The test is the host: it calls `send_from_host` and `receive_at_host`, and decides whether writes block."""

    def __init__(self, name: str = "tap0", *, offloads: int = ALL_OFFLOADS, queue_length: int = QUEUE_LENGTH) -> None:
        self.name = name
        self.offloads = offloads
        self.errors: Counter[str] = Counter()  # an errno, or `overrun`: the queue was full
        self.reads = 0  # frames
        self.queue_length = queue_length
        #: While False, every write would block.
        self.is_writable = True
        #: Frames the tunnel wrote, oldest first.
        self.written: deque[bytes] = deque()
        self._to_read: deque[bytes] = deque()
        self._closed = False
        self._change = trio.Event()

    def fileno(self) -> int:
        """There is no descriptor here, which is what -1 says."""
        return -1

    # -- the host's side

    def send_from_host(self, frame: bytes) -> bool:
        """The host sends a frame (24 bytes of headers first); False when the queue is full, which drops it."""
        if len(self._to_read) >= self.queue_length:
            self.errors["overrun"] += 1
            return False
        self._to_read.append(bytes(frame))
        self._changed()
        return True

    async def receive_at_host(self) -> bytes:
        """The next frame that the tunnel hands the host; waits for one."""
        await trio.lowlevel.checkpoint()
        while not self.written:
            self._raise_if_closed()
            await self._change.wait()
        return self.written.popleft()

    def set_writable(self, writable: bool) -> None:
        """Play a host that takes nothing for a while."""
        self.is_writable = writable
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    # -- the tunnel's side

    def read_into(self, view: memoryview) -> int:
        self._raise_if_closed()
        if not self._to_read:
            return 0
        frame = self._to_read.popleft()
        length = min(len(frame), len(view))
        view[:length] = frame[:length]
        self.reads += 1
        return length

    def writev(self, pieces: Pieces) -> bool:
        self._raise_if_closed()
        if not self.is_writable:
            return False
        frame = b"".join(pieces)
        if len(frame) < MIN_FRAME:
            self.errors["EINVAL"] += 1
            return True
        self.written.append(frame)
        self._changed()
        return True

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._to_read:
            self._raise_if_closed()
            await self._change.wait()
        self._raise_if_closed()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.is_writable:
            self._raise_if_closed()
            await self._change.wait()
        self._raise_if_closed()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the interface was closed")

    def close(self) -> None:
        self._closed = True
        self._changed()
