"""One TLS connection as a socket of datagrams: sends never wait, receives come in batches, what is late is dropped.

The TCP socket is non-blocking, and OpenSSL writes to it directly: at most one record of ours is under way at a time, and what
waits behind it does so unencrypted, so that it can still be dropped.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import time
from typing import Final

import trio

from tunnel.doors.tls.framing import MAX_FRAME, Framing
from tunnel.doors.tls.queue import MAX_WAIT, Budget, SendQueue
from tunnel.errors import MalformedPacket
from tunnel.units import Address, Instant, ReceivedBatch, UdpCounters

RECORD: Final = 16_384  # bytes of plaintext in one TLS record (RFC 8446 §5.1)
READ_BYTES: Final = 65_536  # read at once before what came is handed on
NOTSENT_LOWAT: Final = 32_768  # bytes that the kernel holds beyond what is in flight: 3 ms at 100 Mbit/s
USER_TIMEOUT_MS: Final = 8_000  # of unacknowledged bytes, before the kernel gives a dead connection up (RFC 5482)


def prepare(sock: socket.socket) -> None:
    """Non-blocking, without delay, with a short queue in the kernel, where the system can."""
    sock.setblocking(False)
    for level, name, value in (
        (socket.IPPROTO_TCP, getattr(socket, "TCP_NODELAY", None), 1),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", None), NOTSENT_LOWAT),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", None), USER_TIMEOUT_MS),
    ):
        if name is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, name, value)


class TlsStream:
    """Both ends of a connection use this, after `handshake`.  It ends by itself: see `is_ended`."""

    def __init__(
        self,
        tls: ssl.SSLSocket,
        remote: Address,
        counters: UdpCounters,
        scratch: memoryview | None = None,
        budget: Budget | None = None,
        framing: Framing | None = None,
    ) -> None:
        """`tls` is prepared and has not shaken hands; all the rest may be shared with other streams.

        Reasons in `counters.errors`: `late` and `queue_full` (frames), `too_long`, `closed` (sent after the end), `malformed`
        (the other side broke the framing, and the connection is over).
        """
        self.remote = remote
        self.counters = counters
        self.is_ended = False
        self._tls = tls
        self._queue = SendQueue(counters.errors, budget)
        self._framing = Framing() if framing is None else framing
        self._scratch = memoryview(bytearray(READ_BYTES)) if scratch is None else scratch  # nothing stays in it
        self._unsent: memoryview | None = None  # handed to OpenSSL, which has not taken it all
        self._is_blocked = False
        self._wake = trio.Event()
        self._patience = trio.CancelScope()  # of the wait for a reader that does not read

    @property
    def local_address(self) -> Address:
        host, port, *_ = self._tls.getsockname()
        return Address(str(host), int(port))

    def fileno(self) -> int:
        return self._tls.fileno()

    def valid_until(self) -> float | None:
        """Unix time at which the certificate that was verified ends; None for one that is pinned."""
        found = self._tls.getpeercert() or {}
        ends = found.get("notAfter")
        return ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None

    async def handshake(self) -> None:
        """Raises OSError, of which ssl.SSLError is one; the caller closes."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._tls)
            else:
                return

    # --- out

    def send(self, buffer: memoryview, segment_size: int) -> None:
        """Send `buffer` as datagrams of `segment_size` bytes, of which the last may be shorter; never waits."""
        counters = self.counters
        size = min(segment_size, len(buffer))
        if self.is_ended:
            counters.errors["closed"] += 1
            return
        if not 0 < size <= MAX_FRAME:
            counters.errors["too_long"] += 1
            return
        now = Instant(time.monotonic())
        self._queue.put(now, self._framing.frame(buffer, size), self._framing.overhead + size)
        counters.sent_datagrams += -(-len(buffer) // size)
        counters.sent_bytes += len(buffer)
        if not self._is_blocked:
            self._write(now)
        elif self._patience.deadline == math.inf:
            self._patience.deadline = trio.current_time() + MAX_WAIT

    def _write(self, now: Instant) -> None:
        while True:
            chunk = self._unsent if self._unsent is not None else self._queue.take(now, RECORD)
            if chunk is None:
                return
            try:
                sent = self._tls.send(chunk)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                if chunk is not self._unsent:
                    self._unsent = memoryview(bytes(chunk))  # a copy, or a whole burst would stay in memory with it
                self._is_blocked = True
                self._wake.set()
                return
            except OSError:
                self.close()
                return
            self._unsent = chunk[sent:] if sent < len(chunk) else None

    async def run_writer(self) -> None:
        """Sends what had to wait, until the connection ends or this is cancelled."""
        while not self.is_ended:
            if not self._is_blocked:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            with trio.CancelScope() as self._patience:
                if self._queue.size:
                    self._patience.deadline = trio.current_time() + MAX_WAIT
                try:
                    await trio.lowlevel.wait_writable(self._tls)
                except trio.ClosedResourceError:
                    return
                self._is_blocked = False
            if self._is_blocked:
                self._queue.drop_late(Instant(time.monotonic()))  # also while nothing comes that could push it out
                continue
            self._write(Instant(time.monotonic()))
            await trio.lowlevel.checkpoint()

    # --- in

    def receive(self) -> ReceivedBatch | None:
        """The next batch, or None when there is none now or ever: call until None, then wait_readable."""
        try:
            run = self._framing.decode_run()
            if run is None and not self.is_ended and self._read():
                run = self._framing.decode_run()
        except MalformedPacket:
            self.counters.errors["malformed"] += 1
            self.close()
            return None
        if run is None:
            return None
        datagrams, stride = run
        counters = self.counters
        counters.received_datagrams += -(-len(datagrams) // stride)
        counters.received_bytes += len(datagrams)
        return ReceivedBatch(self.remote, memoryview(datagrams), stride, 0)

    def _read(self) -> bool:
        """Take what has come, up to READ_BYTES and at least one whole frame if there is one; False when nothing has."""
        framing, buffer, total = self._framing, self._scratch, 0
        while total < READ_BYTES:
            try:
                count = self._tls.recv_into(buffer)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError:
                self.close()
                break
            if not count:
                self.close()
                break
            framing.feed(buffer[:count])
            total += count
        return total > 0

    async def wait_readable(self) -> None:
        """Raises trio.ClosedResourceError when the connection has ended."""
        if self.is_ended:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self._tls)

    def close(self) -> None:
        """End it now; whoever waits gets trio.ClosedResourceError."""
        if self.is_ended:
            return
        self.is_ended = True
        self._queue.clear()
        self._unsent = None
        self._wake.set()
        with contextlib.suppress(RuntimeError):  # not inside trio: then nobody waits
            trio.lowlevel.notify_closing(self._tls)
        self._tls.close()
