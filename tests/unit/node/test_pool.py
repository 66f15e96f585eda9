from __future__ import annotations

from collections.abc import Iterable

from tunnel.nat.budget import POOL_SOCKETS
from tunnel.nat.technique import PoolSocket
from tunnel.node.pool import MAX_SURVIVORS, SWEEP_INTERVAL, CloseSockets, OpenSockets, SocketPool
from tunnel.units import Instant, SocketId

T0 = Instant(7.0)


class FakePuncher:
    """What the pool knows of a Puncher."""

    def __init__(self) -> None:
        self.wanted_sockets = 0
        self.next_at: Instant | None = None
        self.held: tuple[PoolSocket, ...] = ()
        self.used: set[SocketId] = set()
        self.closed: list[SocketId] = []

    def sockets_opened(self, now: Instant, fresh: Iterable[PoolSocket], sockets: tuple[PoolSocket, ...]) -> None:
        self.held = sockets

    def sockets_closed(self, now: Instant, gone: Iterable[SocketId]) -> None:
        self.closed.extend(gone)

    def used_sockets(self) -> set[SocketId]:
        return self.used


class Driver:
    """Opens and closes by number."""

    def __init__(self, pool: SocketPool, limit: int = 10_000) -> None:
        self.pool = pool
        self.open: set[SocketId] = set()
        self.limit = limit
        self.next = 100

    def work(self) -> None:
        while self.pool.orders:
            order = self.pool.orders.popleft()
            match order:
                case OpenSockets(count):
                    fresh = [SocketId(self.next + n) for n in range(min(count, self.limit - len(self.open)))]
                    self.next += count
                    self.open.update(fresh)
                    self.pool.opened(T0, [PoolSocket(each, 1) for each in fresh], count)
                case CloseSockets(socket_ids):
                    assert self.open.issuperset(socket_ids)
                    self.open.difference_update(socket_ids)


def serve(pool: SocketPool, puncher: FakePuncher, driver: Driver) -> None:
    pool.serve(T0, puncher)  # type: ignore[arg-type]
    driver.work()


def test_a_hundred_attempts_leak_nothing() -> None:
    pool, puncher = SocketPool(), FakePuncher()
    driver = Driver(pool)
    for number in range(100):
        for wanted in (12, 256, 256, 0):
            puncher.wanted_sockets = wanted
            serve(pool, puncher, driver)
            assert len(driver.open) <= POOL_SOCKETS
        assert len(puncher.closed) == 256 * (number + 1)
        assert not driver.open
        assert len(pool) == 0


def test_the_socket_that_carries_the_path_survives_until_the_path_dies() -> None:
    pool, puncher = SocketPool(), FakePuncher()
    driver = Driver(pool)
    puncher.wanted_sockets = 256
    serve(pool, puncher, driver)
    puncher.used = {puncher.held[17].socket_id}
    puncher.wanted_sockets = 0
    serve(pool, puncher, driver)
    assert driver.open == puncher.used
    pool.sweep(T0, [puncher])  # type: ignore[list-item]
    driver.work()
    assert driver.open == puncher.used
    puncher.used = set()
    pool.sweep(Instant(T0 + SWEEP_INTERVAL), [puncher])  # type: ignore[list-item]
    driver.work()
    assert not driver.open


def test_one_puncher_at_a_time_and_the_next_is_called() -> None:
    pool, first, second = SocketPool(), FakePuncher(), FakePuncher()
    driver = Driver(pool)
    first.wanted_sockets = second.wanted_sockets = 256
    serve(pool, first, driver)
    serve(pool, second, driver)
    assert (len(first.held), len(second.held)) == (256, 0)
    first.wanted_sockets = 0
    serve(pool, first, driver)
    assert second.next_at == T0
    serve(pool, second, driver)
    assert len(second.held) == 256


def test_a_puncher_that_ended_gives_everything_back() -> None:
    pool, puncher = SocketPool(), FakePuncher()
    driver = Driver(pool)
    puncher.wanted_sockets = 256
    serve(pool, puncher, driver)
    pool.sweep(T0, [])
    driver.work()
    assert not driver.open


def test_few_descriptors_mean_a_small_pool_and_no_endless_asking() -> None:
    pool, puncher = SocketPool(), FakePuncher()
    driver = Driver(pool, limit=40)
    puncher.wanted_sockets = 256
    for _ in range(5):
        serve(pool, puncher, driver)
    assert len(puncher.held) == 40
    assert driver.next == 100 + 256


def test_many_survivors_stop_new_pools() -> None:
    pool, punchers = SocketPool(), []
    driver = Driver(pool)
    for _ in range(20):
        puncher = FakePuncher()
        punchers.append(puncher)
        puncher.wanted_sockets = 12
        serve(pool, puncher, driver)
        puncher.used = {socket.socket_id for socket in puncher.held}
        puncher.wanted_sockets = 0
        serve(pool, puncher, driver)
    assert len(driver.open) <= MAX_SURVIVORS + 12
