from __future__ import annotations

import random

import pytest

from tunnel.core.bucket import Bucket
from tunnel.nat import birthday, prediction
from tunnel.nat.behaviour import Mapping
from tunnel.nat.birthday import Pool, Spray, opens_after
from tunnel.nat.budget import OPENER_BURST, PROBE_BURST, PROBE_RATE, Budget
from tunnel.nat.candidate import CandidateKind, make_candidate
from tunnel.nat.hints import MAX_PREDICTED, OpenPool, PredictedPorts, decode_hints, encode_hints
from tunnel.nat.technique import PoolSocket, Scene
from tunnel.nat.techniques import Techniques
from tunnel.units import Address, Instant, SocketId

T0 = Instant(500.0)
V4 = SocketId(0)
FAR = Address("45.1.1.1", 4000)
EASY, HARD, BY_ADDRESS = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT, Mapping.ADDRESS_DEPENDENT


def scene(ours: Mapping, theirs: Mapping, *, sure: bool = True, controlling: bool = True, far: Address = FAR) -> Scene:
    remote = make_candidate(CandidateKind.SERVER_REFLEXIVE, far, V4)
    return Scene(controlling, ours, sure, theirs, sure, (V4,), frozenset({"45.2.2.2"}), (remote,))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (HARD, EASY, birthday.AFTER_HARD),
        (EASY, HARD, None),
        (HARD, HARD, None),
        (BY_ADDRESS, EASY, birthday.AFTER_HARD),
        (BY_ADDRESS, HARD, birthday.AFTER_HARD),
        (HARD, BY_ADDRESS, None),
        (EASY, BY_ADDRESS, None),
        (EASY, EASY, None),
    ],
)
def test_the_side_whose_mapping_varies_opens_and_by_address_before_by_port(
    ours: Mapping, theirs: Mapping, expected: float | None
) -> None:
    assert opens_after(scene(ours, theirs)) == expected


def test_of_two_that_vary_by_address_the_controlling_one_opens() -> None:
    assert opens_after(scene(BY_ADDRESS, BY_ADDRESS)) is not None
    assert opens_after(scene(BY_ADDRESS, BY_ADDRESS, controlling=False)) is None


def test_what_one_address_of_the_server_cannot_tell_is_tried_late() -> None:
    assert opens_after(scene(EASY, EASY, sure=False)) == birthday.AFTER_SUSPECT
    assert opens_after(scene(EASY, HARD, sure=False)) == birthday.AFTER_THEM


def test_behind_one_nat_there_is_nothing_to_open() -> None:
    assert opens_after(scene(HARD, EASY, far=Address("45.2.2.2", 99))) is None


@pytest.mark.parametrize(
    ("sockets", "probes", "pace"),
    [(256, birthday.SPRAY_PROBES, birthday.SPRAY_PACE), (64, birthday.FEW_PROBES, birthday.FEW_PACE)],
)
def test_a_spray_tries_each_port_once_and_no_faster_than_the_rate(sockets: int, probes: int, pace: float) -> None:
    spray = Spray(random.Random(1))
    spray.begin(T0, V4, FAR.host, sockets)
    now, ports, moments = T0, [], []
    while spray.is_on:
        check = spray.poll_check(now)
        if check is not None:
            assert check.remote.host == FAR.host
            ports.append(check.remote.port)
            moments.append(now)
        else:
            now = Instant(now + 0.001)
    assert len(set(ports)) == len(ports)
    assert 0.95 * probes <= len(ports) <= probes
    assert all(moments[at + 100] - moments[at] >= 92 * pace for at in range(len(moments) - 100))
    assert min(ports) >= birthday.FIRST_PORT
    assert max(ports) <= birthday.LAST_PORT
    assert moments[-1] - moments[0] <= birthday.SPRAY_SECONDS


def test_hints_that_are_repeated_change_the_pace_and_add_nothing() -> None:
    spray = Spray(random.Random(1))
    now, sent = T0, 0
    for number in range(200_000):
        if number % 50 == 0 and (spray.is_on or not number):
            spray.begin(now, V4, FAR.host, 64 if number % 100 else 256)
        while spray.poll_check(now) is not None:
            sent += 1
        now = Instant(now + 0.001)
    assert not spray.is_on
    assert sent <= birthday.SPRAY_PROBES  # what was granted when it began


def grow(pool: Pool, granted: int, answered: int) -> tuple[list[int], int, int]:
    """What a pool told the peer, its sockets and its questions, where the system grants so many and the server sees so many."""
    pool.open(T0, FAR)
    sockets: list[PoolSocket] = []
    hints, asked, now = [], 0, T0
    while pool.is_open and now < T0 + 14.0:
        while len(sockets) < min(pool.wanted_sockets, granted):
            sockets.append(PoolSocket(SocketId(100 + len(sockets)), 5000))
        pool.sockets_opened(now, tuple(sockets))
        if pool.hint is not None:
            hints.append(pool.hint.sockets)
            pool.hint = None
        while pool.poll_check(now) is not None:
            pass
        while (measure := pool.poll_measure(now)) is not None:
            asked += 1
            if measure.socket_id < 100 + answered:
                pool.measured(measure)
        now = Instant(now + 0.01)
    return hints, len(sockets), asked


@pytest.mark.parametrize(
    ("granted", "answered", "hints", "asked"),
    [
        (1000, 1000, [64, 128, 256], 2),
        (1000, 60, [64], birthday.ASKS),  # a quota, or a server that is gone
        (1000, 100, [64, 128], 1 + birthday.ASKS),
        (50, 1000, [50], 0),
        (100, 1000, [64, 100], 1),
    ],
)
def test_the_pool_grows_as_long_as_its_last_socket_has_a_mapping(
    granted: int, answered: int, hints: list[int], asked: int
) -> None:
    assert grow(Pool(), granted, answered) == (hints, hints[-1], asked)


def test_a_late_timer_is_not_made_up_for_by_a_flood() -> None:
    spray = Spray(random.Random(1))
    spray.begin(T0, V4, FAR.host, 256)
    late = Instant(T0 + 5.0)
    burst = 0
    while spray.poll_check(late) is not None:
        burst += 1
    assert burst <= 10


def test_a_bucket_gives_what_it_holds_and_refills_with_time() -> None:
    bucket = Bucket(10, 2.0)
    assert sum(bucket.take(T0) for _ in range(50)) == 10
    assert bucket.left(Instant(T0 + 3.0)) == 6
    assert bucket.left(Instant(T0 + 1000.0)) == 10
    assert bucket.left(T0) == 10  # a clock that steps back gives nothing


def test_all_peers_of_a_process_share_one_budget() -> None:
    budget = Budget()
    sent = 0
    for number in range(40):
        technique = Techniques(rng=random.Random(number), budget=budget)
        technique.start(T0, scene(EASY, HARD, far=Address(f"45.1.1.{number}", 7)), fresh=True)
        technique.handle_hint(T0, OpenPool(256))
        now = T0
        for _ in range(200):
            while technique.poll_check(now) is not None:
                sent += 1
            now = Instant(now + 0.1)
    assert sent <= PROBE_BURST + PROBE_RATE * 20.0


def test_a_pool_is_open_for_so_long_and_is_then_closed_whatever_came_of_it() -> None:
    technique = Techniques(rng=random.Random(1))
    technique.start(T0, scene(HARD, EASY), fresh=True)
    opened: list[float] = []
    closed: list[float] = []
    for step in range(200):
        now = Instant(T0 + 0.1 * step)
        while technique.poll_check(now) is not None:
            pass
        if wanted := technique.wanted_sockets:
            technique.sockets_opened(now, tuple(PoolSocket(SocketId(9 + n), 5000 + n) for n in range(wanted)))
        is_open = technique.stats(now).name == "birthday"
        if is_open != (len(opened) > len(closed)):
            (opened if is_open else closed).append(now)
            assert is_open == bool(technique.wanted_sockets)
    assert len(opened) == len(closed) == 1
    assert birthday.POOL_SECONDS <= closed[0] - opened[0] + 1e-6 <= birthday.POOL_SECONDS + 0.1


def test_the_pool_gives_up_without_sockets_and_within_its_openers() -> None:
    technique = Techniques(rng=random.Random(1))
    technique.start(T0, scene(HARD, EASY), fresh=True)
    now, sent, wanted = T0, 0, 0
    for _ in range(300):
        while (check := technique.poll_check(now)) is not None:
            assert check.ttl in (3, 5)
            sent += 1
        if technique.wanted_sockets > wanted:
            wanted = technique.wanted_sockets
            technique.sockets_opened(now, tuple(PoolSocket(SocketId(9 + n), 5000 + n) for n in range(wanted)))
        while (measure := technique.poll_measure(now)) is not None:
            technique.measured(now, measure, Address("45.2.2.2", 7000))
        now = Instant(now + 0.1)
    assert wanted == 256
    assert 3 * 256 <= sent <= OPENER_BURST
    assert technique.wanted_sockets == 0
    assert technique.stats(now).name == ""
    assert 14.0 < technique.stats(now).seconds < 16.0


def test_hints_come_back_and_nonsense_is_left_out() -> None:
    hints = (PredictedPorts("45.1.1.1", 65_530, 1, 32), OpenPool(256))
    data = encode_hints(hints)
    assert decode_hints(data) == hints
    assert decode_hints(b"\x63\x02ab" + data) == hints  # an unknown type
    assert decode_hints(data[:-1]) == hints[:1]
    assert len(hints[0].addresses()) == 6  # 65,535 is the last port
    assert decode_hints(bytes((1, 8, 45, 1, 1, 1, 0, 9, 0, 32))) == ()  # no step
    assert decode_hints(bytes((1, 8, 45, 1, 1, 1, 0, 9, 1, MAX_PREDICTED + 1))) == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "224.0.0.1", "169.254.169.254", "0.0.0.0"])
def test_predicted_ports_of_a_forbidden_address_are_not_tried(host: str) -> None:
    technique = Techniques(rng=random.Random(1))
    technique.start(T0, scene(EASY, HARD), fresh=True)
    technique.handle_hint(T0, PredictedPorts(host, 5000, 1, 32))
    assert technique.poll_check(T0) is None


def predict(theirs: Mapping, seconds: float) -> list[list[int]]:
    """The ports that a side behind a NAT with the step 1 tells a peer that never answers: all of each hint."""
    technique = Techniques(rng=random.Random(1))
    technique.start(T0, scene(HARD, theirs), fresh=True)
    hints, now, outside = [], T0, 40_000
    while now < T0 + seconds:
        if technique.wanted_sockets:
            technique.sockets_opened(now, tuple(PoolSocket(SocketId(9 + n), 5000 + n) for n in range(technique.wanted_sockets)))
        while (check := technique.poll_check(now)) is not None:
            outside += check.ttl == 3
        while (measure := technique.poll_measure(now)) is not None:
            outside += 1
            technique.measured(now, measure, Address("45.2.2.2", outside))
        while (hint := technique.poll_hint()) is not None:
            if isinstance(hint, PredictedPorts):
                hints.append([address.port for address in hint.addresses()])
        now = Instant(now + 0.01)
    return hints


def test_a_prediction_that_missed_is_made_again_and_names_no_port_that_plain_checks_left_from() -> None:
    hints = predict(EASY, 5.0)
    assert len(hints) == prediction.SOFT_ATTEMPTS
    for ports in hints:
        assert len(ports) == MAX_PREDICTED
        assert ports == sorted(ports)
    assert min(hints[0]) > 40_001
    assert max(hints[0]) > 40_020
    assert predict(HARD, 0.5)[0][0] > 40_002
