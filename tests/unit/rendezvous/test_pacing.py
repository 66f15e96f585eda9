"""While more comes than the server can read, the fastest pair loses first, and who asks for little loses next to nothing."""

from __future__ import annotations

from collections import Counter, deque

import pytest

from tests.unit.rendezvous.world import V4, entropy_of
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.pacing import ADDRESS_TIMES, ALONE, DEPTH, HIGHEST, INTERVAL, PREFIX_TIMES, Ceiling
from tunnel.rendezvous.relay import Relay
from tunnel.units import Address, Instant, Transmit

STEP = 0.001  # seconds
PASSED, REFUSED = 30e-6, 10e-6  # seconds that a relayed datagram costs the server, and one that it drops
BUFFER = 4_000  # datagrams that the kernel holds
BEHIND_AFTER = 0.03  # as the driver has it


class Machine:
    """A server of which every datagram takes its time, and pairs that send at a rate."""

    def __init__(self, **options: float) -> None:
        self.relay = Relay(ServerConfig(**options), entropy_of(1))  # type: ignore[arg-type]
        self.now = Instant(10.0)
        self.rates: dict[bytes, tuple[Address, float, int]] = {}  # channel -> from where, a second, bytes
        self.sent: Counter[bytes] = Counter()
        self.passed: Counter[bytes] = Counter()
        self.owed: dict[bytes, float] = {}
        self.queue: deque[tuple[bytes, Instant]] = deque()
        self.waits: dict[bytes, list[float]] = {}  # of those that were passed on or refused
        self.costs = PASSED, REFUSED
        self.full_since: Instant | None = None
        self.time_left = 0.0
        self.looks = True

    def pair(self, number: int, rate: float, size: int = 150, *, sender: str = "", target: str = "") -> bytes:
        hosts = sender or f"198.18.{number}.1", target or f"198.19.{number}.1"
        places = [Address(host, number) for host in hosts]
        channel = self.relay.open(self.now, (V4, places[0], b"a"), (V4, places[1], b"b"))
        assert channel is not None
        self.rates[channel.id] = places[0], rate, size
        return channel.id

    def run(self, seconds: float) -> None:
        self.sent.clear()
        self.passed.clear()
        self.waits.clear()
        for _ in range(round(seconds / STEP)):
            self.now = Instant(self.now + STEP)
            for channel, (_, rate, _) in self.rates.items():
                self.owed[channel] = self.owed.get(channel, 0.0) + rate * STEP
                while self.owed[channel] >= 1.0:
                    self.owed[channel] -= 1.0
                    self.sent[channel] += 1
                    if len(self.queue) < BUFFER:
                        self.queue.append((channel, self.now))
            self.time_left = min(self.time_left + STEP, STEP)
            while self.queue and self.time_left > 0:
                channel, came_at = self.queue.popleft()
                self.waits.setdefault(channel, []).append(self.now - came_at)
                self._serve(channel)
            if not self.queue:
                self.full_since = None

    def _serve(self, channel: bytes) -> None:
        self.full_since = self.now if self.full_since is None else self.full_since
        if self.looks:
            self.relay.ceiling.look(self.now, self.now - self.full_since > BEHIND_AFTER)
        source, _, size = self.rates[channel]
        out: list[Transmit] = []
        self.relay.forward(self.now, V4, source, memoryview(channel + bytes(size)), 0, size + 8, 0, out, [])
        self.passed[channel] += len(out)
        self.time_left -= self.costs[not out]

    def share(self, *channels: bytes) -> float:
        return sum(self.passed[each] for each in channels) / sum(self.sent[each] for each in channels)


@pytest.mark.parametrize(("looks", "least", "most"), [(False, 0.0, 0.8), (True, 0.98, 1.01)])
def test_gamers_beside_a_pair_that_floods(looks: bool, least: float, most: float) -> None:
    """One FIFO for all, as the kernel has it: without the ceiling everybody loses the same share."""
    machine = Machine()
    machine.looks = looks
    gamers = [machine.pair(number, 128) for number in range(1, 51)]
    flood = machine.pair(60, 45_000)
    machine.run(1.0)  # the ceiling comes down
    machine.run(2.0)
    assert least < machine.share(*gamers) < most
    assert machine.share(flood) < 0.8
    assert machine.relay.drops["relay_rate"] == 0 or looks


@pytest.mark.parametrize("rate", [30_000.0, 110_000.0, 150_000.0, 250_000.0])
def test_a_flood_costs_gamers_less_than_one_in_a_hundred_and_twenty_milliseconds(rate: float) -> None:
    """With the times that a datagram takes in batches, half a second after the flood began; until then the queue fills once."""
    machine = Machine()
    machine.costs = 9e-6, 3e-6
    gamers = [machine.pair(number, 128) for number in range(1, 51)]
    machine.pair(60, rate)
    machine.run(0.5)
    assert max(max(machine.waits[each]) for each in gamers) < 0.1
    machine.run(2.0)
    waits = sorted(wait for each in gamers for wait in machine.waits[each])
    assert machine.share(*gamers) > 0.99
    assert waits[int(0.99 * len(waits))] < 0.02


def test_without_a_queue_nobody_is_held_to_anything() -> None:
    machine = Machine()
    pairs = [machine.pair(number, 100) for number in range(1, 20)]
    fast = machine.pair(60, 25_000)
    machine.run(2.0)
    assert machine.share(*pairs) > 0.999
    assert machine.share(fast) > 0.999
    assert not machine.relay.drops


def test_a_pair_that_is_alone_takes_all_there_is() -> None:
    machine = Machine()
    alone = machine.pair(1, 60_000, 1_400)
    machine.run(2.0)
    assert machine.passed[alone] > 0.95 * 2.0 / PASSED
    assert not machine.relay.drops["relay_rate"]


@pytest.mark.parametrize(("asked", "is_held"), [(ALONE / 2, False), (ALONE * 4, True)])
def test_requests_are_others_too_but_not_those_of_the_pair_itself(asked: float, is_held: bool) -> None:
    """Clients that want to meet are no pair yet: a flood in the same queue keeps them from becoming one."""
    machine = Machine()
    machine.pair(1, 60_000)
    for tick in range(100):
        machine.run(0.02)
        machine.relay.ceiling.others += int((tick + 1) * 0.02 * asked) - int(tick * 0.02 * asked)
    assert bool(machine.relay.drops["relay_rate"]) == is_held


def test_two_equal_floods_share_what_there_is() -> None:
    machine = Machine()
    one, two = machine.pair(1, 20_000), machine.pair(2, 20_000)
    machine.run(1.0)
    machine.run(2.0)
    assert machine.passed[one] == pytest.approx(machine.passed[two], rel=0.05)
    best = 2.0 * (1.0 - 40_000 * REFUSED) / (PASSED - REFUSED)  # as what is refused costs something too
    assert machine.passed[one] + machine.passed[two] > 0.7 * best


def test_a_pair_always_has_its_least_and_the_ceiling_goes_away_with_the_flood() -> None:
    machine = Machine(pair_bursts=500.0)
    honest = machine.pair(1, 450)
    floods = [machine.pair(number, 8_000) for number in range(2, 12)]
    machine.run(1.0)
    machine.run(2.0)
    assert machine.share(honest) > 0.95
    for flood in floods:
        machine.rates[flood] = (*machine.rates[flood][:1], 10.0, 150)
    machine.run(100 * INTERVAL)
    assert not machine.relay.ceiling.is_low
    assert machine.relay.ceiling._scale == HIGHEST
    machine.rates[honest] = (machine.rates[honest][0], 5_000.0, 150)
    machine.run(1.0)
    assert machine.share(honest) > 0.999


@pytest.mark.parametrize(("size", "by"), [(50_000, "bytes"), (100, "bursts")])
def test_the_lowest_ceiling_lets_a_pair_have_its_rate_and_a_tenth_of_a_second_of_it_at_a_stretch(size: int, by: str) -> None:
    config = ServerConfig()
    ceiling, now = Ceiling(config), Instant(10.0)
    for _ in range(20):
        ceiling.others += 1
        ceiling.look(now, True)
        now = Instant(now + INTERVAL)
    rate = config.pair_rate / size if by == "bytes" else config.pair_bursts
    due, passed = now, 0
    while (after := ceiling.admits(now, due, size)) is not None:
        due, passed = after, passed + 1
    assert DEPTH * rate <= passed <= DEPTH * rate + 2
    for _ in range(round(8 * rate)):  # four times as much, for two seconds
        now = Instant(now + 0.25 / rate)
        if (after := ceiling.admits(now, due, size)) is not None:
            due, passed = after, passed + 1
    assert passed == pytest.approx((2.0 + DEPTH) * rate, abs=3)


@pytest.mark.parametrize("where", ["198.20.7.{0}", "198.20.{0}.7"])
def test_many_pairs_of_one_prefix_that_flood_are_held_together(where: str) -> None:
    """Each asks for less than a pair may always have, so none of them is held by itself."""
    machine = Machine()
    gamers = [machine.pair(number, 128) for number in range(1, 21)]
    floods = [machine.pair(100 + number, 1_000, sender=where.format(number)) for number in range(1, 61)]
    machine.run(1.0)
    machine.run(2.0)
    assert machine.share(*gamers) > 0.97
    assert 0.3 < machine.share(*floods) < 0.9
    machine.relay.sweep(Instant(machine.now + DEPTH + INTERVAL))
    assert not machine.relay._due


def test_what_others_send_to_a_prefix_takes_nothing_from_what_it_sends() -> None:
    machine = Machine()
    victim = machine.pair(1, 100, sender="198.20.7.1")
    for number in range(1, 41):
        machine.pair(number, 1_500, target="198.20.7.1")
    machine.run(1.0)
    machine.run(2.0)
    assert machine.share(victim) > 0.97


def test_an_address_has_four_times_what_a_pair_has_and_a_wider_prefix_sixteen_times() -> None:
    config = ServerConfig()
    ceiling = Ceiling(config)
    for _ in range(20):
        ceiling.others += 1
        ceiling.look(Instant(_ * INTERVAL), True)
    now = Instant(10.0)
    for times in (1.0, ADDRESS_TIMES, PREFIX_TIMES):
        due, passed = now, 0
        while (after := ceiling.admits(now, due, 100, times)) is not None:
            due, passed = after, passed + 1
        assert passed == pytest.approx(DEPTH * config.pair_bursts * times, abs=2)
    assert (ADDRESS_TIMES, PREFIX_TIMES) == (4.0, 16.0)
