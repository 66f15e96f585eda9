"""BBRv3 (draft-ietf-ccwg-bbr): a model of the path, its rate and its round trip, says how fast and how much to send.

Section numbers are the draft's.  It differs in eight things, argued in docs/decisions/congestion-control.md: loss that
is no sign of a queue is compensated instead of obeyed (see background.py); losses in a row count as one piece of chance; all is
counted per ACK and burst, never per packet; a round trip as short as the shortest one puts off PROBE_RTT; PROBE_UP ends when a
queue shows, which one late ACK does not; what ended without one is soon tried again; cruising yields to a queue that grows
meanwhile; and the window is large enough for a queue that others keep standing.

Long because it is one machine whose parts all look at the same model, kept in the draft's order.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from tunnel.transport.recovery.background import TOLERANCE, BackgroundLoss
from tunnel.transport.recovery.congestion import SHORTEST_RTT, initial_window
from tunnel.transport.recovery.pacer import MAX_BURST_BYTES, QUANTUM
from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant

if TYPE_CHECKING:
    import random


class Phase(IntEnum):
    """§5.3: the states, those of ProbeBW by themselves."""

    STARTUP = 0
    DRAIN = 1
    DOWN = 2
    CRUISE = 3
    REFILL = 4
    UP = 5
    PROBE_RTT = 6


class Probe(IntEnum):
    """§5.3.3.6: of which part of a probe for bandwidth the ACKs tell now."""

    NOTHING = 0
    STARTING = 1
    FEEDBACK = 2
    STOPPING = 3


PACING_GAIN: Final = (2.77, 0.5, 0.9, 1.0, 1.0, 1.25, 1.0)  # by Phase, §5.6.1
WINDOW_GAIN: Final = (2.0, 2.0, 2.0, 2.0, 2.0, 2.25, 0.5)
PACING_MARGIN: Final = 0.99  # BBR.PacingMarginPercent, §2.5
FULL_GROWTH: Final = 1.25  # a smaller growth of the rate within a round does not count, §5.3.1.2
FULL_ROUNDS: Final = 3  # such rounds mean that the pipe is full
FULL_LOSSES: Final = 6  # runs of losses in a round, at least, where they show a full pipe (BBR.StartupFullLossCnt), §5.3.1.3
BETA: Final = 0.7  # what is left of a lower bound after a round with losses, §2.7
HEADROOM: Final = 0.15  # share of the known room that is left to others, §2.7
MIN_PIPE_PACKETS: Final = 4  # BBR.MinPipeCwnd
PROBE_WAIT: Final = 2.0  # seconds between probes for bandwidth, and up to PROBE_WAIT_EXTRA more by chance, §5.3.3.5.3
PROBE_WAIT_EXTRA: Final = 1.0
AGAIN_ROUNDS: Final = 4.0  # shortest round trips to the next one after one that ended without a queue; each in vain doubles it
AGAIN_LEAST: Final = 0.1  # seconds, at least: where all is lost for a moment, a short path would spend it on probes
IN_VAIN: Final = 10  # such doublings: the ordinary wait is over sooner
MAX_RENO_ROUNDS: Final = 63  # a probe comes no later than a Reno flow of this size would have grown, §5.3.3.5.1
MIN_RTT_FILTER: Final = 10.0  # seconds a round trip stays the shortest, §2.8.1
PROBE_RTT_INTERVAL: Final = 5.0  # seconds without a short round trip until one is made, §2.8.2
PROBE_RTT_DURATION: Final = 0.200  # seconds, at most, and
PROBE_RTT_ROUNDS: Final = 10  # of the shortest round trip, but no less than SHORTEST_PROBE_RTT: in a house 200 ms are an age
SHORTEST_PROBE_RTT: Final = 0.020
SAME_RTT: Final = 1 / 16  # this share (or SAME_RTT_SLACK seconds) above the shortest is as good as the shortest
SAME_RTT_SLACK: Final = 0.001
EXTRA_ROUNDS: Final = 5  # half the window of the aggregation filter (BBR.ExtraAckedFilterLen is 10)
QUEUE_SHARE: Final = 1 / 8  # a round trip this share of the shortest, or LONG_QUEUE seconds, over it shows a queue
LONG_QUEUE: Final = 0.005
QUEUE_SLACK: Final = 0.000_5  # seconds above that, and
QUEUE_PACKETS: Final = 3  # the time these take: a burst queues behind itself
RECENT: Final = 1 / 8  # of the shortest round trip, to twice that: what is long all that time is a queue, one late ACK is none
UP_QUEUE_SHARE: Final = 1 / 4  # of the shortest round trip: the queue that one round at a gain of 1.25 adds ends the probe
NO_QUEUE_TOLERANCE: Final = 0.1  # share that a probe may lose above the background while no queue shows: a policer's is 0.2
CRUISE_YIELD: Final = 0.95  # of the rate, while there is more of a queue than there was since cruising began: it may be ours
STANDING_RTTS: Final = 4.0  # shortest round trips: so long a queue of others is waited through without giving way to it
STANDING_MARGIN: Final = 1.1  # of the window over what that takes at the rate sent
_PROBING: Final = frozenset({Phase.STARTUP, Phase.REFILL, Phase.UP})
_CYCLE: Final = frozenset({Phase.DOWN, Phase.CRUISE, Phase.REFILL, Phase.UP})


class Bbr:
    """A CongestionController.  Sizes in bytes, rates in bytes a second; `_bw_max` counts what arrived, `_bw` what to send."""

    def __init__(self, datagram_size: int, now: Instant, rng: random.Random) -> None:
        """`rng` spreads the probes of flows that share a bottleneck."""
        self._mss = datagram_size
        self._rng = rng
        self.background = BackgroundLoss()
        self.phase = Phase.STARTUP
        self._window = float(initial_window(datagram_size))
        self._pacing = 0.0  # 0 until the first sample
        self._in_flight = 0
        # the model, §2.6 to §2.8
        self._bw = 0.0
        self._bw_max = 0.0
        self._bw_now = self._bw_before = 0.0  # best of this cycle of probing, and of the one before
        self._bw_low = math.inf  # bw_shortterm
        self._min_rtt = math.inf
        self._min_rtt_at = now
        self._short_rtt = math.inf  # probe_rtt_min_delay
        self._short_rtt_at = now
        self._inflight_high = math.inf  # inflight_longterm
        self._inflight_low = math.inf  # inflight_shortterm
        # rounds, §5.5.1
        self._rounds = 0
        self._round_delivered = 0
        self._round_lost = 0
        self._round_lost_runs = 0
        self._round_began_delivered = 0
        self._round_rtt = math.inf  # shortest of this round
        self._recent = self._recent_now = math.inf  # shortest of the last moments, and of those since `_recent_at`
        self._recent_at = now
        self._round_sum, self._round_samples = 0.0, 0  # of the round trips of this round
        self._last_rtt = math.inf  # shortest of the last one
        self._latest_bw = 0.0
        self._latest_inflight = 0
        self._rtt_samples = 0
        # §5.3.1.2
        self._full_bw = 0.0
        self._full_count = 0
        self._full_now = False
        self._is_full = False  # full_bw_reached
        # probing for bandwidth, §5.3.3
        self._probe = Probe.NOTHING
        self._probe_samples = False
        self._cycle_at = now
        self._probe_wait = PROBE_WAIT
        self._rounds_since_probe = 0
        self._phase_round = 0
        self._up_rounds = 0
        self._up_share = 0.0
        self._up_rtt = math.inf
        self._up_bw = 0.0
        self._in_vain = 0  # probes in a row that found neither a queue nor a higher rate; IN_VAIN after a queue
        self._cruise_rtt = math.inf  # the shortest since cruising began
        self._limited_until = -1  # packets sent up to this much delivered found the window full
        # §5.3.4
        self._probe_rtt_until: float | None = None
        self._probe_rtt_round = 0
        self._prior_window = 0.0
        self._is_restart = False  # idle_restart
        # aggregation, §5.5.9
        self._extra = self._extra_before = 0.0
        self._extra_round = 0
        self._extra_at = now
        self._extra_delivered = 0
        self._delivered = 0
        # losses
        self._recovery_start: Instant | None = None
        self._undo: tuple[float, float, float, bool] | None = None

    @property
    def window(self) -> int:
        return int(self._window)

    @property
    def ssthresh(self) -> float:
        return math.inf if not self._is_full else self._inflight_high

    @property
    def in_slow_start(self) -> bool:
        return self.phase is Phase.STARTUP

    def pacing_rate(self, rtt: RttEstimator) -> float:
        if self._is_full:
            return self._pacing
        # The first samples may be of lone packets; they must not slow down the first window.  §5.6.2, BBRInitPacingRate
        return max(self._pacing, PACING_GAIN[Phase.STARTUP] * initial_window(self._mss) / max(rtt.smoothed_rtt, SHORTEST_RTT))

    def on_app_limited(self, now: Instant) -> None:
        pass  # the samples say so themselves

    def on_datagram_size(self, size: int) -> None:
        if self._window == initial_window(self._mss):
            self._window = float(initial_window(size))
        self._mss = size
        self._window = max(self._window, float(MIN_PIPE_PACKETS * size))

    def on_sent(self, size: int, now: Instant) -> None:
        if self._in_flight == 0:  # §5.4.1
            self._is_restart = True
            self._extra_at, self._extra_delivered = now, 0
            if self.phase in _CYCLE:
                self._pacing = self._bw * PACING_MARGIN
        self._in_flight += size
        if self._in_flight + self._mss > self._window:
            self._limited_until = self._delivered + self._in_flight

    # One ACK

    def on_ack(self, acked: int, sent_at: Instant, now: Instant, rtt: RttEstimator, rate: DeliveryRate) -> None:
        """§5.2.3, in its order."""
        newest = rate.newest
        if newest is None:
            return
        self._in_flight = rate.in_flight
        self._delivered = delivered = rate.delivered
        latest = rtt.latest_rtt if rtt.samples != self._rtt_samples else math.inf
        self._rtt_samples = rtt.samples
        sample, limited = rate.sample, newest.app_limited
        is_round = newest.delivered >= self._round_delivered
        if is_round:
            self._end_round(rate)
        if latest < math.inf:
            self._look_at(latest, now)
            self._round_sum += latest
            self._round_samples += 1
        if sample > self._latest_bw:
            self._latest_bw = sample
        inflight = delivered - newest.delivered
        if inflight > self._latest_inflight:
            self._latest_inflight = inflight
        if sample and (not limited or sample >= self._bw_max) and sample > self._bw_now:
            self._bw_now = sample
            self._bw_max = max(sample, self._bw_before)
        if latest < self._round_rtt:
            self._round_rtt = latest
        self._count_extra(rate.newly_acked, now)
        self._check_full(sample, limited and not self._is_queue(self._recent), is_round)
        if self.phase is Phase.STARTUP and self._is_full:
            self._judge_probe()
            self.phase = Phase.DRAIN
        if self.phase is Phase.DRAIN and self._in_flight <= self._inflight(1.0):
            self._start_down(now)
        if self._is_full:
            self._adapt_high(rate, now, is_round)
            if self.phase in _CYCLE:
                self._advance(now, latest, sample, is_round)
        self._update_min_rtt(latest, now, is_round)
        self._is_restart = False
        if self._bw_max:
            self._bw = min(self._bw_max, self._bw_low) / (1.0 - self.background.share)
            self._control(rate.newly_acked)

    def _end_round(self, rate: DeliveryRate) -> None:
        """A packet sent in this round was acknowledged: look back on the last one.  §5.5.1, §5.5.10.3."""
        lost, arrived = rate.lost - self._round_lost, rate.delivered - self._round_began_delivered
        runs, self._round_lost_runs = rate.lost_runs - self._round_lost_runs, rate.lost_runs
        self._round_lost, self._round_began_delivered = rate.lost, rate.delivered
        self._round_delivered = rate.delivered
        self._rounds += 1
        self._rounds_since_probe += 1
        # While starting, the queue grows within the round; one late ACK is none.
        shown = self._round_rtt if self._is_full else min(self._round_sum / max(self._round_samples, 1), self._recent)
        has_queue = self._is_queue(shown)
        self._last_rtt = self._round_rtt
        self._round_rtt, self._round_sum, self._round_samples = math.inf, 0.0, 0
        mss = self._mss
        if lost > 0 or self.background.wants_check:
            lost_packets, packets = max(lost, 0) / mss, (max(lost, 0) + arrived) / mss
            is_excess, run = self.background.is_excess, rate.lost_run
            if lost and has_queue and is_excess(lost_packets, packets, TOLERANCE / 2, run, is_suspicion_enough=True):
                if self.phase not in _PROBING:
                    self._adapt_low()
                elif self.phase is Phase.STARTUP and runs >= FULL_LOSSES and is_excess(lost_packets, packets, TOLERANCE, run):
                    self._is_full = True  # §5.3.1.3
                    self._inflight_high = max(self._bdp(1.0), self._latest_inflight)
        else:
            lost_packets, packets = 0.0, arrived / mss
        self.background.on_round(
            lost_packets,
            packets,
            has_queue=has_queue,
            is_startup=not self._is_full,
            is_check=self.phase is Phase.DOWN and self._rounds - self._phase_round >= 2,
        )
        self._latest_bw = 0.0
        self._latest_inflight = 0

    def _look_at(self, latest: float, now: Instant) -> None:
        """Keep the shortest round trip of the last moments: who was not scheduled for a while meets long ones and short ones."""
        span = RECENT * self._min_rtt if self._min_rtt < math.inf else 0.0
        if now - self._recent_at >= span:
            self._recent_at, before, self._recent_now = now, self._recent_now, latest
            self._recent = min(before, latest)
        else:
            self._recent_now = min(self._recent_now, latest)
            self._recent = min(self._recent, latest)

    def _is_queue(self, rtt: float, before: float = 0.0) -> bool:
        """Whether `rtt` shows one; more of a queue than there was at a round trip of `before`."""
        return math.inf > rtt > max(self._min_rtt, before) + min(self._min_rtt * QUEUE_SHARE, LONG_QUEUE) + self._slack()

    def _slack(self) -> float:
        """Seconds that a round trip may vary without any queue of others: clocks, and packets of our own burst."""
        return QUEUE_SLACK + QUEUE_PACKETS * self._mss / self._bw if self._bw else QUEUE_SLACK

    def _adapt_low(self) -> None:
        """A round lost packets to a queue while we did not probe: give way until the next probe.  §5.5.10.3."""
        if self._bw_low == math.inf:
            self._bw_low = self._bw_max
        if self._inflight_low == math.inf:
            self._inflight_low = self._window
        arriving = 1.0 - self.background.share
        self._bw_low = max(self._latest_bw, BETA * self._bw_low)
        self._inflight_low = max(self._latest_inflight / arriving, BETA * self._inflight_low)

    def _count_extra(self, newly_acked: int, now: Instant) -> None:
        """How much more than the rate explains arrives at once: ACKs come in heaps.  §5.5.9."""
        expected = self._bw * (now - self._extra_at)
        if self._extra_delivered <= expected:
            self._extra_delivered, self._extra_at, expected = 0, now, 0.0
        self._extra_delivered += newly_acked
        extra = min(self._extra_delivered - expected, self._window)
        if self._rounds - self._extra_round >= EXTRA_ROUNDS:
            self._extra_round = self._rounds
            self._extra_before, self._extra = self._extra, 0.0
        if extra > self._extra:
            self._extra = extra

    def _check_full(self, sample: float, limited: bool, is_round: bool) -> None:
        """§5.3.1.2.  A queue shows a full pipe even if the application pauses now and then, as a sender with a ring does."""
        if self._full_now or limited or not sample:
            return
        if sample >= self._full_bw * FULL_GROWTH:
            self._reset_full(sample)
        elif is_round:
            self._full_count += 1
            if self._full_count >= FULL_ROUNDS:
                self._full_now = self._is_full = True

    def _reset_full(self, sample: float = 0.0) -> None:
        self._full_bw, self._full_count, self._full_now = sample, 0, False

    # Probing for bandwidth, §5.3.3

    def _adapt_high(self, rate: DeliveryRate, now: Instant, is_round: bool) -> None:
        """Learn from a probe how much the path takes.  §5.3.3.6."""
        newest = rate.newest
        assert newest is not None
        if is_round:
            if self._probe is Probe.STARTING:
                self._probe = Probe.FEEDBACK
            elif self._probe is Probe.STOPPING:
                self._probe = Probe.NOTHING
                self._probe_samples = False
                if self.phase in _CYCLE and not newest.app_limited:
                    self._bw_before, self._bw_now = self._bw_now, 0.0
                    self._bw_max = self._bw_before
        lost = rate.lost - newest.lost_before
        flight = newest.flight
        has_queue = self._is_queue(self._recent)
        tolerance = TOLERANCE if has_queue else NO_QUEUE_TOLERANCE
        if lost > 0 and self.background.is_excess(lost / self._mss, flight / self._mss, tolerance, rate.lost_run):
            if self._probe_samples:
                self._probe_samples = False
                if has_queue and not newest.app_limited:
                    self._inflight_high = max(flight, self._target() * BETA)
                if self.phase is Phase.UP:
                    self._judge_probe()
                    self._start_down(now)
            return
        if self._inflight_high == math.inf:
            return
        if flight > self._inflight_high:
            self._inflight_high = flight
        if self.phase is Phase.UP and self._window >= self._inflight_high and self._was_limited(newest.delivered):
            self._inflight_high += self._up_share * rate.newly_acked
            if is_round:
                self._raise_slope()

    def _was_limited(self, delivered: int) -> bool:
        return delivered <= self._limited_until

    def _raise_slope(self) -> None:
        """§5.3.3.6: the room grows by 1, 2, 4 ... packets a round."""
        self._up_share = (1 << self._up_rounds) * self._mss / max(self._window, 1.0)
        self._up_rounds = min(self._up_rounds + 1, 30)

    def _advance(self, now: Instant, latest: float, sample: float, is_round: bool) -> None:
        """§5.3.3.6, BBRUpdateProbeBWCyclePhase."""
        phase = self.phase
        if phase is Phase.CRUISE:
            self._cruise_rtt = min(self._cruise_rtt, latest)
            self._maybe_refill(now)
        elif phase is Phase.DOWN:
            if self.background.wants_check and not self.background.is_checked and now - self._cycle_at < PROBE_WAIT:
                return
            if self._maybe_refill(now):
                return
            if self._in_flight <= self._inflight(1.0) and self._in_flight <= self._with_headroom():
                self._start_cruise()
        elif phase is Phase.REFILL:
            if is_round:
                self._start_up(now, sample)
        elif phase is Phase.UP:
            if self._was_limited(self._delivered) and self._window >= self._inflight_high:
                self._reset_full(sample)
            elif self._full_now or (
                self._rounds > self._phase_round
                and math.inf > self._recent > self._up_rtt + self._min_rtt * UP_QUEUE_SHARE + self._slack()
            ):
                self._judge_probe()
                self._start_down(now)

    def _judge_probe(self) -> None:
        """Losses in a row end a probe as a full pipe does; where no queue shows, the next one follows soon.  Not in the draft."""
        if self._is_queue(self._recent):
            self._in_vain = IN_VAIN
        elif self._bw_max >= self._up_bw * FULL_GROWTH:
            self._in_vain = 0
        else:
            self._in_vain = min(self._in_vain + 1, IN_VAIN)

    def _maybe_refill(self, now: Instant) -> bool:
        """§5.3.3.5.3."""
        reno = min(self._target() / self._mss, MAX_RENO_ROUNDS)
        if now - self._cycle_at <= self._probe_wait and self._rounds_since_probe < reno:
            return False
        self._forget_low()
        self._up_rounds = 0
        self._up_share = 0.0
        self._probe = Probe.NOTHING
        self._start_round()
        self.phase = Phase.REFILL
        return True

    def _start_up(self, now: Instant, sample: float) -> None:
        self._probe = Probe.STARTING
        self._probe_samples = True
        self._start_round()
        self._reset_full(sample)
        self._up_rtt, self._up_bw = max(self._last_rtt, self._min_rtt), self._bw_max
        self.phase = Phase.UP
        self._raise_slope()

    def _start_down(self, now: Instant) -> None:
        self._undo = None
        self._up_share = 0.0
        self._probe = Probe.STOPPING
        self._rounds_since_probe = int(self._rng.random() * 2)
        wait = PROBE_WAIT + self._rng.random() * PROBE_WAIT_EXTRA
        self._probe_wait = min(wait, max(AGAIN_ROUNDS * self._min_rtt, AGAIN_LEAST) * (1 << self._in_vain))
        self._cycle_at = now
        self._start_round()
        self.phase = Phase.DOWN
        self.background.begin_check()

    def _start_cruise(self) -> None:
        self._cruise_rtt = math.inf
        self.phase = Phase.CRUISE

    def _start_round(self) -> None:
        self._round_delivered = self._delivered
        self._phase_round = self._rounds

    def _forget_low(self) -> None:
        self._bw_low = self._inflight_low = math.inf

    # The shortest round trip, §5.3.4, §5.5.7

    def _update_min_rtt(self, latest: float, now: Instant, is_round: bool) -> None:
        expired = now - self._short_rtt_at > PROBE_RTT_INTERVAL
        if latest < math.inf:
            if latest < self._short_rtt or expired:
                self._short_rtt, self._short_rtt_at = latest, now
            elif latest <= self._short_rtt * (1 + SAME_RTT) + SAME_RTT_SLACK:
                self._short_rtt_at = now  # the queue was empty just now: as good as having emptied it
                if self._short_rtt <= self._min_rtt:
                    self._min_rtt_at = now
            if self._short_rtt < self._min_rtt or now - self._min_rtt_at > MIN_RTT_FILTER:
                self._min_rtt, self._min_rtt_at = self._short_rtt, self._short_rtt_at
        if self.phase is not Phase.PROBE_RTT:
            if expired and not self._is_restart and self._is_full and self._bw_max:
                self._prior_window = max(self._window, self._prior_window if self._inflight_low < math.inf else 0.0)
                self.phase = Phase.PROBE_RTT
                self._probe_rtt_until = None
                self._probe = Probe.STOPPING
                self._start_round()
            return
        if self._probe_rtt_until is None:
            if self._in_flight <= max(self._bdp(WINDOW_GAIN[Phase.PROBE_RTT]), MIN_PIPE_PACKETS * self._mss):
                rounds = PROBE_RTT_ROUNDS * self._min_rtt
                self._probe_rtt_until = now + min(max(rounds, SHORTEST_PROBE_RTT), PROBE_RTT_DURATION)
                self._probe_rtt_round = self._rounds
                self._start_round()
        elif now > self._probe_rtt_until and self._rounds > self._probe_rtt_round:
            self._short_rtt_at = now
            self._window = max(self._window, self._prior_window)
            self._forget_low()
            self._start_down(now)
            self._start_cruise()

    # What follows from the model, §5.6

    def _bdp(self, gain: float) -> float:
        return gain * self._bw * self._min_rtt if self._min_rtt < math.inf else gain * initial_window(self._mss)

    def _inflight(self, gain: float) -> float:
        """Bytes in flight that keep the pipe full at `gain`: no fewer than three sending quanta.  §5.6.4.2."""
        quantum = min(max(self._pacing * QUANTUM, 2.0 * self._mss), MAX_BURST_BYTES)
        return max(self._bdp(gain), 3.0 * quantum, float(MIN_PIPE_PACKETS * self._mss))

    def _target(self) -> float:
        return min(self._bdp(1.0), self._window)

    def _with_headroom(self) -> float:
        high = self._inflight_high
        return high if high == math.inf else max(high - max(HEADROOM * high, self._mss), float(MIN_PIPE_PACKETS * self._mss))

    def _control(self, newly_acked: int) -> None:
        """Pacing rate and window.  §5.6.2, §5.6.4."""
        phase, share = self.phase, self.background.share
        pacing = PACING_GAIN[phase] * self._bw * PACING_MARGIN
        if phase is Phase.DOWN and self.background.wants_check:
            pacing *= 1.0 - share
        elif phase is Phase.CRUISE and self._is_queue(self._last_rtt, self._cruise_rtt):
            pacing *= CRUISE_YIELD
        if self._is_full or pacing > self._pacing:
            self._pacing = pacing
        most = self._inflight(WINDOW_GAIN[phase])
        if phase in _CYCLE and self._last_rtt < math.inf:
            standing = min(self._last_rtt, STANDING_RTTS * self._min_rtt)
            most = max(most, STANDING_MARGIN * PACING_GAIN[phase] * self._bw * standing)
        most += max(self._extra, self._extra_before)
        window = self._window
        grown = newly_acked / (1.0 - share)
        if self._is_full:
            window = min(window + grown, most)
        elif window < most:
            window += grown
        cap = self._inflight_low
        if phase is Phase.PROBE_RTT:
            cap = min(cap, self._bdp(WINDOW_GAIN[phase]))
        if phase is Phase.PROBE_RTT or phase is Phase.CRUISE:
            cap = min(cap, self._with_headroom())
        elif phase in _CYCLE:
            cap = min(cap, self._inflight_high)
        self._window = max(min(window, cap), float(MIN_PIPE_PACKETS * self._mss))

    # Losses

    def on_loss(self, lost: int, sent_at: Instant, now: Instant, persistent: bool) -> bool:
        """Most is judged when a round ends; here is only what begins a congestion event."""
        self._in_flight = max(0, self._in_flight - lost)
        is_new = self._recovery_start is None or sent_at > self._recovery_start
        if is_new:
            self._recovery_start = now
            self._undo = (self._bw_low, self._inflight_low, self._inflight_high, self._is_full)
        if persistent:  # §5.6.4.4: nothing got through for long; start again from what was known of the path
            self._prior_window = max(self._prior_window, self._window)
            self._window = float(MIN_PIPE_PACKETS * self._mss)
            self._undo = None
        return is_new

    def on_spurious_loss(self, now: Instant) -> None:
        """§5.5.11."""
        if self._undo is None:
            return
        bw_low, inflight_low, inflight_high, was_full = self._undo
        self._undo = None
        self._reset_full()
        self._bw_low = max(self._bw_low, bw_low)
        self._inflight_low = max(self._inflight_low, inflight_low)
        self._inflight_high = max(self._inflight_high, inflight_high)
        if not was_full and self.phase in (Phase.STARTUP, Phase.DRAIN):
            self._is_full = False
            self.phase = Phase.STARTUP
