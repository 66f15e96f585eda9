"""UDP forwards between real loopback sockets, over a link without a network: the twin, and the core's own connection."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.driver.core_link import CoreLinks
from tests.driver.fake_link import linked_pair
from tunnel.doors.udp import pktinfo
from tunnel.ports import flows, outward, udp
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.local import open_listeners, udp_places
from tunnel.ports.names import Place
from tunnel.ports.open import Open, encode
from tunnel.ports.outward import MAX_PLACES, MAX_TOGETHER, MAX_UNANSWERED, SILENT_AFTER, Outward
from tunnel.ports.serve import Exposed
from tunnel.ports.spec import parse_forward
from tunnel.ports.udp import UdpForward
from tunnel.units import Seconds

IS_CORE = {"core": False}  # which of the two carries, set for each test by the fixture


@pytest.fixture(autouse=True, params=["twin", "core"])
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(IS_CORE, "core", request.param == "core")
    return str(request.param)


class Bench:
    def __init__(self, port: int, near: Any, counters: ForwardCounters, exposed: Exposed, notices: list[str]) -> None:
        self.port = port
        self.near = near
        self.counters = counters
        self.exposed = exposed
        self.notices = notices

    async def client(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await sock.connect(("127.0.0.1", self.port))
        return sock


@asynccontextmanager
async def forwarded(
    *, idle: float = 120.0, limit: int = flows.MAX_FLOWS, granted: bool = True, bind: str = "127.0.0.1"
) -> AsyncIterator[Bench]:
    """A UDP echo behind a forward; it answers to whoever asked."""
    links = CoreLinks() if IS_CORE["core"] else None
    near: Any
    far: Any
    near, far = linked_pair() if links is None else (links.near, links.far)
    notices: list[str] = []
    server = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await server.bind(("127.0.0.1", 0))
    target = server.getsockname()

    async def echo() -> None:
        while True:
            data, client = await server.recvfrom(65_535)
            await server.sendto(data, client)

    [listener] = open_listeners(parse_forward(f"{bind}:0:53/udp")[0])
    exposed = Exposed(far, lambda _protocol, _target: target if granted else None)
    counters = ForwardCounters()
    with server, listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            if links is not None:
                nursery.start_soon(links.run)
            nursery.start_soon(far.serve_streams, exposed.handle)
            forward = UdpForward(
                listener, 53, link=near, counters=counters, notices=Notices(notices.append), idle=Seconds(idle), limit=limit
            )
            nursery.start_soon(forward.run)
            with trio.fail_after(20):
                yield Bench(listener.getsockname()[1], near, counters, exposed, notices)
            nursery.cancel_scope.cancel()


async def until(condition: Callable[..., bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("size", [0, 1, 1_200, 9_000, 60_000, 65_507])
async def test_a_datagram_of_any_size_comes_back(size: int) -> None:
    async with forwarded() as bench:
        with await bench.client() as client:
            await client.send(b"u" * size)
            assert await client.recv(65_535) == b"u" * size


async def test_each_client_gets_its_own_replies() -> None:
    async with forwarded() as bench:
        clients = [await bench.client() for _ in range(50)]
        for number, client in enumerate(clients):
            await client.send(b"%d" % number)
        for number, client in enumerate(clients):
            assert await client.recv(100) == b"%d" % number
            client.close()
        assert bench.counters.udp_flows_opened == 50


async def test_datagrams_of_one_client_share_one_flow() -> None:
    async with forwarded() as bench:
        with await bench.client() as client:
            for number in range(20):
                await client.send(b"%d" % number)
                assert await client.recv(100) == b"%d" % number
        assert bench.counters.udp_flows_opened == bench.exposed.counters.udp_flows_opened == 1


async def test_an_idle_flow_ends_on_both_sides_and_the_next_datagram_opens_another() -> None:
    async with forwarded(idle=0.04) as bench:
        with await bench.client() as client:
            await client.send(b"first")
            assert await client.recv(100) == b"first"
            await until(lambda: bench.counters.udp_flows_active == bench.exposed.counters.udp_flows_active == 0)
            assert bench.counters.udp_flows_idle == 1
            await client.send(b"second")
            assert await client.recv(100) == b"second"


async def test_the_oldest_flow_is_evicted_at_the_cap() -> None:
    async with forwarded(limit=3) as bench:
        clients = [await bench.client() for _ in range(5)]
        for client in clients:
            await client.send(b"x")
            assert await client.recv(100) == b"x"
        await until(lambda: bench.counters.udp_flows_active == 3)
        await until(lambda: bench.exposed.counters.udp_flows_active == 3)
        assert bench.counters.udp_flows_evicted == 2
        for client in clients:
            client.close()


async def test_a_flood_of_new_clients_is_capped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "NEW_FLOW_BURST", 10)
    monkeypatch.setattr(udp, "NEW_FLOW_RATE", 0.0)
    async with forwarded() as bench:
        with ExitStack() as open_clients:  # a port that is closed may be the next one's, which is no new flow then
            for _ in range(30):
                client = open_clients.enter_context(await bench.client())
                await client.send(b"flood")
            await until(lambda: bench.counters.udp_flood_dropped == 20)
            assert bench.counters.udp_flows_active == 10


async def test_what_a_client_says_while_its_flow_opens_is_held_up_to_a_limit() -> None:
    near, _far = linked_pair()  # nobody answers there
    [listener] = open_listeners(parse_forward("127.0.0.1:0:53/udp")[0])
    counters = ForwardCounters()
    with listener, trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(UdpForward(listener, 53, link=near, counters=counters, notices=Notices()).run)
            await client.connect(listener.getsockname())
            for _ in range(10):
                await client.send(bytes(10_000))
            with trio.fail_after(5):
                await until(lambda: counters.udp_datagrams_in == 10)
            assert counters.udp_held_dropped == 4
            nursery.cancel_scope.cancel()


async def test_a_flow_that_is_not_granted_is_explained_once_and_its_client_is_not_asked_for_again_at_once() -> None:
    async with forwarded(granted=False) as bench:
        with await bench.client() as client:
            for _ in range(20):
                await client.send(b"may I?")
                await trio.testing.wait_all_tasks_blocked()
            await until(lambda: bench.counters.udp_datagrams_in == 20)
            await until(lambda: len(bench.notices) == 1)
        assert bench.notices == ["home refused udp/53: that is not shared with you."]
        assert bench.exposed.counters.udp_denied == bench.counters.udp_denied == 1
        assert bench.counters.udp_refused == 20


async def test_two_flows_of_one_number_are_the_peers_fault() -> None:
    async with forwarded() as bench:
        aborted = trio.Event()
        for _ in range(2):
            stream = await bench.near.open_stream(encode(Open("udp", 53, 4)))
            stream.on_abort = lambda _code: aborted.set()
        await aborted.wait()
        assert bench.exposed.counters.malformed_opens == 1


async def test_an_answer_leaves_from_the_address_that_the_client_asked() -> None:
    """Of a forward that listens on all addresses: one client socket asks two of them, and each answers for itself."""
    async with forwarded(bind="0.0.0.0") as bench:
        client = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await client.bind(("127.0.0.1", 0))
        with client, trio.fail_after(5):
            for number, host in enumerate(("127.0.0.7", "127.0.0.1", "127.0.0.7", "127.9.8.7")):
                for data in (b"%d" % number, *([b"%d" % number * 900] * 3)):
                    await client.sendto(data, (host, bench.port))
                    assert await client.recvfrom(65_535) == (data, (host, bench.port))
    assert bench.counters.udp_flows_opened == 3


def test_the_address_that_was_asked_is_known_of_what_came_before_there_was_a_link() -> None:
    """A client that asks while the peer is still waited for; whoever asks the kernel later is told nothing of it."""
    [listener] = open_listeners(parse_forward("0.0.0.0:0:53/udp")[0])
    late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener, late, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        late.bind(("0.0.0.0", 0))
        found = []
        for sock in (listener, late):
            client.sendto(b"early", ("127.0.0.7", sock.getsockname()[1]))
            assert pktinfo.ask(sock, is_ipv6=False, is_ipv4=True)
            sock.setblocking(True)
            sock.settimeout(5)
            found.append(pktinfo.local_of(pktinfo.find(sock.recvmsg(100, pktinfo.SPACE)[1])))
        assert found == ["127.0.0.7", ""]


async def test_a_flow_that_is_never_silent_outlives_any_number_of_short_ones() -> None:
    """A game beside a resolver that uses a new port for each question: the game's server must not see another port."""
    async with forwarded(limit=10) as bench:
        with ExitStack() as stack:  # a port that is closed may be the next one's, which is no new flow then
            game = stack.enter_context(await bench.client())
            for number in range(100):
                await game.send(b"tick")
                assert await game.recv(100) == b"tick"
                lookup = stack.enter_context(await bench.client())
                await lookup.send(b"%d" % number)
                assert await lookup.recv(100) == b"%d" % number
        assert bench.counters.udp_flows_opened == 101
        assert bench.counters.udp_flows_evicted >= 90


async def test_the_flows_of_one_link_have_one_bound_however_many_ports_it_may_reach() -> None:
    """A peer that may reach all ports asks for one after the other, and each of its sockets is one of ours."""
    links = CoreLinks() if IS_CORE["core"] else None
    near: Any
    far: Any
    near, far = linked_pair() if links is None else (links.near, links.far)
    exposed = Exposed(far, lambda _protocol, target: ("127.0.0.1", int(target)))
    exposed._table = flows.FlowTable(exposed.counters, limit=10)
    async with trio.open_nursery() as nursery:
        if links is not None:
            nursery.start_soon(links.run)
        nursery.start_soon(far.serve_streams, exposed.handle)
        with trio.fail_after(20):
            for port in range(40_000, 40_050):
                number = near.flows.allocate()
                near.flows.register(number, lambda _batch: None)
                stream = await near.open_stream(encode(Open("udp", port, number)))
                while not await stream.receive_chunks():
                    pass
            await until(lambda: exposed.counters.udp_flows_active == 10)
        assert exposed.counters.udp_flows_evicted == 40
        nursery.cancel_scope.cancel()


async def test_where_nothing_listens_both_persons_are_told() -> None:
    async with forwarded() as bench:
        told: list[str] = []
        bench.exposed._notices = Notices(told.append)
        closed = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        bench.exposed._allow = lambda _protocol, _target: ("127.0.0.1", port)
        closed.close()
        with await bench.client() as client:
            await client.send(b"anybody?")
            await until(lambda: bool(told and bench.notices))
        assert told == [f"{bench.exposed._link.peer_name} asked for udp/53: nothing listens on port {port} here."]
        assert "refused udp/53: nothing listens there" in bench.notices[0]


async def test_a_program_that_listens_on_the_other_loopback_is_found() -> None:
    """What was said to the address that refused it is said again."""
    async with forwarded() as bench:
        server = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        await server.bind(("::1", 0))
        bench.exposed._allow = lambda _protocol, _target: ("127.0.0.1", server.getsockname()[1])
        with server, await bench.client() as client:
            for data in (b"first", b"second"):
                await client.send(data)
                asked, address = await server.recvfrom(100)
                assert asked == data
                await server.sendto(b"answer", address)
                assert await client.recv(100) == b"answer"
        assert bench.exposed.counters.udp_flows_opened == 1


@pytest.mark.parametrize(
    ("target", "idle"),
    [
        (53, flows.LOOKUP_IDLE),
        ("dns:53", flows.LOOKUP_IDLE),
        (5353, flows.FLOW_IDLE),
        ("dns", flows.FLOW_IDLE),
        ("dns:5353", flows.FLOW_IDLE),
    ],
)
async def test_a_silent_flow_ends_after_its_time_and_lookups_after_a_shorter_one(
    target: int | str, idle: float, autojump_clock: trio.testing.MockClock
) -> None:
    table, flow = flows.FlowTable(ForwardCounters()), flows.Flow(1, idle=flows.idle_of(target))
    near, _far = linked_pair()
    stream = await near.open_stream()

    async def speak() -> None:
        for _ in range(3):
            await trio.sleep(0.9 * idle)
            flow.touch(1)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        await table.wait_over(flow, stream)
    silent = trio.current_time() - began - 3 * 0.9 * idle
    assert idle <= silent + 1e-6
    assert silent <= idle * (1 + 2 / flows.IDLE_TICKS)


async def test_what_all_clients_say_while_their_flows_open_is_held_up_to_a_limit_too() -> None:
    near, _far = linked_pair()  # nobody answers there
    [listener] = open_listeners(parse_forward("127.0.0.1:0:53/udp")[0])
    counters, size = ForwardCounters(), 65_000
    fit = udp.MAX_HELD_TOTAL // size
    with ExitStack() as stack:
        stack.enter_context(listener)
        async with trio.open_nursery() as nursery:
            forward = UdpForward(listener, 53, link=near, counters=counters, notices=Notices())
            nursery.start_soon(forward.run)
            with trio.fail_after(10):
                for number in range(fit + 5):
                    client = stack.enter_context(trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    await client.connect(listener.getsockname())
                    await client.send(bytes(size))
                    await until(lambda n=number: counters.udp_datagrams_in == n + 1)
            assert counters.udp_held_dropped == 5
            assert forward._held_size == fit * size
            nursery.cancel_scope.cancel()
    assert forward._held_size == 0


async def test_so_much_is_said_again_at_the_next_address_of_a_name() -> None:
    """All at once as well as one by one."""
    places = [await udp_places("127.0.0.1", 9), await udp_places("127.0.0.2", 9)]
    for batches in ([[bytes(1_000)] * 40], [[bytes(1_000)]] * 40):
        outgoing = Outward(
            flows.Flow(1), ("name", 9), [place for (place,) in places], linked_pair()[0].flows, ForwardCounters()
        )  # fmt: skip
        outgoing._left.popleft()
        for batch in batches:
            outgoing.deliver(batch)
        assert sum(map(len, outgoing._unanswered)) == MAX_UNANSWERED // 1_000 * 1_000


class Places:
    """A name with several addresses, each with a socket behind it that a test reads; loopback stands for other machines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        monkeypatch.setattr(outward, "is_loopback", lambda _host: False)
        monkeypatch.setattr(udp, "udp_places", self._resolve)
        self.sockets = [trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        self.heard: list[list[bytes]] = [[] for _ in range(count)]
        self._places: list[Place] = []

    async def _resolve(self, _host: str, _port: int) -> list[Place]:
        return list(self._places)

    async def run(self, answering: int | None, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Only the place of that number answers."""
        for number, sock in enumerate(self.sockets):
            await sock.bind((f"127.0.0.{number + 1}", 0))
            self._places.append((socket.AF_INET, sock.getsockname()))
        async with trio.open_nursery() as nursery:
            for number in range(len(self.sockets)):
                nursery.start_soon(self._listen, number, number == answering)
            task_status.started()

    async def _listen(self, number: int, answers: bool) -> None:
        with self.sockets[number] as sock:
            while True:
                data, client = await sock.recvfrom(100)
                self.heard[number].append(data)
                if answers:
                    await sock.sendto(data, client)

    async def wait(self, number: int, count: int) -> None:
        while len(self.heard[number]) < count:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_an_address_that_is_silent_shares_what_is_said_with_the_next_and_whoever_answers_has_the_flow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a name has an IPv6 address that leads nowhere.  The next flow begins at the one that answered."""
    assert SILENT_AFTER == 1.0
    monkeypatch.setattr(outward, "SILENT_AFTER", 0.1)
    places = Places(monkeypatch, 2)
    with trio.fail_after(20):
        async with forwarded() as bench, trio.open_nursery() as nursery:
            await nursery.start(places.run, 1)
            with await bench.client() as client:
                for data in (b"first", b"second"):
                    await client.send(data)
                    assert await client.recv(100) == data
            assert places.heard == [[b"first"], [b"first", b"second"]]
            with await bench.client() as client:
                await client.send(b"third")
                assert await client.recv(100) == b"third"
            assert places.heard == [[b"first"], [b"first", b"second", b"third"]]
            nursery.cancel_scope.cancel()


async def test_of_a_name_with_many_dead_addresses_the_living_one_is_found_and_few_hear_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outward, "SILENT_AFTER", 0.1)
    places = Places(monkeypatch, 6)
    open_sockets: list[int] = []
    try_next = Outward._try_next

    def spy(self: Outward, *words: Any) -> bool:
        done = try_next(self, *words)
        open_sockets.append(len(self._tried))
        return done

    monkeypatch.setattr(Outward, "_try_next", spy)
    with trio.fail_after(20):
        async with forwarded() as bench, trio.open_nursery() as nursery:
            await nursery.start(places.run, 5)
            with await bench.client() as client:
                await client.send(b"first")
                assert await client.recv(100) == b"first"
                await client.send(b"second")
                assert await client.recv(100) == b"second"
            assert places.heard[5] == [b"first", b"second"]
            nursery.cancel_scope.cancel()
    assert open_sockets == [2, 3, MAX_TOGETHER, MAX_TOGETHER, MAX_TOGETHER]


async def test_where_no_address_answers_the_first_keeps_the_flow_and_the_others_are_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a log or a counter, which never answers: nothing is lost at the first address, and little is said twice."""
    monkeypatch.setattr(outward, "SILENT_AFTER", 0.1)
    places = Places(monkeypatch, MAX_PLACES + 1)
    with trio.fail_after(20):
        async with forwarded() as bench, trio.open_nursery() as nursery:
            await nursery.start(places.run, None)
            table = bench.exposed._table
            with await bench.client() as client:
                await client.send(b"one")
                for number in range(MAX_PLACES):
                    await places.wait(number, 1)
                while not table._mute:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                await client.send(b"two")
                await places.wait(0, 2)
            with await bench.client() as client:
                await client.send(b"three")
                await places.wait(0, 3)
            assert [len(heard) for heard in places.heard] == [3, *[1] * (MAX_PLACES - 1), 0]
            nursery.cancel_scope.cancel()


async def test_a_target_that_is_mute_is_tried_again_later_and_when_it_has_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    table = flows.FlowTable(ForwardCounters(), limit=2)
    table.mute("a")
    assert table.is_mute("a")
    await trio.sleep(flows.MUTE_FOR)
    assert not table.is_mute("a")
    for target in "abc":
        table.mute(target)
    assert [table.is_mute(target) for target in "abc"] == [False, True, True]
    table.answered("b", (socket.AF_INET, ("192.0.2.1", 9)))
    assert not table.is_mute("b")
