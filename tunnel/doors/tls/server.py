"""A server's door for TLS: accepts, shakes hands, and hands on the datagrams of every connection; all of it within limits.

A stranger costs one connection of a bounded number, for a bounded time: who does not shake hands, or sends nothing of a session
for a while, is closed, and so is who stands in the way of others meanwhile (guests.py).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from tunnel.doors.tls.certificates import fingerprint_of, read_certificate, server_context
from tunnel.doors.tls.guests import TICK, Guest, GuestBook, Stage
from tunnel.doors.tls.queue import Budget
from tunnel.doors.tls.stream import READ_BYTES, TlsStream, prepare
from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.units import Address, ReceivedBatch, UdpCounters

HANDSHAKE_PATIENCE: Final = 10.0  # seconds
UNPROVEN: Final = 30.0  # seconds in which something of a session has to come: a request with a cookie, or a relayed datagram
SILENCE: Final = 60.0  # seconds without another such datagram; clients send one every 7 s
BACKLOG: Final = 4_096  # connections that the kernel accepts before we do: a restart brings all at once
ACCEPT_PAUSE: Final = 0.05  # seconds before accepting again when there is no room for any stranger
BATCHES_PER_TURN: Final = 16  # of one connection before the others get their turn
EMFILE_PAUSE: Final = 0.2  # seconds before accepting again when no descriptor is left
RELOAD_INTERVAL: Final = 30.0  # seconds between looks whether the certificate's files have changed

logger = logging.getLogger("ptunnel.serve")

#: What a batch is handed to; True when it brought a datagram of a session.
Handle: TypeAlias = Callable[[ReceivedBatch], Awaitable[bool]]


class ServerCertificate:
    """A certificate with its key, read again when its files change (they are renewed every few weeks)."""

    def __init__(self, certificate: str, key: str | None) -> None:
        """Raises ConfigurationError."""
        self._certificate = certificate
        self._key = key
        self._stamp = self._look()
        self._looked_at = time.monotonic()
        self._context = server_context(certificate, key)
        self.fingerprint = fingerprint_of(certificate)
        self.ends_at = self._read_end()

    def context(self) -> ssl.SSLContext:
        now = time.monotonic()
        if now - self._looked_at >= RELOAD_INTERVAL:
            self._looked_at = now
            self.reload()
        return self._context

    def reload(self) -> bool:
        """Whether there was something new; what cannot be used leaves everything as it was."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        try:
            self._context, self.fingerprint = server_context(self._certificate, self._key), fingerprint_of(self._certificate)
        except ConfigurationError as error:
            logger.warning("the new certificate is not used: %s", error)
            return False
        self._stamp = stamp
        self.ends_at = self._read_end()
        logger.info("new certificate, SHA-256 %s", self.fingerprint)
        return True

    def _read_end(self) -> int | None:
        """Unix time at which it ends; None where that cannot be read, though OpenSSL takes it."""
        try:
            return read_certificate(self._certificate).ends_at
        except ConfigurationError:
            return None

    def _look(self) -> tuple[tuple[int, int], ...]:
        found = []
        for path in {self._certificate, self._key or self._certificate}:
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found.append((status.st_mtime_ns, status.st_ino))
        return tuple(sorted(found))


class TlsListener:
    """One listening TCP socket and all its connections, told apart by the address they come from."""

    def __init__(
        self,
        host: str,
        port: int,
        certificate: ServerCertificate,
        *,
        book: GuestBook | None = None,
        budget: Budget | None = None,
        handshake_patience: float = HANDSHAKE_PATIENCE,
        unproven: float = UNPROVEN,
        silence: float = SILENCE,
    ) -> None:
        """Binds.  Raises ConfigurationError.  `book` and `budget` may be shared with other listeners.

        Reasons in `counters.errors` beside those of TlsStream: `refused` (beyond a limit), `displaced` (gave way to another),
        `handshake` (failed or too slow), `unproven` and `silent` (closed for it), `descriptors` (none was left), `gone`
        (datagrams for a connection that has ended).
        """
        self.is_ipv6 = ":" in host
        self.counters = UdpCounters()
        self._certificate = certificate
        self._book = GuestBook() if book is None else book
        self._budget = Budget() if budget is None else budget
        self._handshake_patience = handshake_patience
        self._unproven = unproven
        self._silence = silence
        self._streams: dict[Address, TlsStream] = {}
        self._guests = 0
        self._crowded = trio.Event()  # somebody waits for a turn
        self._scratch = memoryview(bytearray(READ_BYTES))
        self._socket = _listen(host, port)
        name, number, *_ = self._socket.getsockname()
        self.local_address = Address(str(name), int(number))

    def __len__(self) -> int:
        """Connections, with those that shake hands."""
        return self._guests

    def send(self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0) -> bool:
        """To the connection that comes from `remote`; like UDP it promises nothing, and it never has to wait."""
        stream = self._streams.get(remote)
        if stream is None:
            self.counters.errors["gone"] += -(-len(buffer) // max(1, segment_size))
        else:
            stream.send(buffer, segment_size)
        return True

    def overruns(self) -> int:
        return 0

    def close(self) -> None:
        """The listening socket and every connection."""
        with contextlib.suppress(RuntimeError):
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        for stream in list(self._streams.values()):
            stream.close()

    async def serve(self, handle: Handle, faults: Faults | None = None) -> None:
        """Until cancelled, or closed.  `handle` gets each batch as it comes, and says whether it was of a session."""
        faults = Faults() if faults is None else faults
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deal)
            while True:
                if self._book.is_full(trio.current_time()):
                    await trio.sleep(ACCEPT_PAUSE)
                    continue
                try:
                    raw, source = self._socket.accept()
                except (BlockingIOError, InterruptedError):
                    try:
                        await trio.lowlevel.wait_readable(self._socket)
                    except trio.ClosedResourceError:
                        break
                    continue
                except OSError as error:
                    if self._socket.fileno() < 0:
                        break
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        self.counters.errors["descriptors"] += 1
                        self._book.relieve(trio.current_time())
                        await trio.sleep(EMFILE_PAUSE)
                    else:  # whoever came has gone again
                        await trio.lowlevel.checkpoint()
                    continue
                remote = Address(_canonical(str(source[0])), int(source[1]))
                guest = None if remote in self._streams else self._book.arrive(trio.current_time(), remote.host)
                if guest is None:
                    self.counters.errors["refused"] += 1
                    raw.close()
                else:
                    self._guests += 1
                    nursery.start_soon(self._run, raw, remote, guest, handle, faults)
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async def _deal(self) -> None:
        """Turns that become free by time alone."""
        while True:
            await self._crowded.wait()
            self._crowded = trio.Event()
            while self._book.poll_timeout() is not None:
                await trio.sleep(TICK)
                self._book.handle_timeout(trio.current_time())

    async def _run(self, raw: socket.socket, remote: Address, guest: Guest, handle: Handle, faults: Faults) -> None:
        """One connection from its first byte to its end."""
        stream: TlsStream | None = None
        try:
            with trio.CancelScope() as scope, faults.wall("tls", f"ended a TLS connection from {remote}"):
                guest.dismiss = scope.cancel
                if guest.stage is Stage.GONE:  # sent off before this task began
                    scope.cancel()
                stream = await self._greet(raw, remote, guest)
                if stream is not None and remote not in self._streams:
                    self._streams[remote] = stream
                    await self._converse(stream, guest, handle)
            if scope.cancelled_caught:
                self.counters.errors["displaced"] += 1
        finally:
            if stream is not None:
                stream.close()
                if self._streams.get(remote) is stream:
                    del self._streams[remote]
            raw.close()
            self._guests -= 1
            self._book.leave(trio.current_time(), guest)

    async def _greet(self, raw: socket.socket, remote: Address, guest: Guest) -> TlsStream | None:
        """The handshake, within its time; None when nothing came of it."""
        tls: ssl.SSLSocket | None = None
        stream: TlsStream | None = None
        try:
            prepare(raw)
            with trio.move_on_after(self._handshake_patience):
                await trio.lowlevel.wait_readable(raw)  # who says nothing costs nothing more
                turn = trio.Event()
                guest.begin = turn.set
                self._book.speak(trio.current_time(), guest)
                if not turn.is_set():
                    self._crowded.set()
                await turn.wait()
                tls = self._certificate.context().wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                fresh = TlsStream(tls, remote, self.counters, self._scratch, self._budget)
                await fresh.handshake()
                stream = fresh
                self._book.shaken(trio.current_time(), guest)
        except OSError:
            pass
        finally:
            if stream is None:
                self.counters.errors["handshake"] += 1
                if tls is not None:
                    tls.close()
        return stream

    async def _converse(self, stream: TlsStream, guest: Guest, handle: Handle) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run_writer)
            with trio.CancelScope() as scope, contextlib.suppress(trio.ClosedResourceError):
                scope.deadline = trio.current_time() + self._unproven
                while True:
                    turn = 0
                    while (batch := stream.receive()) is not None:
                        if await handle(batch):
                            if not self._book.prove(guest):
                                self.counters.errors["refused"] += 1
                                stream.close()
                                break
                            scope.deadline = trio.current_time() + self._silence
                        turn += 1
                        if turn >= BATCHES_PER_TURN:
                            turn = 0
                            await trio.lowlevel.checkpoint()
                    await stream.wait_readable()
            if scope.cancelled_caught:
                self.counters.errors["silent" if guest.stage is Stage.PROVEN else "unproven"] += 1
            nursery.cancel_scope.cancel()


def _listen(host: str, port: int) -> socket.socket:
    """Raises ConfigurationError."""
    raw: socket.socket | None = None
    try:
        raw = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        raw.setblocking(False)
        if ":" in host:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform != "win32":  # there it would let anybody take the port over
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.bind((host, port))
        raw.listen(BACKLOG)
    except OSError as error:
        if raw is not None:
            raw.close()
        raise ConfigurationError(_sentence(Address(host, port), error)) from error
    return raw


def _sentence(where: Address, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"TCP port {where.port} of {where.host} is in use already: stop that program or choose another --tls-port."
        case errno.EACCES | errno.EPERM:
            return (
                f"You may not listen on TCP {where} as an ordinary user: run as root, give Python the right with "
                "'setcap cap_net_bind_service=+ep', use authbind, or choose a --tls-port above 1023."
            )
        case errno.EADDRNOTAVAIL:
            return f"{where.host} is not an address of this machine."
        case errno.EAFNOSUPPORT:
            return f"This machine has no {'IPv6' if where.is_ipv6 else 'IPv4'}."
    return f"Cannot listen on TCP {where}: {os.strerror(error.errno or 0)}."


def _canonical(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped) if mapped is not None else host
