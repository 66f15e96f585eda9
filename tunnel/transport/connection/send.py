"""Outbound flow of a connection, in the order a datagram goes through:

1. probes (PATH_CHALLENGE, PATH_RESPONSE): where they are asked for, past window and pacer
2. an ACK alone, on the path the newest data came from, when that is not the one we send on
3. how much may leave: window and pacer of the current path, or a probe that a timeout earned
4. filling: a mixed packet (ACK, owed frames, small things), then a burst of equal datagrams of one stream or of DATAGRAMs
5. sealing, straight into the caller's buffer (a burst of a stream's bytes in bursts.py); one entry in the ring for the burst

The functions stand in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tunnel.transport.connection import tracing
from tunnel.transport.connection.bursts import StreamSealer
from tunnel.transport.connection.carried import BulkRun, Carried, Ping, StreamChunk
from tunnel.transport.connection.paths import Path
from tunnel.transport.connection.records import record_step, split
from tunnel.transport.connection.repeats import MOST_IN_ONE
from tunnel.transport.connection.shared import Shared
from tunnel.transport.crypto.batch import nonce_of
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import DATAGRAM_SIZE, STREAM_SIZE, Frame
from tunnel.transport.packet.header import CALL_ROOM, HEADER_SIZE, SMALLEST_PROBE, TAG_SIZE, TRANSPORT, segments_a_call
from tunnel.transport.recovery.sent import SentBurst
from tunnel.transport.stream.streams import CONTROL_STREAM, QUANTUM
from tunnel.units import Instant, PathKey, Transmit

_ACK_ROOM: Final = frames.ack_size(frames.MAX_ACK_RANGES + 1)
_HEADER_AND_DATAGRAM = frames.HEADER_AND_DATAGRAM

#: Records are used only where at least so many fit into one quantum of the pacer (2 ms).  On slower links the ACKs of whole
#: records came in lumps, which lengthened queues.
MIN_RECORDS_PER_QUANTUM: Final = 4


class Sender:
    """Fills one buffer a call with one burst for one address."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.blocked = False  # something waits for the window or the pacer of the current path
        self.pacing_until: Instant | None = None
        self.has_sent_all = False  # nothing is left behind the burst that poll_transmit returned last
        self._sealer = StreamSealer()
        self._datagrams_ahead = 0  # bytes that datagrams sent while streams waited
        self._pace_of = (-1, 0, 0)  # path, ACKs and streams by which the scheduler's pace was set: nothing else moves it by much

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        """The next burst, or None.  `out` has room for that of one or several calls, CALL_ROOM bytes each, and is overwritten."""
        view = memoryview(out)
        shared = self._shared
        self.pacing_until = None
        self.blocked = self.has_sent_all = False
        if shared.paths.probes:
            return self._probe(now, view)
        paths = shared.paths
        current = paths.current
        if paths.answering is not current and shared.acks.due(now):
            size = self._mixed(now, paths.answering, view, 0, may_send=False)
            if size:
                return Transmit(paths.answering.key.socket_id, paths.answering.key.remote, size, view[:size])
        owing: Path | None = None
        for path in paths.known.values():
            if path.probes_owed:
                owing = path
                if path is not current:  # what is repeated goes there first: the current path has just swallowed it
                    break
        if owing is not None:
            owing.probes_owed -= 1
            size = self._mixed(now, owing, view, 0, may_send=True, must_elicit=True)
            return Transmit(owing.key.socket_id, owing.key.remote, size, view[:size])
        if shared.repair.is_at_work:
            while (frame := shared.repair.next_frame(now)) is not None:
                if (again := self._again(now, current, view, frame)) is not None:
                    return again
            if shared.repair.takes_ping(now):
                shared.owe(Ping())
        if shared.owes_large_ping:
            shared.owes_large_ping = False
            return self._large_ping(now, current, view)
        probe = current.pmtu.next_probe(now, current.recovery.rtt.smoothed_rtt)
        if probe is not None:
            return self._mtu_probe(now, current, view, probe)
        return self._burst(now, current, view)

    # 1

    def _probe(self, now: Instant, view: memoryview) -> Transmit:
        probe = self._shared.paths.probes.popleft()
        start = len(probe.key.prefix) + HEADER_SIZE
        kind = Frame.PATH_CHALLENGE if probe.is_challenge else Frame.PATH_RESPONSE
        frames.PATH.pack_into(view, start, kind, probe.data)
        position = start + frames.PATH.size
        view[position : start + SMALLEST_PROBE] = bytes(start + SMALLEST_PROBE - position)
        size = self._seal(probe.key, view, 0, start + SMALLEST_PROBE)
        self._shared.losses.leave_out(self._shared.next_number - 1)
        path = self._shared.paths.known.get(probe.key)
        if path is not None:
            path.last_sent = now
        if self._shared.trace is not None:
            frame = "path_challenge" if probe.is_challenge else "path_response"
            tracing.packet_sent(self._shared.trace, now, path, self._shared.next_number - 1, size, frame)
        return Transmit(probe.key.socket_id, probe.key.remote, size, view[:size], probe.ttl)

    def _mtu_probe(self, now: Instant, path: Path, view: memoryview, size: int) -> Transmit:
        """A PING padded to `size` bytes of UDP payload.  Neither in flight nor in the ring: its loss means something else."""
        start = len(path.key.prefix) + HEADER_SIZE
        end = size - TAG_SIZE
        view[start:end] = bytes(end - start)
        view[start] = Frame.PING
        self._seal(path.key, view, 0, end)
        self._shared.losses.leave_out(self._shared.next_number - 1)
        path.pmtu.on_probe_sent(self._shared.next_number - 1)
        path.last_sent = now
        if self._shared.trace is not None:
            tracing.packet_sent(self._shared.trace, now, path, self._shared.next_number - 1, size, "ping")
        return Transmit(path.key.socket_id, path.key.remote, size, view[:size])

    def _large_ping(self, now: Instant, path: Path, view: memoryview) -> Transmit:
        """A PING as large as the path carries: it tells for IP packets, which nobody acknowledges, that large ones pass."""
        start = len(path.key.prefix) + HEADER_SIZE
        end = path.mtu - TAG_SIZE
        view[start:end] = bytes(end - start)
        view[start] = Frame.PING
        size = self._seal(path.key, view, 0, end)
        self._account(now, path, 1, size, size, None, eliciting=True)
        return Transmit(path.key.socket_id, path.key.remote, size, view[:size])

    def _again(self, now: Instant, path: Path, view: memoryview, frame: bytes) -> Transmit | None:
        """An IP packet that was lost; past window and pacer, as it was before."""
        start = len(path.key.prefix) + HEADER_SIZE
        if len(frame) > path.capacity or self._relay_forbidden(path):
            self._shared.drops["lost packet left to its flow"] += 1
            return None
        view[start : start + len(frame)] = frame
        size = self._seal(path.key, view, 0, start + len(frame))
        path.last_sent = now
        return Transmit(path.key.socket_id, path.key.remote, size, view[:size])

    def close_packet(self, out: bytearray, code: int, text: str) -> Transmit:
        """A CLOSE on the current path; not acknowledged, the caller repeats it to whoever still talks."""
        view = memoryview(out)
        key = self._shared.paths.current.key
        start = len(key.prefix) + HEADER_SIZE
        body = frames.encode_close(code, text)
        view[start : start + len(body)] = body
        size = self._seal(key, view, 0, start + len(body))
        return Transmit(key.socket_id, key.remote, size, view[:size])

    # 3, 4

    def _burst(self, now: Instant, path: Path, view: memoryview) -> Transmit | None:
        shared = self._shared
        mtu = path.mtu
        wants = self._wants(now, path)
        ack_due = shared.acks.due(now)
        if not wants:
            path.recovery.on_app_limited(now)
            if not ack_due:
                return None
            # Who only receives has nothing else that the peer would acknowledge.
            asks = shared.acks.wants_pruning and path.recovery.bytes_in_flight < path.recovery.congestion.window
            size = self._mixed(now, path, view, 0, may_send=asks)
            self.has_sent_all = True
            return Transmit(path.key.socket_id, path.key.remote, size, view[:size]) if size else None
        room = path.recovery.inflight_limit(shared.peer_receive_buffer) - path.recovery.bytes_in_flight
        if room >= mtu:
            paced = path.pacer.budget(now)
            if paced < mtu:
                room = 0
                self.pacing_until = path.pacer.next_at(now, path.pacer.quantum)
            elif paced < room:
                room = paced
        if room < mtu:
            self.blocked = True
            shared.datagrams.drop_stale(now)
            if shared.repeats.waiting:
                shared.repeats.on_blocked(now, shared.next_number)
            if not ack_due:
                return None
            size = self._mixed(now, path, view, 0, may_send=False)
            return Transmit(path.key.socket_id, path.key.remote, size, view[:size]) if size else None

        position = 0
        segments = min(room // mtu, len(view) // CALL_ROOM * segments_a_call(mtu))
        enough = segments * mtu // 2
        if ack_due or shared.owed or shared.acks.owes or self._has_copies(now):
            position = self._mixed(now, path, view, 0, may_send=True)
            if position != mtu or segments == 1:
                self._look_behind(now, path)
                return Transmit(path.key.socket_id, path.key.remote, position, view[:position]) if position else None
            segments -= 1
        first = mtu if position else 0
        if shared.datagrams and not self._relay_forbidden(path) and not self._streams_first():
            end, first = self._datagram_burst(now, path, view, position, segments, first)
        else:
            end = self._stream_burst(now, path, view, position, segments)
            first = mtu
            if end == position:  # too little for a burst of one stream: several small things in one packet
                end += self._mixed(now, path, view, position, may_send=True)
                first = first if position else end
        if end == 0:
            return None
        if end <= enough:  # most likely all there was; behind more there is mostly more, and the next call looks
            self._look_behind(now, path)
        return Transmit(path.key.socket_id, path.key.remote, first, view[:end])

    def _look_behind(self, now: Instant, path: Path) -> None:
        """Is anything left behind this burst?  The answer spares a call that would find nothing."""
        self.has_sent_all = not self._wants(now, path)
        if self.has_sent_all:
            path.recovery.on_app_limited(now)

    def _wants(self, now: Instant, path: Path) -> bool:
        """Whether anything waits that window and pacer may hold back."""
        shared = self._shared
        if shared.owed:
            return True
        if shared.datagrams:
            if not self._relay_forbidden(path):
                return True
            shared.datagrams.drop_stale(now)
        if self._has_copies(now):
            if not self._relay_forbidden(path):
                return True
            shared.repeats.drop_due(now, shared.next_number)
        stream = shared.streams.head()
        if stream is None:
            return False
        return not self._relay_forbidden(path) or shared.streams.sending[CONTROL_STREAM].has_work()

    def _has_copies(self, now: Instant) -> bool:
        shared = self._shared
        return bool(shared.repeats.waiting) and shared.repeats.is_due(now, shared.next_number)

    def _relay_forbidden(self, path: Path) -> bool:
        return not self._shared.paths.carries(path)

    def _streams_first(self) -> bool:
        """Datagrams go before streams, until they have had a QUANTUM more than streams that wait too."""
        return self._datagrams_ahead >= QUANTUM and self._shared.streams.head() is not None

    def _stream_burst(self, now: Instant, path: Path, view: memoryview, position: int, segments: int) -> int:
        """Fill equal datagrams with bytes of the stream whose turn it is; returns the end, `position` if there is too little."""
        shared = self._shared
        scheduler = shared.streams.scheduler
        pace_of = path.number, path.recovery.rtt.samples, len(shared.streams.sending)
        if pace_of != self._pace_of:
            self._pace_of = pace_of
            ring_limit = shared.streams.ring_limit(path.recovery.inflight_limit(shared.peer_receive_buffer))
            scheduler.set_pace(path.pacer.quantum, ring_limit)
        stream = shared.streams.head()
        if stream is None or self._relay_forbidden(path):
            return position
        prefix, mtu = path.key.prefix, path.mtu
        step = path.capacity - STREAM_SIZE
        record_parts = min(shared.peer_record_parts, path.pacer.quantum // (MIN_RECORDS_PER_QUANTUM * mtu))
        wide = record_step(mtu - len(prefix)) if record_parts and shared.next_number >= shared.records_from else 0
        segments = min(segments, -(-scheduler.allowance(stream) // step))
        credit = shared.streams.send_credit
        offset, length, fin, new = stream.next_range(segments * max(step, wide), credit.available)
        if length < step:
            return position
        records, parts = split(length // wide, mtu, record_parts) if new and wide else (0, 0)
        if records:
            segments, step = records * parts, wide
        length, before = min(length, segments * step), length
        if new:
            length -= length % step  # leave the short tail for a packet that it shares with others
            credit.used += length
        fin &= length == before
        count = -(-length // step)
        run = BulkRun(stream, offset, length, step, fin)
        last = mtu - (count * step - length)
        at = position + (count - 1) * mtu + last
        keypair, number = shared.keys.current, shared.take_numbers(count, at - position)
        if records:
            self._sealer.records(keypair, number, prefix, view, mtu, position, run, records, parts)
        else:
            self._sealer.packets(keypair, number, prefix, view, mtu, position, run, count)
        stream.mark_sent(offset, length, fin, new)
        scheduler.charge(stream, length)
        if self._datagrams_ahead:
            self._datagrams_ahead = max(0, self._datagrams_ahead - length)
        self._account(now, path, count, mtu, last, run, eliciting=True)
        return at

    def _datagram_burst(
        self, now: Instant, path: Path, view: memoryview, position: int, segments: int, size: int
    ) -> tuple[int, int]:
        """Fill datagrams with queued DATAGRAMs, one each while they are of one size; returns the end and the segment size.

        The other hot loop.
        """
        shared = self._shared
        queue = shared.datagrams
        room = path.capacity - DATAGRAM_SIZE
        if size and queue.head_size() < room:
            segments = 1  # shorter than what stands before it: the last of its burst
        run = queue.take_run(segments, room // 2, room)  # two smaller ones share a packet
        if not run:
            if queue and position == 0:
                position = size = self._mixed(now, path, view, 0, may_send=True)
            return position, size
        prefix = path.key.prefix
        keypair = shared.keys.current
        receiver = keypair.remote_index
        seal = keypair.send.encrypt_into
        pack = _HEADER_AND_DATAGRAM.pack_into
        kind = Frame.DATAGRAM.value
        skip = len(prefix)
        body = HEADER_SIZE + DATAGRAM_SIZE
        at = position
        count = len(run)
        payload = sum(len(fragment[4]) for fragment in run)
        number = shared.take_numbers(count, count * (skip + body + TAG_SIZE) + payload)
        for flow, identifier, index, total, data in run:
            if skip:
                view[at : at + skip] = prefix
                at += skip
            length = len(data)
            pack(view, at, TRANSPORT, receiver, number, kind, flow, identifier, index, total, length)
            start = at + body
            end = start + length
            view[start:end] = data
            sealed = at + HEADER_SIZE
            seal(nonce_of(number), view[sealed:end], view[at:sealed], view[sealed : end + TAG_SIZE])
            at = end + TAG_SIZE
            number += 1
        first = skip + body + len(run[0][4]) + TAG_SIZE
        self._account(now, path, count, first, at - position - (count - 1) * first, None, eliciting=True)
        self._datagram_sent(payload)
        return at, size or first

    def _mixed(
        self, now: Instant, path: Path, view: memoryview, position: int, *, may_send: bool, must_elicit: bool = False
    ) -> int:
        """One packet of everything small, at `position`; returns its size, 0 if there was nothing to say.

        Without `may_send` it is an ACK only.  `must_elicit` adds a PING if nothing else asks for an answer.
        """
        shared = self._shared
        start = at = position + len(path.key.prefix) + HEADER_SIZE
        limit = start + path.capacity
        largest = -1
        ranges: list[tuple[int, int]] = []
        if shared.acks.largest >= 0 and (shared.acks.owes or shared.acks.due(now)):
            ranges = shared.acks.build_ranges()
            at = frames.encode_ack(view, at, ranges, shared.acks.ack_delay(now), min(_ACK_ROOM, limit - at))
            largest = ranges[0][1]
            shared.acks.on_ack_sent(now, shared.paths.answering.recovery.rtt.min_rtt)
        items: list[Carried] = []
        eliciting = False
        repeated = b""  # the DATAGRAM frames, if they are to be sent once more
        if may_send:
            before = at
            at = self._owed_frames(view, at, limit, items)
            if self._streams_first():
                at = self._stream_chunks(path, view, at, limit, items)
            if not self._relay_forbidden(path):
                first = at
                at = self._small_datagrams(view, at, limit)
                if at > first and shared.repeats.is_on:
                    repeated = bytes(view[first:at])
                if shared.repeats.waiting:
                    at = shared.repeats.write(now, view, at, limit, shared.next_number)
            at = self._stream_chunks(path, view, at, limit, items)
            if (at == before and must_elicit) or (shared.acks.wants_pruning and at == before and largest >= 0):
                view[at] = Frame.PING
                at += 1
            eliciting = at > before
        if at == start:
            return 0
        size = self._seal(path.key, view, position, at)
        if largest >= 0 and eliciting:
            shared.unacknowledged_acks.append((shared.next_number - 1, largest))
            shared.acks.on_asked()
        if repeated:
            shared.repeats.add(now, shared.next_number - 1, repeated)
        self._account(now, path, 1, size, size, items or None, eliciting=eliciting, ack=ranges)
        return size

    def _owed_frames(self, view: memoryview, at: int, limit: int, items: list[Carried]) -> int:
        shared = self._shared
        for frame in list(shared.owed):
            if at + frame.LAYOUT.size > limit:
                break
            del shared.owed[frame]
            values = frame.values(shared)
            if values is not None:
                frame.LAYOUT.pack_into(view, at, frame.TYPE, *values)
                at += frame.LAYOUT.size
                items.append(frame)
        return at

    def _small_datagrams(self, view: memoryview, at: int, limit: int) -> int:
        queue, first = self._shared.datagrams, at
        if self._shared.repeats.is_on:  # what is sent twice fits into one copy
            limit = min(limit, max(first + MOST_IN_ONE, first + DATAGRAM_SIZE + queue.head_size())) if queue else limit
        while queue and at + DATAGRAM_SIZE + queue.head_size() <= limit:
            fragment = queue.next_fragment(queue.head_size())
            if fragment is None:
                continue
            flow, identifier, index, total, data = fragment
            frames.DATAGRAM.pack_into(view, at, Frame.DATAGRAM, flow, identifier, index, total, len(data))
            at += DATAGRAM_SIZE
            view[at : at + len(data)] = data
            at += len(data)
            self._datagram_sent(len(data))
        return at

    def _datagram_sent(self, size: int) -> None:
        if self._shared.streams.head() is not None:
            self._datagrams_ahead = min(self._datagrams_ahead + size, 2 * QUANTUM)
        else:
            self._datagrams_ahead = 0

    def _stream_chunks(self, path: Path, view: memoryview, at: int, limit: int, items: list[Carried]) -> int:
        streams = self._shared.streams
        only_control = self._relay_forbidden(path)
        while limit - at > STREAM_SIZE:
            stream = streams.head()
            if only_control:
                stream = streams.sending[CONTROL_STREAM]
                if not stream.has_work():
                    break
            if stream is None:
                break
            offset, length, fin, new = stream.next_range(limit - at - STREAM_SIZE, streams.send_credit.available)
            if not length and not fin:
                break
            kind = Frame.STREAM_FIN if fin else Frame.STREAM
            frames.STREAM.pack_into(view, at, kind, stream.stream_id, offset, length)
            at += STREAM_SIZE
            if length:
                stream.copy_to(view, at, offset, length)
                at += length
            stream.mark_sent(offset, length, fin, new)
            if new:
                streams.send_credit.used += length
            if not only_control:
                streams.scheduler.charge(stream, length + STREAM_SIZE)
            self._datagrams_ahead = max(0, self._datagrams_ahead - length - STREAM_SIZE)
            items.append(StreamChunk(stream, offset, length, fin))
        return at

    # 5

    def _seal(self, key: PathKey, view: memoryview, position: int, end: int) -> int:
        """Seal the frames that end at `end` of the datagram that begins at `position`; returns the datagram's size."""
        prefix = key.prefix
        return self._shared.seal(prefix, view, position, view[position + len(prefix) + HEADER_SIZE : end]) - position

    def _account(
        self,
        now: Instant,
        path: Path,
        count: int,
        size: int,
        last: int,
        content: object,
        *,
        eliciting: bool,
        ack: Sequence[tuple[int, int]] = (),
    ) -> None:
        """File the burst that was just sealed; its packets have the last numbers that were taken."""
        shared = self._shared
        path.last_sent = now
        if path is not shared.paths.current:
            shared.losses.leave_out(shared.next_number - count)  # all of them is one packet there
        if shared.trace is not None:
            tracing.packets_sent(shared, now, path.number, shared.next_number - count, count, (size, last), content, ack)
        if not eliciting:
            return
        burst = SentBurst(shared.next_number - count, count, size, last, now, content, path=path.number)
        path.recovery.on_sent(burst, now)
        if path.unanswered_since is None:
            path.unanswered_since = now
        path.pacer.consume(burst.total)
