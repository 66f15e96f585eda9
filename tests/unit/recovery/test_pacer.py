"""Tokens, quanta and debts."""

from __future__ import annotations

import pytest

from tunnel.transport.recovery.pacer import LATEST, MAX_BURST_BYTES, Pacer
from tunnel.units import Instant


def drain(pacer: Pacer, seconds: float, wake_late: float = 0.0) -> float:
    """Send as much as is allowed, sleeping between; bytes a second."""
    now, sent = Instant(0.0), 0
    pacer.consume(pacer.budget(now))
    while now < seconds:
        now = Instant(pacer.next_at(now, 1 << 30) + wake_late)
        budget = pacer.budget(now)
        assert budget <= MAX_BURST_BYTES
        sent += budget
        pacer.consume(budget)
    return sent / now


def test_a_fresh_pacer_lets_ten_packets_go_at_once_at_any_rate() -> None:
    pacer = Pacer(1.0, 1200, Instant(0.0))
    pacer.set_rate(2.0, Instant(5.0))
    assert pacer.budget(Instant(9.0)) == 12_000
    pacer.consume(12_000)
    assert pacer.budget(Instant(1e6)) == 2_400


def test_the_rate_is_kept_in_quanta_of_two_milliseconds() -> None:
    pacer = Pacer(50e6, 1200, Instant(0.0))
    assert pacer.quantum == 100_000
    assert drain(pacer, 1.0) == pytest.approx(50e6, rel=0.01)


def test_waking_a_quantum_late_costs_no_rate() -> None:
    assert drain(Pacer(50e6, 1200, Instant(0.0)), 1.0, wake_late=0.0019) == pytest.approx(50e6, rel=0.01)


def test_a_slow_rate_waits_for_two_packets_or_for_what_is_wanted() -> None:
    pacer = Pacer(12_000.0, 1200, Instant(0.0))
    pacer.consume(12_000)
    assert pacer.next_at(Instant(0.0), 1 << 20) == pytest.approx(0.2)
    assert pacer.next_at(Instant(0.0), 1200) == pytest.approx(0.1)
    assert pacer.budget(Instant(0.1)) == pytest.approx(1200, abs=1)


def test_a_debt_is_paid_first() -> None:
    pacer = Pacer(1e6, 1200, Instant(0.0))
    pacer.consume(32_000)  # 12,000 were allowed
    assert pacer.budget(Instant(0.010)) == 0
    assert pacer.next_at(Instant(0.010), 1200) == pytest.approx(0.0212)


def test_a_long_sleep_saves_up_no_more_than_two_quanta() -> None:
    pacer = Pacer(50e6, 1200, Instant(0.0))
    assert pacer.budget(Instant(100.0)) == 200_000


def test_a_changed_rate_counts_from_now() -> None:
    pacer = Pacer(1e6, 1200, Instant(0.0))
    pacer.consume(pacer.budget(Instant(0.0)))
    pacer.set_rate(2e6, Instant(0.002))
    assert pacer.budget(Instant(0.004)) == pytest.approx(2_000 + 4_000, abs=1)
    pacer.set_datagram_size(1400, Instant(0.004))
    assert pacer.budget(Instant(9.0)) == 8_000


def test_who_has_more_to_send_and_is_woken_late_sends_what_was_missed_up_to_sixteen_milliseconds() -> None:
    assert drain(Pacer(10e6, 1200, Instant(0.0)), 1.0, wake_late=0.013) == pytest.approx(10e6, rel=0.01)
    pacer = Pacer(10e6, 1200, Instant(0.0))
    pacer.consume(pacer.budget(Instant(0.0)))
    pacer.next_at(Instant(0.0), 1 << 20)
    assert pacer.budget(Instant(100.0)) == pytest.approx(LATEST * 10e6, abs=1)
    pacer.consume(1200)  # and that was all there was
    assert pacer.budget(Instant(200.0)) <= LATEST * 10e6
    pacer.consume(pacer.budget(Instant(200.0)))
    assert pacer.budget(Instant(300.0)) == 40_000
