"""The exposing side of TCP: a connection to the program for each stream that was granted."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import trio

from tunnel.errors import TunnelError
from tunnel.ports.access import Access
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.link import Stream
from tunnel.ports.local import OUT_OF_DESCRIPTORS, connect_tcp, stream_code
from tunnel.ports.loops import OWN
from tunnel.ports.names import MisledError
from tunnel.ports.open import Opened, encode
from tunnel.ports.rate import Limit
from tunnel.ports.refusals import say_unserved
from tunnel.ports.tcp import MAX_CONNECTIONS, Relay, cut, refuse, set_up, write_chunks
from tunnel.shell.stream import StreamCode

Head: TypeAlias = Callable[[socket.socket], bytes]
#: A connected, non-blocking socket.  Raises OSError.
Connect: TypeAlias = Callable[[], Awaitable[socket.socket]]


async def serve_tcp(
    stream: Stream,
    early: list[bytes],
    address: tuple[str, int],
    *,
    counters: ForwardCounters,
    notices: Notices,
    asked: str = "A peer asked for a port",
    access: Access | None = None,
    pace: Limit | None = None,
    head: Head | None = None,
    connect: Connect | None = None,
) -> None:
    """The exposing side of one stream whose Open was granted: connect to `address`, answer, relay.

    What the peer sent early waits in `early` and in the stream.  A failure becomes RESET with the code that says why.
    `head` makes what the program reads first.  `connect` makes the connection; None: to `address`.
    """
    if counters.tcp_active >= MAX_CONNECTIONS:
        counters.tcp_capped += 1
        refuse(stream, StreamCode.INTERNAL)
        return
    counters.tcp_active += 1
    access = access or Access()
    try:
        sock = await _connect_unless_aborted(stream, connect or partial(connect_tcp, *address))
        if sock is None:
            return
        try:
            set_up(sock)
            if head is not None:
                await write_chunks(sock, [head(sock)])
            await stream.send_all(encode(Opened()))
            counters.tcp_opened += 1
            access.opened()
            await Relay(sock, stream, counters, access=access, pace=pace).run(early)
        finally:
            cut(sock)
            OWN.forget(sock)
    except OSError as error:
        if isinstance(error, MisledError):
            counters.misled += 1
            notices.say(f"misled {address[0]}", error.sentence)
        if error.errno in OUT_OF_DESCRIPTORS:
            counters.tcp_shed += 1
            notices.say("shed", f"A connection was turned away: {error.strerror}.  Raise the limit with 'ulimit -n'.")
        if stream_code(error) == StreamCode.DENIED:
            counters.tcp_denied += 1
        else:
            counters.tcp_refused += 1
        say_unserved(notices, asked, address, error)
        refuse(stream, stream_code(error))
    except TunnelError:
        refuse(stream, StreamCode.CANCELLED)
    finally:
        counters.tcp_active -= 1
        access.closed()


async def _connect_unless_aborted(stream: Stream, connect: Connect) -> socket.socket | None:
    """None when the opener gave up in the meantime.  Raises OSError."""
    with trio.CancelScope() as scope:
        stream.on_abort = lambda _code: scope.cancel()
        try:
            return await connect()
        finally:
            stream.on_abort = None
    refuse(stream, StreamCode.CANCELLED)
    return None
