"""TCP connections over streams: bytes both ways, half-close, reset and refusal as the local kernels gave them.

The hot path has no copy: a socket is read straight into the stream's send buffer, and what arrives goes from the buffer it was
opened in to the socket, in one `sendmsg` and without a task's turn, where it is little or several connections are busy.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from tunnel.errors import TunnelError
from tunnel.ports.access import Access, AccessLog
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.link import Link, Stream
from tunnel.ports.local import OUT_OF_DESCRIPTORS
from tunnel.ports.loops import mark_of_accepted
from tunnel.ports.open import Open, decode_opened, encode, read_message
from tunnel.ports.rate import Limit, upload_paced, write_paced
from tunnel.ports.refusals import describe_refusal
from tunnel.ports.unserved import Unserved
from tunnel.shell.stream import StreamCode, StreamResetError, StreamStoppedError

OPEN_SILENCE: Final = 1.0  # seconds that a connection waits for its stream without a word
OPEN_PATIENCE: Final = 60.0  # seconds after that; then the connection is reset
ACCEPT_BATCH: Final = 64  # connections accepted before other tasks get their turn
ACCEPT_PAUSE: Final = 0.1  # seconds of rest after descriptors ran out
LAST_WORDS: Final = 1.0  # seconds for what a program said before it reset the connection; RESET or RST follows behind it
MAX_CONNECTIONS: Final = 8_192  # local connections at once, of all that share one ForwardCounters
LINGER_RST: Final = struct.pack(
    "hh" if sys.platform == "win32" else "ii", 1, 0
)  # l_onoff, l_linger: close() sends RST; socket(7)

NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # tcp(7); Windows has none
HAS_SENDMSG: Final = hasattr(socket.socket, "sendmsg")  # CPython on Windows has none
IOV_MAX: Final = 1_024  # pieces in one sendmsg (limits.h of Linux; more fail with EMSGSIZE)
IN_A_ROW: Final = 3  # batches: a turn of one stream fills two kernel calls, which may come one by one, and overlaps the next
SMALL: Final = 1_000  # bytes that came alone: less than a full datagram, so no bulk, and somebody may wait for them
LITTLE: Final = 32 * 1024  # bytes in a batch: what comes in a millisecond at 250 Mbit/s, and the next one comes no sooner


def cut(sock: socket.socket) -> None:
    """Close with RST, as the far side's program was reset.  What the kernel has not sent yet is gone, as with TCP."""
    with contextlib.suppress(OSError):  # already dead
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
    sock.close()


async def wait_sent(sock: socket.socket) -> None:
    """Until the kernel has sent all that was written (over loopback: it is in the program's buffer), or the program is dead."""
    if NOTSENT_LOWAT is not None:
        with contextlib.suppress(OSError):  # no TCP
            sock.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, 1)  # writable is what has nothing left
            await trio.lowlevel.wait_writable(sock)


def set_up(sock: socket.socket) -> None:
    """Options of every forwarded local connection: the tunnel paces, so nothing waits for more (RFC 896 is off)."""
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Relay:
    """One local TCP connection joined to one stream.  Owns the socket; gives up both together.

    `refused` makes it the opener's side: the peer's Opened is awaited, a reset before it is a refusal and told there.
    """

    __slots__ = (
        "_access",
        "_counters",
        "_has_said_all",
        "_in_a_row",
        "_is_reading",
        "_is_unwritable",
        "_nursery",
        "_pace",
        "_read_error",
        "_refused",
        "_sock",
        "_straight",
        "_stream",
        "_upload_ended",
        "_uploading",
        "_was_cut",
        "_write_error",
    )

    def __init__(
        self, sock: socket.socket, stream: Stream, counters: ForwardCounters, refused: Callable[[int], None] | None = None,
        access: Access | None = None, pace: Limit | None = None,
    ) -> None:  # fmt: skip
        self._pace = pace
        self._access = access or Access()
        self._sock = sock
        self._stream = stream
        self._counters = counters
        self._refused = refused
        self._nursery: trio.Nursery | None = None
        self._upload_ended = trio.Event()
        self._uploading = trio.CancelScope()
        self._is_unwritable = False  # a write failed: what comes from the local program now is its last words
        self._is_reading = False  # `_upload` waits for the local program
        self._has_said_all = False  # found by `_give`
        self._read_error: Exception | None = None  # met by `_hear` or `_give`
        self._write_error: Exception | None = None  # met by the sink
        self._straight = -1  # the counter of all, when this one last wrote straight
        self._in_a_row = 0  # how often it did since another one did
        self._was_cut = False

    @property
    def is_untouched(self) -> bool:
        """Whether another stream may have the connection, on the opener's side: nothing of it was taken, nothing came for it."""
        return self._refused is not None and not self._access.sent

    async def run(self, early: list[bytes]) -> None:
        """`early` came behind the first message.  Returns when both directions have ended; the socket is closed then.

        One that is untouched is left open where the stream has failed.
        """
        whole = False
        code = StreamCode.CANCELLED
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._stream.on_abort = self._abort
                nursery.start_soon(self._upload)
                await self._download(early)
            if self._was_cut:
                with trio.move_on_after(LAST_WORDS):
                    await wait_sent(self._sock)
            whole = not self._was_cut
        except Exception:
            code = StreamCode.INTERNAL
            raise
        finally:
            self._stream.on_abort = None
            if whole:
                self._sock.close()
            else:
                refuse(self._stream, code)
                if not self.is_untouched:
                    cut(self._sock)

    def _abort(self, code: int) -> None:
        """The peer reset or stopped the stream, or the link closed: the local program hears it behind what came before."""
        if not self._was_cut:
            self._was_cut = True
            self._counters.tcp_resets += 1
            if self._refused is not None:
                self._refused(code)
            self._uploading.cancel()
            self._grant_last_words()

    def _grant_last_words(self) -> None:
        """To `_download`, from now."""
        assert self._nursery is not None
        self._nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS

    def _end(self, code: int) -> None:
        """At once: there is nothing more to write, or nobody to write it to."""
        self._abort(code)
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    def _local_died(self) -> None:
        """The local program reset the connection, or its machine fell silent."""
        self._refused = None
        refuse(self._stream, StreamCode.RESET)
        self._end(StreamCode.RESET)

    async def _upload(self) -> None:
        with self._uploading:
            await self._upload_all()

    async def _upload_all(self) -> None:
        sock, stream, pace = self._sock, self._stream, self._pace
        receive_into, commit, wait_send_space = sock.recv_into, stream.commit, stream.wait_send_space
        try:
            while pace is None:
                space = await wait_send_space()
                try:
                    count = receive_into(space)
                except BlockingIOError:
                    count = 0
                else:
                    if not count:
                        break
                    commit(count)
                    self._access.sent += count
                if count == len(space):  # bulk
                    if not await stream.pull(self._give):
                        continue
                    if self._read_error is not None:
                        raise self._read_error
                    if self._has_said_all:
                        break
                # drained: waiting now saves the failing call
                self._is_reading = True
                await trio.lowlevel.wait_readable(sock)
                self._is_reading = False
                if self._read_error is not None:
                    raise self._read_error
            else:
                await upload_paced(sock, stream, pace, self._access)
            if not self._is_unwritable:
                stream.finish()
                return
        except OSError:
            pass
        except TunnelError as error:
            self._abort(code_of(error))
            return
        finally:
            self._is_reading = False
            self._upload_ended.set()
        with trio.move_on_after(LAST_WORDS):
            await stream.wait_acked()
        self._local_died()

    async def _download(self, chunks: list[bytes]) -> None:
        sock, receive_chunks = self._sock, self._stream.receive_chunks
        sink = self._take if HAS_SENDMSG and self._pace is None else None
        try:
            if self._refused is not None:
                body, chunks = await read_message(self._stream)
                decode_opened(body)
                self._refused = None
                self._access.opened()
            while True:
                if chunks:
                    if self._was_cut:
                        self._grant_last_words()  # anew for each read: to a program that takes them
                    self._access.received += await self._write(chunks)
                chunks = await receive_chunks(sink=sink)
                if self._write_error is not None:
                    raise self._write_error
                if not chunks:
                    break
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # shutdown found it gone, after it has read all there was
                await self._hear_last_words()
        except TunnelError as error:
            self._end(code_of(error))

    async def _write(self, chunks: list[bytes]) -> int:
        if self._pace is None:
            return await write_chunks(self._sock, chunks)
        return await write_paced(partial(write_chunks, self._sock), chunks, self._pace)

    def _take(self, pieces: list[memoryview]) -> int:
        """The stream's sink: what the socket takes now.  What it does not take wakes `_download`, as does an error.

        One busy connection alone is better off with its task, which finds many batches at once and writes them in one call; so
        of much at once this takes no more than a turn of the peer's brings, until another connection had its turn.
        """
        counters = self._counters
        is_small = len(pieces) == 1 and len(pieces[0]) <= SMALL
        if sum(map(len, pieces)) > LITTLE:
            if counters.tcp_straight != self._straight:
                self._in_a_row = 0
            elif self._in_a_row >= IN_A_ROW:
                return 0
        try:
            count = self._sock.sendmsg(pieces if len(pieces) <= IOV_MAX else [b"".join(pieces)])
        except BlockingIOError:
            return 0
        except Exception as error:  # for `_download` to deal with: in here nobody expects any
            self._write_error = error
            self._is_unwritable = True  # known to `_upload` before it meets the end of the same connection
            return 0
        self._access.received += count
        if is_small:
            counters.tcp_small += 1
            self._stream.before_flush(self._hear)
        else:
            counters.tcp_straight += 1
            self._straight = counters.tcp_straight
            self._in_a_row += 1
        return count

    def _give(self, room: memoryview) -> int:
        """The stream's source: what the local program has said."""
        try:
            count = self._sock.recv_into(room)
        except BlockingIOError:
            return 0
        except Exception as error:  # for `_upload`
            self._read_error = error
            return 0
        self._has_said_all = not count
        self._access.sent += count
        return count

    def _hear(self) -> None:
        """The local program may have answered already: then that leaves together with our ACK, and without a turn of the loop."""
        space = self._stream.send_space() if self._is_reading else memoryview(b"")
        if not len(space):
            return
        count = self._give(space)
        if count:  # else `_upload` is about to see the end, or the error
            self._stream.commit(count)
            self._counters.tcp_heard += 1

    async def _hear_last_words(self) -> None:
        """A server that answers and hangs up without reading all: the answer still lies in our socket, and goes first."""
        self._is_unwritable = True
        with trio.move_on_after(LAST_WORDS):
            await self._upload_ended.wait()
            await self._stream.wait_acked()
        self._local_died()


def code_of(error: TunnelError) -> int:
    """The StreamCode behind an error that a stream raised."""
    return error.code if isinstance(error, StreamResetError | StreamStoppedError) else StreamCode.CANCELLED


async def write_chunks(sock: socket.socket, chunks: list[bytes]) -> int:
    """All of `chunks` to a non-blocking socket, in as few calls as it takes; how many bytes.  Raises OSError."""
    if not HAS_SENDMSG:
        chunks = [b"".join(chunks)]
    views: list[bytes | memoryview] = list(chunks)
    left = size = sum(map(len, chunks))
    while True:
        try:
            count = sock.sendmsg(views) if HAS_SENDMSG else sock.send(views[0])
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            continue
        left -= count
        if not left:
            return size
        index = 0
        while count >= len(views[index]):
            count -= len(views[index])
            index += 1
        del views[:index]
        views[0] = memoryview(views[0])[count:]
        await trio.lowlevel.wait_writable(sock)


class TcpForward:
    """The connecting side of one forward: accepts local connections and opens a stream for each."""

    def __init__(
        self, listener: socket.socket, target: int | str, *, link: Link, counters: ForwardCounters, notices: Notices,
        log: AccessLog | None = None, pace: Limit | None = None,
    ) -> None:  # fmt: skip
        self._log = log or AccessLog()
        self._pace = pace
        self._listener = listener
        self.unserved: Unserved | None = None  # what another link has left to this one, and this one leaves to the next
        self._target = target
        self._link = link
        self._counters = counters
        self._notices = notices

    async def run(self) -> None:
        """Until cancelled.  Running out of descriptors turns connections away and does not end this."""
        listener, counters = self._listener, self._counters
        left = [] if self.unserved is None else self.unserved.take()
        async with trio.open_nursery() as nursery:
            for sock in left:
                nursery.start_soon(self._serve, sock)
            while True:
                await trio.lowlevel.wait_readable(listener)
                for _ in range(ACCEPT_BATCH):
                    try:
                        sock, _address = listener.accept()
                    except BlockingIOError:
                        break
                    except OSError as error:
                        if error.errno in OUT_OF_DESCRIPTORS:
                            await self._shed(error)
                            break
                        continue  # that one connection died in the queue (accept(2))
                    if counters.tcp_active >= MAX_CONNECTIONS:
                        counters.tcp_capped += 1
                        cut(sock)
                        self._notices.say("capped", f"{MAX_CONNECTIONS} connections are open: a further one was turned away.")
                        continue
                    counters.tcp_active += 1
                    self._link.hurry()
                    nursery.start_soon(self._serve, sock)
                else:
                    await trio.lowlevel.checkpoint()

    async def _shed(self, error: OSError) -> None:
        self._counters.tcp_shed += 1
        self._notices.say(
            "shed", f"Connections have to wait: {error.strerror}.  Raise the limit with 'ulimit -n', or close some connections."
        )
        await trio.sleep(ACCEPT_PAUSE)

    async def _serve(self, sock: socket.socket) -> None:
        counters, link = self._counters, self._link
        access = self._log.access(link.peer_name, self._shown)
        is_unserved = True
        with link.faults.wall("stream", f"ended a connection to {self._shown} of {link.peer_name}"):
            try:
                set_up(sock)
                stream = await self._open(sock)
                if stream is None:
                    is_unserved = False
                    return
                counters.tcp_opened += 1
                relay = Relay(sock, stream, counters, self._refused, access, self._pace)
                try:
                    await relay.run([])
                finally:
                    is_unserved = relay.is_untouched
            except TunnelError:
                pass  # the link closed before there was a stream
            except OSError:
                is_unserved = False  # the local program did
            finally:
                access.closed()
                is_left = is_unserved and (link.close_reason is not None or trio.current_effective_deadline() == -math.inf)
                if not (is_left and self.unserved is not None and self.unserved.keep(sock)):
                    counters.tcp_active -= 1
                    cut(sock)  # nothing happens where the relay has closed it

    @property
    def _shown(self) -> str:
        """The target of its connections, as people read it."""
        return f"tcp/{self._target}"

    def _opening(self, sock: socket.socket) -> bytes:
        return encode(Open("tcp", self._target, 0, mark_of_accepted(sock)))

    async def _open(self, sock: socket.socket) -> Stream | None:
        """A stream for this connection; None when there was none to be had, or the program left while it waited."""
        message = self._opening(sock)
        if self._link.can_open:  # as nearly always, and a scope with a deadline costs as much as the opening
            return await self._link.open_stream(message)
        with trio.move_on_after(OPEN_SILENCE):
            return await self._link.open_stream(message)
        counters = self._counters
        stream: Stream | None = None
        failure: TunnelError | None = None
        counters.tcp_waiting += 1
        self._notices.say(
            "waiting", f"{self._link.peer_name} allows no more connections at a time, or is away: further ones wait."
        )
        with trio.move_on_after(OPEN_PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave_with, sock, nursery.cancel_scope)
                try:
                    stream = await self._link.open_stream(message)
                except TunnelError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        counters.tcp_waiting -= 1
        if failure is not None:
            raise failure
        return stream

    def _refused(self, code: int) -> None:
        if code == StreamCode.CANCELLED:
            return  # the link closed; that is told elsewhere
        if code == StreamCode.DENIED:
            self._counters.tcp_denied += 1
        else:
            self._counters.tcp_refused += 1
        peer = self._link.peer_name
        self._notices.say(f"tcp {self._target} {code}", describe_refusal(peer, "tcp", self._target, code))


async def leave_with(sock: socket.socket, scope: trio.CancelScope) -> None:
    """Cancel when the local program goes away; what it says meanwhile stays in the socket."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            if not sock.recv(1, socket.MSG_PEEK):
                break
        except BlockingIOError:
            continue
        except OSError:
            break
        await trio.sleep(OPEN_SILENCE)
    scope.cancel()


def refuse(stream: Stream, code: int) -> None:
    """Both halves end; the opener learns `code`."""
    stream.reset(code)
    stream.stop(code)
