"""The rendezvous server under trio: a task for each socket, one for the deadlines, and a clean end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.core.trace import Trace
from tunnel.doors.tls.guests import GuestBook
from tunnel.doors.tls.queue import Budget
from tunnel.doors.tls.server import ServerCertificate, TlsListener
from tunnel.doors.udp.socket import UdpSocket, open_socket
from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.host.chance import Chance
from tunnel.host.clock import boottime, unix_time
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous.access import AccessList
from tunnel.rendezvous.limits import ServerConfig, with_limits
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.server_spec import DEFAULT_PORT, DEFAULT_TLS_PORT
from tunnel.shell.lasting import last
from tunnel.shell.outside import View, Views, servers_named
from tunnel.shell.server_log import logger
from tunnel.shell.server_loop import ServerLoop
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.fleet.fleet import Fleet
    from tunnel.shell.fleet import FleetDoor

__all__ = [
    "DEFAULT_LISTEN",
    "RunningServer",
    "ServerConfig",
    "TlsConfig",
    "read_access_file",
    "serve",
    "with_limits",
]

DEFAULT_LISTEN: Final = (("0.0.0.0", DEFAULT_PORT), ("::", DEFAULT_PORT))
FIRST_TLS_ID: Final = 10_000  # socket ids of TLS listeners; those of UDP sockets come in pairs from 0
FAREWELL: Final = Seconds(3.0)  # for telling all clients that the server ends; 32,768 take one

open_telling_socket: Final = partial(open_socket, tells_local=True, many=True)


class OpenSocket(Protocol):
    def __call__(self, host: str, port: int, /) -> UdpSocket: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """That the server listens for TLS too, on the same addresses.  PEM files; `key` None: it stands in the certificate's."""

    certificate: str
    key: str | None = None
    port: int = DEFAULT_TLS_PORT


class RunningServer:
    """A running server, for the caller of serve()."""

    def __init__(
        self,
        server: Server,
        sockets: dict[SocketId, UdpSocket],
        addresses: list[Address],
        listeners: dict[SocketId, TlsListener],
        certificate: ServerCertificate | None,
        access_file: str | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        self._server = server
        self.fleet = fleet
        self._sockets = sockets
        self._listeners = listeners
        self._certificate = certificate
        self._access_file = access_file
        self._stop = trio.Event()
        self.faults = Faults(keep=_log_report)
        self.views = Views()
        #: Where it listens, without the second ports; a port that was 0 is the real one.
        self.addresses = addresses

    @property
    def second_addresses(self) -> list[Address]:
        return [each.local_address for each in self._sockets.values() if each.local_address not in self.addresses]

    @property
    def tls_addresses(self) -> list[Address]:
        """Where it listens for TLS over TCP."""
        return [each.local_address for each in self._listeners.values()]

    @property
    def tls_fingerprint(self) -> str | None:
        """SHA-256 of the certificate that it shows, 64 hex digits."""
        return None if self._certificate is None else self._certificate.fingerprint

    def counters(self) -> dict[str, int]:
        """A snapshot: the server's own, and what its sockets did."""
        counts = self._server.counters()
        counts["server_internal"] = self.faults.counts.total()
        if self._listeners:
            counts["tls_connections"] = sum(len(each) for each in self._listeners.values())
        if self._certificate is not None and self._certificate.ends_at is not None:
            counts["certificate_expiry"] = self._certificate.ends_at
        doors: list[UdpSocket | TlsListener] = [*self._sockets.values(), *self._listeners.values()]
        for each in doors:
            for name in ("received_datagrams", "received_bytes", "sent_datagrams", "sent_bytes"):
                counts[name] = counts.get(name, 0) + getattr(each.counters, name)
            for name, count in each.counters.errors.items():
                counts[f"error_{name}"] = counts.get(f"error_{name}", 0) + count
            counts["overruns"] = counts.get("overruns", 0) + each.overruns()
        return counts

    def hung_up(self) -> None:
        """SIGHUP: read certificate and access list again; nobody is cut off.  To the log, as the terminal may be gone.

        What cannot be used changes nothing.
        """
        if self._certificate is None and self._access_file is None:
            text = "SIGHUP is ignored: there is no certificate and no access list to read again; SIGTERM ends the server"
            logger.warning(text, extra=_reload("ignored"))
        if self._certificate is not None:
            how = "was read again" if self._certificate.reload() else "stays as it was"
            text = "SIGHUP: the certificate %s, its SHA-256 is %s"
            logger.warning(text, how, self._certificate.fingerprint, extra=_reload("certificate"))
        if self._access_file is not None:
            try:
                self._server.replace_access(read_access_file(self._access_file))
            except ConfigurationError as error:
                logger.warning("SIGHUP: the access list stays as it was. %s", error, extra=_reload("access", "unusable"))
            else:
                logger.warning("SIGHUP: the access list was read again", extra=_reload("access"))

    async def view_from(self, server: str) -> list[View]:
        """The view that another server has of our UDP sockets.  Raises ConfigurationError, ServerUnreachableError."""
        return await self.views.ask(self._sockets, await servers_named(server, "--from"))

    def stop(self) -> None:
        """Let serve() return after telling every client Bye."""
        self._stop.set()

    async def wait_stop(self) -> None:
        await self._stop.wait()


def _reload(what: str, why: str = "") -> dict[str, dict[str, str]]:
    """For a log of JSON lines."""
    return {"facts": {"what": f"reload_{what}", "why": why}}


def _log_report(text: str) -> str:
    """A server has no PTUNNEL_HOME, and its log is kept by whoever runs it."""
    logger.error("%s", text)
    return "the lines before"


def read_access_file(path: str | os.PathLike[str]) -> AccessList:
    """One entry a line: an address, a prefix, or `token SECRET`.  Raises ConfigurationError with one sentence."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"The access file {os.fspath(path)} cannot be read: {reason}.") from None
    return AccessList.parse(text, os.fspath(path))


async def serve(
    listen: Sequence[tuple[str, int]] = DEFAULT_LISTEN,
    *,
    config: ServerConfig | None = None,
    trace: Trace | None = None,
    clock: Callable[[], Instant] = boottime,
    opener: OpenSocket = open_telling_socket,
    tls: TlsConfig | None = None,
    secret: bytes | None = None,
    access_file: str | None = None,
    fleet: FleetDoor | None = None,
    task_status: trio.TaskStatus[RunningServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled or RunningServer.stop(); either way every client hears Bye.

    Listens on each (host, port) and beside it on port+1 (any free port, if that is taken, or if `port` is 0).
    An IPv6 wildcard beside an IPv4 one is left out on a machine without IPv6.
    With `tls` each host also listens for the same over TLS on one TCP port.
    `secret`, the same after each restart: codes that were given out stay good, and those of other servers are told from guesses.
    `access_file`: where the access list of `config` was read, and is read again when asked for.
    `fleet`: this is one of the servers that share its store; when it is stopped, its clients go to others first.
    Raises ConfigurationError when an address cannot be bound or the certificate cannot be used.
    """
    sockets: dict[SocketId, UdpSocket] = {}
    listeners: dict[SocketId, TlsListener] = {}
    certificate = None if tls is None else ServerCertificate(tls.certificate, tls.key)
    try:
        addresses = _open_all(listen, opener, sockets)
        if tls is not None and certificate is not None:
            _listen_tls(tls.port, certificate, addresses, FIRST_TLS_ID, listeners)
        core = None if fleet is None else fleet.core(addresses)
        places = [ServerSocket(each, sockets[each].local_address, SocketId(each ^ 1)) for each in sockets]
        server = Server(
            config or ServerConfig(),
            sockets=places,
            now=clock(),
            entropy=Chance(),
            stun=ServerStun(),
            trace=trace,
            secret=secret,
            unix_time=unix_time,
            fleet=core,
        )
        running = RunningServer(server, sockets, addresses, listeners, certificate, access_file, core)
        loop = ServerLoop(server, sockets, listeners, clock, running.faults, running.views)
        async with trio.open_nursery() as nursery:
            if fleet is not None and core is not None:
                loop.feed = fleet.feed(core, clock, loop.changed)
                talk = partial(fleet.run, loop.feed)
                nursery.start_soon(last, loop.faults, "fleet", "interrupted the talk with the store", talk)
            task_status.started(running)
            nursery.start_soon(last, loop.faults, "timers", "interrupted the timers", loop.run_timers)
            for socket_id, udp in sockets.items():
                what = f"interrupted the reading of udp {udp.local_address}"
                nursery.start_soon(last, loop.faults, "socket", what, partial(loop.run_socket, socket_id))
            for socket_id, listener in listeners.items():
                what = f"interrupted the TLS door {listener.local_address}"
                door = partial(listener.serve, partial(loop.handle, socket_id), running.faults)
                nursery.start_soon(last, loop.faults, "tls", what, door)
            try:
                await running.wait_stop()
                if fleet is not None and loop.feed is not None:
                    await loop.feed.drain(fleet.drain)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL):
                    await loop.say_goodbye()
            nursery.cancel_scope.cancel()
    finally:
        for each in sockets.values():
            each.close()
        for listener in listeners.values():
            listener.close()


def _listen_tls(
    port: int,
    certificate: ServerCertificate,
    addresses: Sequence[Address],
    first_id: int,
    listeners: dict[SocketId, TlsListener],
) -> None:
    """One listener for each host, all with one guest book.  Raises ConfigurationError."""
    book, budget = GuestBook(), Budget()
    for number, host in enumerate(dict.fromkeys(address.host for address in addresses)):
        listener = TlsListener(host, port, certificate, book=book, budget=budget)
        listeners[SocketId(first_id + number)] = listener
        port = port or listener.local_address.port  # what 0 became, so that all hosts share it


def _open_all(listen: Sequence[tuple[str, int]], opener: OpenSocket, sockets: dict[SocketId, UdpSocket]) -> list[Address]:
    """Bind every address and its second port; socket ids come in pairs (2n, 2n+1)."""
    addresses: list[Address] = []
    hosts = [host for host, _ in listen]
    free_port = 0  # what port 0 became, so that all hosts share it where they can
    for host, port in listen:
        try:
            first = _open_first(host, port or free_port, is_wish=not port, opener=opener)
        except ConfigurationError:
            if host == "::" and "0.0.0.0" in hosts and addresses:
                logger.warning("no IPv6 here: listening on IPv4 only")
                continue
            raise
        sockets[SocketId(len(sockets))] = first
        where = first.local_address
        addresses.append(where)
        if not port:
            free_port = where.port
        sockets[SocketId(len(sockets))] = _open_first(
            host, where.port + 1 if where.port < 65_535 else 0, is_wish=True, opener=opener
        )
    if not addresses:
        raise ConfigurationError("There is no address to listen on.")
    return addresses


def _open_first(host: str, port: int, *, is_wish: bool, opener: OpenSocket) -> UdpSocket:
    """Bind that port; if it is only a wish and taken, any free one."""
    try:
        return opener(host, port)
    except ConfigurationError:
        if not is_wish or not port:
            raise
        return opener(host, 0)
