"""One peer as trio code sees it.  A link outlives paths, keys and, where the peer restarted, even its connection."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from tunnel.errors import MalformedPacket, PeerError, StreamLimitError, TunnelError, UnreachableError
from tunnel.faults import Faults
from tunnel.node.events import KnownPeer
from tunnel.node.peering import CONTROL_SERVER, CONTROL_SHARES, Peering
from tunnel.node.shares import Share, Shares, decode_shares, encode_shares
from tunnel.pairing.grants import GrantSet
from tunnel.pairing.identity import fingerprint
from tunnel.shell.datagrams import Datagrams
from tunnel.shell.packets import PacketDoor, PacketSealer, PacketSink
from tunnel.shell.status import LinkStatus
from tunnel.shell.stream import StreamCode, TunnelStream
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import (
    CloseCode,
    CloseReason,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionStats,
    ControlReceived,
    DatagramsReceived,
    PathChanged,
    PathKind,
    StreamOpened,
    StreamReadable,
    StreamReset,
    StreamStopped,
    StreamWritable,
)
from tunnel.units import Instant, Seconds, StreamId

__all__ = ["CloseCode", "CloseReason", "Link", "LinkStatus", "Share", "Shares", "StreamHandler"]

RTT_AVERAGED = 5.0  # seconds since a round trip was measured last, up to which the average of many says more than the newest one
MAX_SERVER = 64  # bytes of host:port that a peer tells: an address and a port
ACCEPT_BACKLOG = 1_024  # streams opened by the peer that nobody has accepted yet; more are reset

StreamHandler = Callable[[TunnelStream], Awaitable[None]]


class Link:
    """One peer.  Made by the driver; `open_stream`, `serve_streams` and `flows` are what forwards stand on."""

    def __init__(
        self,
        peering: Peering,
        *,
        flush: Callable[[], None],
        before_flush: Callable[[Callable[[], None]], None],
        hurry: Callable[[], None] = lambda: None,
        clock: Callable[[], Instant],
        counters: Callable[[], dict[str, dict[str, int]]] = dict,
        door: PacketDoor | None = None,
        faults: Faults | None = None,
    ) -> None:
        #: What is handled for this peer stands behind walls of these.
        self.faults = Faults() if faults is None else faults
        #: Every drop outside of connections, by room and reason; all links of a process share them.
        self.endpoint_counters = counters
        self.door = door  # for IP packets
        self._packet_sink: PacketSink | None = None
        self._peering = peering
        self._flush = flush
        self._before_flush = before_flush
        #: Has turns be short for a moment, as somebody waits for the first bytes of a stream.
        self.hurry = hurry
        self._clock = clock
        self._streams: dict[StreamId, TunnelStream] = {}
        self._accepted: deque[TunnelStream] = deque()
        self._changed = trio.Event()  # set and replaced whenever anything that somebody may wait for changes
        self._closed: CloseReason | None = None
        self._path: PathChanged | None = None
        self.shared: Shares | None = None  # what the peer lets us reach, once it has said so
        self._told = b""  # what we have said of that last
        self.server: str | None = (
            None  # the host:port that the peer has told: where its own server is, or that ours is remembered
        )
        self._told_server = ""  # what we have said of that last
        #: Called when what is remembered of the peer, and so what it may reach here, may have changed.
        self.on_grants: Callable[[], None] | None = None
        self._rate_base: tuple[Instant, int, int] = (clock(), 0, 0)
        self._rates = (0.0, 0.0)
        self.flows = Datagrams(
            self._send_datagrams,
            flush,
            first_flow=2 if peering.is_initiator else 1,
            backlog=self._datagram_backlog,
            fell=lambda error: self.faults.note("flow", f"ended a UDP flow of the link to {self.peer_name}", error),
        )

    # --- who

    @property
    def peer(self) -> KnownPeer:
        """All that is remembered of the peer, for the rooms of ptunnel."""
        return self._peering.peer

    @property
    def peer_name(self) -> str:
        """The name under which the peer is remembered here."""
        return self._peering.peer.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the peer's key, as `ptunnel peers` shows it."""
        return fingerprint(self._peering.peer.static)

    @property
    def grants(self) -> GrantSet:
        """The present grants of this peer."""
        return self._peering.grants

    @property
    def is_connector(self) -> bool:
        """True on the side that connected; the other one exposes."""
        return self._peering.is_initiator

    @property
    def peering(self) -> Peering:
        """By which the driver knows it."""
        return self._peering

    @property
    def is_connected(self) -> bool:
        """Whether the peer is there now; a link that is not heals by itself, or ends."""
        return self._closed is None and self._peering.connection is not None

    @property
    def connection(self) -> Connection | None:
        """The core's connection under it, for the rooms of ptunnel; None while there is none."""
        return self._peering.connection

    @property
    def is_idle(self) -> bool:
        """Whether no stream is open, of either side."""
        return not self._streams

    # --- streams

    @property
    def can_open(self) -> bool:
        """Whether open_stream would wait for nothing now."""
        connection = self._peering.connection
        return connection is not None and not connection.is_closed and connection.can_open_stream

    async def open_stream(self, open_message: bytes = b"") -> TunnelStream:
        """A new stream whose first bytes are `open_message`; waits while the peer is away or its stream limit is reached.

        Raises UnreachableError when the link is closed.
        """
        while True:
            self._raise_if_closed()
            changed = self._changed
            connection = self._peering.connection
            if connection is not None and not connection.is_closed:
                try:
                    stream_id = connection.open_stream()
                except StreamLimitError:
                    pass
                else:
                    stream = self._make_stream(connection, stream_id)
                    self.hurry()
                    if open_message:
                        written = connection.stream_write(stream_id, open_message)
                        self._flush()
                        if written < len(open_message):
                            await stream.send_all(open_message[written:])
                    return stream
            await changed.wait()

    async def accept_stream(self) -> TunnelStream:
        """The next stream that the peer opened.  Raises UnreachableError when the link is closed."""
        while not self._accepted:
            self._raise_if_closed()
            await self._changed.wait()
        return self._accepted.popleft()

    async def serve_streams(self, handler: StreamHandler) -> None:
        """Run `handler(stream)` for each stream that the peer opens, until the link is closed.

        A handler that fails resets only its own stream.
        """
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await self.accept_stream()
                except (UnreachableError, PeerError):
                    break
                nursery.start_soon(self._handle, handler, stream)
            nursery.cancel_scope.cancel()

    async def _handle(self, handler: StreamHandler, stream: TunnelStream) -> None:
        with self.faults.wall("stream", f"ended a stream of the link to {self.peer_name}") as wall:
            try:
                await handler(stream)
            except TunnelError:
                stream.reset(StreamCode.CANCELLED)
                stream.stop(StreamCode.CANCELLED)
        if wall.error is not None:
            self._give_up(stream)

    def _give_up(self, stream: TunnelStream) -> None:
        """It has met a fault of ours: both halves end, whatever state it is in."""
        stream.on_abort = None
        try:
            stream.reset(StreamCode.INTERNAL)
            stream.stop(StreamCode.INTERNAL)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Nobody foresaw `error`, which something of this peer has met: the link ends, and no other does."""
        self._peering.fail(self._clock(), error)
        self._flush()

    # --- IP packets

    @property
    def packets(self) -> PacketSealer | None:
        """Seals IP packets for this peer as of now; None while it cannot be reached."""
        connection = self._peering.connection
        return None if connection is None or self._closed is not None else connection.packets

    def set_packet_sink(self, sink: PacketSink | None) -> None:
        """Set the sink of this peer's IP packets, called while receiving: its views live no longer than the call."""
        self._packet_sink = sink
        if self._peering.connection is not None:
            self._peering.connection.set_packet_sink(sink)

    # --- what may be reached

    def share(self) -> None:
        """Tell the peer all that it may reach here, unless it has been told the same: what concerns others is not its affair."""
        body = encode_shares(self.grants)
        if body != self._told:
            self._told = body
            self._peering.send_message(CONTROL_SHARES, body)
            self._flush()

    async def shares(self, before: Shares | None = None) -> Shares:
        """Wait for the peer's shares, other than `before`, and return them; an older peer never tells."""
        while self.shared is None or self.shared == before:
            await self._changed.wait()
        return self.shared

    def tell_server(self, server: str) -> None:
        """host:port: where a server of ours is now, or that the peer's is remembered; once each."""
        if server != self._told_server:
            self._told_server = server
            self._peering.send_message(CONTROL_SERVER, server.encode())
            self._flush()

    # --- what it is like

    def status(self) -> LinkStatus:
        """Return the present status."""
        connection = self._peering.connection
        stats = connection.stats() if connection is not None else ConnectionStats()
        stats.drops |= self.flows.drops
        path = connection.current_path if connection is not None else None
        now = self._clock()
        why = path.why if path else ""
        if self._closed is not None:
            why = f"the link has ended: {self._closed.text}"
        elif path is not None and not self._peering.is_reachable:
            why = f"{self.peer_name} is silent, and is waited for"
        elif path is not None and path.kind is PathKind.RELAY:
            why = self._peering.why_relayed(now)
        rtt_s = rtt_age_s = None
        if path is not None and path.measured_at is not None:
            rtt_age_s = max(0.0, now - path.measured_at)
            rtt_s = path.smoothed_rtt if rtt_age_s < RTT_AVERAGED else path.newest_rtt
        sent, received = stats.sent_bytes, stats.received_bytes
        at, sent_then, received_then = self._rate_base
        if now - at >= 0.5:
            self._rates = (max(0, sent - sent_then) / (now - at), max(0, received - received_then) / (now - at))
            self._rate_base = (now, sent, received)
        return LinkStatus(
            **stats.to_dict(),
            peer=self.peer_name,
            fingerprint=self.fingerprint,
            kind=path.kind.value if path else None,
            remote=str(path.key.remote) if path else None,
            rtt_s=rtt_s,
            rtt_age_s=rtt_age_s,
            mtu=path.mtu if path else None,
            why=why,
            send_rate=self._rates[0],
            receive_rate=self._rates[1],
            punching=self._peering.punching(now),
            nat=dict(self._peering.nat),
            relays=self._peering.relays.describe(now),
            holds_relay=self._peering.holds_relay,
            post_quantum=self._peering.hybrid.is_reached,
            reachable=self._peering.is_reachable,
        )

    @property
    def is_direct(self) -> bool:
        """Whether data gets to the peer now, and without the server in between."""
        connection = self._peering.connection
        return connection is not None and self._peering.is_reachable and connection.current_path.kind is PathKind.DIRECT

    @property
    def direct_remote(self) -> tuple[str, int] | None:
        """From where the peer's datagrams come, host and port; None while they come over the server, which does not tell."""
        connection = self._peering.connection
        if connection is None or connection.current_path.kind is not PathKind.DIRECT:
            return None
        remote = connection.current_path.key.remote
        return remote.host, remote.port

    @property
    def remote_host(self) -> str | None:
        """Where datagrams to the peer go now."""
        connection = self._peering.connection
        return None if connection is None else connection.current_path.key.remote.host

    async def wait_changed(self) -> None:
        """Until anything of the link changes."""
        await self._changed.wait()

    async def wait_direct(self) -> None:
        """Wait until the current path is a direct one.  Raises UnreachableError when the link is closed."""
        while not self.is_direct:
            self._raise_if_closed()
            await self._changed.wait()

    async def ping(self) -> Seconds:
        """One round trip through the tunnel over the current path, measured.  Raises UnreachableError."""
        self._raise_if_closed()
        started = self._clock()
        token = self._peering.send_ping()
        self._flush()
        while token not in self._peering.pings.answers:
            self._raise_if_closed()
            await self._changed.wait()
        return Seconds(self._peering.pings.answers.pop(token) - started)

    async def closed(self) -> CloseReason:
        """Wait until the link has ended; why it did."""
        while self._closed is None:
            await self._changed.wait()
        return self._closed

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the link has ended; None while it has not."""
        return self._closed

    def close(self, reason: str = "closed", code: int = CloseCode.NO_ERROR) -> None:
        """Say goodbye to the peer; every stream of the link ends."""
        if self._closed is None:
            self._peering.close(self._clock(), code, reason)
            self._flush()

    # --- told by the driver

    def handle_event(self, event: ConnectionEvent) -> None:
        """Told by the driver, of the connection under it."""
        try:
            self._handle_event(event)
        except Exception as error:
            stream = self._streams.get(getattr(event, "stream_id", StreamId(-1)))
            if stream is None:
                self.fail(error)
            else:
                self.faults.note("stream", f"ended a stream of the link to {self.peer_name}", error)
                self._give_up(stream)

    def _handle_event(self, event: ConnectionEvent) -> None:
        match event:
            case StreamReadable(stream_id=stream_id):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.on_readable()
            case StreamWritable(stream_id=stream_id):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.on_writable()
            case DatagramsReceived():
                connection = self._peering.connection
                if connection is not None:
                    self.flows.deliver(connection.receive_datagrams())
            case StreamOpened(stream_id=stream_id):
                self._accept(stream_id)
            case StreamReset(stream_id=stream_id, code=code):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.on_reset(code)
            case StreamStopped(stream_id=stream_id, code=code):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.on_stopped(code)
            case PathChanged():
                self._path = event
                self.notify()
            case ControlReceived(data=data) if data[:1] == bytes((CONTROL_SHARES,)):
                with contextlib.suppress(MalformedPacket):  # of a later version
                    self.shared = decode_shares(data[1:])
                self.notify()
            case ControlReceived(data=data) if data[:1] == bytes((CONTROL_SERVER,)):
                if len(data) <= 1 + MAX_SERVER and data.isascii():
                    self.server = data[1:].decode()
                self.notify()
            case ConnectionClosed(reason=reason):
                self._end_streams(reason.text)
                self.notify()
            case _:  # the endpoint answers the others: candidates, punching, rekeying
                self.notify()

    def handle_restarted(self) -> None:
        """The peer lost its half of the connection and a new one stands: the old streams are gone, the link goes on."""
        self._end_streams("the peer has restarted")
        self.set_packet_sink(self._packet_sink)
        self.notify()
        self._told, self._told_server = b"", ""  # the new half knows nothing of what was told
        self.peer_changed()

    def handle_closed(self, reason: CloseReason) -> None:
        """The link has ended."""
        self._end_streams(reason.text)
        self._closed = reason
        self.notify()

    def peer_changed(self) -> None:
        """Apply the newly read memory of the peer."""
        if self.on_grants is not None:
            self.on_grants()

    def notify(self) -> None:
        """Told by the driver: something that somebody may wait for has changed."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _raise_if_closed(self) -> None:
        if self._closed is not None:
            if self._closed.code in (CloseCode.NO_ERROR, CloseCode.IDLE):
                raise UnreachableError(f"the link to {self.peer_name} is closed: {self._closed.text}")
            raise PeerError(f"the link to {self.peer_name} was closed: {self._closed.text}")

    def _make_stream(self, connection: Connection, stream_id: StreamId) -> TunnelStream:
        stream = TunnelStream(connection, stream_id, self._flush, self._forget, self._before_flush)
        self._streams[stream_id] = stream
        return stream

    def _accept(self, stream_id: StreamId) -> None:
        connection = self._peering.connection
        if connection is None:
            return
        stream = self._make_stream(connection, stream_id)
        if len(self._accepted) >= ACCEPT_BACKLOG:
            stream.reset(StreamCode.REFUSED)
            stream.stop(StreamCode.REFUSED)
            return
        self._accepted.append(stream)
        self.hurry()
        self.notify()

    def _forget(self, stream: TunnelStream) -> None:
        if self._streams.get(stream.stream_id) is stream:
            del self._streams[stream.stream_id]

    def _end_streams(self, text: str) -> None:
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            with self.faults.wall("stream", f"kept a stream of the link to {self.peer_name} from hearing of its end"):
                stream.on_connection_closed(text)

    def _datagram_backlog(self) -> int:
        connection = self._peering.connection
        return 0 if connection is None else connection.datagram_backlog

    def _send_datagrams(self, flow: int, batch: list[bytes]) -> int:
        connection = self._peering.connection
        if connection is None or self._closed is not None:
            return 0
        return connection.send_datagrams(self._clock(), flow, batch)
