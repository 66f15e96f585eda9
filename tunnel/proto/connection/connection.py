"""One peer, over any number of paths and keys: the verbs.  Sans IO: bytes and `now` in; bursts, a deadline and events out.

After any input or application call, poll until all three are dry, in this order: poll_transmit, poll_event, poll_timeout.
Calls with different instants must not be interleaved, and `now` never goes back.  All calls are cheap and none waits.

Long because it is the whole face of a connection: some forty short verbs, each of which hands on to the room that does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tunnel.errors import PeerError
from tunnel.proto.connection import tracing
from tunnel.proto.connection.carried import Ping, Reset, StopSending
from tunnel.proto.connection.control import MAX_BACKLOG, ControlReader, frame
from tunnel.proto.connection.events import (
    AllPathsLost,
    CloseCode,
    CloseReason,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionStats,
    ControlReceived,
    PathChanged,
    PathKind,
    PathLost,
    PathView,
    RekeyDue,
    StreamReadable,
    StreamWritable,
)
from tunnel.proto.connection.packets import PacketSealer, PacketSink
from tunnel.proto.connection.paths import Path
from tunnel.proto.connection.receive import Receiver
from tunnel.proto.connection.send import Sender
from tunnel.proto.connection.shared import RECORDS_AFTER_KEYS, Shared
from tunnel.proto.connection.state import Cue, State, apply
from tunnel.proto.crypto.keys import Keypair
from tunnel.proto.crypto.params import Params
from tunnel.proto.stream.datagrams import MAX_DATAGRAM
from tunnel.proto.stream.receive import StreamSink
from tunnel.proto.stream.streams import CONTROL_STREAM
from tunnel.proto.timers import earliest
from tunnel.proto.trace import Drops, Trace
from tunnel.units import Buffer, Instant, PathKey, Seconds, SocketId, StreamId, Transmit

if TYPE_CHECKING:
    import random

IDLE_LIMIT: Final = Seconds(3600.0)  # of silence, after which a connection is over: it outlives a nap, not abandonment
IDLE_LIMIT_WITH_STREAMS: Final = Seconds(43_200.0)  # the same while a stream is open: whoever left a shell open sleeps a night
BACK_AFTER: Final = Seconds(1.0)  # of silence, a peer that is heard again is asked at once what it missed
LINGER: Final = Seconds(1.0)  # how long CLOSE is repeated to a peer that still talks
CLOSE_SPACING: Final = Seconds(0.1)  # between two of those repetitions
BLACK_HOLE_PTOS: Final = 2  # probe timeouts in a row, before large datagrams are suspected (RFC 8899 §4.3)
MINIMUM_RECEIVE_BUFFER: Final = 64 * 1024  # bytes; whatever a peer says, it can hold as much
MAXIMUM_RECEIVE_BUFFER: Final = 1024 * 1024  # bytes of it that we fill: a queue like any other, 4 ms at 2 Gbit/s
DEMOTED: Final = "the direct path fell silent"
HEARD_LATELY: Final = Seconds(30.0)  # a live peer is silent for shorter: longer than any keepalive and what follows it
NO_KEYS_AFTER: Final = Seconds(4.0)  # without keys that may seal, before the owner should meet the peer anew
MAX_HANDSHAKE_PATHS: Final = 3  # that a handshake for new keys may go over


class Connection:
    """A connection is (peer's static key, instance id).  It is born when its handshake is done, and ends with ConnectionClosed.

    Not told by any method: streams, paths and keys of one connection never mix with another's; sequence numbers never restart.
    """

    def __init__(
        self,
        *,
        is_initiator: bool,
        keypair: Keypair,
        local: Params,
        remote: Params,
        remote_static: bytes,
        path: PathKey,
        path_kind: PathKind,
        now: Instant,
        rng: random.Random,
        trace: Trace | None = None,
        touched: Callable[[], None] = lambda: None,
    ) -> None:
        """`touched` is called by every verb that may leave something to send or to tell, or another deadline; not by the inputs
        and the poll_ functions, after which the caller looks by itself."""
        self._touched = touched
        self.is_initiator = is_initiator
        self.peer_static = remote_static
        self.instance = local.instance
        self.remote_instance = remote.instance
        self.peer_name = remote.name
        self.close_reason: CloseReason | None = None
        self._shared = Shared(
            is_initiator=is_initiator,
            keypair=keypair,
            receive_buffer=local.receive_buffer,
            peer_receive_buffer=min(max(remote.receive_buffer, MINIMUM_RECEIVE_BUFFER), MAXIMUM_RECEIVE_BUFFER),
            peer_record_parts=remote.record_parts,
            path=path,
            path_kind=path_kind,
            now=now,
            rng=rng,
            trace=trace,
        )
        if trace is not None:
            tracing.started(trace, now, self._shared.paths.current)
        self._sender = Sender(self._shared)
        self._receiver = Receiver(self._shared)
        self._packets = PacketSealer(self._shared, touched)
        self._control = ControlReader()
        self._control_out = bytearray()
        self._state = State.ESTABLISHED
        self._linger_until: Instant | None = None
        self._close_at: Instant | None = None
        self._said_closed = False
        if is_initiator:  # the responder seals nothing before it has opened something under the new keys
            self._shared.owe(Ping())
        self._may_send = is_initiator
        self._is_announced = False  # the first PathChanged waits for the first round trip, so that it has one to tell
        self._is_mute = False  # no keypair may seal: everything waits for new keys
        self._lost_at: Instant | None = None  # when that costs the paths

    # getters

    @property
    def drops(self) -> Drops:
        """How often something was dropped, by reason."""
        return self._shared.drops

    @property
    def is_closed(self) -> bool:
        """No stream works any more; some last datagrams may still be due."""
        return self._state is not State.ESTABLISHED

    @property
    def is_drained(self) -> bool:
        """Nothing more will come: forget it."""
        return self._state is State.CLOSED

    @property
    def last_heard(self) -> Instant:
        """When something authenticated last arrived."""
        return self._shared.last_heard

    @property
    def is_confirmed(self) -> bool:
        """The peer has proved that it has the keys."""
        return self._shared.stats.packets_received > 0

    @property
    def is_quiet(self) -> bool:
        """What came last was IP packets only, and left nothing to tell or to answer."""
        shared = self._shared
        if (
            not self._receiver.only_packets
            or self._state is not State.ESTABLISHED
            or shared.events
            or shared.owed
            or shared.paths.probes
        ):
            return False
        return shared.acks.deadline() is None and not shared.owes_large_ping

    def indices(self) -> tuple[int, ...]:
        """The receiver indices that belong to this connection now."""
        return tuple(self._shared.keys.by_index)

    @property
    def streams_accepted(self) -> int:
        """How many the peer has opened so far."""
        return self._shared.streams.accepted

    @property
    def current_path(self) -> PathView:
        path = self._shared.paths.current
        rtt = path.recovery.rtt
        newest, at, why = rtt.newest_rtt, rtt.newest_at, self._shared.paths.why
        return PathView(path.key, path.kind, rtt.smoothed_rtt, rtt.min_rtt, newest, at, path.mtu, why)

    @property
    def has_path(self) -> bool:
        """Some path has not failed: see AllPathsLost."""
        return any(path.validated for path in self._shared.paths.known.values())

    @property
    def paths(self) -> list[PathKey]:
        """The keys of all validated paths, the current one first."""
        paths = self._shared.paths
        rest = [path.key for path in paths.known.values() if path.validated and path is not paths.current]
        return [paths.current.key, *rest]

    @property
    def handshake_paths(self) -> list[PathKey]:
        """Where a handshake for new keys may be answered, the likeliest first."""
        paths = self._shared.paths
        rest = [path for path in paths.known.values() if path is not paths.current and paths.is_allowed(path)]
        rest.sort(key=lambda path: (not path.validated, -path.last_heard))
        return [paths.current.key, *(path.key for path in rest)][:MAX_HANDSHAKE_PATHS]

    @property
    def is_mute(self) -> bool:
        """No keypair may seal any more: nothing leaves until a handshake brings new keys."""
        return self._is_mute

    @property
    def channels(self) -> set[bytes]:
        """The relay channels of all paths, whether they work just now or not."""
        return {key.prefix for key in self._shared.paths.known if key.prefix}

    @property
    def used_sockets(self) -> set[SocketId]:
        """Those of the paths in use, and of all that the peer has lately answered on."""
        paths = self._shared.paths
        used = {path.key.socket_id for path in paths.known.values() if path.validated}
        return used | {paths.current.key.socket_id, paths.answering.key.socket_id}

    def stats(self) -> ConnectionStats:
        """A snapshot of the counters."""
        shared = self._shared
        drops = dict(shared.drops)
        if shared.datagrams.dropped:
            drops["datagram waited too long"] = shared.datagrams.dropped
        if shared.paths.dropped:
            drops["path probe queue full"] = shared.paths.dropped
        if shared.rejoiner.dropped:
            drops["split datagram never whole"] = shared.rejoiner.dropped
        return replace(shared.stats, streams=len(shared.streams), drops=drops)

    # inputs

    def handle_datagrams(self, now: Instant, key: PathKey, buffer: memoryview, start: int, stride: int, ecn: int = 0) -> int:
        """Transport datagrams that arrived on `key`, from `start` on, `stride` bytes each (the last may be shorter).

        Returns the position of the first one that is not this connection's, or the end.
        """
        if self._state in (State.CLOSED, State.DRAINING):
            return len(buffer)
        heard_before, keys = self._shared.last_heard, self._shared.keys
        if now >= keys.expires_at:
            keys.expire(now)
        try:
            position = self._receiver.handle_datagrams(now, key, buffer, start, stride, ecn)
        except PeerError as error:
            self._may_send = True  # only what authenticates can be a breach
            self.close(now, CloseCode.PROTOCOL_VIOLATION, str(error))
            return len(buffer)
        if position == start:
            return position
        if self._is_mute and keys.may_seal(now):
            self._speak(now)
        if self._state is State.CLOSING:
            self._close_at = earliest(self._close_at, Instant(now + CLOSE_SPACING))
        if self._shared.stats.packets_received and not self._may_send:
            self._may_send = True
            self._shared.owe(Ping())
        if self._receiver.peer_close is not None:
            code, text = self._receiver.peer_close
            self._peer_closed(now, code, text)
        if self._shared.last_heard - heard_before >= BACK_AFTER:
            for path in self._shared.paths.known.values():
                path.recovery.on_heard_again()
        self._choose_path(now, "")
        return position

    def handle_timeout(self, now: Instant) -> None:
        """Call when poll_timeout's instant has come; earlier is harmless."""
        if self._state is not State.ESTABLISHED:
            if self._linger_until is not None and now >= self._linger_until and self._state is not State.CLOSED:
                self._state = apply(self._state, Cue.LINGERED)
            return
        shared = self._shared
        keys = shared.keys
        keys.expire(now)
        if now >= self._gives_up_at:
            hours = round((now - shared.last_heard) / 3600)
            text = f"nothing was heard from the peer for {'an hour' if hours <= 1 else f'{hours} hours'}"
            self._end(now, Cue.WENT_SILENT, CloseReason(CloseCode.IDLE, text, False))
            return
        if keys.wants_rekey(now):
            shared.events.append(RekeyDue())
        if not self._may_seal(now):
            if self._lost_at is not None and now >= self._lost_at:
                self._lose_paths(now)
            return
        for path in list(shared.paths.known.values()):
            at = path.recovery.poll_timeout()
            if at is not None and at <= now:
                self._recovery_timeout(now, path)
        for path in shared.paths.handle_timeout(now):
            self._path_failed(now, path)
        self._choose_path(now, "")

    @property
    def _gives_up_at(self) -> Instant:
        streams = self._shared.streams
        has_streams = len(streams.sending) > 1 or len(streams.receiving) > 1  # beside the control stream
        return Instant(self._shared.last_heard + (IDLE_LIMIT_WITH_STREAMS if has_streams else IDLE_LIMIT))

    def poll_timeout(self) -> Instant | None:
        """When to call handle_timeout next; None when drained."""
        if self._state is State.CLOSED:
            return None
        if self._state is not State.ESTABLISHED:
            return earliest(self._linger_until, self._close_at if self._may_send else None)
        shared, sender = self._shared, self._sender
        paths, keys = shared.paths, shared.keys
        if self._is_mute:
            return earliest(self._gives_up_at, keys.rekey_at(), keys.expires_at, self._lost_at)
        first, at = paths.poll_timeout(), self._gives_up_at
        if at < first:
            first = at
        at = keys.rekey_at()
        if at < first:
            first = at
        for known in (
            keys.expires_at,
            keys.seals_until,
            shared.acks.deadline(),
            sender.pacing_until if sender.blocked else None,
            paths.current.pmtu.poll_timeout() if self._may_send else None,
        ):
            if known is not None and known < first:
                first = known
        for path in paths.known.values():
            known = path.recovery.poll_timeout()
            if known is not None and known < first:
                first = known
        return first

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        """The next burst for one address, sealed into `out` (at least 65,536 bytes); None when nothing may leave now."""
        if self._state is State.CLOSING:
            if self._close_at is None or now < self._close_at or not self._may_send:
                return None
            self._close_at = None
            if not self._shared.keys.may_seal(now):
                return None
            assert self.close_reason is not None
            return self._sender.close_packet(out, self.close_reason.code, self.close_reason.text)
        if self._state is not State.ESTABLISHED or not self._may_send:
            return None
        if not self._shared.keys.may_seal(now) and not self._may_seal(now):
            return None
        if self._control_out:
            self._write_control()
        return self._sender.poll_transmit(now, out)

    def poll_event(self) -> ConnectionEvent | None:
        """The next thing to be told, in the order it happened."""
        events = self._shared.events
        while events and not self._said_closed:
            event = events.popleft()
            match event:
                case StreamReadable(stream_id=stream_id) if stream_id == CONTROL_STREAM:
                    self._read_control()
                case StreamWritable(stream_id=stream_id) if stream_id == CONTROL_STREAM:
                    pass
                case ConnectionClosed():
                    self._said_closed = True
                    events.clear()
                    return event
                case _:
                    return event
        return None

    # IP packets

    @property
    def packets(self) -> PacketSealer | None:
        """Seals IP packets, past streams and window; None while there are no keys to send under."""
        return self._packets if self._may_send and self._state is State.ESTABLISHED and not self._is_mute else None

    def set_packet_sink(self, sink: PacketSink | None) -> None:
        """Who takes received IP packets, called from inside handle_datagrams: the views are gone with the next call."""
        self._receiver.packets.sink = sink

    # keys

    def install_keypair(self, now: Instant, keypair: Keypair, confirmed: bool) -> None:
        """A handshake with the same peer for the same instance ended.  Its initiator passes `confirmed`."""
        self._touched()
        self._shared.keys.install(keypair, now, confirmed=confirmed)
        if confirmed:
            self._shared.records_from = max(self._shared.records_from, self._shared.next_number + RECORDS_AFTER_KEYS)
            self._shared.owe(Ping())
            if self._shared.trace is not None:
                tracing.keys_updated(self._shared.trace, now, keypair)
            self._speak(now)

    def hold(self) -> None:
        """Send the control stream and what paths need, and nothing else, until `release`."""
        self._touched()
        self._shared.paths.is_held = True

    def release(self, now: Instant) -> None:
        """Send everything again; a PathChanged says so."""
        self._touched()
        self._shared.paths.is_held = self._is_announced = False
        self._choose_path(now, "")

    def give_up_keys(self, now: Instant) -> None:
        """Seal nothing more under the keys that stand, since a copy of this machine may hold them too: RekeyDue follows."""
        self._touched()
        self._shared.keys.give_up(now)
        self._may_seal(now)

    def _may_seal(self, now: Instant) -> bool:
        """Whether there are keys to seal with; if not, everything but the wish for new ones waits."""
        keys = self._shared.keys
        if keys.may_seal(now):
            return True
        if not self._is_mute and self._state is State.ESTABLISHED:
            self._is_mute = True
            self._shared.paths.probes.clear()
            self._lost_at = Instant(now + NO_KEYS_AFTER)
            if keys.is_over(now):
                self._lose_paths(now)
        return False

    def _lose_paths(self, now: Instant) -> None:
        """Without keys no path can prove itself."""
        shared = self._shared
        self._lost_at = None
        if self.has_path:
            for path in shared.paths.known.values():
                path.validated = False
                if path is not shared.paths.current:
                    self._requeue(now, path)
            shared.events.append(AllPathsLost(no_keys=now - shared.last_heard < HEARD_LATELY))

    def _speak(self, now: Instant) -> None:
        """There are keys to seal with.  After a while without, every path has to prove itself."""
        if not self._is_mute:
            return
        self._is_mute = False
        self._shared.paths.probes.clear()  # what waited meanwhile is late
        was_lost, self._lost_at = self._lost_at is None, None
        for path in self._shared.paths.known.values():
            path.recovery.on_heard_again()
            if was_lost:
                path.trust()
                path.verify(now)
        self._is_announced = self._is_announced and not was_lost

    # paths

    def set_policy(self, now: Instant, policy: str) -> None:
        """`auto`, `direct` or `relay`: which paths may carry streams."""
        self._touched()
        self._shared.paths.policy = policy
        self._choose_path(now, f"--path {policy}")

    def challenge(self, now: Instant, key: PathKey, kind: PathKind, ttl: int | None = None) -> None:
        """Send one PATH_CHALLENGE there; PathValidated follows if it is answered."""
        self._touched()
        self._shared.paths.challenge(now, key, kind, ttl)

    def add_relay(self, now: Instant, key: PathKey, *, instead_of: PathKey | None = None) -> None:
        """A relay channel to the same peer: validate it and keep it in reserve.

        `instead_of` is the path that it replaces, which is about to stop working: it is left as soon as the new one answers.
        """
        self._touched()
        paths = self._shared.paths
        if instead_of is None:
            paths.challenge(now, key, PathKind.RELAY)
            return
        replaced = paths.known.get(instead_of)
        if replaced is not None:
            replaced.is_replaced = True
        paths.expect(now, key, PathKind.RELAY)

    def knows_path(self, key: PathKey) -> bool:
        """Whether this has been a path, working or not."""
        return key in self._shared.paths.known

    def migrate(self, now: Instant, key: PathKey, kind: PathKind) -> None:
        """A handshake has just run over `key`, which proves the path: use it if the current one is in doubt or gone."""
        self._touched()
        self._shared.paths.adopt(now, key, kind)
        self._choose_path(now, "")

    def drop_path(self, now: Instant, key: PathKey) -> None:
        """The path is gone for certain (its channel was closed, its socket removed)."""
        self._touched()
        path = self._shared.paths.known.get(key)
        if path is not None:
            was_working, path.validated = path.validated, False
            if was_working:
                self._path_failed(now, path)
            self._choose_path(now, "")
            self._shared.paths.remove(key)

    @property
    def keepalive(self) -> Seconds:
        """How long direct paths may be silent, as measured so far."""
        return self._shared.paths.keepalive.interval

    def remember_keepalive(self, now: Instant, interval: Seconds) -> None:
        """What `keepalive` was the last time; believed where it is shorter than what one begins with."""
        self._touched()
        self._shared.paths.keepalive.remember(now, interval)

    def verify_paths(self, now: Instant) -> None:
        """Something happened to the network or the clock: let every path prove itself at once."""
        self._touched()
        for path in self._shared.paths.known.values():
            path.verify(now)

    # streams

    def open_stream(self) -> StreamId:
        """Raises StreamLimitError."""
        self._touched()  # one with an open stream may be silent for longer
        return self._shared.streams.open()

    def stream_space(self, stream_id: StreamId) -> memoryview:
        """Free contiguous room in the send buffer to read a socket into; empty when full or over (StreamWritable will tell)."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is None or self.is_closed:
            return memoryview(b"")
        room = stream.space(0 if stream.is_roomy else self._ring_limit())
        if not len(room):
            stream.wants_space = True
        return room

    def stream_commit(self, stream_id: StreamId, count: int) -> None:
        """`count` bytes were put into what stream_space gave."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None:
            stream.commit(count)
            self._shared.streams.scheduler.wake(stream)
            self._touched()

    def stream_write(self, stream_id: StreamId, data: Buffer) -> int:
        """Copy in what fits; returns how many bytes that was."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is None or self.is_closed:
            return 0
        count = stream.write(memoryview(data), self._ring_limit())
        if count < len(data):
            stream.wants_space = True
        self._shared.streams.scheduler.wake(stream)
        self._touched()
        return count

    def _ring_limit(self) -> int:
        recovery = self._shared.paths.current.recovery
        return self._shared.streams.ring_limit(recovery.inflight_limit(self._shared.peer_receive_buffer))

    def stream_finish(self, stream_id: StreamId) -> None:
        """No more bytes: the FIN follows what was written."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None:
            stream.finish()
            self._shared.streams.scheduler.wake(stream)
            self._touched()

    def stream_reset(self, stream_id: StreamId, code: int) -> None:
        """Give up our sending half; what has not arrived the peer will not read."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None and not stream.is_done and stream.reset_code is None:
            stream.reset(code)
            self._shared.owe(Reset(stream_id))
            self._touched()

    def stream_stop(self, stream_id: StreamId, code: int) -> None:
        """Read no more; the peer is asked to stop sending."""
        stream = self._shared.streams.receiving.get(stream_id)
        if stream is None or stream.is_done or stream.stop_code is not None:
            return
        self._touched()
        before = stream.read_offset
        stream.stop(code)
        self._shared.owe(StopSending(stream_id))
        self._receiver.inflow.consumed(self._shared.last_heard, stream_id, stream.read_offset - before)
        self._shared.forget_if_done(stream_id)

    def stream_read(self, stream_id: StreamId, most: int = 256, now: Instant | None = None) -> list[bytes]:
        """Up to `most` chunks in order; reading returns the peer's credit.  Empty: nothing now (see stream_at_end)."""
        stream = self._shared.streams.receiving.get(stream_id)
        if stream is None:
            return []
        chunks = stream.read(most)
        if chunks or stream.is_readable:
            self._touched()
        if chunks:
            total = sum(map(len, chunks))
            self._receiver.inflow.consumed(self._shared.last_heard if now is None else now, stream_id, total)
        if stream.is_readable and not stream.is_at_end:
            self._shared.readable(stream_id)
        if stream.is_done:
            self._shared.forget_if_done(stream_id)
        return chunks

    def set_stream_sink(self, stream_id: StreamId, sink: StreamSink | None) -> None:
        """Who takes what arrives from now on, called from inside handle_datagrams; what it takes counts as read.

        It must not call into the connection.  The first bytes that it leaves, and all that come out of order, are read as
        ever: then it has been let go, and is to be handed in again.  Nothing happens while something waits to be read.
        """
        stream = self._shared.streams.receiving.get(stream_id)
        if stream is not None:
            stream.lend(sink)

    def stream_at_end(self, stream_id: StreamId) -> bool:
        """The peer's FIN was read (or the stream is over and forgotten)."""
        stream = self._shared.streams.receiving.get(stream_id)
        return stream is None or stream.is_at_end

    def stream_is_acked(self, stream_id: StreamId) -> bool:
        """The peer has everything that was written, or the stream is over."""
        stream = self._shared.streams.sending.get(stream_id)
        return stream is None or stream.is_done or stream.base == stream.written

    def stream_want_space(self, stream_id: StreamId) -> None:
        """Ask for a StreamWritable at the next acknowledgement."""
        stream = self._shared.streams.sending.get(stream_id)
        if stream is not None:
            stream.wants_space = True

    # datagrams

    def send_datagram(self, now: Instant, flow: int, data: bytes) -> bool:
        """Queue one; False if it is larger than any UDP payload or the connection is over."""
        return self.send_datagrams(now, flow, [data]) == 1

    def send_datagrams(self, now: Instant, flow: int, batch: list[bytes]) -> int:
        """Queue them; returns how many.  The others are larger than any UDP payload, or the connection is over."""
        shared = self._shared
        fitting = batch
        if self._state is not State.ESTABLISHED:
            fitting = []
        elif max(map(len, batch), default=0) > MAX_DATAGRAM:
            fitting = [data for data in batch if len(data) <= MAX_DATAGRAM]
            shared.drops["datagram too large"] += len(batch) - len(fitting)
        shared.datagrams.push(now, flow, fitting)
        self._touched()
        return len(fitting)

    @property
    def datagram_backlog(self) -> int:
        """How many are queued and not yet sent."""
        return len(self._shared.datagrams)

    def receive_datagrams(self) -> list[tuple[int, bytes]]:
        """All that arrived, as (flow, payload)."""
        taken = list(self._shared.received_datagrams)
        self._shared.received_datagrams.clear()
        self._shared.received_datagram_bytes = 0
        return taken

    # the rest

    def send_control(self, data: bytes) -> None:
        """One message for the other endpoint, in order and reliably.  Raises ValueError beyond control.MAX_MESSAGE bytes.

        A peer that takes nothing while it makes us answer loses what goes beyond control.MAX_BACKLOG.
        """
        message = frame(data)
        if len(self._control_out) + len(message) > MAX_BACKLOG:
            self._shared.drops["control backlog full"] += 1
            return
        self._control_out += message
        self._touched()
        self._write_control()

    def ping(self, now: Instant) -> None:
        """Make the peer acknowledge something; the round trip shows in current_path."""
        self._touched()
        self._shared.owe(Ping())

    def close(self, now: Instant, code: int, reason: str) -> None:
        """Say goodbye.  Streams end at once; CLOSE is sent, and again to a peer that still talks."""
        self._touched()
        if self._state is State.ESTABLISHED:
            self._end(now, Cue.CLOSE_CALLED, CloseReason(code, reason, False))
            self._close_at = now

    # inside

    def _announce(self, now: Instant) -> None:
        path = self._shared.paths.current
        self._is_announced = path.recovery.rtt.samples > 0
        if not self._is_announced:
            return
        if self._shared.trace is not None:
            tracing.path_changed(self._shared.trace, now, path, self._shared.paths.why)
        self._shared.events.append(
            PathChanged(path.key, path.kind, path.key.remote, path.recovery.rtt.smoothed_rtt, path.mtu, self._shared.paths.why)
        )

    def _choose_path(self, now: Instant, why: str) -> None:
        """Change to a better path if there is one; what was under way on the old one is sent again if that one failed."""
        paths = self._shared.paths
        while paths.evicted:
            self._requeue(now, paths.evicted.pop())
        better = paths.better()
        if better is None:
            if self._shared.mtu_changed or not self._is_announced:
                self._shared.mtu_changed = False
                self._announce(now)
            return
        previous, paths.current = paths.current, better
        if not why:
            if previous.is_replaced:
                previous.validated = False  # nothing gets through there any more
                why = "the server is reached another way"
            elif not previous.validated:
                why = DEMOTED if previous.kind is PathKind.DIRECT else "the relay fell silent"
            elif better.kind is PathKind.DIRECT:
                why = "a direct path was found" if previous.kind is PathKind.RELAY else "a faster direct path was found"
        paths.why = why
        self._shared.mtu_changed = False
        if not previous.validated:
            self._requeue(now, previous)
        self._announce(now)

    def _requeue(self, now: Instant, path: Path) -> None:
        path.probes_owed = 0
        for burst, mask in path.recovery.discard(now):
            self._shared.content_lost(burst.content, mask, burst.count)

    def _path_failed(self, now: Instant, path: Path) -> None:
        self._shared.events.append(PathLost(path.key, path.kind))
        paths = self._shared.paths
        if path is paths.current and not any(p.validated for p in paths.known.values()):
            self._shared.events.append(AllPathsLost())
        elif path is not paths.current:
            self._requeue(now, path)

    def _recovery_timeout(self, now: Instant, path: Path) -> None:
        result = path.recovery.on_timeout(now)
        if self._shared.trace is not None:
            tracing.timed_out(self._shared.trace, now, path, result.probes)
            tracing.settled(self._shared.trace, now, path, result.lost)
        for burst, mask in result.lost:
            self._shared.content_lost(burst.content, mask, burst.count)
        path.pacer.set_rate(path.recovery.pacing_rate(), now)
        if result.lost and path.weigh([], result.lost, now):
            self._shared.mtu_changed |= path is self._shared.paths.current
        if not result.probes:
            return
        if path.recovery.pto_count >= BLACK_HOLE_PTOS and path.pmtu.on_black_hole(now):
            path.set_mtu(path.pmtu.size, now)
            self._shared.mtu_changed |= path is self._shared.paths.current
            self._requeue(now, path)
        # The probes repeat what is oldest; that it is declared lost here costs a copy, not a congestion event.
        for burst, mask in path.recovery.oldest_outstanding(result.probes):
            self._repeat(burst.content, mask, burst.count)
        path.probes_owed = result.probes
        path.verify(now)
        if path is self._shared.paths.current:
            for other in self._shared.paths.known.values():
                if other is not path and other.validated:
                    other.probes_owed = max(other.probes_owed, 1)  # the other path may be the one that still works

    def _repeat(self, content: object, mask: int, count: int) -> None:
        lost = self._shared.stats.packets_lost
        low = mask & -mask  # the oldest packet only
        self._shared.content_lost(content, low, count)
        self._shared.stats.packets_lost = lost

    def _peer_closed(self, now: Instant, code: int, text: str) -> None:
        if self._state is State.ESTABLISHED:
            self._end(now, Cue.PEER_CLOSED, CloseReason(code, text, True))
        elif self._state is State.CLOSING:
            self._state = apply(self._state, Cue.PEER_CLOSED)
            self._close_at = None

    def _end(self, now: Instant, cue: Cue, reason: CloseReason) -> None:
        self._state = apply(self._state, cue)
        self.close_reason = reason
        if self._shared.trace is not None:
            tracing.closed(self._shared.trace, now, reason)
        self._linger_until = Instant(now + LINGER)
        self._shared.events.append(ConnectionClosed(reason))

    def _write_control(self) -> None:
        count = self.stream_write(CONTROL_STREAM, bytes(self._control_out))
        del self._control_out[:count]

    def _read_control(self) -> None:
        chunks: Sequence[bytes] = self.stream_read(CONTROL_STREAM)
        try:
            for chunk in chunks:
                for message in self._control.feed(chunk):
                    self._shared.events.append(ControlReceived(message))
        except PeerError as error:
            self.close(self._shared.last_heard, CloseCode.PROTOCOL_VIOLATION, str(error))


__all__ = ["Connection", "StreamSink"]
