"""Loss detection of one path (RFC 9002 §6, Appendices A and B): what arrived, what is lost, when to probe.

Packet numbers are shared by all paths of a connection, so distance is counted in packets of this path (`ordinal`).
A path's bursts are sent in order, hence whatever is lost is a prefix of what is outstanding: a cursor suffices.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tunnel.transport.recovery.acks import MAX_ACK_DELAY
from tunnel.transport.recovery.congestion import INITIAL_WINDOW_PACKETS, CongestionController
from tunnel.transport.recovery.news import AckNews
from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.reordering import Reordering, is_persistent
from tunnel.transport.recovery.rtt import INITIAL_RTT, RttEstimator
from tunnel.transport.recovery.sent import Marked, SentBurst, SentRing
from tunnel.units import Instant, Seconds

PERSISTENT_CONGESTION_THRESHOLD: Final = 3  # kPersistentCongestionThreshold, RFC 9002 §7.6.1
PROBES: Final = 2  # packets per probe timeout, RFC 9002 §6.2.4
LOST_MEMORY_PTOS: Final = 2  # probe timeouts since sending for which a lost burst may still turn out spurious
LOST_MEMORY_BURSTS: Final = 256  # settled bursts kept for that, at most
MAX_PTO_INTERVAL: Final = Seconds(4.0)  # the doubling stops here (or at one PTO, if that is longer): paths must be tried
MAX_UNCOUNTED_BURSTS: Final = 1024  # bursts not in flight (ACKs, checks) that are remembered while nobody acknowledges
FLIGHT_BDPS: Final = 2  # bandwidth-delay products allowed above the peer's buffer: one on the way, one to grow
SHORTEST_SAMPLE: Final = 0.000_001  # seconds: a clock may not have moved between sending and the ACK


class AckResult(NamedTuple):
    """The result of one ACK frame for this path.  All lists are in the order sent."""

    acked: list[Marked]
    lost: list[Marked]
    spurious: list[Marked]  # arrived after all: were given out as lost before; not in `acked`


class TimeoutResult(NamedTuple):
    """The result of a timer that ran out: `probes` ack-eliciting packets to send at once, past window and pacer."""

    lost: list[Marked]
    probes: int


class Recovery:
    """Round trip, losses, window and delivery rate of one path; it knows only the bursts sent on that path."""

    __slots__ = (
        "_eliciting",
        "_event",
        "_event_losses",
        "_largest",
        "_last_eliciting_at",
        "_lost_until",
        "_max_ack_delay",
        "_mss",
        "_news",
        "_peak",
        "_peak_before",
        "_rate",
        "_reordering",
        "_round_end",
        "_sent",
        "_uncounted",
        "bytes_in_flight",
        "congestion",
        "loss_deadline",
        "pto_count",
        "ring",
        "rtt",
    )

    def __init__(
        self,
        now: Instant,
        congestion: CongestionController,
        *,
        datagram_size: int = 1200,
        initial_rtt: Seconds = INITIAL_RTT,
        max_ack_delay: Seconds = MAX_ACK_DELAY,
    ) -> None:
        """`max_ack_delay` is the peer's; `initial_rtt` may be what validating the path took."""
        self.rtt = RttEstimator(initial_rtt)
        self.congestion = congestion
        self.ring = SentRing()
        self.bytes_in_flight = 0
        self.pto_count = 0
        self.loss_deadline: Instant | None = None
        self._mss = datagram_size
        self._max_ack_delay = max_ack_delay
        self._rate = DeliveryRate(now)
        self._sent = 0  # packets sent on this path: the next burst's ordinal
        self._largest = -1  # ordinal of the largest acknowledged packet
        self._eliciting = 0  # packets outstanding that are ack-eliciting and in flight
        self._uncounted = 0  # bursts appended that are not in flight and have something outstanding
        self._last_eliciting_at = now  # when one was sent last, or a probe timeout fired
        self._news = AckNews()
        self._reordering = Reordering()
        self._event = 0  # number of the latest congestion event, and its losses not yet refuted
        self._event_losses = 0
        self._lost_until = -1  # the ordinal behind the last packet declared lost
        self._round_end = 0  # ordinal that ends this round trip; most bytes in flight in it and in the one before
        self._peak = 0
        self._peak_before = 0

    # What the connection tells

    def on_sent(self, burst: SentBurst, now: Instant) -> None:
        """`burst` has just been handed to the socket.  Its packet numbers are higher than any before."""
        ring = self.ring
        if burst.in_flight:
            in_flight = self.bytes_in_flight
            self._rate.on_sent(burst, now, in_flight == 0)
            self.bytes_in_flight = burst.flight = in_flight = in_flight + burst.total
            if in_flight > self._peak:
                self._peak = in_flight
            if burst.ack_eliciting:
                self._eliciting += burst.count
                self._last_eliciting_at = now
            self.congestion.on_sent(burst.total, now)
        elif self._uncounted >= MAX_UNCOUNTED_BURSTS:
            # A peer that never acknowledges our ACKs must not grow our memory: the oldest such burst makes room.
            bursts = ring.bursts
            if bursts[ring.base].in_flight:
                return
            bursts[ring.base].outstanding = 0
            ring.settle()
            ring.reclaim(now, LOST_MEMORY_BURSTS)
        else:
            self._uncounted += 1
        burst.ordinal = self._sent
        self._sent += burst.count
        ring.append(burst)

    def on_ack(self, ranges: list[tuple[int, int]], ack_delay: Seconds, now: Instant) -> AckResult:
        """An ACK frame came, with `ranges` (low, high inclusive, highest first) over all paths of the connection.

        The caller has checked that the highest was ever sent.  Cost: what is new in the frame, not what it repeats.
        Source: RFC 9002 §A.7, §B.5.
        """
        ring = self.ring
        acked: list[Marked] = []
        spurious: list[Marked] = []
        bursts = ring.bursts
        fresh = self._news.take(ranges, ring.firsts[ring.head]) if ring.head < len(bursts) and ranges else []
        if not fresh:
            return AckResult(acked, [], spurious)
        length = len(bursts)
        arrived = useful = eliciting = 0
        for low, high in reversed(fresh):
            index = ring.index_from(low)
            while index < length:
                burst = bursts[index]
                index += 1
                first = burst.first
                if first > high:
                    break
                mask, late = burst.outstanding, burst.lost
                if first < low or first + burst.count > high + 1:
                    cover = burst.mask(low, high)
                    mask &= cover
                    late &= cover
                if mask:
                    burst.outstanding ^= mask
                    acked.append((burst, mask))
                    number = mask.bit_count()
                    if burst.in_flight:
                        size = burst.total if number == burst.count else burst.bytes_of(mask)
                        arrived += size
                        if not burst.app_limited:
                            useful += size
                        if burst.ack_eliciting:
                            eliciting += number
                    elif not burst.outstanding:
                        self._uncounted -= 1
                if late:
                    burst.lost ^= late
                    spurious.append((burst, late))
        if spurious:
            self._on_spurious(spurious, now)
        if not acked:
            return AckResult(acked, [], spurious)

        newest, mask = acked[-1]
        top_bit = mask.bit_length() - 1
        if newest.ordinal + top_bit > self._largest:
            self._largest = newest.ordinal + top_bit
        if (eliciting or newest.ack_eliciting) and (newest.first + top_bit == ranges[0][1] or self.rtt.samples == 0):
            sample = Seconds(max(now - newest.sent_at, SHORTEST_SAMPLE))
            self.rtt.update(sample, min(ack_delay, self._max_ack_delay), now)
        ring.settle()
        lost = self.detect_lost(now)
        if arrived:
            self._on_arrived(newest, arrived, useful, now)
        if eliciting:
            self._eliciting -= eliciting
            self.pto_count = 0
        return AckResult(acked, lost, spurious)

    def on_timeout(self, now: Instant) -> TimeoutResult:
        """The deadline may have come: losses by time, else probes.  Harmless when called early.  RFC 9002 §A.9."""
        if self.loss_deadline is not None:
            return TimeoutResult(self.detect_lost(now) if now >= self.loss_deadline else [], 0)
        deadline = self.pto_deadline
        if deadline is None or now < deadline:
            return TimeoutResult([], 0)
        self.pto_count += 1
        self._last_eliciting_at = now  # should the caller have nothing to probe with, the next turn is a whole PTO away
        return TimeoutResult([], PROBES)

    def on_heard_again(self) -> None:
        """The peer was silent and is back: the probe timeout is not doubled any more, so a probe is due at once if any was."""
        self.pto_count = 0

    def on_app_limited(self, now: Instant) -> None:
        """The application has nothing more to send although the window has room.  Call it whenever that is so."""
        if self.bytes_in_flight < self.congestion.window:
            self._rate.app_limited_until = self._rate.delivered + self.bytes_in_flight + 1
            self.congestion.on_app_limited(now)

    def set_datagram_size(self, size: int) -> None:
        """The path carries datagrams of another size now."""
        self._mss = size
        self.congestion.on_datagram_size(size)

    def discard(self, now: Instant) -> list[Marked]:
        """The path is abandoned: forget all, returning everything outstanding as lost.  Congestion is not told."""
        lost = [(burst, burst.outstanding) for burst in self.ring]
        for burst, _ in lost:
            burst.outstanding = 0
        self.ring.clear()
        self.bytes_in_flight = self._eliciting = self._uncounted = 0
        self.loss_deadline = None
        self.pto_count = 0
        return lost

    # What the connection asks

    @property
    def pto_deadline(self) -> Instant | None:
        """When silence earns a probe; None with nothing ack-eliciting in flight.  RFC 9002 §6.2.1."""
        if self._eliciting == 0:
            return None
        pto = self.rtt.pto(self._max_ack_delay)
        if self.pto_count:
            pto = max(pto, min(Seconds(pto * (1 << min(self.pto_count, 16))), MAX_PTO_INTERVAL))
        return Instant(self._last_eliciting_at + pto)

    def poll_timeout(self) -> Instant | None:
        """When to call `on_timeout`."""
        return self.pto_deadline if self.loss_deadline is None else self.loss_deadline

    def oldest_outstanding(self, count: int) -> list[Marked]:
        """Up to `count` of the oldest bursts in flight with something outstanding: what a probe had best repeat."""
        found: list[Marked] = []
        for burst in self.ring:
            if burst.in_flight:
                found.append((burst, burst.outstanding))
                if len(found) >= count:
                    break
        return found

    def inflight_limit(self, receive_buffer: int) -> int:
        """Bytes that may be in flight: the window, but no more than the peer's socket can hold while it is being drained.

        `receive_buffer` is the payload the peer's socket holds (the kernel counts its own overhead: about half of SO_RCVBUF).
        """
        window = self.congestion.window
        limit = receive_buffer + int(FLIGHT_BDPS * self._rate.value * self.rtt.min_rtt)
        floor = INITIAL_WINDOW_PACKETS * self._mss  # a peer that claims to hold nothing is still spoken to
        return min(window, max(limit, floor))

    def pacing_rate(self) -> float:
        """Bytes a second for the pacer."""
        return self.congestion.pacing_rate(self.rtt)

    @property
    def loss_delay(self) -> Seconds:
        """How long after sending a packet is lost, once a later one was acknowledged.  RFC 9002 §6.1.2."""
        return self._reordering.loss_delay(self.rtt)

    @property
    def packet_threshold(self) -> int:
        """How many later packets must be acknowledged for one to be lost; grows with the reordering seen."""
        return self._reordering.packet_threshold

    def detect_lost(self, now: Instant) -> list[Marked]:
        """Declare lost what is lost by now, tell congestion control, and set `loss_deadline` for what may be soon.

        Source: RFC 9002 §A.10.  Losses are a prefix of what is outstanding: the first survivor ends the search.
        """
        self.loss_deadline = None
        ring = self.ring
        bursts, base = ring.bursts, ring.base
        largest = self._largest
        lost: list[Marked] = []
        if base < len(bursts) and bursts[base].ordinal < largest:
            delay = self._reordering.loss_delay(self.rtt)
            sure = largest - self._reordering.packet_threshold + 1  # ordinals below this are lost by distance
            for index in range(base, len(bursts)):
                burst = bursts[index]
                outstanding = burst.outstanding
                if not outstanding:
                    continue
                ordinal = burst.ordinal
                if ordinal >= largest:
                    break
                below = outstanding & ((1 << (largest - ordinal)) - 1) if largest - ordinal < burst.count else outstanding
                if burst.sent_at + delay <= now:
                    mask = below
                elif sure > ordinal:
                    mask = below & ((1 << (sure - ordinal)) - 1) if sure - ordinal < burst.count else below
                else:
                    mask = 0
                if mask:
                    burst.outstanding = outstanding ^ mask
                    burst.lost |= mask
                    lost.append((burst, mask))
                if mask != outstanding:
                    if mask != below:
                        self.loss_deadline = Instant(burst.sent_at + delay)
                    break
        if lost:
            self._on_lost(lost, now)
            ring.settle()
        if ring.head < ring.base:
            pto = self.rtt.pto(self._max_ack_delay)
            ring.reclaim(Instant(now - LOST_MEMORY_PTOS * pto), LOST_MEMORY_BURSTS)
        return lost

    # Inside

    def _on_arrived(self, newest: SentBurst, arrived: int, useful: int, now: Instant) -> None:
        """Account for `arrived` bytes in flight; the window grows by the `useful` ones, if it was used at all."""
        self.bytes_in_flight -= arrived
        rtt, congestion, rate = self.rtt, self.congestion, self._rate
        rate.on_ack(newest, arrived, now, rtt.min_rtt, rtt.smoothed_rtt)
        rate.in_flight = self.bytes_in_flight
        if self._largest >= self._round_end:
            self._round_end = self._sent
            self._peak_before = self._peak
            self._peak = self.bytes_in_flight
        if useful and congestion.window > 2 * max(self._peak, self._peak_before):
            useful = 0  # something else limits us: an unused window must not grow (RFC 9002 §7.8)
        congestion.on_ack(useful, newest.sent_at, now, rtt, rate)

    def _on_lost(self, lost: list[Marked], now: Instant) -> None:
        """Account for newly lost packets and tell congestion control.  RFC 9002 §B.8."""
        size = packets = runs = 0
        newest: SentBurst | None = None
        for burst, mask in lost:
            number = mask.bit_count()
            if burst.in_flight:
                size += burst.total if number == burst.count else burst.bytes_of(mask)
                packets += number
                newest = burst
                runs += (mask & ~(mask << 1)).bit_count()
                if burst.ordinal + (mask & -mask).bit_length() - 1 == self._lost_until:
                    runs -= 1  # the run before goes on
                self._lost_until = burst.ordinal + mask.bit_length()
                if burst.ack_eliciting:
                    self._eliciting -= number
            elif not burst.outstanding:
                self._uncounted -= 1
        if newest is None:
            return
        self.bytes_in_flight -= size
        self._rate.lost += size
        self._rate.on_lost(packets, runs)
        duration = self.rtt.pto(self._max_ack_delay) * PERSISTENT_CONGESTION_THRESHOLD
        persistent = is_persistent(lost, self.rtt.first_sample_at, duration)
        if self.congestion.on_loss(size, newest.sent_at, now, persistent):
            self._event += 1
            self._event_losses = 0
            self._reordering.on_congestion_event()
        self._event_losses += packets
        for burst, _ in lost:
            burst.event = self._event
        if persistent:
            self.rtt.forget_min()

    def _on_spurious(self, spurious: list[Marked], now: Instant) -> None:
        """Losses were reordering: be more patient from now on, and undo the reduction if none of them was real."""
        self._reordering.on_spurious(spurious, self._largest, now, self.rtt)
        refuted = 0
        for burst, mask in spurious:
            number = mask.bit_count()
            if burst.in_flight:
                self._rate.lost -= burst.bytes_of(mask)
                if burst.event == self._event:
                    refuted += number
        if refuted and self._event_losses > 0:
            self._event_losses -= refuted
            if self._event_losses <= 0:
                self.congestion.on_spurious_loss(now)
