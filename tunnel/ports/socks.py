"""The SOCKS door of the connecting side: programs here reach machines there, in networks that the peer shares.

RFC 1928, CONNECT and UDP ASSOCIATE, without authentication: who may connect to the door may use it.  Names go to the peer as they
are, and are looked up there.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

import trio

from tunnel.errors import TunnelError
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.flows import Flow, idle_of
from tunnel.ports.link import Stream
from tunnel.ports.loops import mark_of_accepted
from tunnel.ports.open import Reach, decode_opened, encode, read_message
from tunnel.ports.outlet import Outlet
from tunnel.ports.rate import Limit
from tunnel.ports.refusals import describe_refusal
from tunnel.ports.socks_messages import (
    CONNECT,
    FAILED,
    HOST_UNREACHABLE,
    NO_AUTHENTICATION,
    NO_SUCH_COMMAND,
    NOT_ALLOWED,
    REFUSED,
    SUCCEEDED,
    VERSION,
    Request,
    SocksError,
    read_greeting,
    read_request,
    reply,
    unwrap,
)
from tunnel.ports.tcp import Relay, TcpForward, code_of, cut, leave_with, refuse, set_up, write_chunks
from tunnel.ports.udp import UdpForward
from tunnel.shell.stream import StreamCode
from tunnel.units import Seconds

PATIENCE: Final = 10.0  # seconds for what a client says before it is connected
MAX_ASSOCIATIONS: Final = 64  # UDP ASSOCIATE at a time of one door: each has a socket

_REPLIES: Final = {
    StreamCode.DENIED: NOT_ALLOWED,
    StreamCode.REFUSED: REFUSED,
    StreamCode.RESET: REFUSED,
    StreamCode.UNREACHABLE: HOST_UNREACHABLE,
    StreamCode.TIMED_OUT: HOST_UNREACHABLE,
}


class SocksDoor(TcpForward):
    """Accepts clients, and serves each as it asks."""

    _associations = 0

    async def _serve(self, sock: socket.socket) -> None:
        counters = self._counters
        with self._link.faults.wall("stream", f"ended a connection by the SOCKS door to {self._link.peer_name}"):
            try:
                set_up(sock)
                await self._serve_client(sock)
            except SocksError as error:
                counters.socks_refused += 1
                if error.text:
                    self._notices.say(error.text, error.text)
                with contextlib.suppress(OSError):
                    sock.send(error.reply)
                    sock.shutdown(socket.SHUT_WR)  # the client reads the reply, and no reset before it
            except (TunnelError, OSError):
                pass  # the link closed, or the client left
            finally:
                counters.tcp_active -= 1
                sock.close()

    async def _serve_client(self, sock: socket.socket) -> None:
        with trio.move_on_after(PATIENCE) as limit:
            request = await _greet(sock)
        if limit.cancelled_caught:
            raise SocksError()
        if request.command == CONNECT:
            await self._connect(sock, request)
            return
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or self._associations >= MAX_ASSOCIATIONS:
            raise SocksError(reply(NO_SUCH_COMMAND if self._associations < MAX_ASSOCIATIONS else FAILED))
        self._associations += 1
        try:
            await self._associate(sock, request)
        finally:
            self._associations -= 1

    async def _connect(self, sock: socket.socket, request: Request) -> None:
        if not request.port:
            raise SocksError(reply(HOST_UNREACHABLE))
        opening = Reach("tcp", request.host, request.port, 0, mark_of_accepted(sock))
        access = self._log.access(self._link.peer_name, f"tcp/{opening.target}")
        stream: Stream | None = None
        rest: list[bytes] = []
        code: int | None = StreamCode.CANCELLED  # None: it is open
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_with, sock, nursery.cancel_scope)
            try:
                stream = await self._link.open_stream(encode(opening))
                body, rest = await read_message(stream)
                decode_opened(body)
                code = None
            except TunnelError as error:
                code = code_of(error)
            nursery.cancel_scope.cancel()
        if stream is None or code is not None:
            if stream is not None:
                refuse(stream, StreamCode.CANCELLED)
            raise SocksError(reply(self._refused_reach(opening, code or StreamCode.CANCELLED)))
        self._counters.tcp_opened += 1
        access.opened()
        try:
            await write_chunks(sock, [reply(SUCCEEDED)])
            await Relay(sock, stream, self._counters, None, access, self._pace).run(rest)
        finally:
            access.closed()
            cut(sock)  # nothing happens where the relay has closed it
            refuse(stream, StreamCode.CANCELLED)

    def _refused_reach(self, opening: Reach, code: int) -> int:
        """Tell the person; what the client is told."""
        counters, peer = self._counters, self._link.peer_name
        if code == StreamCode.CANCELLED:
            return FAILED  # the link closed; that is told elsewhere
        if code == StreamCode.DENIED:
            counters.tcp_denied += 1
        else:
            counters.tcp_refused += 1
        text = describe_refusal(peer, opening.kind, opening.target, code)
        if code == StreamCode.INTERNAL:
            text = f"{peer} does not know how to reach {opening.target}: is its ptunnel older than networks that are shared?"
        self._notices.say(f"socks {opening.target} {code}", text)
        return _REPLIES.get(code, FAILED)

    async def _associate(self, sock: socket.socket, request: Request) -> None:
        """Until the client ends its connection: RFC 1928 §7."""
        host = sock.getsockname()[0]
        with socket.socket(sock.family, socket.SOCK_DGRAM) as door:
            door.setblocking(False)
            door.bind((host, 0))
            await write_chunks(sock, [reply(SUCCEEDED, host.partition("%")[0], door.getsockname()[1])])
            forward = SocksDatagrams(
                door, "socks", link=self._link, counters=self._counters, notices=self._notices, log=self._log, pace=self._pace
            )
            forward.client_host = sock.getpeername()[0]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward.run)
                await leave_with(sock, nursery.cancel_scope)


class SocksDatagrams(UdpForward):
    """One association: a flow for each place that its client speaks to."""

    client_host = ""
    _client: Any = None  # the client's address, once it has spoken: nobody else's datagrams are taken

    def _receiver(self) -> Callable[[int], tuple[bytes, Any]]:
        return self._receive_wrapped

    def _receive_wrapped(self, size: int) -> tuple[bytes, Any]:
        data, address = self._sock.recvfrom(size)
        found = unwrap(data)
        if found is None or address[0] != self.client_host or self._client not in (None, address):
            self._counters.socks_dropped += 1
            raise OSError("not from the client, or no datagram of SOCKS")
        self._client = address
        host, port, header, payload = found
        return payload, (address, host, port, header)

    def _target_of(self, client: Any) -> int | str:
        _address, host, port, _header = client
        return f"{host}:{port}"

    def _idle_of(self, client: Any) -> Seconds:
        return idle_of(self._target_of(client))

    def _opening(self, flow: Flow) -> bytes:
        _address, host, port, _header = flow.client
        return encode(Reach("udp", host, port, flow.number))

    def _deliverer(self, flow: Flow) -> Callable[[list[bytes]], None]:
        address, _host, _port, header = flow.client
        return wrapped(flow, Outlet(self._sock, address, self._counters), header, self._pace, self._counters)


def wrapped(
    flow: Flow, outlet: Outlet, header: bytes, pace: Limit | None, counters: ForwardCounters
) -> Callable[[list[bytes]], None]:
    """Takes the peer's datagrams to the client, with the place that they come from in front."""

    def deliver(batch: list[bytes]) -> None:
        if pace is not None and not (batch := pace.admitted_down(batch, counters)):
            return
        flow.touch(len(batch))
        flow.access.received += sum(map(len, batch))
        outlet.send([header + data for data in batch])

    return deliver


async def _greet(sock: socket.socket) -> Request:
    """Read the client's request.  Raises SocksError, OSError."""

    async def read(count: int) -> bytes:
        data = b""
        while len(data) < count:
            await trio.lowlevel.wait_readable(sock)
            with contextlib.suppress(BlockingIOError):
                part = sock.recv(count - len(data))
                if not part:
                    raise SocksError()
                data += part
        return data

    await read_greeting(read)
    await write_chunks(sock, [bytes((VERSION, NO_AUTHENTICATION))])
    return await read_request(read)
