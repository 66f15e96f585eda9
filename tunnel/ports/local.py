"""Local sockets for forwards: listeners with helpful sentences, connections to exposed programs, what errors mean."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Awaitable
from itertools import zip_longest
from typing import Final

import trio

from tunnel.doors.udp import pktinfo
from tunnel.ends import is_path, path_of
from tunnel.errors import ConfigurationError
from tunnel.ports.loops import OWN
from tunnel.ports.names import Place, resolve
from tunnel.ports.nets import OutsideError
from tunnel.ports.spec import EVERYWHERE, LOOPBACK, Forward
from tunnel.ports.unix import connect_unix, open_unix_listener
from tunnel.shell.stream import StreamCode

CONNECT_TIMEOUT: Final = 20.0  # seconds; name resolution included
ATTEMPT_DELAY: Final = 0.25  # seconds before the next address of a name is tried as well; RFC 8305 §5
LISTEN_BACKLOG: Final = 1_024  # connections that wait while no link is up
UDP_BUFFER: Final = 2 * 1024 * 1024  # bytes asked for; an ordinary user gets net.core.rmem_max
#: Whether a second connect() tells how the first one went: connect(2).
TELLS_AGAIN: Final = sys.platform == "linux"
OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_CODES: Final = {
    errno.ECONNREFUSED: StreamCode.REFUSED,
    errno.ENOENT: StreamCode.REFUSED,  # of a Unix socket, as what follows
    errno.ENOTDIR: StreamCode.REFUSED,
    errno.EPROTOTYPE: StreamCode.REFUSED,
    errno.EACCES: StreamCode.UNREACHABLE,
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
    """Return the code that tells the peer why a local program could not be reached."""
    if isinstance(error, socket.gaierror):
        return StreamCode.UNREACHABLE
    if isinstance(error, OutsideError):
        return StreamCode.DENIED
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
    """A connected, non-blocking socket; `host` may be `unix:/PATH`.  Raises OSError, also for a time-out (ETIMEDOUT)."""
    with trio.move_on_after(CONNECT_TIMEOUT):
        if is_path(host):
            return await connect_unix(path_of(host))
        return await connect_places(await resolve(host, port))
    raise OSError(errno.ETIMEDOUT, "no answer")


async def connect_places(places: list[Place]) -> socket.socket:
    """The same to one of these.  The caller bounds the time.

    A program of this machine answers at once, and costs no task.
    """
    left = alternate(places)
    refused = OSError(errno.EHOSTUNREACH, "the name has no address")
    while left:
        family, address = left.pop(0)
        try:
            sock, is_connected = _begin(family, address)
            if is_connected:
                return sock
            return await _race(sock, left) if left else await _finish(sock)
        except OSError as error:
            if _says(error) >= _says(refused):
                refused = error
    raise refused


def alternate(places: list[Place]) -> list[Place]:
    """In the system's order, but the families in turn: a whole family may lead nowhere.  RFC 8305 §4."""
    first = places[0][0] if places else 0
    ours = [place for place in places if place[0] == first]
    others = [place for place in places if place[0] != first]
    return [place for pair in zip_longest(ours, others) for place in pair if place is not None]


async def _race(begun: socket.socket, places: list[Place]) -> socket.socket:
    """The first that answers, of one that was begun and of others; each is begun a moment after the one before, or when that has
    failed.  RFC 8305 §5.

    `places` are taken out of the list.  Raises OSError: the one that says most.
    """
    won: socket.socket | None = None
    refused: OSError = OSError(errno.EHOSTUNREACH, "the name has no address")

    async def attempt(connecting: Awaitable[socket.socket], failed: trio.Event) -> None:
        nonlocal won, refused
        try:
            sock = await connecting
        except OSError as error:
            if _says(error) >= _says(refused):
                refused = error
            failed.set()
            return
        if won is not None:
            _give_up(sock)
            return
        won = sock
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            connecting: Awaitable[socket.socket] = _finish(begun)
            while True:
                failed = trio.Event()
                nursery.start_soon(attempt, connecting, failed)
                if not places:
                    break
                with trio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
                connecting = _connect(*places.pop(0))
    except BaseException:  # cancelled at the very moment when one was connected: nobody gets it
        if won is not None:
            _give_up(won)
        raise
    if won is None:
        raise refused
    return won


def _says(error: OSError) -> int:
    """How much it helps the person who exposes, where the attempts of one connection ended differently."""
    if error.errno == errno.EADDRNOTAVAIL:  # or else the other loopback address, where the program does not listen, would hide it
        return 2
    return 1 if stream_code(error) == StreamCode.REFUSED else 0


def _give_up(sock: socket.socket) -> None:
    OWN.forget(sock)
    sock.close()


def _begin(family: int, address: tuple[str, int]) -> tuple[socket.socket, bool]:
    """A socket that connects, and whether it has already.  Its mark is noted; who closes it has it forgotten.  Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(address)
            OWN.note(sock, address)
        except BlockingIOError:
            OWN.note(sock, address)
            if not TELLS_AGAIN:
                return sock, False
            try:
                sock.connect(address)  # over loopback the answer is there, but the kernel had not looked yet
            except BlockingIOError:
                return sock, False
    except BaseException as error:
        _give_up(sock)
        if family == socket.AF_INET6 and isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL and not is_ipv6_here():
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)) from None  # not that no port is free
        raise
    return sock, True


async def _finish(sock: socket.socket) -> socket.socket:
    """Wait until it has connected; otherwise it is closed.  Raises OSError."""
    try:
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        _give_up(sock)
        raise
    return sock


async def _connect(family: int, address: tuple[str, int]) -> socket.socket:
    sock, is_connected = _begin(family, address)
    return sock if is_connected else await _finish(sock)


async def udp_places(host: str, port: int) -> list[Place]:
    """Where that is, to be tried in order.  Raises OSError, also for a time-out."""
    with trio.move_on_after(CONNECT_TIMEOUT):
        return alternate(await resolve(host, port))
    raise OSError(errno.ETIMEDOUT, "no answer")


def open_udp(place: Place) -> socket.socket:
    """A non-blocking UDP socket that sends to and hears only that address.  Raises OSError."""
    family, address = place
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:  # no port is free: what Linux says of that for UDP
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)) from None
        _enlarge(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _enlarge(sock: socket.socket) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, UDP_BUFFER)


class PortTakenError(ConfigurationError):
    """Another program listens where a forward would."""

    def __init__(self, forward: Forward, sentence: str) -> None:
        super().__init__(sentence)
        self.forward = forward


def _hosts(forward: Forward) -> tuple[str, ...]:
    """Where it listens; what stands behind the first is opened where that can be had."""
    if forward.path:
        return (forward.path,)
    if forward.bind == EVERYWHERE:
        return "0.0.0.0", "::"
    return (LOOPBACK, "::1") if forward.bind == LOOPBACK and not forward.has_bind else (forward.bind,)


def open_listeners(forward: Forward) -> list[socket.socket]:
    """The sockets of one forward: one, or an IPv4 and an IPv6 one where no BIND was given or all addresses are meant.

    Where another program has the IPv6 one, only the first is opened: see half_bound.  Raises ConfigurationError.
    """
    if forward.path:
        return [open_unix_listener(forward.path, LISTEN_BACKLOG)]
    host, *others = _hosts(forward)
    first = _open_listener(forward, host)
    try:
        return [first, *(_bind(forward, other, first.getsockname()[1]) for other in others)]
    except OSError:
        return [first]  # a machine without IPv6, or the half that half_bound speaks of


def half_bound(forward: Forward, sockets: list[socket.socket]) -> str:
    """One sentence where IPv6 could not be had beside IPv4: then `localhost` may lead to whoever has it.  "" otherwise."""
    _host, *others = _hosts(forward)
    if len(sockets) != 1 or not others:
        return ""
    port = sockets[0].getsockname()[1]
    try:
        _bind(forward, others[0], port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and forward.bind == EVERYWHERE:
            return f"Another program has {forward.protocol} port {port} over IPv6: this forward is reached over IPv4 alone."
        if error.errno == errno.EADDRINUSE:
            return (
                f"Another program has {forward.protocol} port {port} on ::1, so localhost:{port} may lead to that one: "
                f"use 127.0.0.1:{port}, or choose another port."
            )
    return ""


def _open_listener(forward: Forward, host: str) -> socket.socket:
    try:
        return _bind(forward, host, forward.local)
    except OSError as error:
        sentence = _explain(forward, host, error)
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(forward, sentence) from None
        raise ConfigurationError(sentence) from None


def _bind(forward: Forward, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_tcp = forward.protocol != "udp"
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
            if host in pktinfo.WILDCARDS:  # now: of what comes before there is a link, the kernel would not know it later
                pktinfo.ask(sock, is_ipv6=family == socket.AF_INET6, is_ipv4=family == socket.AF_INET)
        address, _, zone = host.partition("%")
        sock.bind((address, port, 0, socket.if_nametoindex(zone)) if zone else (address, port))
        if is_tcp:
            sock.listen(LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(forward: Forward, host: str, error: OSError) -> str:
    where = f"{'tcp' if forward.is_door else forward.protocol} port {forward.local}"
    target = "" if forward.is_door else f":{forward.target}{'/udp' if forward.protocol == 'udp' else ''}"
    match error.errno:
        case errno.EADDRINUSE:
            other = forward.local + 10_000 if forward.local < 50_000 else forward.local - 10_000
            return f"Another program already uses {where} on {host}: choose another port, as in {other}{target}."
        case errno.EACCES | errno.EPERM:
            other = forward.local + 8_000
            return f"Only root may listen on {where}: choose a port from 1024 up, as in {other}{target}."
        case errno.EADDRNOTAVAIL:
            if ":" in host and not is_ipv6_here():
                return f"This computer has no IPv6, so nothing can listen on {host}: use an IPv4 address."
            return f"{host} is no address of this computer: use one that 'ip address' shows, or 127.0.0.1."
        case errno.EAFNOSUPPORT:
            return f"This computer has no IPv6, so nothing can listen on {host}: use an IPv4 address."
        case errno.EMFILE | errno.ENFILE:
            return f"Too many files are open to listen on {where}: raise the limit with 'ulimit -n', or forward fewer ports."
        case _:
            return f"Cannot listen on {where} of {host}: {error.strerror or error}."
