"""The machine that keeps a port mapped, against routers of several tempers, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tunnel.nat import pcp, upnp
from tunnel.nat.mapping_states import (
    TRANSITIONS,
    Cue,
    LookUpPort,
    MapPort,
    PortMapping,
    Protocol,
    SearchRouter,
    Stage,
    UnmapPort,
)
from tunnel.nat.portmap import (
    GRACE,
    LIFETIME,
    MAX_PORTS_TRIED,
    MAX_TRIES,
    RETRY_AFTER,
    UPNP_RENEWAL,
    WATCH_INTERVAL,
    PortMapper,
)
from tunnel.units import Address, Instant, Seconds

OWN, OUTSIDE, PORT = "192.168.1.10", "44.128.0.1", 40_000


class Router:
    """Speaks what it is told to; keeps one table for all protocols, as miniupnpd does."""

    def __init__(self, *speaks: Protocol) -> None:
        self.speaks = set(speaks)
        self.table: dict[int, tuple[int, float]] = {}  # port outside -> port inside, until when
        self.started_at = 0.0
        self.outside = OUTSIDE
        self.taken: set[int] = set()
        self.max_lifetime = 1 << 32
        self.pcp_result = self.nat_pmp_result = 0
        self.is_silent = False
        self.no_leases = 0  # the error of a router that grants mappings for ever alone
        self.only_same = False  # maps a port to the same one alone
        self.never_twice = False  # refuses what it has granted already, also to whom it has granted it
        self.tells = "what is left"  # of a lease, to who asks; or "zero", or "nothing"
        self.requests: list[str] = []

    def restart(self, now: float) -> None:
        self.table.clear()
        self.started_at = now

    def lapse(self, now: float) -> None:
        self.table = {port: entry for port, entry in self.table.items() if entry[1] > now}

    def answer(self, now: float, data: bytes) -> bytes | None:
        if self.is_silent:
            return None
        version, opcode = data[0], data[1]
        epoch = int(now - self.started_at)
        if version == 2:
            if Protocol.PCP not in self.speaks:  # what a NAT-PMP router says to it: RFC 6887 appendix A
                return None if Protocol.NAT_PMP not in self.speaks else bytes((0, opcode | 128, 0, 1)) + epoch.to_bytes(4, "big")
            lifetime = min(int.from_bytes(data[4:8], "big"), self.max_lifetime)
            result = self.pcp_result if opcode == 1 else 0
            head = bytes((2, opcode | 128, 0, result)) + lifetime.to_bytes(4, "big") + epoch.to_bytes(4, "big") + bytes(12)
            if opcode == 0:
                self.requests.append("announce")
                return head
            self.requests.append("PCP map" if lifetime else "PCP remove")
            inside, wish = int.from_bytes(data[40:42], "big"), int.from_bytes(data[42:44], "big")
            port = 0 if result else self._map(now, inside, wish, lifetime)
            host = bytes(10) + b"\xff\xff" + bytes(map(int, self.outside.split(".")))
            return head + data[24:42] + port.to_bytes(2, "big") + host
        if Protocol.NAT_PMP not in self.speaks:
            return None
        head = bytes((0, opcode | 128, 0, self.nat_pmp_result)) + epoch.to_bytes(4, "big")
        if opcode == 0:
            self.requests.append("external")
            return head + bytes(map(int, self.outside.split(".")))
        lifetime = min(int.from_bytes(data[8:12], "big"), self.max_lifetime)
        self.requests.append("NAT-PMP map" if lifetime else "NAT-PMP remove")
        inside, wish = int.from_bytes(data[4:6], "big"), int.from_bytes(data[6:8], "big")
        port = self._map(now, inside, wish, lifetime)
        return head + data[4:6] + port.to_bytes(2, "big") + lifetime.to_bytes(4, "big")

    def _map(self, now: float, inside: int, wish: int, lifetime: int) -> int:
        self.lapse(now)
        mine = next((port for port, entry in self.table.items() if entry[0] == inside), None)
        if not lifetime:
            self.table.pop(mine or 0, None)
            return 0
        port = mine or (wish if wish not in self.taken else wish + 1000)
        self.table[port] = (inside, now + lifetime)
        return port

    def do(self, now: float, mapper: PortMapper, task: object) -> None:
        """UPnP, as the driver would bring it."""
        at = Instant(now)
        self.lapse(now)
        match task:
            case _ if Protocol.UPNP not in self.speaks or self.is_silent:
                mapper.upnp_failed(at, 0, "nothing there")
            case SearchRouter():
                self.requests.append("search")
                mapper.upnp_found(at)
            case MapPort(external_port=port, lifetime=lifetime):
                self.requests.append("UPnP map")
                if self.only_same and port != PORT:
                    mapper.upnp_failed(at, upnp.SAME_PORT, "another port")
                elif port in self.taken or (self.never_twice and port in self.table):
                    mapper.upnp_failed(at, upnp.CONFLICT, "taken")
                elif self.no_leases and lifetime:
                    mapper.upnp_failed(at, self.no_leases, "no leases")
                else:
                    self.table[port] = (PORT, now + (lifetime or 1e9))
                    mapper.upnp_mapped(at, Address(self.outside, port), lifetime)
            case LookUpPort(external_port=port):
                inside, until = self.table.get(port, (0, now))
                left = round(until - now) if self.tells == "what is left" and until < 1e8 else 0
                entry = upnp.Entry("192.168.1.66" if port in self.taken else OWN, inside, left)
                mapper.upnp_looked_up(at, Address(self.outside, port), None if self.tells == "nothing" else entry)
            case UnmapPort(external_port=port):
                self.requests.append("UPnP remove")
                self.table.pop(port, None)
                mapper.upnp_removed(at, port)


class World:
    """One mapper before one router, 1 ms apart; SSDP takes 60."""

    def __init__(self, router: Router, *, lifetime: Seconds = LIFETIME) -> None:
        self.now = 100.0
        self.router = router
        self.loss: Callable[[bytes], bool] = lambda data: False
        rng = random.Random(7)
        self.mapper = PortMapper(
            own=OWN, port=PORT, now=Instant(self.now), rng=rng, entropy=lambda size: b"n" * size, lifetime=lifetime
        )
        self.history: list[tuple[float, PortMapping | None]] = []
        self._arriving: list[tuple[float, bytes | object]] = []
        self.sent = 0

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        turns = 0
        while True:
            turns += 1
            assert turns < 20_000, "it spins"
            now = Instant(self.now)
            self.mapper.handle_timeout(now)
            while (data := self.mapper.poll_transmit(now)) is not None:
                self.sent += 1
                assert self.sent < 10_000
                answer = self.router.answer(self.now, data)
                if answer is not None and not self.loss(data):
                    self._arriving.append((self.now + 0.001, answer))
            if (task := self.mapper.poll_upnp(now)) is not None:
                self._arriving.append((self.now + (0.06 if isinstance(task, SearchRouter) else 0.005), task))
            if not self.history or self.history[-1][1] != self.mapper.mapping:
                self.history.append((self.now - 100.0, self.mapper.mapping))
            due = [at for at, _ in self._arriving]
            deadline = self.mapper.poll_timeout()
            following = min([*due, *([deadline] if deadline is not None else [])], default=end)
            if following >= end:
                self.now = end
                return
            self.now = max(self.now, following)
            arrived = [item for at, item in self._arriving if at <= self.now]
            self._arriving = [each for each in self._arriving if each[0] > self.now]
            for item in arrived:
                if isinstance(item, bytes):
                    self.mapper.handle_datagram(Instant(self.now), item)
                else:
                    self.router.do(self.now, self.mapper, item)

    def close(self) -> float:
        """Seconds until the router has been told."""
        started = self.now
        self.mapper.close(Instant(self.now))
        while not self.mapper.is_finished and self.now < started + 20:
            self.run(0.001)
        return self.now - started

    @property
    def mapped(self) -> str | None:
        return str(self.mapper.mapping.external) if self.mapper.mapping is not None else None


@pytest.mark.parametrize("protocol", list(Protocol))
def test_each_protocol_alone_maps_the_port_and_takes_it_back(protocol: Protocol) -> None:
    world = World(Router(protocol))
    world.run(1)
    mapping = world.mapper.mapping
    assert mapping is not None
    assert (mapping.protocol, mapping.external, mapping.internal_port) == (protocol, Address(OUTSIDE, PORT), PORT)
    assert world.history[-1][0] <= GRACE + 0.1
    assert world.close() < 0.1
    assert world.router.table == {}


def test_the_best_of_three_is_taken_at_once_and_nothing_is_mapped_twice() -> None:
    world = World(Router(*Protocol))
    world.run(1)
    assert world.mapper.mapping is not None
    assert world.mapper.mapping.protocol is Protocol.PCP
    assert world.history[-1][0] < 0.01
    assert [request for request in world.router.requests if "map" in request] == ["PCP map"]


def test_a_better_protocol_that_refuses_makes_way() -> None:
    router = Router(*Protocol)
    router.pcp_result, router.nat_pmp_result = 2, 2
    world = World(router)
    world.run(2)
    assert world.mapper.mapping is not None
    assert world.mapper.mapping.protocol is Protocol.UPNP


def test_a_nat_pmp_router_that_turns_pcp_down_is_not_waited_for() -> None:
    world = World(Router(Protocol.NAT_PMP))
    world.run(1)
    assert world.history[-1][0] < 0.01


def test_lost_requests_are_repeated() -> None:
    world = World(Router(Protocol.PCP))
    lost: list[bytes] = []

    def lose(data: bytes) -> bool:
        lost.append(data)
        return len(lost) in (1, 3)

    world.loss = lose
    world.run(2)
    assert world.mapped == f"{OUTSIDE}:{PORT}"


@pytest.mark.parametrize("protocol", list(Protocol))
def test_the_lease_is_renewed_for_a_day_without_a_gap(protocol: Protocol) -> None:
    world = World(Router(protocol), lifetime=Seconds(600.0))
    world.run(86_400)
    assert [mapping is not None for _, mapping in world.history if mapping is None][1:] == []
    externals = {mapping.external for _, mapping in world.history if mapping is not None}
    assert externals == {Address(OUTSIDE, PORT)}
    world.router.lapse(world.now)
    assert list(world.router.table) == [PORT]
    assert world.sent < 1200  # datagrams a day: a look at the epoch each two minutes, and the renewals


def test_a_router_that_grants_less_is_asked_more_often() -> None:
    router = Router(Protocol.PCP)
    router.max_lifetime = 30
    world = World(router)
    world.run(300)
    assert world.mapped is not None
    assert 15 <= router.requests.count("PCP map") <= 22


@pytest.mark.parametrize("protocol", [Protocol.PCP, Protocol.NAT_PMP])
def test_a_router_that_forgot_is_asked_again(protocol: Protocol) -> None:
    world = World(Router(protocol))
    world.run(1000)
    world.router.restart(world.now)
    assert world.router.table == {}
    world.run(WATCH_INTERVAL + 1)
    assert list(world.router.table) == [PORT]


def test_an_announcement_of_a_restart_is_heard_at_once() -> None:
    world = World(Router(Protocol.PCP))
    world.run(1000)
    world.router.restart(world.now)
    world.mapper.handle_datagram(Instant(world.now), bytes((2, 128, 0, 0)) + bytes(20))
    world.run(0.1)
    assert list(world.router.table) == [PORT]


def test_upnp_notices_a_restart_at_its_next_renewal() -> None:
    world = World(Router(Protocol.UPNP))
    world.run(10)
    world.router.restart(world.now)
    world.run(UPNP_RENEWAL)
    assert list(world.router.table) == [PORT]


def test_another_address_outside_is_told() -> None:
    world = World(Router(Protocol.NAT_PMP))
    world.run(10)
    world.router.outside = "44.128.0.99"
    world.run(WATCH_INTERVAL + 1)
    assert world.mapped == f"44.128.0.99:{PORT}"


def test_a_router_that_falls_silent_loses_the_mapping_when_its_lease_ends_and_gets_it_back() -> None:
    world = World(Router(Protocol.PCP), lifetime=Seconds(100.0))
    world.run(10)
    world.router.is_silent = True
    world.run(85)
    assert world.mapped is not None
    world.run(10)
    assert world.mapped is None
    world.router.is_silent = False
    world.run(RETRY_AFTER * 2 + 1)
    assert world.mapped is not None


def test_a_router_that_speaks_nothing_is_asked_ever_less() -> None:
    world = World(Router())
    world.run(60)
    assert world.mapped is None
    early = world.sent
    assert early <= 6 * MAX_TRIES
    world.run(86_400 - 60)
    assert world.sent - early < 100 * 2 * MAX_TRIES
    assert world.close() == 0
    assert world.mapper.trouble == "the router answers neither PCP, NAT-PMP nor UPnP"


def test_a_port_that_a_neighbour_has_is_replaced() -> None:
    router = Router(Protocol.UPNP)
    router.taken = {PORT}
    world = World(router)
    world.run(2)
    assert world.mapper.mapping is not None
    assert world.mapper.mapping.external.port != PORT
    world.close()
    assert router.table == {}


@pytest.mark.parametrize("error", [725, 402, 501, 500, 600, 601, 602])
def test_a_router_with_permanent_mappings_only_is_cleaned_up(error: int) -> None:
    """725 is the code for it; some say that an argument is wrong, or that it failed."""
    router = Router(Protocol.UPNP)
    router.no_leases = error
    world = World(router)
    world.run(5000)
    assert world.mapped is not None
    world.close()
    assert router.table == {}


def test_a_router_that_maps_a_port_to_the_same_one_only_is_asked_for_that() -> None:
    world = World(Router(Protocol.UPNP))
    world.router.taken.add(PORT)
    world.run(2)
    assert world.mapper.mapping is not None
    assert world.mapper.mapping.external.port != PORT
    world.router.taken.clear()
    world.router.only_same = True
    world.router.restart(world.now)
    world.run(UPNP_RENEWAL + 10)
    assert world.mapped == f"{OUTSIDE}:{PORT}"


@pytest.mark.parametrize("no_leases", [0, 725])
@pytest.mark.parametrize("tells", ["what is left", "zero", "nothing"])
def test_a_router_that_refuses_to_renew_its_own_mapping_never_loses_it(tells: str, no_leases: int) -> None:
    router = Router(Protocol.UPNP)
    router.never_twice, router.tells, router.no_leases = True, tells, no_leases
    world = World(router)
    world.run(5)
    for _ in range(3 * 3600):
        world.run(1)
        assert world.mapper.mapping is not None
        router.lapse(world.now)
        assert world.mapper.mapping.external.port in router.table
    assert len({mapping.external for _, mapping in world.history if mapping is not None}) <= (1 if no_leases else 5)
    assert len(router.requests) < 200
    world.close()
    assert router.table == {}


def test_a_port_outside_that_ours_has_left_is_taken_back_while_it_is_still_ours() -> None:
    router = Router(Protocol.UPNP)
    router.never_twice = True
    world = World(router, lifetime=Seconds(200.0))
    world.run(190)  # the other port was asked for at the half; by the end of the first lease, the first port is given back
    assert world.mapped not in (None, f"{OUTSIDE}:{PORT}")
    world.run(8)
    assert PORT not in router.table
    assert router.requests.count("UPnP remove") == 1
    assert world.close() < 1
    assert router.table == {}


def test_the_end_takes_back_both_ports_while_one_makes_way_for_the_other() -> None:
    router = Router(Protocol.UPNP)
    router.never_twice = True
    world = World(router, lifetime=Seconds(200.0))
    world.run(150)
    assert len(router.table) == 2
    world.close()
    assert router.table == {}


def test_a_port_that_a_neighbour_took_while_the_router_restarted_is_left_to_it() -> None:
    world = World(Router(Protocol.UPNP))
    world.run(10)
    world.router.restart(world.now)
    world.router.taken = {PORT}
    world.run(UPNP_RENEWAL)
    assert world.mapped not in (None, f"{OUTSIDE}:{PORT}")
    assert world.mapper.mapping is not None
    assert list(world.router.table) == [world.mapper.mapping.external.port]
    assert world.router.requests.count("UPnP remove") == 0


def test_what_a_crash_left_behind_is_taken_up_again() -> None:
    router = Router(Protocol.UPNP)
    router.never_twice = True
    router.table[PORT] = (PORT, 100.0 + 3000)
    world = World(router)
    world.run(5)
    assert world.mapped == f"{OUTSIDE}:{PORT}"
    assert world.mapper.mapping is not None
    assert world.mapper.mapping.expires_at == pytest.approx(3100, abs=2)


def test_a_router_that_has_given_all_ports_to_others_is_asked_for_so_many() -> None:
    router = Router(Protocol.UPNP)
    router.taken = set(range(65_536))
    world = World(router)
    world.run(RETRY_AFTER)
    assert router.requests.count("UPnP map") == 1 + MAX_PORTS_TRIED
    assert world.mapper.trouble == "the router has given its ports to others"


def test_a_router_that_is_gone_at_the_end_costs_only_patience() -> None:
    world = World(Router(Protocol.PCP))
    world.run(10)
    world.router.is_silent = True
    assert world.close() < 10
    assert world.mapper.is_finished


def test_why_there_is_none_is_said() -> None:
    router = Router(Protocol.PCP)
    router.pcp_result = 2
    world = World(router)
    world.run(30)
    assert world.mapper.trouble == "asked for a port by PCP, the router says that it refuses"


def test_answers_for_others_change_nothing() -> None:
    world = World(Router(Protocol.PCP))
    world.run(1)
    before = world.mapper.mapping
    forged = pcp.encode_pcp_map(OWN, b"x" * 12, PORT, Address("44.128.0.66", 1), 60)
    world.mapper.handle_datagram(Instant(world.now), bytes((2, 0x81, 0, 0)) + forged[4:])
    assert world.mapper.mapping == before
    assert world.mapper.drops["port mapping answer for another"] == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
def test_a_useless_address_is_not_believed(host: str) -> None:
    router = Router(*Protocol)
    router.outside = host
    world = World(router)
    world.run(20)
    assert world.mapped is None


@pytest.mark.parametrize("protocol", [Protocol.PCP, Protocol.NAT_PMP])
def test_what_is_granted_at_a_useless_address_is_taken_back(protocol: Protocol) -> None:
    router = Router(protocol)
    router.outside = "0.0.0.0"
    world = World(router)
    world.run(5)
    assert world.mapped is None
    assert router.table == {}
    assert "0.0.0.0" in world.mapper.trouble


def test_the_table_is_total_and_every_stage_can_be_left() -> None:
    assert set(TRANSITIONS) == set(Stage)
    for stage, row in TRANSITIONS.items():
        assert (Cue.CLOSED in row) is (stage not in (Stage.REMOVING, Stage.REMOVED))
    reached = {Stage.PROBING} | {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(Stage)
