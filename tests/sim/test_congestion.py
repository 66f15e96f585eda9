"""What congestion control owes its users and its neighbours, on emulated links in virtual time and over several seeds.

Goodput is a share of the link's rate; 100 Mbit/s, 40 ms round trip and 40 ms of queue unless said otherwise.
The figures behind the bounds are in docs/decisions/congestion-control.md.
"""

from __future__ import annotations

import random
import statistics

import pytest

from tests.sim.bbr1 import Bbr1
from tests.sim.bottleneck import MBIT, SIZE, Bottleneck, Flow, Make, bursty_loss, random_loss
from tests.sim.cubic import Cubic
from tests.unit.connection.pair import Pair
from tunnel.transport.recovery.bbr import Bbr
from tunnel.units import Instant

OURS: Make = Bbr


def cubic(size: int, now: Instant, _: random.Random) -> Cubic:
    return Cubic(size, now)


EITHER = [pytest.param(OURS, id="bbr"), pytest.param(cubic, id="cubic")]


def goodput(link: Bottleneck, make: Make = OURS, *, warm: float = 1.0, seconds: float = 5.0) -> float:
    link.add(make)
    link.run(warm)
    return link.measure(seconds)[0]


def added(link: Bottleneck) -> list[float]:
    """Queueing delays that a ping met, sorted, without the first second."""
    return sorted(link.pings[100:])


@pytest.mark.parametrize("make", EITHER)
def test_a_clean_link_is_used_whole(make: Make) -> None:
    assert goodput(Bottleneck(1), make) > 0.97


@pytest.mark.parametrize(("share", "seed"), [(0.01, 1), (0.01, 2), (0.05, 3), (0.05, 4)])
def test_random_loss_costs_what_is_lost_and_hardly_more(share: float, seed: int) -> None:
    assert goodput(Bottleneck(seed, loss=random_loss(share))) > 0.95 * (1 - share)


def test_loss_behind_the_bottleneck_costs_what_is_lost_and_hardly_more() -> None:
    assert goodput(Bottleneck(5, late_loss=random_loss(0.05))) > 0.95 * 0.95


@pytest.mark.parametrize(("share", "seed"), [(0.01, 1), (0.05, 2)])
def test_loss_in_bursts_is_no_worse(share: float, seed: int) -> None:
    assert goodput(Bottleneck(seed, loss=bursty_loss(share))) > 0.9 * (1 - share)


@pytest.mark.parametrize(("rate", "seed"), [(100 * MBIT, 5), (20 * MBIT, 31)])
def test_losses_in_a_row_without_a_queue_set_no_limit(rate: float, seed: int) -> None:
    """In these runs several follow one another at the start and in the first probes."""
    assert goodput(Bottleneck(seed, rate=rate, loss=bursty_loss(0.05)), warm=2.0, seconds=4.0) > 0.92


def test_loss_in_bursts_leaves_as_much_as_to_the_kernels_bbr() -> None:
    def found(make: Make) -> list[float]:
        links = [Bottleneck(seed, rate=20 * MBIT, loss=bursty_loss(0.05)) for seed in range(30, 36)]
        return sorted(goodput(link, make, warm=0.5, seconds=3.0) for link in links)

    ours, theirs = found(OURS), found(Bbr1)
    assert statistics.mean(ours) > 0.95 * statistics.mean(theirs), (ours, theirs)
    assert ours[0] > 0.95 * theirs[0], (ours, theirs)


@pytest.mark.parametrize("make", EITHER)
def test_reordering_costs_under_a_tenth(make: Make) -> None:
    assert goodput(Bottleneck(1, reorder=0.05, by=0.005), make) > 0.9


@pytest.mark.parametrize("rate", [2 * MBIT, 20 * MBIT])
@pytest.mark.parametrize("seed", [1, 2])
def test_three_lost_in_ten_leave_most_of_the_rest(rate: float, seed: int) -> None:
    assert goodput(Bottleneck(seed, rate=rate, loss=random_loss(0.3)), warm=5.0, seconds=10.0) > 0.6 * 0.7


@pytest.mark.parametrize("seed", [1, 5])
def test_a_busy_machine_is_no_full_pipe(seed: int) -> None:
    """One datagram in twenty is lost, and one in fifty finds an end that is not scheduled for 10 to 40 ms."""
    pair = Pair(seed, relayed=False, rate=20 * MBIT, delay=0.020, queue=0.100)
    rng = random.Random(seed)
    busy_until = 0.0

    def late(_name: str, _relayed: bool, _data: bytes) -> list[float]:
        nonlocal busy_until
        if rng.random() < 0.05:
            return []
        if rng.random() < 0.02:
            busy_until = pair.now + rng.uniform(0.010, 0.040)
        return [max(0.020, busy_until - pair.now)]

    pair.hook = late
    pair.run(1.0)
    stream = pair.a.open_stream()
    began = pair.now
    chunk = bytes(65_536)
    arrived = 0
    while pair.now < began + 4.0:
        while pair.a.stream_write(stream, chunk):
            pass
        pair.step(began + 4.0)
        data = pair.read["b"].setdefault(stream, bytearray())
        if pair.now > began + 2.0:
            arrived += len(data)
        data.clear()
    assert arrived > 0.85 * 2.0 * 20 * MBIT * 0.95


@pytest.mark.parametrize("make", EITHER)
def test_two_megabits_are_used_and_a_burst_is_small(make: Make) -> None:
    link = Bottleneck(1, rate=2 * MBIT)
    assert goodput(link, make, seconds=20.0) > 0.9
    assert link.dropped < 0.05 * link.flows[0].next_number


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_long_path_is_full_within_ten_round_trips(seed: int) -> None:
    link = Bottleneck(seed, delay=0.150, queue=0.300)
    link.add(OURS)
    link.run(10 * 0.300)
    assert link.measure(0.300)[0] > 0.9


@pytest.mark.parametrize(("seed", "warm"), [(1, 0.0), (2, 0.7), (3, 3.0)])
def test_the_connection_does_not_hold_a_long_path_back(seed: int, warm: float) -> None:
    """Windows, rings and what is known of a path that was idle keep up: so does a stream of a real connection."""
    pair = Pair(seed, relayed=False, rate=100 * MBIT, delay=0.150, queue=0.300)
    pair.run(warm)
    stream = pair.a.open_stream()
    began = pair.now
    chunk = bytes(65_536)

    def arrive(until: float) -> int:
        total = 0
        while pair.now < until:
            while pair.a.stream_write(stream, chunk):
                pass
            pair.step(until)
            data = pair.read["b"].setdefault(stream, bytearray())
            total += len(data)
            data.clear()
        return total

    arrive(began + 10 * 0.300)
    assert arrive(began + 11 * 0.300) > 0.9 * 0.300 * 100 * MBIT


def test_a_saturated_link_with_a_deep_buffer_stays_quick() -> None:
    link = Bottleneck(1, queue=0.200)
    assert goodput(link, seconds=8.0) > 0.97
    delays = added(link)
    assert statistics.mean(delays) < 0.010
    assert delays[int(0.99 * len(delays))] < 0.040
    assert link.dropped == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_keystroke_and_a_datagram_pass_by_a_saturating_stream(seed: int) -> None:
    """Both ways and back within 2 round trips and 10 ms at the 99th percentile, with 200 ms of buffer in front of the link."""
    pair = Pair(seed, relayed=False, rate=50 * MBIT, delay=0.020, queue=0.200)
    pair.run(0.5)
    bulk, keys = pair.a.open_stream(), pair.a.open_stream()
    chunk = bytes(65_536)
    ends, next_at = pair.now + 7.0, pair.now + 2.0
    pressed: list[float] = []
    moved: list[float] = []
    echoes: list[float] = []
    replies: list[float] = []
    arrived = 0
    while pair.now < ends:
        while pair.a.stream_write(bulk, chunk):
            pass
        if pair.now >= next_at and len(pressed) == len(echoes):
            pair.a.stream_write(keys, b"k")
            pair.a.send_datagrams(pair.now, 1, [b"move"])
            pressed.append(pair.now)
            moved.append(pair.now)
            next_at = pair.now + 0.030
        pair.step(min(ends, next_at) if pair.now < next_at else ends)
        for buffer in (pair.read["b"].setdefault(keys, bytearray()), pair.read["b"].setdefault(bulk, bytearray())):
            arrived += len(buffer)
        pair.read["b"][bulk].clear()
        if pair.read["b"][keys]:
            pair.read["b"][keys].clear()
            pair.b.stream_write(keys, b"K")
        if pair.b.receive_datagrams():
            pair.b.send_datagrams(pair.now, 2, [b"seen"])
        if pair.read["a"].setdefault(keys, bytearray()):
            pair.read["a"][keys].clear()
            echoes.append(pair.now - pressed[-1])
        replies += [pair.now - moved[-1] for _ in pair.a.receive_datagrams()]
    assert arrived > 0.9 * 6.0 * 50 * MBIT
    assert len(echoes) > 50
    assert len(replies) >= len(echoes) - 1
    for times in (echoes, replies):
        assert sorted(times)[int(0.99 * len(times))] < 2 * 0.040 + 0.010, sorted(times)[-5:]


def shares(seed: int, buffer: float, first: Make, second: Make, *, seconds: float = 40.0) -> list[float]:
    """Two flows of 20 Mbit/s in all, `buffer` bandwidth-delay products of queue; the second one is not paced, as a kernel's."""
    link = Bottleneck(seed, rate=20 * MBIT, queue=0.040 * buffer)
    link.add(first)
    link.run(1.0)
    link.add(second, paced=second is first)
    link.run(3.0)
    return link.measure(seconds)


@pytest.mark.parametrize(("buffer", "least"), [(0.5, 0.10), (1.0, 0.25), (2.0, 0.25), (4.0, 0.10)])
def test_beside_a_cubic_flow_neither_starves(buffer: float, least: float) -> None:
    found = [shares(seed, buffer, OURS, cubic) for seed in (1, 2)]
    assert min(min(pair) for pair in found) > least, found
    assert min(sum(pair) for pair in found) > 0.95, found


@pytest.mark.parametrize("seed", [1, 2])
def test_a_cubic_flow_that_begins_with_it_and_never_lets_the_queue_run_empty_does_not_starve_it(seed: int) -> None:
    """The shortest round trip is known, and none is as short again: the window must not be cut by that."""
    link = Bottleneck(seed, rate=30 * MBIT, queue=0.160)
    link.add(OURS)
    link.add(cubic, paced=False)
    link.run(3.0)
    found = link.measure(30.0)
    assert min(found) > 0.3, found


def test_two_of_ours_share() -> None:
    found = shares(1, 1.0, OURS, OURS)
    assert min(found) > 0.25
    assert sum(found) > 0.95


def test_a_rate_that_falls_and_rises_is_followed() -> None:
    link = Bottleneck(1, rate=20 * MBIT)
    link.add(OURS)
    link.run(3.0)
    link.rate = 5 * MBIT
    link.run(3.0)
    assert link.measure(5.0)[0] > 0.9
    assert max(link.pings[-300:]) <= link.queue + SIZE / link.rate
    link.rate = 20 * MBIT
    link.run(8.0)
    assert link.measure(5.0)[0] > 0.9


def test_a_policer_is_found_out() -> None:
    """No queue, but loss that depends on our rate: it must not pass for a bad link."""
    link = Bottleneck(1, rate=20 * MBIT, queue=0.010, police=True)
    flow: Flow = link.add(OURS)
    link.run(5.0)
    sent, dropped = flow.next_number, link.dropped
    assert link.measure(10.0)[0] > 0.9
    assert link.dropped - dropped < 0.2 * (flow.next_number - sent)
