"""`--stdio`: our standard input and output as the local program, for ssh's ProxyCommand."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio

from tunnel.errors import ConfigurationError, TunnelError, UnreachableError
from tunnel.ports.access import Access
from tunnel.ports.link import Link, Stream
from tunnel.ports.open import Open, decode_opened, encode, read_message
from tunnel.ports.refusals import refusal_error
from tunnel.ports.tcp import LAST_WORDS, code_of, refuse
from tunnel.shell.stream import StreamCode

CHUNK: Final = 65_536  # bytes read at once where reading takes a thread


async def run_stdio(link: Link, target: int | str, *, stdin: int = 0, stdout: int = 1, access: Access | None = None) -> None:
    """Join the descriptors to tcp `target` of the peer until both directions have ended.

    Raises PermissionDeniedError when it is not shared with us, UnreachableError when it was refused or the connection was
    cut, ConfigurationError when standard input cannot be read or standard output not written.  Closed output ends it silently.
    """
    access = access or Access()
    stream = await link.open_stream(encode(Open("tcp", target)))
    try:
        async with _non_blocking(stdin), _non_blocking(stdout):
            await _bridge(link, stream, target, stdin, stdout, access)
    finally:
        access.closed()
        stream.stop(StreamCode.CANCELLED)


async def _bridge(link: Link, stream: Stream, target: int | str, stdin: int, stdout: int, access: Access) -> None:
    failure: TunnelError | None = None
    is_open = has_ended = False
    try:
        async with trio.open_nursery() as nursery:

            def abort(code: int) -> None:
                nonlocal failure
                failure = failure or _explain(link, target, code, is_open)
                if has_ended:
                    nursery.cancel_scope.cancel()
                else:
                    grant_last_words()

            def grant_last_words() -> None:
                """To what came before the end, anew for each part of it."""
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS

            def fail(what: str, error: OSError) -> None:
                """Our own side is at fault: half of the bytes must not look like all of them."""
                nonlocal failure
                failure = failure or ConfigurationError(f"Standard {what}: {error.strerror or error}.")
                stream.on_abort = None
                refuse(stream, StreamCode.RESET)
                nursery.cancel_scope.cancel()

            stream.on_abort = abort
            nursery.start_soon(_upload, stream, stdin, fail, access)
            try:
                body, chunks = await read_message(stream)
                decode_opened(body)
                is_open = True
                access.opened()
                while True:
                    if chunks:
                        if failure is not None:
                            grant_last_words()
                        await _write(stdout, chunks)
                        access.received += sum(map(len, chunks))
                    chunks = await stream.receive_chunks()
                    if not chunks:
                        break
                has_ended = True
                _end_output(stdout)
                if failure is not None or os.isatty(stdin):  # a person would have to press Ctrl-D to no purpose
                    nursery.cancel_scope.cancel()
            except OSError as error:
                if not isinstance(error, (BrokenPipeError, ConnectionResetError)):
                    fail("output takes no more", error)
                stream.on_abort = None  # whoever read our output is gone
                refuse(stream, StreamCode.RESET)
                nursery.cancel_scope.cancel()
            except TunnelError as error:
                has_ended = True
                abort(code_of(error))
    finally:
        stream.on_abort = None
        if failure is not None or sys.exc_info()[0] is not None:
            stream.reset(StreamCode.CANCELLED)
    if failure is not None:
        raise failure


def _explain(link: Link, target: int | str, code: int, is_open: bool) -> TunnelError:
    if is_open:
        return UnreachableError(f"The connection to tcp/{target} of {link.peer_name} was cut.")
    return refusal_error(link.peer_name, "tcp", target, code)


async def _upload(stream: Stream, stdin: int, fail: Callable[[str, OSError], None], access: Access) -> None:
    try:
        if hasattr(os, "readv"):
            await _upload_by_readiness(stream, stdin, access)
        else:
            while data := await trio.to_thread.run_sync(os.read, stdin, CHUNK, abandon_on_cancel=True):
                await stream.send_all(data)
                access.sent += len(data)
        stream.finish()
    except OSError as error:
        if error.errno in (errno.EIO, errno.ECONNRESET):  # a terminal that hung up, a program that has ended
            stream.finish()
        else:
            fail("input cannot be read", error)
    except TunnelError:
        pass  # on_abort, or the other direction, tells what happened


async def _upload_by_readiness(stream: Stream, stdin: int, access: Access) -> None:
    """A regular file is always ready and cannot be waited for (EPERM of epoll); all else is read once it is readable.

    Standard input is not made non-blocking when it is a terminal, as that would hit the shell's other programs too.
    """
    while True:
        with contextlib.suppress(PermissionError):
            await trio.lowlevel.wait_readable(stdin)
        space = await stream.wait_send_space()
        try:
            count = os.readv(stdin, [space])
        except BlockingIOError:
            continue
        if not count:
            return
        stream.commit(count)
        access.sent += count


async def _write(stdout: int, chunks: list[bytes]) -> None:
    if not hasattr(os, "writev"):
        rest = b"".join(chunks)
        while rest:
            rest = rest[await trio.to_thread.run_sync(os.write, stdout, rest) :]
        return
    views: list[bytes | memoryview] = list(chunks)
    while views:
        try:
            count = os.writev(stdout, views)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(stdout)
            continue
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = memoryview(views[0])[count:]


def _end_output(stdout: int) -> None:
    """Let the reader of our output see the end of it: the descriptor becomes /dev/null, so that later prints do no harm."""
    if stat.S_ISSOCK(os.fstat(stdout).st_mode):
        with socket.socket(fileno=os.dup(stdout)) as sock, contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        return
    if hasattr(os, "writev"):
        os.set_blocking(stdout, True)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stdout, inheritable=False)
    os.close(null)


@contextlib.asynccontextmanager
async def _non_blocking(fd: int) -> AsyncIterator[None]:
    """O_NONBLOCK on pipes and sockets, and only while we are here: the flag is shared with whoever else holds them."""
    mode = os.fstat(fd).st_mode
    if not (hasattr(os, "readv") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))) or not os.get_blocking(fd):
        yield
        return
    os.set_blocking(fd, False)
    try:
        yield
    finally:
        os.set_blocking(fd, True)
