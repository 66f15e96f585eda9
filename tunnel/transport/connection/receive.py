"""Inbound flow of a connection, in the order a datagram goes through:

1. header: is it ours (channel, type, receiver index)?  else the batch goes back to the endpoint
2. opening, then the replay window: a forged number moves nothing; full datagrams that are numbered on are opened in one go, and
   what comes in many parts (a record) when it is whole
3. frames: a lone STREAM or DATAGRAM frame is the fast way, everything else goes through one loop
4. runs: consecutive bytes of one stream go to its sink as they lie, or are joined into one piece for it to keep
5. at the end of the batch: what arrived is noted for the ACK, the newest path is remembered

Whatever does not authenticate is counted and dropped here; it raises no further.  What an authenticated peer does wrong raises
PeerError, which ends the connection.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from cryptography.exceptions import InvalidTag

from tunnel.core.trace import Drops, Trace
from tunnel.errors import MalformedPacket, PeerError
from tunnel.transport.connection import tracing
from tunnel.transport.connection.carried import OWED_FRAMES, Ping, TracedFrame, stream_frame
from tunnel.transport.connection.events import DatagramsReceived, PathKind, PathProbed, PathValidated
from tunnel.transport.connection.inflow import Inflow
from tunnel.transport.connection.opening import ROOM, Opener, StreamRun
from tunnel.transport.connection.packets import PacketJoiner
from tunnel.transport.connection.reassembly import NOT_AUTHENTIC, REPLAYED, RecordOpener
from tunnel.transport.connection.records import PADDED, RECORD, RECORD_HEADER_SIZE
from tunnel.transport.connection.shared import Shared
from tunnel.transport.crypto.batch import nonce_of
from tunnel.transport.crypto.keys import Keypair
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import DATAGRAM_SIZE, PACKET_KEPT, STREAM, STREAM_SIZE, Frame
from tunnel.transport.packet.header import HEADER, HEADER_SIZE, SMALLEST_PROBE, TAG_SIZE, TRANSPORT
from tunnel.transport.packet.slots import Plains
from tunnel.transport.recovery.acks import MAX_ACK_DELAY
from tunnel.units import Instant, PathKey, Seconds, StreamId

MAX_UNREAD_DATAGRAM_BYTES: Final = 4 * 1024 * 1024  # bytes the application has not taken; the newest are dropped beyond
_unpack_stream = STREAM.unpack_from
_STREAM = int(Frame.STREAM)
_STREAM_FIN = int(Frame.STREAM_FIN)
_DATAGRAM = int(Frame.DATAGRAM)
_PACKET = int(Frame.PACKET)


class Receiver:
    """Opens batches.  One plaintext buffer serves all: streams keep joined copies, so nothing points into it afterwards."""

    def __init__(self, shared: Shared, plains: Plains | None = None) -> None:
        """`plains` is where batches are opened to, ROOM bytes, which others may use in turn; None: one of its own."""
        self._shared = shared
        self._opener = Opener(Plains(ROOM) if plains is None else plains)
        self._plain = self._opener.plains.view
        self._records = RecordOpener(shared.replay, shared.drops)
        self.packets = PacketJoiner(shared, self._opener.plains)
        self.inflow = Inflow(shared)
        self.peer_close: tuple[int, str] | None = None
        self.only_payload = False  # the last batch brought IP packets and whole packets of a stream's bytes, nothing else
        self._run = StreamRun(self._opener.plains)
        self._repeats: list[tuple[int, bytes]] = []  # of the batch at hand: a number, and frames that it had
        # for the trace, if there is one: what the batch at hand brought
        self._traced_runs: list[tuple[int, int]] = []
        self._traced_frames: list[TracedFrame] = []
        self._traced_drops = Drops()

    def handle_datagrams(self, now: Instant, key: PathKey, buffer: memoryview, start: int, stride: int, ecn: int) -> int:
        """Open the datagrams from `start` on, `stride` bytes each but the last; returns where the first foreign one begins.

        Raises PeerError.
        """
        shared = self._shared
        by_index = shared.keys.by_index
        plain = self._plain
        prefix = key.prefix
        skip = len(prefix)
        unpack = HEADER.unpack_from
        end = len(buffer)
        position = start
        keypair: Keypair | None = None
        index = -1
        at = 0  # in the plaintext buffer
        run_first, run_count, run_eliciting = 0, 0, False  # consecutive packet numbers that opened
        opened = payload = arrived = 0  # packets, those of them that only_payload means, and the bytes of all
        highest_before = known_highest = shared.replay.highest
        acted = False  # some frame other than probes arrived
        try:
            while position < end:
                stop = position + stride
                if stop > end:
                    stop = end
                head = position + skip
                sealed = head + HEADER_SIZE
                size = stop - sealed - TAG_SIZE
                if size < 0 or (skip and buffer[position:head] != prefix):
                    break
                kind, receiver, number = unpack(buffer, head)
                if receiver != index:
                    found = by_index.get(receiver)
                    if found is None:
                        break
                    keypair, index = found, receiver
                    unseal = found.receive.decrypt_into
                if keypair is None or (kind != TRANSPORT and kind != RECORD):
                    break
                if kind == RECORD:
                    if run_count and (buffer[sealed] or number != run_first + run_count):  # a late part's record began before
                        self._note(run_first, run_count, run_eliciting, now)
                        known_highest = shared.replay.highest
                        run_count = 0
                    if at + buffer[sealed + 1] * stride > len(plain):  # that byte says how many parts there are
                        self._flush_run(now)
                        self.packets.flush(now)
                        at = 0
                    taken, record = self._records.take(unseal, buffer, position, stride, skip, plain[at:])
                    position += min(taken * stride, end - position)
                    if record is not None:
                        first, count, size = record
                        eliciting, active, whole = self._plaintexts(now, key, at, size, 1, ecn)
                        if run_count and first == run_first + run_count:
                            run_count += count
                            run_eliciting |= eliciting
                        else:
                            if run_count:
                                self._note(run_first, run_count, run_eliciting, now)
                                known_highest = shared.replay.highest
                            run_first, run_count, run_eliciting = first, count, eliciting
                        opened += count
                        payload += whole * count
                        arrived += size + TAG_SIZE + count * (skip + RECORD_HEADER_SIZE)
                        heard = keypair
                        acted |= active
                        at += size
                    continue
                position = stop
                if at + size > len(plain):
                    self._flush_run(now)
                    self.packets.flush(now)
                    at = 0
                try:
                    unseal(nonce_of(number), buffer[sealed:stop], buffer[head:sealed], plain[at : at + size])
                except InvalidTag:
                    shared.drops[NOT_AUTHENTIC] += 1
                    continue
                if number == run_first + run_count and run_count and number > known_highest:
                    run_count += 1
                else:
                    if run_count:
                        self._note(run_first, run_count, run_eliciting, now)
                        known_highest = shared.replay.highest
                    if not shared.replay.check(number):
                        shared.drops[REPLAYED] += 1
                        run_count = 0
                        continue
                    run_first, run_count, run_eliciting = number, 1, False
                count = 1
                if number > known_highest and position < end:
                    count += self._opener.ahead(unseal, buffer, position, stride, prefix, index, number + 1, at + size)
                    run_count += count - 1
                    position += (count - 1) * stride
                opened += count
                arrived += stop - head + skip + (count - 1) * stride
                heard = keypair
                eliciting, active, whole = self._plaintexts(now, key, at, size, count, ecn)
                run_eliciting |= eliciting
                acted |= active
                payload += whole
                at += count * size
        except MalformedPacket as error:
            raise PeerError(f"the peer sent a frame that does not parse: {error}") from error
        finally:
            if run_count:
                self._note(run_first, run_count, run_eliciting, now)
        self._flush_run(now)
        self.packets.flush(now)
        if self._repeats:
            self._take_repeats(now)
        self.only_payload = payload == opened
        if shared.trace is not None:
            self._report(shared.trace, now, key, stride, (position - start - 1) % stride + 1)
        if opened:
            shared.stats.packets_received += opened
            shared.stats.received_bytes += arrived
            self._heard(now, key, heard, opened, acted and shared.replay.highest > highest_before)
        return position

    # 2

    def _report(self, trace: Trace, now: Instant, key: PathKey, size: int, last: int) -> None:
        runs, self._traced_runs = self._traced_runs, []
        found, self._traced_frames = self._traced_frames, []
        if runs:
            tracing.packets_received(trace, now, self._shared.paths.known.get(key), runs, (size, last), found)
        drops = self._shared.drops
        for reason in drops:
            if drops[reason] != self._traced_drops[reason]:
                tracing.packets_dropped(trace, now, reason, drops[reason] - self._traced_drops[reason])
                self._traced_drops[reason] = drops[reason]

    def _note(self, first: int, count: int, eliciting: bool, now: Instant) -> None:
        if self._shared.trace is not None:
            self._traced_runs.append((first, count))
        self._shared.replay.accept_run(first, count)
        self._shared.acks.on_packets(first, count, eliciting, now)

    # 3

    def _plaintexts(self, now: Instant, key: PathKey, at: int, size: int, count: int, ecn: int) -> tuple[bool, bool, int]:
        """Handle the frames of `count` packets of `size` bytes, which were opened to `at` and behind.

        Returns whether any is ack-eliciting, whether any was more than a probe, and how many carried an IP packet or a stream's
        bytes and nothing else.
        """
        plain, run = self._plain, self._run
        stop = at + count * size
        eliciting = active = False
        payload = 0
        while at < stop:
            end = at + size
            kind = plain[at]
            if kind == _PACKET:
                taken = self.packets.take(now, at, size, (stop - at) // size, ecn)
                payload += taken
                eliciting |= bool(plain[at + 1] & PACKET_KEPT)
                active = True
                at += taken * size
                continue
            if (kind == _STREAM or kind == _STREAM_FIN) and size >= STREAM_SIZE:
                _, stream, offset, length = _unpack_stream(plain, at)
                spare = size - STREAM_SIZE - length
                if not spare or (0 < spare <= len(PADDED) and plain[end - spare : end] == PADDED[:spare]):
                    if stream != run.stream or offset != run.end or run.fin:
                        self._flush_run(now)
                        run.begin(stream, offset)
                    run.fin = kind == _STREAM_FIN
                    eliciting = active = True
                    taken = run.take(at, size - spare, 1 if spare else (stop - at) // size)
                    payload += taken
                    at += taken * size
                    continue
            elif kind == _DATAGRAM and size >= DATAGRAM_SIZE:
                _, flow, _, _, pieces, length = frames.DATAGRAM.unpack_from(plain, at)
                if pieces == 1 and length == size - DATAGRAM_SIZE:
                    self._whole_datagram(flow, bytes(plain[at + DATAGRAM_SIZE : end]))
                    eliciting = active = True
                    at = end
                    continue
            asks, acts = self._frames(now, key, plain, at, end)
            eliciting |= asks
            active |= acts
            at = end
        return eliciting, active, payload

    # 4

    def _flush_run(self, now: Instant) -> None:
        """Give the gathered run to its stream."""
        run = self._run
        pieces = run.pieces
        if not pieces:
            return
        stream, offset, end, fin = run.stream, run.offset, run.end, run.fin
        run.begin(-1, 0)
        if self._shared.trace is not None:
            self._traced_frames.append(stream_frame(stream, offset, end - offset, fin))
        self.inflow.data(now, stream, offset, pieces, end, fin)

    # 3

    def _frames(self, now: Instant, key: PathKey, plain: memoryview, at: int, end: int) -> tuple[bool, bool]:
        """All frames of one packet.  Returns whether it is ack-eliciting, and whether it was more than a probe."""
        shared = self._shared
        eliciting = active = False
        may_answer = end - at >= SMALLEST_PROBE  # one challenge a packet: an answer is never longer than what asked for it
        ack: tuple[list[tuple[int, int]], float] | None = None  # settled behind the STREAM frame that follows it in the packet
        while at < end:
            kind = plain[at]
            if kind == Frame.PADDING:
                at = frames.skip_padding(plain, at, end)
                continue
            if kind == Frame.PATH_CHALLENGE:
                (_, data), at = _unpack(frames.PATH, plain, at, end)
                if not may_answer:
                    shared.drops["challenge not worth an answer"] += 1
                    continue
                may_answer = False
                shared.paths.respond(key, data)
                path = shared.paths.known.get(key)
                if path is None:
                    shared.events.append(PathProbed(key))
                elif path.kind is PathKind.RELAY and not path.validated:
                    path.verify(now)  # it did not answer, and now the peer is there
                continue
            if kind == Frame.PATH_RESPONSE:
                (_, data), at = _unpack(frames.PATH, plain, at, end)
                self._path_response(now, data)
                continue
            active = True
            if kind == Frame.ACK:
                ranges, delay, at = frames.decode_ack(plain, at, end)
                if self._is_for_sink(plain, at, end):
                    ack = ranges, delay
                else:
                    self._ack(now, ranges, delay)
                continue
            if kind == Frame.CLOSE:
                code, text, at = frames.decode_close(plain, at, end)
                self.peer_close = (code, text)
                continue
            eliciting = True
            if kind in (Frame.STREAM, Frame.STREAM_FIN):
                (_, number, offset, length), at = _unpack(frames.STREAM, plain, at, end)
                if length > end - at:
                    raise MalformedPacket("STREAM: cut short")
                self._flush_run(now)
                pieces = [plain[at : at + length]]
                self.inflow.data(now, number, offset, pieces, offset + length, kind == Frame.STREAM_FIN)
                at += length
                if ack is not None:
                    self._ack(now, *ack)
                    ack = None
            elif kind == Frame.REPEAT:
                (_, number, length), at = _unpack(frames.REPEAT, plain, at, end)
                if length > end - at:
                    raise MalformedPacket("REPEAT: cut short")
                self._repeats.append((number, bytes(plain[at : at + length])))
                at += length
            elif kind == Frame.DATAGRAM:
                (_, flow, identifier, index, count, length), at = _unpack(frames.DATAGRAM, plain, at, end)
                if length > end - at:
                    raise MalformedPacket("DATAGRAM: cut short")
                self._datagram(now, flow, identifier, index, count, bytes(plain[at : at + length]))
                at += length
            else:
                owed = OWED_FRAMES.get(kind)
                if owed is None:
                    raise MalformedPacket(f"unknown frame {kind:#04x}")
                values, at = _unpack(owed.LAYOUT, plain, at, end)
                self._flush_run(now)
                owed.arrived(self.inflow, now, values[1:])
        return eliciting, active

    def _is_for_sink(self, plain: memoryview, at: int, end: int) -> bool:
        """Return True if a STREAM frame for a stream with a sink stands here: a program waits for its bytes, so they go first."""
        if at + frames.STREAM_SIZE > end or plain[at] != _STREAM:
            return False
        stream = self._shared.streams.receiving.get(StreamId(frames.STREAM.unpack_from(plain, at)[1]))
        return stream is not None and stream.sink is not None

    def _datagram(self, now: Instant, flow: int, identifier: int, index: int, count: int, data: bytes) -> None:
        shared = self._shared
        whole = data
        if count != 1:
            rejoined = shared.rejoiner.add(now, flow, identifier, index, count, data)
            if rejoined is None:
                return
            whole = rejoined
        self._whole_datagram(flow, whole)

    def _whole_datagram(self, flow: int, whole: bytes) -> None:
        shared = self._shared
        if shared.received_datagram_bytes > MAX_UNREAD_DATAGRAM_BYTES:
            shared.drops["datagram not taken by the application"] += 1
            return
        if not shared.received_datagrams:
            shared.events.append(DatagramsReceived())
        shared.received_datagrams.append((flow, whole))
        shared.received_datagram_bytes += len(whole) + 64

    def _take_repeats(self, now: Instant) -> None:
        """Deliver what the batch brought once more and had not come.  Raises PeerError.

        Its number counts as seen then; it is not acknowledged, since the packet that had it did not come.
        """
        shared = self._shared
        repeats, self._repeats = self._repeats, []
        try:
            for number, body in repeats:
                if number > shared.replay.highest:
                    raise PeerError("the peer repeated a packet that it has not sent")
                if not shared.replay.accept(number):
                    shared.stats.duplicates += 1
                    continue
                shared.stats.repaired += 1
                self._repeated(now, memoryview(body))
        except MalformedPacket as error:
            raise PeerError(f"the peer sent a frame that does not parse: {error}") from error
        self.packets.flush(now)

    def _repeated(self, now: Instant, body: memoryview) -> None:
        """DATAGRAM frames, or one PACKET frame.  Raises MalformedPacket."""
        at, end = 0, len(body)
        if end and body[0] == _PACKET:
            self.packets.add(now, body, 0, end, 0)
            return
        while at < end:
            (kind, flow, identifier, index, count, length), at = _unpack(frames.DATAGRAM, body, at, end)
            if kind != _DATAGRAM or length > end - at:
                raise MalformedPacket("REPEAT: neither DATAGRAM frames nor a PACKET")
            self._datagram(now, flow, identifier, index, count, bytes(body[at : at + length]))
            at += length

    def _path_response(self, now: Instant, data: bytes) -> None:
        """A challenge of ours was answered; which path to use is chosen when the batch is done."""
        found = self._shared.paths.on_response(now, data)
        if found is None:
            self._shared.drops["stale path response"] += 1
            return
        path, rtt, news = found
        path.recovery.rtt.update(rtt, Seconds(0.0), now)
        if news or path is not self._shared.paths.current:
            self._shared.events.append(PathValidated(path.key, path.kind, rtt))

    def _ack(self, now: Instant, ranges: list[tuple[int, int]], delay: float) -> None:
        """Settle what the peer has, path by path.  Raises PeerError on an ACK of what was never sent (RFC 9000 §13.1, §21.4)."""
        shared = self._shared
        if shared.trace is not None:
            self._traced_frames.append(tracing.ack_frame(ranges, delay))
        if not shared.was_sent(ranges):
            raise PeerError("the peer acknowledged a packet that was never sent")
        shared.on_ack(ranges, now)
        ack_delay = Seconds(min(delay, MAX_ACK_DELAY))
        for path in shared.paths.known.values():
            recovery = path.recovery
            if path.pmtu.awaits(ranges):
                path.set_mtu(path.pmtu.on_probe_acked(now), now)
                shared.mtu_changed |= path is shared.paths.current
            if not recovery.bytes_in_flight and not len(recovery.ring):
                continue
            result = recovery.on_ack(ranges, ack_delay, now)
            for burst, mask in result.acked:
                shared.content_acked(burst.content, mask, burst.count)
                if path.in_doubt_since is not None and burst.sent_at >= path.in_doubt_since:
                    path.trust()
            for burst, mask in result.spurious:
                shared.content_acked(burst.content, mask, burst.count)
            for burst, mask in result.lost:
                shared.content_lost(burst.content, mask, burst.count)
            if (result.lost or path.large_losses) and path.weigh(result.acked, result.lost, now):
                shared.mtu_changed |= path is shared.paths.current
            if result.acked:
                path.on_acked(now)
                path.pacer.set_rate(recovery.pacing_rate(), now)
            if shared.trace is not None and (result.acked or result.lost):
                tracing.settled(shared.trace, now, path, result.lost)
        pruned = shared.unacknowledged_acks
        while pruned and pruned[0][0] <= ranges[0][1]:
            number, largest = pruned.popleft()
            if any(low <= number <= high for low, high in ranges):
                shared.acks.prune(largest - 2048)

    # 5

    def _heard(self, now: Instant, key: PathKey, keypair: Keypair, opened: int, newest: bool) -> None:
        shared = self._shared
        shared.last_heard = now
        if shared.keys.authenticated(keypair, now, opened):
            shared.owe(Ping())
            if shared.trace is not None:
                tracing.keys_updated(shared.trace, now, keypair)
        path = shared.paths.known.get(key)
        if path is None:
            if newest:  # a path we do not know yet: never trusted, but worth a challenge
                shared.events.append(PathProbed(key))
            return
        path.last_heard = now
        if newest and not path.validated:
            path.verify(now)  # it failed, yet the peer comes from there
        if newest and path is not shared.paths.answering:
            shared.paths.answering = path
            if path is not shared.paths.current and path.kind is PathKind.RELAY:
                shared.paths.current.verify(now)  # the peer left our path: does it still work?


def _unpack(layout: Struct, plain: memoryview, at: int, end: int) -> tuple[tuple[Any, ...], int]:
    after = at + layout.size
    if after > end:
        raise MalformedPacket("a frame is cut short")
    return layout.unpack_from(plain, at), after
