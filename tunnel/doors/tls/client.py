"""A client's way to a server over TLS: one connection, which looks to its owner like one more UDP socket."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from typing import Final

import trio

from tunnel.doors.tls.certificates import check_pin, client_context, explain
from tunnel.doors.tls.stream import TlsStream, prepare
from tunnel.errors import ServerUnreachableError, leaves
from tunnel.units import Address, UdpCounters

CONNECT_PATIENCE: Final = 8.0  # seconds for TCP and TLS together
TRY_NEXT_AFTER: Final = 0.25  # seconds before the name's next address is tried beside the first (RFC 8305 §5)
RECEIVE_BUFFER: Final = 1 << 20  # bytes: TCP holds what we do not take, so this limits nothing


class TlsSocket(TlsStream):
    """A connection that stands, with the face of a UdpSocket.  run_writer has to run beside it."""

    is_ipv6 = False  # it has no family of its own; nothing is bound to it that would have one
    receive_buffer = RECEIVE_BUFFER

    def send(  # type: ignore[override]  # a stream has neither TTL nor ECN, and never blocks
        self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0
    ) -> bool:
        """Datagrams for the server; those for anybody else are counted as `family` and dropped."""
        if remote != self.remote:
            self.counters.errors["family"] += 1
        else:
            super().send(buffer, segment_size)
        return True

    def overruns(self) -> int:
        return 0

    async def wait_writable(self) -> None:
        """It always takes what it is given."""
        await trio.lowlevel.checkpoint()


async def dial(host: str, port: int, fingerprint: str | None) -> TlsSocket:
    """Connect to a server by name or address and verify it.

    Every address of the name is tried.  Raises ServerUnreachableError with a sentence.
    """
    tls = None
    try:
        with trio.fail_after(CONNECT_PATIENCE):
            opened = await trio.open_tcp_stream(host, port, happy_eyeballs_delay=TRY_NEXT_AFTER)
            raw = socket.socket(fileno=opened.socket.detach())
            try:
                prepare(raw)
                name, number, *_ = raw.getpeername()
                context = client_context(fingerprint)
                tls = context.wrap_socket(raw, server_hostname=host.partition("%")[0], do_handshake_on_connect=False)
            except BaseException:
                raw.close()
                raise
            stream = TlsSocket(tls, Address(str(name), int(number)), UdpCounters())
            await stream.handshake()
            check_pin(tls, fingerprint, host)
            return stream
    except trio.TooSlowError:
        _close(tls)
        raise ServerUnreachableError(f"TCP port {port} of {host} does not answer.") from None
    except socket.gaierror:
        raise ServerUnreachableError(f"The server name {host} is unknown: check it, and your network connection.") from None
    except OSError as error:
        _close(tls)
        raise explain(_cause(error), host, port) from None
    except BaseException:
        _close(tls)
        raise


def _close(tls: socket.socket | None) -> None:
    if tls is not None:
        with contextlib.suppress(RuntimeError):
            trio.lowlevel.notify_closing(tls)
        tls.close()


def _cause(error: OSError) -> OSError:
    """trio packs what went wrong at several addresses into one error; the first of them tells most."""
    if error.errno is None and error.__cause__ is not None and not isinstance(error, ConnectionError):
        inner = next(leaves(error.__cause__))
        if isinstance(inner, OSError):
            error = inner
    if error.errno is not None and not isinstance(error, ssl.SSLError):
        return OSError(error.errno, os.strerror(error.errno))  # trio's own text names the socket's address as Python writes it
    return error
