"""What happens to a link that stands: servers die, paths fall silent, addresses change, machines sleep.  All in virtual time."""

from __future__ import annotations

import random
from itertools import product

import pytest

from tests.sim.cast import Cast
from tests.sim.link import Bursts, Link
from tests.sim.peers import BLACK_HOLE, PeerNode, ServerNode, Transfer
from tests.sim.test_meeting import BATCHES, rough_link, seeds
from tests.sim.world import Host
from tunnel.node.peering import Peering
from tunnel.transport.connection.connection import IDLE_LIMIT_WITH_STREAMS
from tunnel.transport.connection.events import PathKind
from tunnel.units import Address, Instant, Seconds

LINE = Link(delay=Seconds(0.010), rate=500_000.0)  # bytes a second, so that a transfer takes its time
SIZE = 1_500_000  # bytes there and back again: some three seconds
SOON = Seconds(2.0)  # of silence, after whatever happened to a link
WAKING = Seconds(0.5)  # of silence, from the moment when who slept is awake again
HOME_KINDS = ("prc", "prcrace", "uprc")


def under_way(cast: Cast, peering: Peering, size: int = SIZE) -> Transfer:
    """A transfer of which a good part is through."""
    transfer = cast.friend.send(peering, cast.bytes_of(size))
    cast.world.run_until(lambda: len(transfer.echo) > size // 4, 10)
    return transfer


def check_goes_on(cast: Cast, transfer: Transfer, within: float = SOON, limit: float = 60.0) -> None:
    """Every byte arrives, and nobody waits longer than that for the next one."""
    happened_at = cast.world.now
    cast.world.run_until(lambda: transfer.is_done, limit)
    assert transfer.longest_silence(happened_at) < within
    assert not cast.home.closed + cast.friend.closed
    assert cast.home.restarts == cast.friend.restarts == 0


# --- the server -------------------------------------------------------------------------------------------------------------


def test_a_direct_transfer_does_not_notice_that_the_server_died() -> None:
    with Cast(link=LINE) as cast:
        peering = cast.meet_directly()
        transfer = under_way(cast, peering)
        cast.server.kill()
        check_goes_on(cast, transfer, within=0.5)
        for _ in range(30):
            cast.world.run(120.0)
            assert cast.transfer(peering) < 0.5
        assert cast.is_direct()


@pytest.mark.parametrize("pause", [0.5, 5.0, 60.0, 600.0])
def test_a_relayed_transfer_goes_on_when_a_server_returns_that_has_forgotten_everything(pause: float) -> None:
    with Cast(link=LINE, home="sym", friend="sym") as cast:
        transfer = under_way(cast, cast.meet())
        cast.server.kill()
        cast.world.run(pause)
        cast.server.boot()
        check_goes_on(cast, transfer, within=pause + 8.0)
        cast.transfer(transfer.peering)


@pytest.mark.parametrize("seed", range(6))
def test_the_relay_beside_a_direct_path_works_again_after_the_server_restarted(seed: int) -> None:
    with Cast(seed=seed, link=LINE) as cast:
        peering = cast.meet_directly()
        cast.world.run(30.0 + seed)
        cast.server.kill()
        cast.world.run(40.0)  # longer than a path in reserve goes unasked
        cast.server.boot()
        cast.world.run(20.0)
        for person in cast.people:
            (each,) = person.live
            assert each.connection is not None
            assert set(each.connection.relay_paths.values()) == {True}
        cast.black_hole("home")
        cast.black_hole("friend")
        assert cast.transfer(peering) < 1.0


@pytest.mark.parametrize("pause", [1.0, 20.0, 200.0])
def test_a_relayed_transfer_goes_on_after_a_black_hole_around_the_server(pause: float) -> None:
    with Cast(link=LINE, home="sym", friend="uprc") as cast:
        transfer = under_way(cast, cast.meet())
        cast.cut_off_server()
        cast.world.run(pause)
        cast.cut_off_server(LINE)
        check_goes_on(cast, transfer, within=pause + 8.0)


def test_a_black_hole_around_the_server_leaves_direct_transfers_alone() -> None:
    with Cast(link=LINE) as cast:
        transfer = under_way(cast, cast.meet_directly())
        cast.cut_off_server()
        check_goes_on(cast, transfer, within=0.5)
        cast.world.run(300.0)
        cast.cut_off_server(LINE)
        cast.world.run(30.0)
        cast.black_hole("home")
        cast.black_hole("friend")  # now the relay is needed again
        assert cast.transfer(transfer.peering) < 15.0


def test_after_a_restart_of_the_server_remembered_peers_find_each_other_as_before() -> None:
    for seed in range(10):
        with Cast(seed=seed, link=rough_link(seed)) as cast:
            cast.acquaint()
            cast.world.run(5.0)
            cast.server.kill()
            cast.world.run(seed * 7.0)
            cast.server.boot()
            cast.world.run(30.0)
            peering = cast.friend.connect(cast.home, limit=20)
            cast.transfer(peering)


def test_dialing_while_the_server_is_away_succeeds_when_it_returns() -> None:
    with Cast() as cast:
        cast.acquaint()
        cast.world.run(5.0)
        cast.server.kill()
        peering = cast.friend.dial(cast.home)
        cast.world.run(90.0)
        assert peering.connection is None
        cast.server.boot()
        assert cast.world.run_until(lambda: peering.connection is not None, 30) < 15.0


# --- paths ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [("home",), ("friend",), ("home", "friend")])
def test_a_direct_path_that_swallows_everything_is_left_within_two_seconds(holes: tuple[str, ...]) -> None:
    for seed in range(3):
        with Cast(seed=seed, link=LINE) as cast:
            transfer = under_way(cast, cast.meet_directly())
            for sender in holes:
                cast.black_hole(sender)
            check_goes_on(cast, transfer)
            assert not cast.is_direct()
            cast.transfer(transfer.peering)


def test_a_direct_path_that_heals_is_taken_again() -> None:
    with Cast(link=LINE) as cast:
        peering = cast.meet_directly()
        cast.black_hole("home")
        cast.transfer(peering)
        cast.world.set_link(cast.home.host, cast.friend.host, LINE)
        cast.world.run_until(cast.is_direct, 150)
        cast.transfer(peering)


def test_a_path_that_comes_and_goes_loses_no_byte() -> None:
    with Cast(link=LINE) as cast:
        transfer = under_way(cast, cast.meet_directly(), 2 * SIZE)
        for round_trip in range(12):
            cast.black_hole("home" if round_trip % 2 else "friend")
            cast.world.run(1.3)
            for a, b in ((cast.home, cast.friend), (cast.friend, cast.home)):
                cast.world.set_link(a.host, b.host, LINE)
            cast.world.run(2.9)
        check_goes_on(cast, transfer)


@pytest.mark.parametrize(("whose", "kind"), list(product(("home", "friend"), HOME_KINDS)))
def test_a_router_that_forgets_its_mappings_costs_less_than_two_seconds(whose: str, kind: str) -> None:
    for other in HOME_KINDS:
        kinds = {"home": other, "friend": other, whose: kind}
        with Cast(link=LINE, home=kinds["home"], friend=kinds["friend"]) as cast:
            transfer = under_way(cast, cast.meet_directly())
            cast.world.flush_mappings(cast.site_of(whose))
            check_goes_on(cast, transfer)
            cast.world.run_until(cast.is_direct, 150)
            cast.transfer(transfer.peering)


@pytest.mark.parametrize("whose", ["home", "friend"])
def test_a_router_that_forgets_while_relayed_costs_less_than_two_seconds(whose: str) -> None:
    with Cast(link=LINE, home="sym", friend="sym") as cast:
        transfer = under_way(cast, cast.meet())
        cast.world.flush_mappings(cast.site_of(whose))
        check_goes_on(cast, transfer)


@pytest.mark.parametrize(("whose", "kind"), list(product(("home", "friend"), HOME_KINDS)))
def test_a_new_public_address_costs_less_than_two_seconds(whose: str, kind: str) -> None:
    for other in HOME_KINDS:
        kinds = {"home": other, "friend": other, whose: kind}
        with Cast(link=LINE, home=kinds["home"], friend=kinds["friend"]) as cast:
            transfer = under_way(cast, cast.meet_directly())
            cast.world.renumber(cast.site_of(whose))
            check_goes_on(cast, transfer)
            cast.world.run_until(cast.is_direct, 150)


@pytest.mark.parametrize("whose", ["home", "friend"])
def test_a_new_public_address_of_an_idle_link_is_found_out_by_its_next_use(whose: str) -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        cast.world.run(100.0)
        cast.world.renumber(cast.site_of(whose))
        cast.world.run(60.0)
        assert cast.transfer(peering, limit=10) < SOON
        assert not cast.home.closed + cast.friend.closed


def test_both_public_addresses_change_at_once() -> None:
    with Cast(link=LINE) as cast:
        transfer = under_way(cast, cast.meet_directly())
        cast.world.renumber(cast.home_site)
        cast.world.renumber(cast.friend_site)
        check_goes_on(cast, transfer, within=12.0)
        cast.world.run_until(cast.is_direct, 150)


# --- sleep ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sleepers", [("home",), ("friend",), ("home", "friend")])
@pytest.mark.parametrize("is_told", [True, False])
def test_ten_minutes_of_sleep_do_not_end_a_transfer(sleepers: tuple[str, ...], is_told: bool) -> None:
    with Cast(link=LINE) as cast:
        transfer = under_way(cast, cast.meet_directly())
        for name in sleepers:
            if is_told:
                cast.who(name).suspend(Seconds(600.0))
            else:
                cast.world.suspend(cast.who(name).host, Seconds(600.0))
        cast.world.run(600.0)
        woken_at = cast.world.now
        cast.world.run_until(lambda: transfer.is_done, 60)
        assert transfer.longest_silence(woken_at) < WAKING
        assert not cast.home.closed + cast.friend.closed
        cast.world.run_until(cast.is_direct, 150)


@pytest.mark.time_limit(150)
@pytest.mark.parametrize("sleepers", [("home",), ("friend",), ("home", "friend")])
def test_a_night_of_sleep_does_not_end_a_transfer_that_is_under_way(sleepers: tuple[str, ...]) -> None:
    """Whoever stays awake waits for eight hours, and costs its line little meanwhile."""
    with Cast(link=LINE) as cast:
        transfer = under_way(cast, cast.meet_directly())
        for name in sleepers:
            cast.who(name).suspend(Seconds(8 * 3600.0))
        sent = [0]

        def count(sender: Host, destination: Address, datagram: bytes) -> bool:
            sent[0] += len(datagram) + 28 if sender is not cast.server.host else 0
            return True

        cast.world.filter = count
        cast.world.run(8 * 3600.0)
        assert sent[0] < 8 * 4_000_000  # bytes: it looks for the other one all the time
        woken_at = cast.world.now
        cast.world.run_until(lambda: transfer.is_done, 60)
        assert transfer.longest_silence(woken_at) < WAKING
        assert not cast.home.closed + cast.friend.closed
        assert cast.home.restarts == cast.friend.restarts == 0


@pytest.mark.parametrize("sleepers", [("home",), ("friend",), ("home", "friend")])
@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "sym")])
def test_after_a_night_they_meet_again_by_themselves(sleepers: tuple[str, ...], home: str, friend: str) -> None:
    with Cast(home=home, friend=friend) as cast:
        peering = cast.meet()
        cast.world.run(10.0)
        for name in sleepers:
            cast.who(name).suspend(Seconds(8 * 3600.0))
        cast.world.run(8 * 3600.0)
        cast.world.run_until(lambda: bool(cast.home.live and cast.friend.live), 20)
        assert cast.friend.live == [peering]  # who connected still holds the same link
        cast.world.run(5.0)
        cast.transfer(cast.friend.live[0])
        assert len(cast.home.live) == 1


def test_an_hour_of_silence_without_sleep_ends_in_meeting_again() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        for a, b in ((cast.home, cast.friend), (cast.friend, cast.home)):
            cast.world.set_link(a.host, b.host, BLACK_HOLE)
        cast.cut_off_server()
        cast.world.run(5 * 3600.0)
        for a, b in ((cast.home, cast.friend), (cast.friend, cast.home)):
            cast.world.set_link(a.host, b.host, Link())
        cast.cut_off_server(Link())
        cast.world.run_until(lambda: bool(cast.home.live and cast.friend.live), 30)
        cast.transfer(peering)


# --- processes that end -----------------------------------------------------------------------------------------------------


def test_an_exposing_process_that_restarts_is_met_again_in_the_same_link() -> None:
    for seed in range(5):
        with Cast(seed=seed) as cast:
            peering = cast.meet_directly()
            transfer = under_way(cast, peering, 200_000)
            cast.home.kill()
            cast.world.run(3.0)
            cast.home.boot()
            cast.home.meet(cast.server)
            cast.home.listen()
            cast.world.run_until(lambda: cast.friend.restarts == 1, 30)
            assert transfer.is_cut
            cast.transfer(peering)
            cast.world.run_until(cast.is_direct, 10)


@pytest.mark.time_limit(200)
def test_a_connecting_process_that_restarts_gets_a_new_link_beside_the_dead_one() -> None:
    with Cast() as cast:
        under_way(cast, cast.meet_directly(), 200_000)
        for round_number in range(2):
            cast.friend.kill()
            cast.world.run(3.0)
            cast.friend.boot()
            cast.friend.meet(cast.server)
            peering = cast.friend.connect(cast.home, limit=10)
            cast.transfer(peering)
            assert len(cast.home.live) == round_number + 2
        cast.world.run(IDLE_LIMIT_WITH_STREAMS + 100.0)
        assert len(cast.home.live) == 1  # the dead ones were silent for too long
        cast.transfer(cast.friend.live[0])


def test_both_processes_and_the_server_restart_at_once() -> None:
    with Cast() as cast:
        cast.meet_directly()
        everything: list[ServerNode | PeerNode] = [cast.server, *cast.people]
        for node in everything:
            node.kill()
        cast.world.run(5.0)
        for node in everything:
            node.boot()
        for person in cast.people:
            person.meet(cast.server)
        cast.home.listen()
        peering = cast.friend.connect(cast.home, limit=10)
        cast.transfer(peering)


# --- keys -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "sym")])
def test_keys_are_renewed_under_loss_while_bytes_flow(home: str, friend: str) -> None:
    lossy = Link(delay=Seconds(0.02), loss=0.1, bursts=Bursts(enter=0.01, leave=0.3), reorder=0.1, duplicate=0.1)
    for seed in range(3):
        with Cast(seed=seed, link=lossy, home=home, friend=friend) as cast:
            peering = cast.meet()
            connection = peering.connection
            assert connection is not None
            seen: set[int] = set(connection.indices())
            for _ in range(70):
                cast.world.run(10.0)
                cast.transfer(peering, 3_000, limit=20)
                seen.update(connection.indices())
            assert peering.connection is connection
            assert 5 <= len(seen) <= 12  # one every 120 s
            assert len(cast.home.live) == 1
            assert cast.home.restarts == cast.friend.restarts == 0


# --- rest -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("home", "friend", "kind"), [("prc", "prc", PathKind.DIRECT), ("sym", "sym", PathKind.RELAY)])
def test_an_idle_link_costs_little(home: str, friend: str, kind: PathKind) -> None:
    with Cast(home=home, friend=friend) as cast:
        peering = cast.meet()
        cast.world.run(100.0)
        assert peering.connection is not None
        assert peering.connection.current_path.kind is kind
        wakes = dict.fromkeys(cast.people, 0)
        for person in cast.people:
            original = person.handle_timeout

            def counted(now: Instant, person: PeerNode = person, original=original) -> None:  # type: ignore[no-untyped-def]
                wakes[person] += 1
                original(now)

            person.handle_timeout = counted  # type: ignore[method-assign]
        before = peering.connection.stats().packets_sent
        cast.world.run(1000.0)
        assert max(wakes.values()) < 2_000  # two a second
        assert peering.connection.stats().packets_sent - before < 500  # one in two seconds


# --- everything at once -----------------------------------------------------------------------------------------------------


class Mishaps:
    """What may befall a cast, each for a while; `heal` puts everything right that can be."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.is_server_dead = False
        self.verbs = (
            self.hole, self.bad_line, self.flush, self.renumber, self.server_dies, self.server_returns, self.server_hidden,
            self.sleep, self.nothing,
        )  # fmt: skip

    def somebody(self) -> str:
        return self.cast.world.rng.choice(("home", "friend"))

    def happen(self) -> str:
        verb = self.cast.world.rng.choice(self.verbs)
        self.cast.world.note("mishap", verb.__name__)
        verb()
        return verb.__name__

    def hole(self) -> None:
        self.cast.black_hole(self.somebody())

    def bad_line(self) -> None:
        a, b = self.cast.people
        self.cast.world.set_link(a.host, b.host, rough_link(self.cast.world.rng.randrange(1000), worst=0.3))

    def flush(self) -> None:
        self.cast.world.flush_mappings(self.cast.site_of(self.somebody()))

    def renumber(self) -> None:
        self.cast.world.renumber(self.cast.site_of(self.somebody()))

    def server_dies(self) -> None:
        self.cast.server.kill()
        self.is_server_dead = True

    def server_returns(self) -> None:
        self.cast.server.boot()
        self.is_server_dead = False

    def server_hidden(self) -> None:
        self.cast.cut_off_server()

    def sleep(self) -> None:
        self.cast.who(self.somebody()).suspend(Seconds(self.cast.world.rng.uniform(1.0, 300.0)))

    def nothing(self) -> None:
        self.heal_lines()

    def heal_lines(self) -> None:
        a, b = self.cast.people
        self.cast.world.set_link(a.host, b.host, LINE)
        self.cast.world.set_link(b.host, a.host, LINE)
        self.cast.cut_off_server(LINE)

    def heal(self) -> None:
        self.heal_lines()
        if self.is_server_dead:
            self.server_returns()
        self.cast.world.run(max(0.0, *(person.host.asleep_until - self.cast.world.now for person in self.cast.people)))


def survive(seed: int) -> None:
    kinds = random.Random(seed).choices(("prc", "prcrace", "uprc", "sym", "cgn", "full"), k=2)
    with Cast(seed=seed, link=LINE, home=kinds[0], friend=kinds[1]) as cast:
        mishaps = Mishaps(cast)
        transfer = cast.friend.send(cast.meet(), cast.bytes_of(1_000_000))
        for _ in range(10):
            cast.world.run(cast.world.rng.expovariate(1 / 4.0))
            mishaps.happen()
        mishaps.heal()
        cast.world.run_until(lambda: transfer.is_done, 20)
        assert not cast.home.closed + cast.friend.closed
        assert cast.home.restarts == cast.friend.restarts == 0
        assert cast.transfer(transfer.peering, limit=30) < 15.0
        assert len(cast.home.live) == 1


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_series_of_mishaps_loses_a_byte_or_a_link(batch: int) -> None:
    for seed in seeds(30, batch):
        survive(seed)


@pytest.mark.parametrize("seed", [12, 42, 54, 63, 75, 88, 97, 143, 425, 893])
def test_series_of_mishaps_that_were_too_much_once(seed: int) -> None:
    """Sleep beyond the server's patience, a relay that failed meanwhile, a Rebind before the Refresh, a Leave after the Join."""
    survive(seed)
