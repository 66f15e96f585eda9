"""The contents of packets that must arrive: stream bytes, and small frames.  All that is known of a small frame stands here.

A small frame is asked for with `Shared.owe`, written when a packet has room, and asked for again when that packet was lost.  It
says what is to be told, not its bytes, so that it is told as of now, or not at all when it has become needless.  A new one is
a class in this file with a row in OWED_FRAMES; docs/protocol.md §4 has its layout.  ACK, PATH_CHALLENGE, PATH_RESPONSE and CLOSE
are never repeated, and STREAM, DATAGRAM and PACKET are what speed is made of: send.py and receive.py write and read those.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias

from tunnel.transport.connection.events import StreamReset, StreamsAllowed, StreamStopped
from tunnel.transport.packet.frames import Frame
from tunnel.transport.stream.send import SendStream
from tunnel.units import Instant, StreamId

if TYPE_CHECKING:
    from tunnel.transport.connection.inflow import Inflow
    from tunnel.transport.connection.shared import Shared

TracedFrame: TypeAlias = dict[str, Any]  # in the words of qlog


class Carried(Protocol):
    """One thing that a packet carries among others."""

    def acked(self, shared: Shared) -> None:
        """The packet arrived."""

    def lost(self, shared: Shared) -> None:
        """The packet is lost: send it again if it still matters."""

    def trace(self, shared: Shared) -> TracedFrame:
        """Describe it for the trace, when it has just been sent."""
        ...


class BulkRun:
    """A run of stream bytes over a run of packets, `step` bytes each but the last."""

    __slots__ = ("fin", "length", "offset", "step", "stream")

    def __init__(self, stream: SendStream, offset: int, length: int, step: int, fin: bool) -> None:
        self.stream = stream
        self.offset = offset
        self.length = length
        self.step = step
        self.fin = fin

    def settle(self, mask: int, count: int, shared: Shared, *, acked: bool) -> None:
        stream = self.stream
        tell = stream.on_acked if acked else stream.on_lost
        if mask == (1 << count) - 1:
            tell(self.offset, self.length, self.fin)
        else:
            first = 0
            while mask:
                skip = (mask & -mask).bit_length() - 1
                mask >>= skip
                first += skip
                run = (~mask & (mask + 1)).bit_length() - 1  # how many ones stand at the low end
                start = first * self.step
                tell(self.offset + start, min(run * self.step, self.length - start), self.fin and first + run == count)
                mask >>= run
                first += run
        if acked:
            shared.settled(stream)
        elif stream.has_work():
            shared.streams.scheduler.wake(stream)


class StreamChunk:
    """Stream bytes in a packet that holds other things too."""

    __slots__ = ("fin", "length", "offset", "stream")

    def __init__(self, stream: SendStream, offset: int, length: int, fin: bool) -> None:
        self.stream = stream
        self.offset = offset
        self.length = length
        self.fin = fin

    def acked(self, shared: Shared) -> None:
        self.stream.on_acked(self.offset, self.length, self.fin)
        shared.settled(self.stream)

    def lost(self, shared: Shared) -> None:
        self.stream.on_lost(self.offset, self.length, self.fin)
        if self.stream.has_work():
            shared.streams.scheduler.wake(self.stream)

    def trace(self, shared: Shared) -> TracedFrame:
        return stream_frame(self.stream.stream_id, self.offset, self.length, self.fin)


def stream_frame(stream: int, offset: int, length: int, fin: bool) -> TracedFrame:
    return {"frame_type": "stream", "stream_id": stream, "offset": offset, "length": length, "fin": fin}


@dataclass(frozen=True, slots=True)
class OwedFrame:
    """A small frame that is owed to the peer.  Two that are equal are one."""

    TYPE: ClassVar[int]
    LAYOUT: ClassVar[Struct]  # of the type and `values`
    NAME: ClassVar[str]  # as docs/protocol.md has it

    @classmethod
    def pack(cls, *values: int) -> bytes:
        return cls.LAYOUT.pack(cls.TYPE, *values)

    def values(self, shared: Shared) -> tuple[int, ...] | None:
        """Return what to tell as of now; None when there is no need any more."""
        raise NotImplementedError

    @staticmethod
    def arrived(inflow: Inflow, now: Instant, values: tuple[int, ...]) -> None:
        """Handle one from the peer.  Raises PeerError where it may not send it."""
        raise NotImplementedError

    def acked(self, shared: Shared) -> None:
        pass

    def lost(self, shared: Shared) -> None:
        if self.values(shared) is not None:
            shared.owe(self)

    def trace(self, shared: Shared) -> TracedFrame:
        return {"frame_type": self.NAME.lower()}


class Ping(OwedFrame):
    """Nothing but the wish for an ACK."""

    TYPE, LAYOUT, NAME = Frame.PING, Struct(">B"), "PING"

    def values(self, shared: Shared) -> tuple[int, ...]:
        return ()

    def lost(self, shared: Shared) -> None:
        pass  # the probe timeout asks again

    @staticmethod
    def arrived(inflow: Inflow, now: Instant, values: tuple[int, ...]) -> None:
        pass


class MaxData(OwedFrame):
    """How many bytes the peer may send on all streams together."""

    TYPE, LAYOUT, NAME = 0x10, Struct(">BQ"), "MAX_DATA"

    def values(self, shared: Shared) -> tuple[int, ...]:
        return (shared.streams.receive_window.limit,)

    @staticmethod
    def arrived(inflow: Inflow, now: Instant, values: tuple[int, ...]) -> None:
        inflow.shared.streams.send_credit.raise_to(*values)


class MaxStreams(OwedFrame):
    """How many streams the peer may open, ever."""

    TYPE, LAYOUT, NAME = 0x12, Struct(">BQ"), "MAX_STREAMS"

    def values(self, shared: Shared) -> tuple[int, ...]:
        return (shared.streams.max_streams,)

    @staticmethod
    def arrived(inflow: Inflow, now: Instant, values: tuple[int, ...]) -> None:
        if inflow.shared.streams.allow(*values):
            inflow.shared.events.append(StreamsAllowed())


@dataclass(frozen=True, slots=True)
class _OfStream(OwedFrame):
    stream_id: StreamId

    def trace(self, shared: Shared) -> TracedFrame:
        return {"frame_type": self.NAME.lower(), "stream_id": self.stream_id}


class MaxStreamData(_OfStream):
    """How many bytes the peer may send on a stream."""

    TYPE, LAYOUT, NAME = 0x11, Struct(">BIQ"), "MAX_STREAM_DATA"

    def values(self, shared: Shared) -> tuple[int, ...] | None:
        stream = shared.streams.receiving.get(self.stream_id)
        return None if stream is None or stream.is_done else (self.stream_id, stream.window.limit)

    @staticmethod
    def arrived(inflow: Inflow, now: Instant, values: tuple[int, ...]) -> None:
        number, limit = values
        streams = inflow.shared.streams
        stream = streams.sending.get(StreamId(number)) if inflow.opens(number) else None
        if stream is not None and limit > stream.limit:
            stream.limit = limit
            if stream.has_work():
                streams.scheduler.wake(stream)


class Reset(_OfStream):
    """We send no more on a stream, and do not repeat what was lost."""

    TYPE, LAYOUT, NAME = 0x04, Struct(">BIHQ"), "RESET"

    def values(self, shared: Shared) -> tuple[int, ...] | None:
        stream = shared.streams.sending.get(self.stream_id)
        if stream is None or stream.reset_code is None or stream.is_done:
            return None
        return self.stream_id, stream.reset_code, stream.final_size

    def acked(self, shared: Shared) -> None:
        stream = shared.streams.sending.get(self.stream_id)
        if stream is not None:
            stream.on_reset_acked()
            shared.settled(stream)

    def trace(self, shared: Shared) -> TracedFrame:
        stream = shared.streams.sending[self.stream_id]
        return {"frame_type": "reset_stream", "stream_id": self.stream_id, "error_code": stream.reset_code}

    @staticmethod
    def arrived(inflow: Inflow, now: Instant, values: tuple[int, ...]) -> None:
        number, code, final_size = values
        if number == 0 or not inflow.opens(number):
            return
        stream_id = StreamId(number)
        if inflow.reset(now, stream_id, code, final_size):
            inflow.shared.events.append(StreamReset(stream_id, code))
        inflow.shared.forget_if_done(stream_id)


class StopSending(_OfStream):
    """We read no more of a stream."""

    TYPE, LAYOUT, NAME = 0x05, Struct(">BIH"), "STOP_SENDING"

    def values(self, shared: Shared) -> tuple[int, ...] | None:
        stream = shared.streams.receiving.get(self.stream_id)
        return None if stream is None or stream.stop_code is None else (self.stream_id, stream.stop_code)

    @staticmethod
    def arrived(inflow: Inflow, now: Instant, values: tuple[int, ...]) -> None:
        number, code = values
        if number == 0 or not inflow.opens(number):
            return
        shared = inflow.shared
        stream = shared.streams.sending.get(StreamId(number))
        if stream is not None and not stream.is_done and stream.reset_code is None:
            stream.reset(code)
            shared.owe(Reset(stream.stream_id))
            shared.events.append(StreamStopped(stream.stream_id, code))


OWED_FRAMES: Final[dict[int, type[OwedFrame]]] = {
    kind.TYPE: kind for kind in (Ping, MaxData, MaxStreams, MaxStreamData, Reset, StopSending)
}
