"""Delivery rate: samples that mean something, and how long they are believed."""

from __future__ import annotations

import pytest

from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

RTT = Seconds(0.1)


def exchange(rate: DeliveryRate, sent_at: float, acked_at: float, size: int, *, idle: bool = True) -> None:
    burst = SentBurst(0, 1, size, size, Instant(sent_at))
    rate.on_sent(burst, Instant(sent_at), idle)
    rate.on_ack(burst, size, Instant(acked_at), RTT, RTT)


def test_a_flight_per_round_trip_is_the_rate() -> None:
    rate = DeliveryRate(Instant(0.0))
    exchange(rate, 1.0, 1.1, 10_000)
    assert rate.value == pytest.approx(100_000)


def test_acks_that_come_bunched_make_no_sample() -> None:
    rate = DeliveryRate(Instant(0.0))
    exchange(rate, 1.0, 1.05, 10_000)
    assert rate.value == 0.0


def test_a_maximum_is_believed_for_five_to_ten_round_trips() -> None:
    rate = DeliveryRate(Instant(0.0))
    exchange(rate, 0.1, 0.2, 10_000)
    exchange(rate, 0.6, 0.7, 1_000)  # the half window turns
    assert rate.value == pytest.approx(100_000)
    exchange(rate, 1.2, 1.3, 1_000)
    assert rate.value == pytest.approx(10_000)


def test_what_the_application_held_back_does_not_replace_the_maximum() -> None:
    rate = DeliveryRate(Instant(0.0))
    exchange(rate, 0.1, 0.2, 10_000)
    exchange(rate, 0.6, 0.7, 100)
    rate.app_limited_until = rate.delivered + 1
    exchange(rate, 0.8, 0.9, 5_000)
    assert rate.value == pytest.approx(100_000)
    rate.app_limited_until = rate.delivered + 1
    exchange(rate, 1.0, 1.1, 20_000)
    assert rate.value == pytest.approx(200_000)
