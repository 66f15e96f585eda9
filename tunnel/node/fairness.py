"""Fairness under overload: a peer that takes more of the processor than its share gives way, and nobody else.

All peers share the kernel's queue of one socket, and one processor opens what is in it.  Two things may run out:

- The queue overflows, and the kernel drops whatever comes: a flood from one peer would cost the others theirs.  So a growing part
  of what the heavy ones sent is dropped unopened, until the queue no longer overflows.  The idea is that of a fair AQM: PIE's
  probability (RFC 8033 §4.2), by sender.
- A trickle that costs far more than its bytes keeps the others waiting while the queue is nearly empty.  So what goes beyond
  COSTLY a byte is a debt, which is paid off by waiting: until then nothing more of that sender is opened.

Both count processor time, as it was measured: a sender chooses what its bytes cost us.  A stream that it opens has a price of its
own, as what follows from it is done later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable

#: Of the processor, for a stream that a peer opens.  Its task runs later and is not measured: one that is dropped at once takes
#: a fifth of this on an ordinary machine.  So whoever does nothing else has a tenth of the processor (with PAID_OFF), and a
#: stream on which 250 bytes come has paid for itself (with COSTLY).
STREAM_PRICE: Final = Seconds(500e-6)
WINDOW: Final = Seconds(0.05)  # in which time is counted; what counts is this one and the one before
STEP_UP: Final = 0.15  # of the probability, for each look that finds new overflow
STEP_DOWN: Final = 0.02  # for each window without
MOST: Final = 0.98  # always a few: a flood that ends is noticed, and keys are not forgotten
MAX_SENDERS: Final = 1_024  # counted in one window; an endpoint has fewer peerings
COSTLY: Final = Seconds(2e-6)  # of the processor for a byte: no frame costs more on an ordinary machine, bulk costs a tenth of it
MAX_DEBT: Final = Seconds(0.1)  # of the processor beyond that, before a sender has to wait, and the others for it: above a pause
WORST_DEBT: Final = Seconds(2.0)  # that a sender may have: a pause of ours in its batch silences it for seconds, not for minutes
PAID_OFF: Final = 0.5  # of a second in each second, by all debtors together: the other half of the processor is not for them

TOO_MUCH: Final = "over its share of a full queue"
TOO_COSTLY: Final = "over its share of the processor"


class _Spent:
    """The work that one sender took in a window."""

    __slots__ = ("price", "wanted")

    def __init__(self, price: float = 0.0) -> None:
        self.wanted = (
            0.0  # seconds of the processor: of what was opened, and what it would have been of what was dropped unopened
        )
        self.price = price  # seconds a byte, of what was opened last


_NOTHING: Final = _Spent()


class FairShare:
    """Counts processor time by sender, and says what may be opened."""

    def __init__(self, rng: random.Random, processor: Callable[[], float] = lambda: 0.0) -> None:
        """`processor`: seconds that it has worked so far."""
        self._rng = rng
        self._processor = processor
        self._began = 0.0  # where it stood then
        self.is_measuring = False
        self._level = 0.0
        self._until = Instant(0.0)
        self._now: dict[Hashable, _Spent] = {}
        self._before: dict[Hashable, _Spent] = {}
        self._total = 0.0  # wanted by all
        self._total_before = 0.0
        self._overflowed = False
        self._debts: dict[Hashable, tuple[float, Instant]] = {}  # seconds, as of then

    @property
    def level(self) -> float:
        """Which part of what heavy senders send is dropped."""
        return self._level

    def overflowed(self) -> None:
        """The kernel's queue has dropped something since the last look."""
        self._overflowed = True
        self._level = min(MOST, self._level + STEP_UP)

    def begin(self, peers: int) -> bool:
        """A batch has come.  Whether charge() is to follow: with one peer only there is nobody to be fair to."""
        self.is_measuring = peers > 1
        if self.is_measuring:
            self._began = self._processor()
        return self.is_measuring

    def charge(self, now: Instant, sender: Hashable, size: int, streams: int = 0) -> None:
        """Charge `sender` the time since the last charge: it sent `size` bytes and opened so many streams."""
        began, self._began = self._began, self._processor()
        self.spent(now, sender, size, self._began - began + streams * STREAM_PRICE)

    def refusal(self, now: Instant, sender: Hashable, size: int) -> str | None:
        """Why these `size` bytes of `sender` are to be dropped unopened; None where they may be opened."""
        if now >= self._until:
            self._turn(now)
        if self._debts and self._debt(now, sender) > MAX_DEBT:
            return TOO_COSTLY
        if not self._level:
            return None
        mine, before = self._now.get(sender, _NOTHING), self._before.get(sender, _NOTHING)
        active = len(self._now.keys() | self._before.keys())
        wanted = mine.wanted + before.wanted
        if active < 2 or wanted * active <= self._total + self._total_before or self._rng.random() >= self._level:
            return None
        self._count(sender, size * (mine.price or before.price))
        return TOO_MUCH

    def spent(self, now: Instant, sender: Hashable, size: int, seconds: float) -> None:
        """To open `size` bytes of `sender`, and to do what they asked for, took so much of the processor.

        Strangers are one sender, None: what they send is never opened, but it takes time and room from the others.
        """
        mine = self._count(sender, seconds)
        if mine is not None:
            mine.price = seconds / size
        beyond = seconds - COSTLY * size
        if sender is not None and (beyond > 0 or sender in self._debts):
            self._owe(now, sender, beyond)

    def _count(self, sender: Hashable, seconds: float) -> _Spent | None:
        mine = self._now.get(sender)
        if mine is None:
            if len(self._now) >= MAX_SENDERS:
                return None
            mine = self._now[sender] = _Spent(self._before.get(sender, _NOTHING).price)
        mine.wanted += seconds
        self._total += seconds
        return mine

    def _debt(self, now: Instant, sender: Hashable) -> float:
        """Return the debt of `sender` by now."""
        debt, since = self._debts.get(sender, (0.0, now))
        return debt - (now - since) * PAID_OFF / max(1, len(self._debts))

    def _owe(self, now: Instant, sender: Hashable, seconds: float) -> None:
        debt = min(WORST_DEBT, max(0.0, self._debt(now, sender)) + seconds)
        if debt <= 0:
            self._debts.pop(sender, None)
        elif sender in self._debts or len(self._debts) < MAX_SENDERS:
            self._debts[sender] = debt, now

    def _turn(self, now: Instant) -> None:
        is_next = now < self._until + WINDOW
        self._before, self._now = (self._now if is_next else {}), {}
        self._total_before, self._total = (self._total if is_next else 0.0), 0.0
        self._until = Instant(now + WINDOW)
        if not self._overflowed:
            self._level = max(0.0, self._level - STEP_DOWN) if is_next else 0.0
        self._overflowed = False
        if self._debts:
            self._debts = {sender: owed for sender, owed in self._debts.items() if self._debt(now, sender) > 0}
