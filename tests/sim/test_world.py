"""The simulated network itself: what the other simulations stand on."""

from __future__ import annotations

import itertools
import random
from collections import deque

import pytest

from tests.sim.link import Bursts, Link, Pipe
from tests.sim.nat import APD, FILTER_AD, FILTER_EI, Behaviour, Box, Expiry, Ports
from tests.sim.world import Host, World
from tunnel.units import Address, Instant, Seconds, SocketId, Transmit

S = SocketId(0)
INNER, SERVER, PEER = Address("192.168.1.2", 5000), Address("45.1.0.9", 1), Address("45.1.0.8", 2)


class Recorder:
    """A node that notes what it gets and sends what it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[float, Address, bytes, int]] = []
        self.out: deque[tuple[Address, bytes, int, int | None]] = deque()
        self.deadline: Instant | None = None
        self.timeouts: list[float] = []

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        self.got.append((now, remote, bytes(buffer), stride))

    def handle_timeout(self, now: Instant) -> None:
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.timeouts.append(now)

    def poll_timeout(self) -> Instant | None:
        return self.deadline

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        if not self.out:
            return None
        remote, data, size, ttl = self.out.popleft()
        out[: len(data)] = data
        return Transmit(S, remote, size, memoryview(out)[: len(data)], ttl)


def two_public(world: World) -> tuple[Host, Host, Recorder, Recorder]:
    a, b = world.host("a"), world.host("b")
    first, second = Recorder(), Recorder()
    world.attach(a, first, {S: a.bind(port=1)})
    world.attach(b, second, {S: b.bind(port=2)})
    return a, b, first, second


def test_a_burst_arrives_as_one_batch_after_the_delay() -> None:
    with World(1, Link(delay=Seconds(0.03))) as world:
        a, b, first, second = two_public(world)
        first.out.append((b.sockets[S], b"x" * 3500, 1000, None))
        begun = world.now
        world.touch(a)
        world.run(1.0)
        assert [(len(data), stride) for _, _, data, stride in second.got] == [(3500, 1000)]
        assert second.got[0][0] - begun == pytest.approx(0.03)
        assert second.got[0][1] == a.sockets[S]


def test_a_rate_spreads_a_burst_and_its_queue_drops_the_tail() -> None:
    pipe = Pipe(Link(delay=Seconds(0.0), rate=10_000.0, queue=5_000), random.Random(1))
    arrivals = [pipe.send(Instant(0.0), 1000) for _ in range(8)]
    assert [at[0] for at in arrivals if at] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert pipe.counters.overflowed == 3


def test_loss_comes_at_its_rate_alone_or_in_bursts() -> None:
    for link, rate, run_length in (
        (Link(loss=0.1), 0.1, 1.1),
        (Link(bursts=Bursts(enter=0.01, leave=0.09)), 0.1, 11.0),
    ):
        pipe = Pipe(link, random.Random(2))
        lost = [not pipe.send(Instant(0.0), 100) for _ in range(40_000)]
        assert sum(lost) / len(lost) == pytest.approx(rate, rel=0.2)
        bursts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
        assert sum(lost) / bursts == pytest.approx(run_length, rel=0.2)


def test_reordering_overtakes_and_duplication_doubles() -> None:
    pipe = Pipe(Link(delay=Seconds(0.01), reorder=0.2, duplicate=0.1, reorder_by=Seconds(0.005)), random.Random(3))
    arrivals = [pipe.send(Instant(0.001 * n), 100) for n in range(2000)]
    assert sum(len(at) == 2 for at in arrivals) == pytest.approx(200, rel=0.3)
    firsts = [at[0] for at in arrivals]
    assert sum(later < earlier for earlier, later in itertools.pairwise(firsts)) > 200
    steady = Pipe(Link(delay=Seconds(0.01), jitter=Seconds(0.05)), random.Random(3))
    firsts = [steady.send(Instant(0.001 * n), 100)[0] for n in range(500)]
    assert firsts == sorted(firsts)


def test_a_low_ttl_dies_between_the_sites() -> None:
    with World(1) as world:
        a, b, first, second = two_public(world)
        for ttl in (1, 8, 9, None):
            first.out.append((b.sockets[S], bytes((ttl or 64,)), 1, ttl))
        world.touch(a)
        world.run(1.0)
        assert [data[0] for _, _, data, _ in second.got] == [9, 64]
        assert world.drops["ttl"] == 2


def test_a_sleeper_hears_nothing_and_its_timers_come_late() -> None:
    with World(1) as world:
        a, b, first, second = two_public(world)
        second.deadline = Instant(world.now + 1.0)
        world.touch(b)
        world.suspend(b, Seconds(100.0))
        woken = world.now + 100.0
        first.out.append((b.sockets[S], b"x", 1, None))
        world.touch(a)
        world.run(200.0)
        assert second.got == []
        assert second.timeouts == [woken]


def test_a_busy_node_is_caught_and_the_seed_is_told() -> None:
    class Busy(Recorder):
        def poll_timeout(self) -> Instant | None:
            return Instant(0.0)

    def run() -> None:
        with World(4711) as world:
            host = world.host("a")
            world.attach(host, Busy(), {S: host.bind()})

    with pytest.raises(AssertionError, match="busy for ever") as caught:
        run()
    assert any("seed=4711" in note for note in caught.value.__notes__)


def test_asked_drops_and_a_filter_lose_exactly_those() -> None:
    with World(1) as world:
        a, b, first, second = two_public(world)
        world.drop_next(a, 2)
        world.filter = lambda host, destination, datagram: datagram != b"3"
        first.out.append((b.sockets[S], b"01234", 1, None))
        world.touch(a)
        world.run(1.0)
        assert b"".join(data for _, _, data, _ in second.got) == b"24"


def make_box(behaviour: Behaviour) -> Box:
    return Box(behaviour, "45.1.0.1", random.Random(1), lambda reason, text: None)


def test_mapping_and_filtering_are_separate() -> None:
    now = Instant(0.0)
    cone = make_box(Behaviour(filtering=FILTER_EI))
    outer = cone.outbound(now, INNER, SERVER)
    assert outer == Address("45.1.0.1", 5000)
    assert cone.outbound(now, INNER, PEER) == outer
    assert cone.inbound(now, Address("9.9.9.9", 9), outer) == INNER
    restricted = make_box(Behaviour(filtering=FILTER_AD))
    restricted.outbound(now, INNER, SERVER)
    assert restricted.inbound(now, Address(SERVER.host, 777), outer) == INNER
    assert restricted.inbound(now, PEER, outer) is None
    by_port = make_box(Behaviour())
    by_port.outbound(now, INNER, SERVER)
    assert by_port.inbound(now, Address(SERVER.host, 777), outer) is None
    assert by_port.inbound(now, SERVER, outer) == INNER
    symmetric = make_box(Behaviour(mapping=APD, ports=Ports.SEQUENTIAL))
    ports = [symmetric.outbound(now, INNER, Address("8.8.8.8", port)) for port in (1, 2, 3)]
    assert [address.port - ports[0].port for address in ports if address and ports[0]] == [0, 1, 2]


def test_a_mapping_expires_and_lives_longer_once_replied() -> None:
    box = make_box(Behaviour(ports=Ports.RANDOM, expiry=Expiry(Seconds(8.0), Seconds(12.0))))
    outer = box.outbound(Instant(0.0), INNER, SERVER)
    assert outer is not None
    assert box.inbound(Instant(7.9), SERVER, outer) == INNER
    assert box.inbound(Instant(19.0), SERVER, outer) == INNER
    assert box.inbound(Instant(31.5), SERVER, outer) is None
    assert box.outbound(Instant(32.0), INNER, SERVER) != outer


def test_a_racing_router_moves_only_the_flow_it_has_heard_first() -> None:
    box = make_box(Behaviour(races=True))
    outer = box.outbound(Instant(0.0), INNER, SERVER)
    assert outer is not None
    assert box.inbound(Instant(1.0), PEER, outer) is None
    moved = box.outbound(Instant(2.0), INNER, PEER)
    assert moved is not None
    assert moved.port != outer.port
    assert box.outbound(Instant(2.0), INNER, SERVER) == outer
    assert box.inbound(Instant(2.1), PEER, moved) == INNER
    assert box.inbound(Instant(2.1), PEER, outer) is None
    assert box.outbound(Instant(200.0), INNER, PEER) == outer  # all forgotten


def test_a_carrier_quota_refuses_the_mapping_too_many() -> None:
    box = make_box(Behaviour(mapping=APD, ports=Ports.RANDOM, quota=3))
    made = [box.outbound(Instant(0.0), INNER, Address("8.8.8.8", port)) for port in range(1, 6)]
    assert [address is not None for address in made] == [True, True, True, False, False]
    assert box.drops["quota"] == 2
