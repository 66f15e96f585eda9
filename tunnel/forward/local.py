"""Local sockets for forwards: listeners with helpful sentences, connections to exposed programs, what errors mean."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Final

import trio

from tunnel.driver.stream import StreamCode
from tunnel.errors import ConfigurationError
from tunnel.forward.names import resolve
from tunnel.forward.spec import LOOPBACK, Forward

CONNECT_TIMEOUT: Final = 20.0  # seconds; name resolution included
LISTEN_BACKLOG: Final = 1_024  # connections that wait while no link is up
UDP_BUFFER: Final = 2 * 1024 * 1024  # bytes asked for; an ordinary user gets net.core.rmem_max
OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_CODES: Final = {
    errno.ECONNREFUSED: StreamCode.REFUSED,
    errno.ECONNRESET: StreamCode.RESET,
    errno.ETIMEDOUT: StreamCode.TIMED_OUT,
    errno.ENETUNREACH: StreamCode.UNREACHABLE,
    errno.EHOSTUNREACH: StreamCode.UNREACHABLE,
    errno.ENETDOWN: StreamCode.UNREACHABLE,
    errno.EHOSTDOWN if hasattr(errno, "EHOSTDOWN") else errno.EHOSTUNREACH: StreamCode.UNREACHABLE,
    errno.EADDRNOTAVAIL: StreamCode.UNREACHABLE,
    errno.EAFNOSUPPORT: StreamCode.UNREACHABLE,
}


def stream_code(error: OSError) -> int:
    """What the peer is told when a local program could not be reached."""
    if isinstance(error, socket.gaierror):
        return StreamCode.UNREACHABLE
    return _CODES.get(error.errno or 0, StreamCode.INTERNAL)


def is_ipv6_here() -> bool:
    """Whether an IPv6 socket can be bound to loopback at all."""
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def connect_tcp(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket.  Raises OSError, also for a time-out (ETIMEDOUT)."""
    with trio.move_on_after(CONNECT_TIMEOUT):
        refused: OSError = OSError(errno.EHOSTUNREACH, "the name has no address")
        for family, address in await resolve(host, port):
            try:
                return await _connect(family, address)
            except OSError as error:
                if stream_code(refused) != StreamCode.REFUSED:  # which says more than "no such address family here"
                    refused = error
        raise refused
    raise OSError(errno.ETIMEDOUT, "no answer")


async def _connect(family: int, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_udp(host: str, port: int) -> socket.socket:
    """A non-blocking UDP socket that sends to and hears only that address.  Raises OSError, also for a time-out."""
    with trio.move_on_after(CONNECT_TIMEOUT):
        family, address = (await resolve(host, port))[0]
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(address)
            _enlarge(sock)
        except BaseException:
            sock.close()
            raise
        return sock
    raise OSError(errno.ETIMEDOUT, "no answer")


def _enlarge(sock: socket.socket) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, UDP_BUFFER)


def open_listeners(forward: Forward) -> list[socket.socket]:
    """The sockets of one forward: one, or two when no BIND was given (127.0.0.1, and ::1 where that is free).

    Raises ConfigurationError.
    """
    first = _open_listener(forward, forward.bind)
    if forward.bind != LOOPBACK or forward.has_bind:
        return [first]
    port: int = first.getsockname()[1]
    try:
        return [first, _bind(forward, "::1", port)]
    except OSError:
        return [first]  # `localhost` falls back to 127.0.0.1 by itself


def _open_listener(forward: Forward, host: str) -> socket.socket:
    try:
        return _bind(forward, host, forward.local)
    except OSError as error:
        raise ConfigurationError(_explain(forward, host, error)) from None


def _bind(forward: Forward, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_tcp = forward.protocol == "tcp"
    sock = socket.socket(family, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if is_tcp:
            if sys.platform != "win32":  # there it would let two programs share the port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            _enlarge(sock)
        address, _, zone = host.partition("%")
        sock.bind((address, port, 0, socket.if_nametoindex(zone)) if zone else (address, port))
        if is_tcp:
            sock.listen(LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(forward: Forward, host: str, error: OSError) -> str:
    where = f"{forward.protocol} port {forward.local}"
    target = f"{forward.target}{'' if forward.protocol == 'tcp' else '/udp'}"
    match error.errno:
        case errno.EADDRINUSE:
            other = forward.local + 10_000 if forward.local < 50_000 else forward.local - 10_000
            return f"Another program already uses {where} on {host}: choose another port, as in {other}:{target}."
        case errno.EACCES | errno.EPERM:
            other = forward.local + 8_000
            return f"Only root may listen on {where}: choose a port from 1024 up, as in {other}:{target}."
        case errno.EADDRNOTAVAIL:
            if ":" in host and not is_ipv6_here():
                return f"This computer has no IPv6, so nothing can listen on {host}: use an IPv4 address."
            return f"{host} is no address of this computer: use one that `ip address` shows, or 127.0.0.1."
        case errno.EAFNOSUPPORT:
            return f"This computer has no IPv6, so nothing can listen on {host}: use an IPv4 address."
        case errno.EMFILE | errno.ENFILE:
            return f"Too many files are open to listen on {where}: raise the limit with `ulimit -n`, or forward fewer ports."
        case _:
            return f"Cannot listen on {where} of {host}: {error.strerror or error}."
