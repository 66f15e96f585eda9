"""The paths of a connection: which one carries data, which ones are known to work, and how one is found out to have died.

One law: a path carries data only after the peer answered a PATH_CHALLENGE there (RFC 9000 §8.2); the first one is the
handshake's own.  Who schedules challenges for punching is the NAT room; this file validates, whoever asked.
A path is left when it does not answer VERIFY_ATTEMPTS challenges while nothing sent on it is acknowledged either.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.core.trace import Drops
from tunnel.transport.connection.events import PathKind
from tunnel.transport.packet.header import OVERHEAD
from tunnel.transport.recovery.acks import MAX_ACK_DELAY
from tunnel.transport.recovery.bbr import Bbr
from tunnel.transport.recovery.loss import Recovery
from tunnel.transport.recovery.pacer import Pacer
from tunnel.transport.recovery.pmtu import BASE_PLPMTU, PathMtu
from tunnel.transport.recovery.rtt import INITIAL_RTT
from tunnel.transport.recovery.sent import Marked, SentBurst
from tunnel.units import Instant, PathKey, Seconds

if TYPE_CHECKING:
    import random

LARGE_LOSSES: Final = 4  # losses of large datagrams in a row, while small ones arrive, that make a black hole (RFC 8899 §4.3)
MAX_CHALLENGES: Final = 512  # outstanding; the oldest is forgotten
CHALLENGE_LIFE: Final = Seconds(10.0)  # an answer later than this proves nothing about now
MAX_PATHS: Final = 8  # validated paths kept; each holds a recovery value
MAX_QUEUED_PROBES: Final = 512  # challenges and responses waiting to leave
KEEPALIVE: Final = Seconds(15.0)  # to begin with: half the shortest common mapping life (Linux conntrack: 30 s unreplied)
MAX_KEEPALIVE: Final = Seconds(25.0)  # where the mappings live long enough; more would save little and cost a punch where not
MIN_KEEPALIVE: Final = Seconds(4.0)  # where they do not; RFC 4787 REQ-5 asks for two minutes, but 8 s have been seen
KEEPALIVE_GROWTH: Final = 1.25  # after PROOFS of a silence were survived
KEEPALIVE_DROP: Final = 0.6  # of a silence that was not
KEEPALIVE_MEMORY: Final = Seconds(3600.0)  # before a silence is tried again that was not survived
PROOFS: Final = 2
STANDBY_CHECK: Final = Seconds(25.0)  # how often a path that carries nothing proves that it still would
SILENCE: Final = Seconds(0.1)  # at least, and a probe timeout, without any answer while we send: then the path is asked
VERIFY_ATTEMPTS: Final = 4
DOUBT_TOLD: Final = 3  # with the challenge of that number, as two in a row are seldom lost on a path that works; ...
DOUBT_TOLD_BUSY: Final = 2  # ... the same where data was under way too, and was sent again, before the first of them
VERIFY_BACKING_OFF: Final = Seconds(1.0)  # the longest wait between challenges of a silent path that has no substitute, at first
VERIFY_PATIENCE: Final = Seconds(120.0)  # for so long VERIFY_BACKING_OFF holds: a line that returns is noticed soon
VERIFY_AT_LEAST: Final = Seconds(5.0)  # the longest such wait after that
VERIFY_SPACING: Final = Seconds(0.06)  # at least, between two challenges of a path in doubt; else 1.5 round trips
PROOF_INTERVAL: Final = Seconds(60.0)  # of the current path being used, after which an answer to a challenge is due once more
PROOF_SPACING: Final = Seconds(1.0)  # between such challenges until one is answered
PROOF_ATTEMPTS: Final = 10  # without an answer, and the path carries nothing more: at a loss of 30 % one time in a thousand
BETTER_RTT: Final = 0.7  # another direct path must be this much faster to be preferred to one that works ...
BETTER_RTT_BY: Final = Seconds(0.001)  # ... and by so much
BETTER_RELAY: Final = 2 / 3  # the same of another relay, as other users come and go there
BETTER_RELAY_BY: Final = Seconds(0.010)
STILL_LOOKED_FOR: Final = "a direct path is still looked for"  # why a path is relayed, until that has come to something


class Probe(NamedTuple):
    """One PATH_CHALLENGE or PATH_RESPONSE to send, past window and pacer."""

    key: PathKey
    is_challenge: bool
    data: bytes
    ttl: int | None


class Path:
    """A validated path with its own recovery state."""

    __slots__ = (
        "capacity",
        "idle_for",
        "in_doubt_since",
        "is_left",
        "is_proven",
        "is_replaced",
        "key",
        "kind",
        "large_losses",
        "last_heard",
        "last_sent",
        "mtu",
        "number",
        "pacer",
        "pmtu",
        "probes_owed",
        "proof_at",
        "proof_attempts",
        "recovery",
        "requeue_at",
        "unanswered_since",
        "validated",
        "verify_at",
        "verify_attempts",
    )

    def __init__(self, number: int, key: PathKey, kind: PathKind, now: Instant, rtt: Seconds | None, rng: random.Random) -> None:
        self.number = number
        self.key = key
        self.kind = kind
        self.pmtu = PathMtu(now, is_ipv6=key.remote.is_ipv6)
        self.mtu = self.pmtu.size
        self.capacity = self.mtu - len(key.prefix) - OVERHEAD  # bytes of frames in one datagram
        self.recovery = Recovery(
            now,
            datagram_size=self.mtu,
            initial_rtt=INITIAL_RTT if rtt is None else rtt,
            congestion=Bbr(self.mtu, now, rng),
        )
        self.pacer = Pacer(self.recovery.pacing_rate(), self.mtu, now)
        self.validated = True
        self.is_replaced = False  # its relay channel is reached some other way now, or is about to end
        self.is_left = False  # the latter: what is under way there still arrives, or its acknowledgement does
        self.requeue_at: Instant | None = None  # when the rest of that is sent again elsewhere
        self.proof_at = Instant(now + PROOF_INTERVAL)  # when it is to prove again that the peer gets what we send there
        self.proof_attempts = 0
        self.is_proven = True  # the peer has answered a challenge there lately, or not been asked often enough to tell
        self.last_heard = now
        self.last_sent = now
        self.probes_owed = 0
        self.large_losses = 0
        self.unanswered_since: Instant | None = None  # of what we sent here, when the oldest left, or when the last answer came
        self.idle_for: Seconds | None = None  # the silence before the challenge that is on its way
        self.in_doubt_since: Instant | None = None
        self.verify_at = now
        self.verify_attempts = 0

    def set_mtu(self, mtu: int, now: Instant) -> None:
        """Bytes of UDP payload, the channel header included."""
        self.mtu = mtu
        self.capacity = mtu - len(self.key.prefix) - OVERHEAD
        self.recovery.set_datagram_size(mtu)
        self.pacer.set_datagram_size(mtu, now)

    def weigh(self, acked: list[Marked], lost: list[Marked], now: Instant) -> bool:
        """Watch for a black hole: only what is larger than the base goes missing.  True when the MTU was taken back for it."""
        if self.large_losses and any(_is_large(*marked) for marked in acked):
            self.large_losses = 0
        if lost and self.mtu > BASE_PLPMTU and any(_is_large(*marked) for marked in lost):
            if not any(_is_large(*marked) for marked in acked):
                self.large_losses += 1
            if self.large_losses >= LARGE_LOSSES and self.pmtu.on_black_hole(now):
                self.large_losses = 0
                self.set_mtu(self.pmtu.size, now)
                return True
        return False

    def verify(self, now: Instant) -> None:
        """Put the path in doubt: it must answer soon."""
        if self.in_doubt_since is None:
            self.in_doubt_since = now
            self.verify_at = now
            self.verify_attempts = 0

    def prove(self, now: Instant) -> None:
        """A challenge was answered, or a handshake went over it: acknowledgements alone would not do, which can be made up."""
        self.proof_attempts = 0
        self.is_proven = True
        self.proof_at = Instant(now + PROOF_INTERVAL)
        self.last_heard = now
        self.trust()

    def trust(self) -> None:
        self.in_doubt_since = None
        self.idle_for = None

    def on_acked(self, now: Instant) -> None:
        """The peer has something that we sent here."""
        self.unanswered_since = now if self.recovery.bytes_in_flight else None

    def silent_at(self) -> Instant | None:
        """When to doubt the path because nothing we send is answered.

        The probe timeout does not tell: it begins anew with every packet sent (RFC 9002 §6.2.1), so a stream that goes on and on
        would speak into the dark for as long as its buffer lasts.
        """
        if self.unanswered_since is None or not self.recovery.bytes_in_flight:
            return None
        pto = self.recovery.rtt.pto(MAX_ACK_DELAY)
        return Instant(self.unanswered_since + (pto if pto > SILENCE else SILENCE))

    def verify_spacing(self) -> Seconds:
        return Seconds(max(VERIFY_SPACING, 1.5 * self.recovery.rtt.smoothed_rtt))


class Keepalive:
    """How long the direct paths of one connection may be silent before a NAT on the way forgets them, as measured by them."""

    __slots__ = ("_barred_until", "_ceiling", "_proofs", "_rng", "interval", "next_after")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.interval = KEEPALIVE
        self.next_after = (
            KEEPALIVE  # the interval, less some jitter: two sides that speak at once open both NATs, and prove nothing
        )
        self.roll()
        self._proofs = 0
        self._ceiling = MAX_KEEPALIVE
        self._barred_until: Instant | None = None

    def remember(self, now: Instant, interval: Seconds) -> None:
        """Begin with what was measured before, to this peer over this network, if it is shorter than the default."""
        if MIN_KEEPALIVE <= interval < self.interval:
            self.interval = self._ceiling = interval
            self._barred_until = Instant(now + KEEPALIVE_MEMORY)
            self.roll()

    def roll(self) -> None:
        self.next_after = Seconds(self.interval * (0.8 + 0.2 * self._rng.random()))

    def survived(self, now: Instant, silence: Seconds) -> None:
        """A challenge after so long was answered at once."""
        if silence < 0.75 * self.interval:
            return
        if self._barred_until is not None and now >= self._barred_until:
            self._ceiling, self._barred_until = MAX_KEEPALIVE, None
        self._proofs += 1
        if self._proofs >= PROOFS:
            self._proofs = 0
            self.interval = Seconds(min(self.interval * KEEPALIVE_GROWTH, self._ceiling))

    def died(self, now: Instant, silence: Seconds) -> None:
        """After so long there was no answer."""
        self._proofs = 0
        self.interval = Seconds(max(MIN_KEEPALIVE, min(self.interval, silence * KEEPALIVE_DROP)))
        self._ceiling = self.interval
        self._barred_until = Instant(now + KEEPALIVE_MEMORY)


class Paths:
    """All paths of one connection."""

    def __init__(self, key: PathKey, kind: PathKind, now: Instant, rng: random.Random, drops: Drops) -> None:
        self._rng = rng
        self._numbers = 0
        self.known: dict[PathKey, Path] = {}
        self._challenges: dict[bytes, tuple[PathKey, PathKind, Instant]] = {}
        self.probes: deque[Probe] = deque()
        self._drops = drops
        self.evicted: list[Path] = []  # made room for another; what was under way there has not been sent again yet
        self.policy = "auto"
        self.is_held = False  # only the control stream may use them
        self.is_doubt_fresh = False  # the current path has just left challenges unanswered, and that was not told yet
        self.relief: Path | None = None  # a path that has just come to work while the current one is in doubt
        self.keepalive = Keepalive(rng)
        self.why = STILL_LOOKED_FOR if kind is PathKind.RELAY else ""
        self.current = self._make(key, kind, now, None)
        self.answering = self.current  # where the newest data came from: ACKs go there

    def _make(self, key: PathKey, kind: PathKind, now: Instant, rtt: Seconds | None) -> Path:
        path = Path(self._numbers, key, kind, now, rtt, self._rng)
        self._numbers += 1
        self.known[key] = path
        return path

    # validation

    def challenge(self, now: Instant, key: PathKey, kind: PathKind, ttl: int | None = None) -> None:
        """Queue one PATH_CHALLENGE for `key`."""
        data = self._rng.randbytes(8)
        if len(self._challenges) >= MAX_CHALLENGES:
            del self._challenges[next(iter(self._challenges))]
        self._challenges[data] = (key, kind, now)
        self._queue(Probe(key, True, data, ttl))

    def expect(self, now: Instant, key: PathKey, kind: PathKind) -> None:
        """Challenge a path that should work from now on, as often as one in doubt: it counts when it answers."""
        path = self.known.get(key)
        if path is None:
            self._make_room()
            path = self._make(key, kind, now, None)
            path.validated = False
        elif path.is_replaced:
            path.is_replaced = path.is_left = path.validated = False
        path.in_doubt_since = None
        path.verify(now)

    def respond(self, key: PathKey, data: bytes) -> None:
        """Answer a challenge where it came from: one for one, and no longer than it."""
        self._queue(Probe(key, False, data, None))

    def _queue(self, probe: Probe) -> None:
        if len(self.probes) >= MAX_QUEUED_PROBES:
            self.probes.popleft()
            self._drops["path probe queue full"] += 1
        self.probes.append(probe)

    def on_response(self, now: Instant, data: bytes) -> tuple[Path, Seconds, bool] | None:
        """The path a PATH_RESPONSE validates, its round trip, and whether it is news.  None for an unknown or stale one.

        The path is the one the challenge was sent on, wherever the answer came from (RFC 9000 §8.2.2).
        """
        found = self._challenges.pop(data, None)
        if found is None or now - found[2] > CHALLENGE_LIFE:
            return None
        key, kind, sent_at = found
        rtt = Seconds(now - sent_at)
        path = self.known.get(key)
        news = path is None or not path.validated
        if path is not None and path.idle_for is not None and path.verify_attempts == 1:
            self.keepalive.survived(now, path.idle_for)
        if path is not None and path.unanswered_since is not None:
            path.unanswered_since = now
        if path is None:
            self._make_room()
            path = self._make(key, kind, now, rtt)
        elif not path.validated and path is not self.current and path is not self.answering and not path.recovery.rtt.samples:
            path = self._make(key, kind, now, rtt)  # nothing was ever sent there but challenges: this is its first round trip
        if news and self.current.in_doubt_since is not None:
            self.relief = path
        path.validated = True
        path.prove(now)
        return path, rtt, news

    def adopt(self, now: Instant, key: PathKey, kind: PathKind) -> Path:
        """A handshake ran over `key`: as good as a validation."""
        path = self.known.get(key)
        if path is None:
            self._make_room()
            path = self._make(key, kind, now, None)
        path.validated = True
        path.prove(now)
        return path

    def _make_room(self) -> None:
        while len(self.known) >= MAX_PATHS:
            spare = [p for p in self.known.values() if p is not self.current and p is not self.answering]
            oldest = min(spare, key=lambda p: (p.validated, p.last_heard))
            self.evicted.append(self.known.pop(oldest.key))

    # choice

    def is_allowed(self, path: Path) -> bool:
        return self.policy != "relay" or path.kind is PathKind.RELAY

    def carries(self, path: Path) -> bool:
        """Under the policy `direct` the relay carries the control stream only: candidates must cross it.

        So does a path that was asked in vain whether anybody is there, and so do all while the connection is held.
        """
        return path.is_proven and not self.is_held and (path.kind is not PathKind.RELAY or self.policy != "direct")

    def better(self) -> Path | None:
        """The path to change to now, or None to stay."""
        current, known = self.current, self.known.values()
        if current.validated and current.kind is PathKind.DIRECT and not current.is_replaced and self.policy != "relay":
            for path in known:  # the usual case: nothing but another direct path may be better
                if path.validated and path.kind is PathKind.DIRECT and path is not current:
                    break
            else:
                return None
        best: Path | None = None
        for path in known:
            if path.validated and self.is_allowed(path) and (best is None or self._rank(path) < self._rank(best)):
                best = path
        if best is None or best is current:
            return None
        if not current.validated or current.is_replaced or not self.is_allowed(current) or best.kind is not current.kind:
            return best
        now, then = _quickest(current), _quickest(best)
        if current.kind is PathKind.RELAY:
            return best if is_nearer(then, now) else None
        return best if then < BETTER_RTT * now - BETTER_RTT_BY else None

    @staticmethod
    def _rank(path: Path) -> tuple[bool, bool, float, int]:
        return path.kind is PathKind.RELAY, path.is_replaced, _quickest(path), -path.number

    def remove(self, key: PathKey) -> Path | None:
        path = self.known.get(key)
        if path is not None and path is not self.current:
            del self.known[key]
            if self.answering is path:
                self.answering = self.current
        return path

    # time

    def poll_timeout(self) -> Instant:
        """When handle_timeout has something to do."""
        current = self.current
        first: float = current.proof_at
        for path in self.known.values():
            at: float
            if path.requeue_at is not None and path.requeue_at < first:
                first = path.requeue_at
            if path.in_doubt_since is not None:
                at = path.verify_at
            elif path is current:
                at = path.last_sent + self._quiet(path)
                silent_at = path.silent_at()
                if silent_at is not None and silent_at < at:
                    at = silent_at
            elif path.validated:
                at = path.last_heard + STANDBY_CHECK
            else:
                continue
            if at < first:
                first = at
        return Instant(first)

    def _has_failed_to_prove(self, now: Instant, path: Path) -> bool:
        """Challenge a path on which only acknowledgements have told that somebody is there; true when it is given up for that."""
        path.proof_attempts += 1
        path.is_proven = path.proof_attempts <= PROOF_ATTEMPTS
        path.proof_at = Instant(now + (PROOF_SPACING if path.is_proven else VERIFY_AT_LEAST))
        self.challenge(now, path.key, path.kind)
        if path.is_proven or not path.validated:
            return False
        path.validated = False
        path.verify(now)
        return True

    def _quiet(self, path: Path) -> Seconds:
        """How long the current path may be silent."""
        return self.keepalive.next_after if path.kind is PathKind.DIRECT else KEEPALIVE

    def handle_timeout(self, now: Instant) -> list[Path]:
        """Challenge what is in doubt, quiet or long unproven; returns the paths that just failed."""
        failed: list[Path] = []
        if now >= self.current.proof_at and self._has_failed_to_prove(now, self.current):
            failed.append(self.current)
        for path in list(self.known.values()):
            if path.in_doubt_since is None:
                quiet = path.last_sent + self._quiet(path) if path is self.current else path.last_heard + STANDBY_CHECK
                silent_at = path.silent_at() if path is self.current else None
                is_silent = silent_at is not None and now >= silent_at
                if not is_silent and (now < quiet or (path is not self.current and not path.validated)):
                    continue
                path.verify(now)
                if not is_silent and path is self.current and path.kind is PathKind.DIRECT:
                    path.idle_for = Seconds(now - path.last_sent)
                    self.keepalive.roll()
            if now < path.verify_at:
                continue
            if path.verify_attempts >= VERIFY_ATTEMPTS and path.validated:
                path.validated = False
                if path.idle_for is not None:
                    self.keepalive.died(now, path.idle_for)
                    path.idle_for = None
                failed.append(path)
            if path.verify_attempts >= VERIFY_ATTEMPTS and path is not self.current:
                path.trust()
                continue
            # The current path is asked for ever, ever more slowly, when there is no other to go to.
            backing_off = max(0, path.verify_attempts - VERIFY_ATTEMPTS)
            path.verify_attempts += 1
            told_at = DOUBT_TOLD_BUSY if path.recovery.pto_count else DOUBT_TOLD
            if path is self.current and path.verify_attempts in (told_at, DOUBT_TOLD):
                self.is_doubt_fresh = True
            is_fresh = path.in_doubt_since is not None and now - path.in_doubt_since < VERIFY_PATIENCE
            longest = VERIFY_BACKING_OFF if is_fresh else VERIFY_AT_LEAST
            path.verify_at = Instant(now + min(path.verify_spacing() * 2 ** min(backing_off, 8), longest))
            path.last_sent = now
            self.challenge(now, path.key, path.kind)
        return failed


def is_nearer(one: float, other: float) -> bool:
    """Whether a relay with the round trip `one` is so much nearer than another that it is worth a change."""
    return one < BETTER_RELAY * other and other - one >= BETTER_RELAY_BY


def _is_large(burst: SentBurst, mask: int) -> bool:
    size = burst.last_size if mask == 1 << (burst.count - 1) else burst.size
    return size > BASE_PLPMTU


def _quickest(path: Path) -> Seconds:
    """The round trip without queues, of ours or others: a path must not lose for being used."""
    rtt = path.recovery.rtt
    return rtt.min_rtt if rtt.samples else rtt.smoothed_rtt
