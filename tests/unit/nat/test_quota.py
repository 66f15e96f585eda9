"""The watch over our own NAT while many mappings are made, against a NAT that stops, is slow, or loses answers."""

from __future__ import annotations

import random
from collections import deque

import pytest

from tunnel.nat.quota import (
    ASKS,
    BLOCK_SHARE,
    FIRST_RATE,
    LEAST_RATE,
    MOST_MAPPINGS,
    MOST_RATE,
    UNCONFIRMED,
    Quota,
)
from tunnel.units import Address, Instant

T0 = Instant(500.0)
ROUND_TRIP = 0.04


class Router:
    """Makes mappings as far as it may; a question that gets one is answered after a round trip, unless that is lost."""

    def __init__(self, *, quota: int = 100_000, rate: int = 100_000, loss: float = 0.0) -> None:
        self.quota, self.rate, self.loss = quota, rate, loss
        self.made: list[float] = []
        self.refused = 0
        self.rng = random.Random(7)

    def make(self, now: float) -> bool:
        if len(self.made) >= self.quota or sum(at > now - 1.0 for at in self.made[-self.rate :]) >= self.rate:
            self.refused += 1
            return False
        self.made.append(now)
        return True


def run(quota: Quota, router: Router, seconds: float) -> list[float]:
    """When each mapping was asked for."""
    now, moments = float(T0), []
    answers: deque[tuple[float, int]] = deque()
    newest = 0
    while now < T0 + seconds:
        while answers and answers[0][0] <= now:
            quota.answered(Instant(now), answers.popleft()[1])
        repeat = quota.repeat_at()
        is_repeated = repeat is not None and repeat <= now and quota.repeat(Instant(now))
        if is_repeated and router.make(now) and router.rng.random() >= router.loss:
            answers.append((now + ROUND_TRIP, newest))
        at = quota.ready_at()
        if at is not None and at <= now:
            moments.append(now)
            if quota.wants_question:
                newest = quota.asked(Instant(now))
                if router.make(now) and router.rng.random() >= router.loss:
                    answers.append((now + ROUND_TRIP, newest))
            else:
                quota.make(Instant(now))
                router.make(now)
        now += 0.001
    return moments


def test_no_more_than_so_many_mappings_are_made_beyond_the_last_confirmed_one() -> None:
    quota, router = Quota(T0), Router(quota=300)
    run(quota, router, 20.0)
    assert quota.is_over
    assert quota.signs == 1
    assert 0 < router.refused <= UNCONFIRMED + ASKS


def test_the_pace_follows_what_is_confirmed_and_ends_at_the_most() -> None:
    moments = run(Quota(T0), Router(), 30.0)
    seconds = [sum(T0 + at <= moment < T0 + at + 1 for moment in moments) for at in range(12)]
    assert seconds[0] < 1.2 * FIRST_RATE
    assert seconds == sorted(seconds[:4]) + seconds[4:]
    assert all(0.9 * MOST_RATE <= each <= 1.01 * MOST_RATE for each in seconds[4:10])
    assert len(moments) == MOST_MAPPINGS


def test_a_nat_that_makes_fewer_a_second_is_asked_for_fewer() -> None:
    quota, router = Quota(T0), Router(rate=300)
    moments = run(quota, router, 12.0)
    assert not quota.is_over
    assert 1 <= quota.signs <= 4
    assert router.refused <= 2 * UNCONFIRMED  # a few before enough answers stay away
    busiest = sum(T0 + 6 <= moment < T0 + 7 for moment in moments)
    assert 100 < busiest <= 300


def test_a_nat_that_makes_hardly_any_is_left_alone() -> None:
    quota, router = Quota(T0), Router(rate=20)
    run(quota, router, 20.0)
    assert quota.is_over
    assert router.refused < 4 * UNCONFIRMED
    assert LEAST_RATE > 20


def test_a_tenth_of_the_answers_lost_ends_nothing() -> None:
    quota, router = Quota(T0), Router(loss=0.1)
    quota.block = 2_048
    quota.is_reusing = True
    moments = run(quota, router, 8.0)
    assert not quota.is_over
    assert quota.signs <= 2
    assert len(moments) > 1_500


@pytest.mark.parametrize(("block", "most"), [(512, 256), (2_048, 1_024)])
def test_half_of_a_block_is_left_until_one_port_is_seen_to_serve_two(block: int, most: int) -> None:
    quota = Quota(T0)
    quota.block = block
    assert quota.most == most == block * BLOCK_SHARE
    assert len(run(quota, Router(), 10.0)) == most
    assert quota.is_spent
    seen = Address("45.1.1.1", 20_000)
    quota.saw(T0, seen, "first")
    quota.saw(T0, seen, "first")  # an answer that came twice
    assert not quota.is_reusing
    quota.saw(Instant(T0 + 9.0), seen, "second")  # the first may have ended meanwhile
    assert not quota.is_reusing
    quota.saw(Instant(T0 + 10.0), seen, "third")
    assert quota.is_reusing
    assert quota.most == MOST_MAPPINGS
