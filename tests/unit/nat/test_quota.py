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
    MAX_NETWORKS,
    MOST_MAPPINGS,
    MOST_RATE,
    REMEMBERED,
    RESTS,
    UNCONFIRMED,
    Limits,
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


def test_a_pace_below_the_limit_is_never_refused_and_little_is_where_the_limit_is_in_all() -> None:
    quota, router = Quota(T0), Router(rate=200)
    quota.need(FIRST_RATE)
    assert len(run(quota, router, 12.0)) > 1_300
    assert (quota.signs, router.refused) == (0, 0)
    quota, router = Quota(T0), Router(quota=300)
    quota.need(FIRST_RATE)
    run(quota, router, 12.0)
    assert quota.is_over
    assert router.refused <= 0.8 * UNCONFIRMED + ASKS


def test_a_limit_is_met_once_and_remembered_by_all_of_a_process() -> None:
    limits, hosts = Limits(), ("45.1.1.1",)
    run(Quota(T0, limits.of(T0, hosts)), Router(quota=300), 12.0)
    assert limits.of(Instant(T0 + RESTS), hosts).is_resting(T0)
    later = Instant(T0 + 12.0 + RESTS)
    assert not limits.of(later, hosts).is_resting(later)
    router = Router(quota=300)
    run(Quota(T0, limits.of(later, hosts)), router, 12.0)
    assert router.refused == 0
    assert len(router.made) > 150
    assert limits.of(Instant(T0 + 12.0 + REMEMBERED), hosts).most == MOST_MAPPINGS  # carriers change their minds
    slow, quick = Router(rate=300), Router(rate=300)
    run(Quota(T0, limits.of(T0, ("45.1.1.2",))), slow, 12.0)
    run(Quota(T0, limits.of(T0, ("45.1.1.2",))), quick, 12.0)
    assert slow.refused > 10 * quick.refused
    for number in range(2 * MAX_NETWORKS):
        limits.of(T0, (f"45.1.2.{number}",))
    assert limits.of(T0, ("45.1.1.2",)).rate == MOST_RATE


def test_a_tenth_of_the_answers_lost_ends_nothing() -> None:
    quota, router = Quota(T0), Router(loss=0.1)
    quota.block = 2_048
    quota.is_reusing = True
    moments = run(quota, router, 8.0)
    assert not quota.is_over
    assert quota.signs <= 2
    assert len(moments) > 1_000


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
