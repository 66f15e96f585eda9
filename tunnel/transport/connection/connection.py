"""One peer, over any number of paths and keys: the verbs.  Sans IO: bytes and `now` in; bursts, a deadline and events out.

After any input or application call, poll until all three are dry, in this order: poll_transmit, poll_event, poll_timeout.
Calls with different instants must not be interleaved, and `now` never goes back.  All calls are cheap and none waits.

The verbs for streams and datagrams are in stream_verbs.py, those for paths in path_verbs.py; here is what drives a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops, Trace
from tunnel.errors import InternalError, PeerError
from tunnel.transport.connection import tracing
from tunnel.transport.connection.carried import Ping
from tunnel.transport.connection.control import MAX_BACKLOG, ControlReader, frame
from tunnel.transport.connection.events import (
    CloseCode,
    CloseReason,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionStats,
    ControlReceived,
    PathKind,
    RekeyDue,
    StreamReadable,
    StreamWritable,
)
from tunnel.transport.connection.packets import PacketSealer, PacketSink
from tunnel.transport.connection.path_verbs import PathVerbs
from tunnel.transport.connection.receive import Receiver
from tunnel.transport.connection.send import Sender
from tunnel.transport.connection.shared import RECORDS_AFTER_KEYS, Shared
from tunnel.transport.connection.state import Cue, Life, State
from tunnel.transport.connection.stream_verbs import StreamVerbs
from tunnel.transport.connection.switching import BACK_AFTER, Switching
from tunnel.transport.crypto.keys import Keypair
from tunnel.transport.crypto.params import Params
from tunnel.transport.packet.slots import Plains
from tunnel.transport.stream.streams import CONTROL_STREAM
from tunnel.units import Instant, PathKey, Seconds, Transmit

if TYPE_CHECKING:
    import random

IDLE_LIMIT: Final = Seconds(3600.0)  # of silence, after which a connection is over: it outlives a nap, not abandonment
IDLE_LIMIT_WITH_STREAMS: Final = Seconds(43_200.0)  # the same while a stream is open: whoever left a shell open sleeps a night
REST_AFTER: Final = Seconds(5.0)  # of having nothing to send: what the next keepalive finds empty goes back to the system
MINIMUM_RECEIVE_BUFFER: Final = 64 * 1024  # bytes; whatever a peer says, it can hold as much
MAXIMUM_RECEIVE_BUFFER: Final = 1024 * 1024  # bytes of it that we fill: a queue like any other, 4 ms at 2 Gbit/s
TAKES_REPEATS: Final = 1  # REPEAT frames
TAKES_REPAIR: Final = 2  # it acknowledges PACKET frames that ask for it, and keeps the order of their flows
TAKES: Final = TAKES_REPEATS | TAKES_REPAIR  # what we take, and tell the peer
IN_A_SINK: Final = "a sink called what only the owner of the connection may call, between batches"


class Connection(StreamVerbs, PathVerbs):
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
        path: PathKey,
        path_kind: PathKind,
        now: Instant,
        rng: random.Random,
        trace: Trace | None = None,
        touched: Callable[[], None] = lambda: None,
        plains: Plains | None = None,
    ) -> None:
        """`plains` is where batches are opened to, one after the other: it may be that of other connections too.

        `touched` is called whenever there may be something to send or to tell, or another deadline: by the verbs, and by
        handle_datagrams; not by handle_timeout and the poll_ functions, after which the caller looks by itself.

        Batches that bring bytes only (IP packets, or those of streams that sinks take), with nothing to answer yet, change at
        most when the connection is due, and that to no earlier instant than it was: they touch nothing.
        """
        self._touched = touched
        self.remote_instance = remote.instance
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
        self._receiver = Receiver(self._shared, plains)
        self._inflow = self._receiver.inflow
        self._packets = PacketSealer(self._shared, touched)
        self._control = ControlReader()
        self._control_out = bytearray()
        self._life = Life()
        self._switching = Switching(self._shared)
        self._said_closed = False
        self._is_receiving = False  # a batch is being opened, and sinks are called
        if is_initiator:  # the responder seals nothing before it has opened something under the new keys
            self._shared.owe(Ping())
        self._may_send = is_initiator

    # getters

    @property
    def drops(self) -> Drops:
        """How often something was dropped, by reason."""
        return self._shared.drops

    @property
    def close_reason(self) -> CloseReason | None:
        """Why it ended, if it has."""
        return self._life.reason

    @property
    def is_closed(self) -> bool:
        """No stream works any more; some last datagrams may still be due."""
        return self._life.is_over

    @property
    def is_drained(self) -> bool:
        """Nothing more will come: forget it."""
        return self._life.state is State.CLOSED

    @property
    def last_heard(self) -> Instant:
        """When something authenticated last arrived."""
        return self._shared.last_heard

    @property
    def is_confirmed(self) -> bool:
        """The peer has proved that it has the keys."""
        return self._shared.stats.packets_received > 0

    def indices(self) -> tuple[int, ...]:
        """The receiver indices that belong to this connection now."""
        return tuple(self._shared.keys.by_index)

    @property
    def is_mute(self) -> bool:
        """No keypair may seal any more: nothing leaves until a handshake brings new keys."""
        return self._switching.is_mute

    def stats(self) -> ConnectionStats:
        """A snapshot of the counters."""
        shared = self._shared
        twice, again = shared.repeats.count, shared.repair.count
        return replace(shared.stats, streams=len(shared.streams), repeated=twice, resent=again, drops=dict(shared.drops))

    # inputs

    def handle_datagrams(self, now: Instant, key: PathKey, buffer: memoryview, start: int, stride: int, ecn: int = 0) -> int:
        """Transport datagrams that arrived on `key`, from `start` on, `stride` bytes each (the last may be shorter).

        Returns the position of the first one that is not this connection's, or the end.
        """
        life, shared, switching = self._life, self._shared, self._switching
        if life.is_over and life.state is not State.CLOSING:
            return len(buffer)
        if self._is_receiving:
            raise InternalError(IN_A_SINK)
        heard_before, ack_at = shared.last_heard, shared.acks.deadline()
        if now >= shared.keys.expires_at:
            shared.keys.expire(now)
        self._is_receiving = True
        try:
            position = self._receiver.handle_datagrams(now, key, buffer, start, stride, ecn)
        except PeerError as error:
            self._may_send = True  # only what authenticates can be a breach
            self.close(now, CloseCode.PROTOCOL_VIOLATION, str(error))
            return len(buffer)
        finally:
            self._is_receiving = False
        if position == start:
            return position
        if switching.is_mute:
            switching.on_keys(now)
            self._touched()  # what waited may leave
        if life.is_over:
            life.on_heard(now)
        if not self._may_send and shared.stats.packets_received:
            self._may_send = True
            shared.owe(Ping())
        if self._receiver.peer_close is not None:
            code, text = self._receiver.peer_close
            if self.is_closed:
                self._life.on_close()
            else:
                self._end(now, Cue.PEER_CLOSED, CloseReason(code, text, True))
        if shared.last_heard - heard_before >= BACK_AFTER:
            switching.on_heard_again()
        if shared.paths.relief is not None:
            switching.relieve()
        switching.choose(now)
        if not (self._receiver.only_payload and self._left_nothing(now, ack_at)):
            self._touched()
        if shared.sink_error is not None:
            met, shared.sink_error = shared.sink_error, None
            raise met
        return position

    def _left_nothing(self, now: Instant, ack_at: Instant | None) -> bool:
        """Whether a batch that brought bytes only left nothing to tell or to answer.  `ack_at`: when an ACK was due before it."""
        shared = self._shared
        if self._life.is_over or shared.events or shared.owed or shared.paths.probes:
            return False
        return not shared.acks.due(now) and shared.acks.deadline() == ack_at and not shared.owes_large_ping

    def handle_timeout(self, now: Instant) -> None:
        """Call when poll_timeout's instant has come; earlier is harmless."""
        if self._is_receiving:
            raise InternalError(IN_A_SINK)
        if self._life.state is not State.ESTABLISHED:
            self._life.handle_timeout(now)
            return
        shared = self._shared
        keys = shared.keys
        keys.expire(now)
        shared.acks.handle_timeout(now)
        if now >= self._gives_up_at:
            hours = round((now - shared.last_heard) / 3600)
            text = f"nothing was heard from the peer for {'an hour' if hours <= 1 else f'{hours} hours'}"
            self._end(now, Cue.WENT_SILENT, CloseReason(CloseCode.IDLE, text, False))
            return
        if keys.wants_rekey(now):
            shared.events.append(RekeyDue())
        if now - shared.paths.current.last_sent >= REST_AFTER:
            for stream in shared.streams.sending.values():
                stream.rest()
        self._switching.handle_timeout(now)

    @property
    def _gives_up_at(self) -> Instant:
        streams = self._shared.streams
        has_streams = len(streams.sending) > 1 or len(streams.receiving) > 1  # beside the control stream
        return Instant(self._shared.last_heard + (IDLE_LIMIT_WITH_STREAMS if has_streams else IDLE_LIMIT))

    def poll_timeout(self) -> Instant | None:
        """When to call handle_timeout next; None when drained."""
        if self._life.state is not State.ESTABLISHED:
            return self._life.poll_timeout(may_send=self._may_send)
        shared, sender = self._shared, self._sender
        paths, keys = shared.paths, shared.keys
        known: Instant | None
        if self._switching.is_mute:
            return earliest(self._gives_up_at, keys.rekey_at(), keys.expires_at, self._switching.lost_at)
        first = min(paths.poll_timeout(), keys.due_at())
        if first > shared.last_heard + IDLE_LIMIT:  # which is the shorter one
            first = min(first, self._gives_up_at)
        known = shared.acks.deadline()
        if known is not None and known < first:
            first = known
        if sender.blocked and (known := sender.pacing_until) is not None and known < first:
            first = known
        if self._may_send:
            for known in (
                shared.repeats.due_at(shared.next_number) if shared.repeats.waiting else None,
                shared.repair.due_at,
                paths.current.pmtu.poll_timeout(),
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
        if self._is_receiving:
            raise InternalError(IN_A_SINK)
        life, keys = self._life, self._shared.keys
        if not self._may_send:
            return None
        if life.state is not State.ESTABLISHED:
            if life.state is not State.CLOSING or not life.takes_close(now) or not keys.may_seal(now):
                return None
            assert life.reason is not None
            return self._sender.close_packet(out, life.reason.code, life.reason.text)
        if not keys.may_seal(now) and not self._switching.may_seal(now):
            return None
        if self._control_out:
            self._write_control()
        return self._sender.poll_transmit(now, out)

    @property
    def has_sent_all(self) -> bool:
        """Whether nothing is left behind the burst that poll_transmit returned last, so that it need not be asked again."""
        return self._sender.has_sent_all

    def poll_event(self) -> ConnectionEvent | None:
        """The next thing to be told, in the order it happened."""
        if self._is_receiving:
            raise InternalError(IN_A_SINK)
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
        return self._packets if self._may_send and self._life.state is State.ESTABLISHED and not self._switching.is_mute else None

    def set_packet_sink(self, sink: PacketSink | None) -> None:
        """Let `sink` take received IP packets, from inside handle_datagrams; docs/transport.md says what it may do."""
        self._receiver.packets.sink = sink

    # datagrams that are sent twice

    def set_repeat(self, mode: str) -> None:
        """AUTO or ALWAYS of repeats.py, or off: whether small datagrams are sent twice, if the peer takes that."""
        self._shared.repeats.set_mode(mode)

    def set_repair(self, *, is_wanted: bool) -> None:
        """Whether IP packets that ask for it are sent again where they are lost; never to a peer that does not take it."""
        self._shared.repair.set_wanted(is_wanted)

    def peer_takes(self, bits: int) -> None:
        """The peer has said what it takes; bits that we do not know are left out."""
        if bits & TAKES_REPEATS:
            self._shared.repeats.peer_takes()
        if bits & TAKES_REPAIR:
            self._shared.repair.peer_takes()

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
            self._switching.on_keys(now)

    def give_up_keys(self, now: Instant) -> None:
        """Seal nothing more under the keys that stand, since a copy of this machine may hold them too: RekeyDue follows."""
        self._touched()
        self._shared.keys.give_up(now)
        if not self.is_closed:
            self._switching.may_seal(now)

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
        if not self.is_closed:
            self._end(now, Cue.CLOSE_CALLED, CloseReason(code, reason, False))

    # inside

    def _end(self, now: Instant, cue: Cue, reason: CloseReason) -> None:
        self._life.end(now, cue, reason)
        if self._shared.trace is not None:
            tracing.closed(self._shared.trace, now, reason)
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
