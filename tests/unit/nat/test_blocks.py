"""Port blocks: what a few ports tell, how many tries it takes, and what one side does under the other's words."""

from __future__ import annotations

import math
import random

import pytest

from tunnel.nat import ranges
from tunnel.nat.behaviour import Mapping
from tunnel.nat.blocks import FIRST_SOCKET, LOOKS, OBSERVERS, SEARCH_SECONDS, SLACK, STEPS, TELLS_AFTER
from tunnel.nat.budget import PROBE_BURST, SILENT_PROBES_OF_FEW
from tunnel.nat.candidate import CandidateKind, make_candidate
from tunnel.nat.hints import Hint, PortRange, PredictedPorts, decode_hints, encode_hints
from tunnel.nat.quota import MOST_MAPPINGS, RESTS, UNCONFIRMED
from tunnel.nat.technique import PoolSocket, Scene
from tunnel.nat.techniques import Techniques
from tunnel.units import Address, Instant, SocketId

T0, V4 = Instant(500.0), SocketId(0)
HARD, BY_ADDRESS = Mapping.ADDRESS_AND_PORT_DEPENDENT, Mapping.ADDRESS_DEPENDENT
OUTSIDE, FAR = "45.2.2.2", Address("45.1.1.1", 4000)
BLOCK = PortRange(20_480, 512, MOST_MAPPINGS)
EVERY = ranges.every_port(MOST_MAPPINGS)


def scene(ours: Mapping = HARD, theirs: Mapping = HARD, far: Address = FAR) -> Scene:
    remote = make_candidate(CandidateKind.SERVER_REFLEXIVE, far, V4)
    return Scene(True, ours, True, theirs, True, (V4,), frozenset({OUTSIDE}), (remote,))


class Home:
    """One side behind a NAT that draws its ports from `ports` at random, or in steps; the server is 20 ms away."""

    def __init__(self, ports: range, *, step: int = 0, answers: bool = True, theirs: Mapping = HARD) -> None:
        self.ports, self.step, self.is_answered = ports, step, answers
        self.rng = random.Random(3)
        self.technique = Techniques(rng=self.rng)
        self.now = float(T0)
        self.next = ports[len(ports) // 2]
        self.first: list[int] = []  # ports that come before all others
        self.hints: list[Hint] = []
        self.tried: list[tuple[SocketId, Address]] = []
        self.most_sockets = self.questions = 0
        self._answers: list[tuple[float, object, Address]] = []
        self.technique.start(T0, scene(theirs=theirs), fresh=True)

    def port(self) -> int:
        if self.first:
            return self.first.pop(0)
        if not self.step:
            return self.rng.choice(self.ports)
        self.next += self.step
        return self.next

    def run(self, seconds: float) -> Home:
        end = self.now + seconds
        while self.now < end:
            now, technique = Instant(self.now), self.technique
            while self._answers and self._answers[0][0] <= now:
                _, measure, address = self._answers.pop(0)
                technique.measured(now, measure, address)  # type: ignore[arg-type]
            if wanted := technique.wanted_sockets:
                self.most_sockets = max(wanted, self.most_sockets)
                technique.sockets_opened(now, tuple(PoolSocket(SocketId(100 + n), 50_000 + n) for n in range(wanted)))
            while (check := technique.poll_check(now)) is not None:
                if check.ttl is None:
                    self.tried.append((check.socket_id, check.remote))
            while (question := technique.poll_measure(now)) is not None:
                self.questions += 1
                if self.is_answered:
                    self._answers.append((now + 0.02, question, Address(OUTSIDE, self.port())))
            while (hint := technique.poll_hint()) is not None:
                self.hints.append(hint)
            self.now += 0.001
        return self

    def begin_again(self) -> Home:
        """Another round."""
        self.technique.stop(Instant(self.now))
        self.technique.start(Instant(self.now), scene(), fresh=True)
        return self

    def hear(self, hint: Hint) -> Home:
        self.technique.handle_hint(Instant(self.now), hint)
        return self

    @property
    def told(self) -> list[PortRange]:
        return [hint for hint in self.hints if isinstance(hint, PortRange)]


@pytest.mark.parametrize("size", [512, 1_024, 2_048])
def test_a_block_is_known_by_a_few_of_its_ports(size: int) -> None:
    rng, missed, excess = random.Random(size), [], []
    for _ in range(200):
        first = rng.randrange(1_024, 65_536 - size)
        found = ranges.estimate([rng.randrange(first, first + size) for _ in range(OBSERVERS)], MOST_MAPPINGS)
        missed.append(1 - len(set(range(first, first + size)) & set(range(found.first, found.first + found.ports))) / size)
        excess.append(found.ports / size)
        assert found.first >= 1_024
        assert found.first + found.ports <= 65_536
    assert sum(missed) / len(missed) < 0.03
    assert max(missed) < 0.15
    assert sum(excess) / len(excess) < 1.05


def test_ports_drawn_from_all_of_them_show_no_block() -> None:
    rng = random.Random(1)
    for _ in range(1_000):
        ports = [rng.randrange(1_024, 65_536) for _ in range(ranges.MIN_OBSERVED)]
        assert ranges.estimate(ports, 5) == ranges.every_port(5) == PortRange(1_024, 64_512, 5)
    assert ranges.estimate([20_000] * (ranges.MIN_OBSERVED - 1), 5) == ranges.every_port(5)  # too few to tell


def test_the_arithmetic_is_that_of_two_nats_that_draw_at_random() -> None:
    """Each side makes so many tries: it chooses where to, its NAT from where.  How many of 300 such pairs meet?"""
    for tries in (60, 120, 240):
        ours, theirs = PortRange(1_024, 64, tries), PortRange(30_000, 128, tries)
        rng, met = random.Random(tries), 0
        for _ in range(300):
            here = {(rng.randrange(64), number % 128) for number in range(tries)}
            there = {(number % 64, rng.randrange(128)) for number in range(tries)}
            met += bool(here & there)
        assert met / 300 == pytest.approx(ranges.chance(ours, theirs, tries), abs=0.09)
    assert ranges.tries_wanted(BLOCK, BLOCK) == math.ceil(math.sqrt(7) * 512)
    assert ranges.chance(BLOCK, BLOCK._replace(tries=427), 427) == pytest.approx(0.5, abs=0.01)
    assert ranges.chance(BLOCK, EVERY, MOST_MAPPINGS) == pytest.approx(0.86, abs=0.01)
    assert ranges.chance(EVERY, EVERY, MOST_MAPPINGS) < 0.02
    assert ranges.tries_wanted(BLOCK, PortRange(5_000, 72, STEPS)) == 7 * 512 * 72 / STEPS  # more, where they make few


def test_ranges_come_back_and_nonsense_is_left_out() -> None:
    hints = (PortRange(1_024, 64_512, 8_000), PortRange(65_535, 1, 0), PredictedPorts("45.1.1.1", 4, 1, 2))
    assert decode_hints(encode_hints(hints)) == hints
    assert decode_hints(encode_hints((PortRange(5, 0, 9),))) == ()
    assert decode_hints(encode_hints((PortRange(65_535, 2, 9),))) == ()
    assert decode_hints(bytes((3, 5, 0, 9, 0, 9, 0))) == ()
    assert decode_hints(bytes((3, 7, 0, 9, 0, 9, 0, 1, 77))) == (PortRange(9, 9, 1),)  # a later version says more


def test_a_block_is_told_and_the_ports_of_the_peers_are_tried() -> None:
    home = Home(range(20_480, 20_992)).run(1.4)
    assert len(home.told) == 1
    assert home.told[0].first == pytest.approx(20_480, abs=60)
    assert home.told[0].ports == pytest.approx(512, abs=90)
    assert not home.tried
    theirs = PortRange(40_000, 700, MOST_MAPPINGS)
    home.hear(theirs).run(SEARCH_SECONDS - 1.0)
    assert {address.host for _, address in home.tried} == {FAR.host}
    assert {address.port for _, address in home.tried} == set(range(40_000, 40_700))
    assert len(set(home.tried)) == len(home.tried)  # each a mapping of its own
    assert home.technique.used == "blocks"
    assert not home.technique.is_hopeless
    tried = len(home.tried)
    assert tried == pytest.approx(math.sqrt(7 * 512 * 700), rel=0.15)
    home.hear(theirs).hear(PortRange(1_024, 64_512, 8_000)).run(SEARCH_SECONDS)
    assert len(home.tried) == tried  # told again it changes nothing
    assert home.technique.wanted_sockets == 0
    assert home.technique.is_hopeless


def test_without_a_block_on_either_side_it_is_known_soon_and_costs_two_questions() -> None:
    home = Home(range(1_024, 65_536)).run(0.3)
    assert home.told == [EVERY]
    home.hear(EVERY).run(TELLS_AFTER)
    assert home.technique.is_hopeless
    assert not home.tried
    assert home.questions == 2
    assert home.most_sockets == FIRST_SOCKET


def test_an_old_peer_that_says_nothing_of_ports_is_waited_for_a_moment() -> None:
    home = Home(range(1_024, 65_536)).run(0.3 + TELLS_AFTER)
    assert home.technique.is_hopeless
    home.hear(BLOCK).run(1.0)  # late, but there it is
    assert not home.technique.is_hopeless
    assert home.tried


def test_a_nat_that_stops_answering_takes_no_part() -> None:
    home = Home(range(20_480, 20_992), answers=False).run(4.0)
    assert home.told == [ranges.every_port(0)]
    home.hear(BLOCK).run(2.0)
    assert not home.tried
    assert home.technique.is_hopeless


def test_a_limit_that_shows_in_the_midst_of_it_ends_it() -> None:
    home = Home(range(20_480, 20_992)).run(1.4)
    home.is_answered = False
    home.hear(BLOCK).run(5.0)
    assert 0 < len(home.tried) <= UNCONFIRMED
    assert not home.hear(BLOCK).run(5.0).technique.is_hopeless  # the peer's tries may still find one of ours


def test_a_nat_that_had_enough_is_left_alone_and_then_asked_for_less() -> None:
    home = Home(range(20_480, 20_992)).run(1.4).hear(BLOCK).run(1.0)
    home.is_answered = False
    home.run(16.0)
    home.is_answered = True
    questions = home.questions
    home.begin_again().run(4.0)
    assert home.told[-1] == ranges.every_port(0)
    assert home.questions - questions <= FIRST_SOCKET
    home.now += RESTS
    home.begin_again().run(4.0)
    assert 0 < home.told[-1].tries < OBSERVERS + UNCONFIRMED


def test_both_try_as_fast_as_the_meeting_needs_and_no_faster() -> None:
    for size in (512, 1_024, 2_048):
        block = PortRange(20_480, size, MOST_MAPPINGS)
        assert ranges.pace(block, block) * ranges.HALF_WITHIN == pytest.approx(math.sqrt(math.log(2)) * size, abs=1)
    few = PortRange(5_000, 72, STEPS)
    assert ranges.pace(BLOCK, few) * ranges.MOST_WITHIN == pytest.approx(math.log(20) * 512 * 72 / STEPS, abs=1)


@pytest.mark.parametrize("step", [1, -2])
def test_a_nat_that_counts_tells_what_comes_next_and_uses_it(step: int) -> None:
    home = Home(range(10_000, 60_000), step=step).run(0.5)
    assert not home.told
    home.hear(BLOCK)
    at = home.next
    home.run(1.5)
    (told,) = home.told
    assert told.tries == STEPS == len(home.tried)
    ahead = {at + step * number for number in range(LOOKS + 1, STEPS)}
    assert ahead <= set(range(told.first, told.first + told.ports))
    assert told.ports <= abs(step) * (STEPS + SLACK)


def test_two_ports_of_a_block_that_look_like_steps_are_looked_at_again() -> None:
    home = Home(range(20_480, 20_992))
    home.first = [20_700, 20_704]
    home.run(0.3)
    assert home.technique.port_step == 4
    home.hear(BLOCK).run(3.0)
    assert [told.ports for told in home.told] == [pytest.approx(512, abs=90)]
    assert len({port for _, (_, port) in home.tried}) > 2 * STEPS


def test_other_pairs_are_left_to_the_other_techniques() -> None:
    for theirs in (BY_ADDRESS, Mapping.ENDPOINT_INDEPENDENT):
        home = Home(range(20_480, 20_992), theirs=theirs).run(0.5).hear(BLOCK).run(2.0)
        assert not home.told
        assert home.technique.used != "blocks"


def test_the_budgets_of_a_process_hold_for_tries_too() -> None:
    home = Home(range(20_480, 20_992))
    sent = 0
    for number in range(3):  # one stranger after the other, each with a block
        home.technique.stop(Instant(home.now))
        home.technique.start(Instant(home.now), scene(far=Address(f"45.1.1.{number}", 4_000)), fresh=True)
        home.tried.clear()
        home.run(1.4).hear(PortRange(30_000, 5_000, 8_000)).run(20.0)
        assert len(home.tried) <= SILENT_PROBES_OF_FEW
        sent += len(home.tried)
    assert 3_000 < sent <= PROBE_BURST + 15 * (home.now - T0)
