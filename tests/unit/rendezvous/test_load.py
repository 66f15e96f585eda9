"""While more comes than the server can do, who asks for little gets it, and no kind of request takes the time of another."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from math import e
from typing import Final

import pytest

from tests.unit.rendezvous.world import SOCKETS, V4, entropy_of
from tunnel.core.prefixes import around
from tunnel.nat import stun
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous import load, messages, server
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.load import Kind, Load
from tunnel.rendezvous.messages import Role
from tunnel.rendezvous.pacing import HIGHEST, INTERVAL, Ceiling
from tunnel.rendezvous.server import Server
from tunnel.units import CHANNEL_BYTE, Address, Instant, SocketId

STEP: Final = 0.001  # seconds
BUFFER: Final = 2_000  # datagrams that the kernel holds
BEHIND_AFTER: Final = 0.03  # as the driver has it
PATIENCE: Final = 1.0  # seconds for an answer
#: Seconds that a datagram costs: a server that is some ten times slower than ours, so that a flood of 5,000 a second is one.
COSTS: Final = {Kind.DROPPED: 5e-5, Kind.UNPROVEN: 2e-4, Kind.QUESTION: 3e-4, Kind.RELAYED: 2e-4, Kind.PROVEN: 4e-4}
QUESTION: Final = stun.encode_binding_request(bytes(12), padding_to=80)


@pytest.fixture(autouse=True)
def slow_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relayed bursts are not measured: the server takes them to cost so much, of which ours takes ten times."""
    monkeypatch.setattr(load, "BURST", COSTS[Kind.RELAYED])


class Machine:
    """A server of which every datagram takes its time, behind a queue that is read in order."""

    def __init__(self, *, looks: bool = True) -> None:
        config = ServerConfig(requests_per_second=1e6, request_burst=10**6, open_directory=True)
        self.server = Server(config, sockets=SOCKETS, now=Instant(10.0), entropy=entropy_of(1), stun=ServerStun())
        self.now = Instant(10.0)
        self.looks = looks
        self.rng = random.Random(5)
        self.queue: deque[tuple[Address, bytes, float, str]] = deque()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.slowest = 0.0
        self.full_since: Instant | None = None
        self.time_left = 0.0
        self.honest: dict[Address, list[tuple[str, float]]] = {}
        self.sources: list[tuple[float, Callable[[], tuple[Address, bytes, str]]]] = []
        self.owed: list[float] = []
        self.steps: Counter[str] = Counter()

    # who sends

    def sends(self, rate: float, make: Callable[[], tuple[Address, bytes, str]]) -> None:
        self.sources.append((rate, make))
        self.owed.append(0.0)

    def request(self, source: Address, message: messages.RequestMessage, cookie: bytes, session: bytes = b"") -> bytes:
        session = session or source.host.encode().ljust(16, b".")[:16]
        return messages.encode_request(self.rng.getrandbits(64), session, message, cookie=cookie)

    def cookie(self, source: Address) -> bytes:
        return self.server._cookies.issue(self.now, source)

    def crowd(self, hosts: list[str], rate: float, ask: Callable[[], messages.RequestMessage] | None = None) -> None:
        """Each proves itself, and registers in one room after the other, unless it asks for something else."""
        known = [(Address(host, 9), self.cookie(Address(host, 9))) for host in hosts]
        turns = iter(range(10**9))

        def make() -> tuple[Address, bytes, str]:
            source, cookie = known[next(turns) % len(known)]
            message = messages.Join(Role.LISTEN, (self.rng.randbytes(16),)) if ask is None else ask()
            return source, self.request(source, message, cookie), ""

        self.sends(rate, make)

    def newcomers(self, rate: float = 20.0) -> None:
        """Each from a home of its own: a Hello, and a code.  Each is said once."""
        numbers = iter(range(10**9))

        def homes() -> Iterator[Address]:
            for number in numbers:
                yield Address(f"45.{number % 200}.{number // 200}.7", 1_000)

        home = homes()
        half: list[Address] = []

        def make() -> tuple[Address, bytes, str]:
            if half:
                source = half.pop()
                return source, self.request(source, messages.Allocate(), self.cookie(source)), "code"
            source = next(home)
            half.append(source)
            return source, self.request(source, messages.Hello(), b""), "hello"

        self.sends(2 * rate, make)

    def measuring(self, rate: float = 50.0, *, network: str = "46.1", what: str = "measure") -> None:
        """200 addresses in turn."""
        numbers = iter(range(10**9))
        self.sends(rate, lambda: (Address(f"{network}.{next(numbers) % 200}.7", 1_000), QUESTION, what))

    def settled(self, network: str) -> None:
        """Those addresses have a session each."""
        for number in range(200):
            source = Address(f"{network}.{number}.7", 999)
            self._serve(source, self.request(source, messages.Allocate(), self.cookie(source)), self.now, "")

    def relaying(self, rate: float = 60.0) -> None:
        first, second = Address("47.1.1.1", 1), Address("47.2.2.2", 2)
        channel = self.server.relay.open(self.now, (V4, first, b"a"), (V4, second, b"b"))
        assert channel is not None
        self.sends(rate, lambda: (first, channel.id + bytes(100), "relay"))

    def all_honest(self) -> None:
        self.newcomers()
        self.measuring()
        self.relaying()

    # time

    def run(self, seconds: float) -> None:
        self.asked.clear()
        self.answered.clear()
        self.slowest = 0.0
        for _ in range(round(seconds / STEP)):
            self.now = Instant(self.now + STEP)
            for index, (rate, make) in enumerate(self.sources):
                self.owed[index] += rate * STEP
                while self.owed[index] >= 1.0:
                    self.owed[index] -= 1.0
                    source, data, what = make()
                    self.asked[what] += 1
                    if len(self.queue) < BUFFER:
                        self.queue.append((source, data, self.now, what))
            self.time_left = min(self.time_left + STEP, STEP)
            while self.queue and self.time_left > 0:
                self._serve(*self.queue.popleft())
            if not self.queue:
                self.full_since = None

    def _serve(self, source: Address, data: bytes, sent_at: float, what: str) -> None:
        server = self.server
        self.full_since = self.now if self.full_since is None else self.full_since
        if self.looks:
            server.look(self.now, self.now - self.full_since > BEHIND_AFTER)
        relayed = server.handle_batch(self.now, V4, source, memoryview(data), len(data))
        answered = bool(relayed)
        while (transmit := server.poll_transmit(self.now)) is not None:
            answered = answered or transmit.remote == source
        cost = COSTS[Kind.RELAYED if relayed else server._kind]
        if data[0] < CHANNEL_BYTE:
            server.load.charge_all(self.now, [server.cost(source, 1)], cost)
        self.time_left -= cost
        if answered and self.now - sent_at <= PATIENCE:
            self.answered[what] += 1
            if what:
                self.slowest = max(self.slowest, self.now - sent_at)

    def share(self, what: str) -> float:
        return self.answered[what] / self.asked[what]

    def served(self) -> dict[str, float]:
        return {what: self.share(what) for what in ("hello", "code", "measure", "relay")}


NEIGHBOURS = [f"80.1.{site}.{1 + number}" for site in range(8) for number in range(25)]
SITES = [f"{81 + number % 50}.{number}.1.1" for number in range(200)]


@pytest.mark.parametrize("hosts", [NEIGHBOURS, SITES], ids=["of one network", "of many networks"])
@pytest.mark.parametrize("looks", [False, True], ids=["in order of arrival", "as charged"])
def test_addresses_that_have_proven_themselves_and_flood(hosts: list[str], looks: bool) -> None:
    """5,000 requests a second are two processors' work.  In the order of arrival everybody loses the same."""
    machine = Machine(looks=looks)
    machine.crowd(hosts, 5_000.0)
    machine.run(2.0)
    machine.all_honest()
    machine.run(3.0)
    if looks:
        assert min(machine.served().values()) > 0.95, machine.served()
        assert machine.slowest < 0.5
        assert machine.server.drops["server_busy"]
        assert machine.share("") > 0.03  # some of what is left over is theirs
    else:
        assert max(machine.served().values()) < 0.7
        assert not machine.server.drops["server_busy"]


def test_a_flood_without_a_proof_takes_no_time_from_the_others() -> None:
    machine = Machine()

    def forged() -> tuple[Address, bytes, str]:
        source = Address(f"{60 + machine.rng.randrange(100)}.{machine.rng.randrange(250)}.1.1", 5)
        return source, machine.request(source, messages.Refresh(), machine.rng.randbytes(17)), ""

    machine.sends(8_000.0, forged)
    machine.run(2.0)
    machine.all_honest()
    machine.run(3.0)
    served = machine.served()
    assert min(served["code"], served["measure"], served["relay"]) > 0.95
    assert machine.server.drops["server_busy_strangers"]
    assert not machine.server.drops["server_busy"]


def test_a_flood_of_questions_takes_no_time_from_the_others() -> None:
    machine = Machine()
    machine.sends(6_000.0, lambda: (Address(f"60.{machine.rng.randrange(250)}.1.1", 5), QUESTION, ""))
    machine.run(2.0)
    machine.all_honest()
    machine.run(3.0)
    assert min(machine.served().values()) > 0.9, machine.served()  # those that measure come first as they ask seldom
    assert machine.served()["code"] > 0.95


def junk(machine: Machine) -> bytes:
    return bytes((4 + machine.rng.randrange(5),)) + machine.rng.randbytes(machine.rng.randrange(1_200))


#: What forgers send, how much of it a second, and what it is.  The machine leaves out 20,000 a second, if it does nothing else.
FORGED: Final[dict[str, tuple[float, Callable[[Machine], bytes]]]] = {
    "short questions": (8_000.0, lambda machine: stun.encode_binding_request(machine.rng.randbytes(12))),
    "long questions": (8_000.0, lambda machine: QUESTION),
    "ip ver": (8_000.0, lambda machine: b"ip ver"),
    "lost channels": (8_000.0, lambda machine: b"\xc1" + machine.rng.randbytes(60)),
    "no cookie": (8_000.0, lambda machine: machine.request(Address("", 0), messages.Refresh(), b"")),
    "junk": (12_000.0, junk),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_flood_leaves_those_their_share_who_are_known_here(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each datagram is in the name of one who has never been seen, so that none of them has asked too much."""
    monkeypatch.setattr(server, "TYPICAL", COSTS[Kind.QUESTION])  # lost channels are not measured
    machine = Machine()
    machine.settled("46.1")
    rate, make = FORGED[what]
    numbers = iter(range(10**9))

    def forged() -> tuple[Address, bytes, str]:
        number = next(numbers)
        return Address(f"{60 + number % 90}.{number // 90 % 250}.{number // 22_500}.9", 5), make(machine), ""

    machine.sends(rate, forged)
    machine.run(2.0)
    machine.measuring()
    machine.relaying()
    machine.measuring(network="46.2", what="stranger")
    machine.run(3.0)
    assert min(machine.share("measure"), machine.share("relay")) > 0.95, machine.answered
    assert machine.slowest < 0.5
    if "questions" in what:
        assert machine.share("stranger") < 0.9  # it is known from the forged by nothing


@pytest.mark.parametrize("guess", [False, True], ids=["by name", "at random"])
def test_those_who_guess_at_codes_take_no_time_from_the_others(guess: bool) -> None:
    machine = Machine()

    def ask() -> messages.RequestMessage:
        number = machine.rng.randrange(100, 10_000)
        return messages.Claim(number, b"x") if guess else messages.Allocate(number)

    machine.crowd(NEIGHBOURS[::2], 5_000.0, ask)
    machine.run(2.0)
    machine.all_honest()
    machine.run(3.0)
    assert min(machine.served().values()) > 0.95, machine.served()
    assert machine.slowest < 0.5


def test_while_all_is_done_at_once_nobody_is_held() -> None:
    machine = Machine()
    machine.crowd(SITES[:3], 1_500.0)
    machine.all_honest()
    machine.run(3.0)
    assert min(machine.share(""), *machine.served().values()) > 0.98  # the last are under way
    assert not machine.server.drops


def test_pairs_that_flood_the_relay_leave_requests_as_they_are_and_the_other_way_round() -> None:
    machine = Machine()
    machine.relaying(8_000.0)
    machine.newcomers()
    machine.run(2.0)
    assert machine.server.relay.ceiling.is_low
    assert not machine.server.load.is_low
    machine = Machine()
    machine.crowd(SITES, 5_000.0)
    machine.relaying()
    machine.run(1.0)
    assert machine.server.load.is_low
    assert not machine.server.relay.ceiling.is_low


def test_after_a_flood_everything_is_as_it_was() -> None:
    machine = Machine()
    machine.crowd(SITES, 5_000.0)
    machine.run(1.0)
    assert machine.server.load.is_low
    machine.sources.clear()
    machine.owed.clear()
    machine.newcomers()
    machine.run(100 * INTERVAL)
    assert not machine.server.load.is_low
    assert set(machine.server.load._budgets.values()) == {1.0}


def test_nobody_is_charged_for_what_is_said_in_its_name() -> None:
    machine = Machine()
    victim = Address("50.1.1.1", 1_000)
    for _ in range(200):
        data = machine.request(victim, messages.Join(Role.LISTEN, (bytes(16),)), machine.rng.randbytes(17))
        machine._serve(victim, data, machine.now, "")
    assert not machine.server.load._recent


def test_whoever_waits_for_somebody_may_ask_for_more() -> None:
    machine = Machine()
    source = Address("50.1.1.1", 1_000)
    session, cookie = b"s" * 16, machine.cookie(source)
    assert not machine.server._has_relation(session, source)
    machine._serve(source, machine.request(source, messages.Refresh(), cookie, session), machine.now, "")
    assert not machine.server._has_relation(session, source)
    machine._serve(source, machine.request(source, messages.Allocate(), cookie, session), machine.now, "")
    assert machine.server._has_relation(session, source)
    assert not machine.server._has_relation(session, Address("50.1.1.2", 1_000))


def fresh_load(*known: str) -> Load:
    """`known`: addresses that have a session."""
    return Load(Ceiling(ServerConfig()), b"salt", lambda keys: known.count(keys[0]))


def low_load(level: float = load.LEAST_WORK) -> Load:
    found = fresh_load()
    found.look(Instant(10.0), False)
    found._level, found.is_low = level, True
    return found


def spend(found: Load, host: str, related: bool = False) -> float:
    """Seconds that it may cost until it is left out."""
    spent = 0.0
    while found.admits(host, related):
        found.charge(Instant(10.0), Kind.PROVEN, host, 1e-6)
        spent += 1e-6
    return spent


def test_an_address_may_cost_its_least_and_what_is_around_it_some_times_as_much() -> None:
    least = load.LEAST_WORK * load.DECAY
    assert spend(low_load(), "50.1.1.1") == pytest.approx(least, rel=0.02)
    assert spend(low_load(), "50.1.1.1", related=True) == pytest.approx(load.RELATED * least, rel=0.02)
    for hosts in ([f"50.1.1.{n}" for n in range(1, 20)], [f"2a00:1:2:33{n:02x}::1" for n in range(20)]):
        found = low_load()
        assert sum(spend(found, host) for host in hosts) == pytest.approx(load.WIDER * least, rel=0.02)
    found = low_load()
    hosts = [f"50.1.{site}.{n}" for site in range(20) for n in range(1, 10)]
    assert sum(spend(found, host) for host in hosts) == pytest.approx(load.WIDER**2 * least, rel=0.02)
    assert found.admits("50.2.1.1", False)
    assert around("50.2.1.1") == ("50.2.1.1", "50.2.1", "50.2")


def test_the_level_falls_to_the_least_and_rises_until_nobody_is_held() -> None:
    found, now = fresh_load(), Instant(10.0)
    for _ in range(40):
        now = Instant(now + INTERVAL)
        for kind in (Kind.PROVEN, Kind.UNPROVEN, Kind.QUESTION):
            found.charge(now, kind, "50.1.1.1", 0.01)
        found.look(now, True)
    assert found._level == load.LEAST_WORK
    assert set(found._budgets.values()) == {load.LEAST_FOR_STRANGERS}
    for _ in range(100):
        now = Instant(now + INTERVAL)
        found.look(now, False)
    assert (found._level, found.is_low) == (load.MOST_WORK, False)


def test_the_level_falls_freely_until_somebody_is_left_out() -> None:
    found, now = fresh_load(), Instant(10.0)
    found.look(now, False)
    for fall, host in ((load.FREE_FALL, "50.1.1.2"), (load.LEVEL_FALL, "50.1.1.1")):
        before = found._level
        now = Instant(now + INTERVAL)
        found.charge(now, Kind.PROVEN, "50.1.1.1", 3.0)
        found.admits(host, False)
        found.look(now, True)
        assert found._level == pytest.approx(fall * before)


def test_a_thread_that_works_all_the_time_is_behind_whatever_its_queues_say() -> None:
    for busy in (load.BUSY - 0.1, load.BUSY + 0.05):
        found = fresh_load()
        found.look(Instant(10.0), False)
        found.charge(Instant(10.0), Kind.PROVEN, "50.1.1.1", busy * INTERVAL)
        found.look(Instant(10.0 + INTERVAL + 1e-9), False)
        assert found.is_low == (busy > load.BUSY)


def test_when_most_goes_into_dropping_nobody_is_held_to_less() -> None:
    found, now = fresh_load(), Instant(10.0)
    for _ in range(20):
        now = Instant(now + INTERVAL)
        found.charge(now, Kind.DROPPED, "50.1.1.1", 0.01 / load.BLAMED + 0.001)
        found.charge(now, Kind.PROVEN, "50.1.1.1", 0.01)
        found.look(now, True)
    assert not found.is_low


def test_what_an_address_has_cost_is_forgotten() -> None:
    least = load.LEAST_WORK * load.DECAY
    for after, forgotten in ((load.DECAY, 1 - 1 / e), (load.GENERATION, 1.0), (3 * load.GENERATION, 1.0)):
        found = low_load()
        spend(found, "50.1.1.1")
        assert not found.admits("50.1.1.1", False)
        found.look(Instant(10.0 + after), False)
        found._level, found.is_low = load.LEAST_WORK, True
        assert spend(found, "50.1.1.1") == pytest.approx(forgotten * least, rel=0.02)


def test_no_more_addresses_are_remembered_than_there_is_room_for() -> None:
    found = low_load()
    spend(found, "50.1.1.1")
    found.charge(Instant(10.0), Kind.PROVEN, "50.1.1.1", load.LEAST_WORK)
    for number in range(load.MAX_CHARGED):
        found.charge(Instant(10.0), Kind.PROVEN, f"{60 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.1", 1e-9)
    found.look(Instant(10.0 + INTERVAL), False)
    found._level, found.is_low = load.LEAST_WORK, True
    assert not found._recent
    assert not found.admits("50.1.1.1", False)  # a generation that ended early is remembered all the same
    found.look(Instant(10.0 + 2 * load.GENERATION), False)
    found.look(Instant(10.0 + 4 * load.GENERATION), False)
    assert not found._earlier


def test_of_strangers_those_that_ask_seldom_come_first() -> None:
    found, now = fresh_load(), Instant(10.0)
    found._budgets[Kind.QUESTION] = load.LEAST_FOR_STRANGERS
    cost = 0.2 * load.STRANGER_DEPTH * load.LEAST_FOR_STRANGERS
    for _ in range(load.STRANGER_BURST):
        assert found.admits_stranger(now, Kind.QUESTION, "50.1.1.1")
    found.charge(now, Kind.QUESTION, "50.1.1.1", cost)
    assert not found.admits_stranger(now, Kind.QUESTION, "50.1.1.1")  # more than STRANGER_RATE, and the budget is in use
    assert found.admits_stranger(now, Kind.QUESTION, "50.1.1.2")
    assert found.admits_stranger(now, Kind.UNPROVEN, "50.1.1.1")  # of which there is enough
    for _ in range(5):
        found.charge(now, Kind.QUESTION, "50.1.1.2", cost)
    assert not found.admits_stranger(now, Kind.QUESTION, "50.1.1.3")
    later = Instant(now + 1.01 / load.STRANGER_RATE)
    found.charge(Instant(later - 1.0), Kind.QUESTION, "50.1.1.2", (1.0 + load.STRANGER_DEPTH / 2) * load.LEAST_FOR_STRANGERS)
    assert found.admits_stranger(later, Kind.QUESTION, "50.1.1.1")
    assert not found.admits_stranger(later, Kind.QUESTION, "50.1.1.1")
    later = Instant(later + load.STRANGER_DEPTH)
    assert found.admits_stranger(later, Kind.QUESTION, "50.1.1.1")  # as nobody else wants it
    assert len(found._seldom._full) == load.STRANGER_SLOTS


def test_of_those_that_ask_seldom_an_address_with_a_session_comes_first() -> None:
    found, now = fresh_load("50.1.1.1", "2a00000100020003"), Instant(10.0)
    found._budgets[Kind.QUESTION] = load.LEAST_FOR_STRANGERS
    found.charge(now, Kind.QUESTION, "50.9.9.9", 1.5 * load.STRANGER_DEPTH * load.LEAST_FOR_STRANGERS)
    assert not found.admits_stranger(now, Kind.QUESTION, "50.1.1.2")
    assert found.admits_stranger(now, Kind.QUESTION, "2a00:1:2:3::9")
    for _ in range(load.STRANGER_BURST):
        assert found.admits_stranger(now, Kind.QUESTION, "50.1.1.1")
    assert not found.admits_stranger(now, Kind.QUESTION, "50.1.1.1")  # so nobody does much in its name
    found = fresh_load("50.1.1.1")
    found._budgets[Kind.QUESTION] = load.LEAST_FOR_STRANGERS
    found.charge(now, Kind.QUESTION, "50.9.9.9", 1.01 * load.KNOWN_DEPTH * load.LEAST_FOR_STRANGERS)
    assert not found.admits_stranger(now, Kind.QUESTION, "50.1.1.1")


def test_one_pause_of_the_machine_is_charged_to_nobody() -> None:
    machine = Machine()
    source = Address("50.1.1.1", 1_000)
    data = machine.request(source, messages.Refresh(), machine.cookie(source))
    machine.server.handle_batch(machine.now, SocketId(0), source, memoryview(data), len(data))
    machine.server.load.charge_all(machine.now, [machine.server.cost(source, 1)], 0.2)
    assert machine.server.load._recent["50.1.1.1"] == pytest.approx(load.MOST_AT_ONCE)
    assert load.TYPICAL < load.MOST_AT_ONCE
    many = b"".join(machine.request(source, messages.Refresh(), machine.cookie(source)) for _ in range(10))
    machine.server.handle_batch(machine.now, SocketId(0), source, memoryview(many), len(data))
    assert machine.server.load._recent["50.1.1.1"] == pytest.approx(load.MOST_AT_ONCE + 10 * load.TYPICAL)
    assert machine.server.relay.ceiling._scale == HIGHEST
