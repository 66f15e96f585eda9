"""TCP forwards between real loopback sockets, over a link without a network: the twin, and the core's own connection."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.driver.core_link import CoreLinks
from tests.driver.fake_link import WINDOW, FakeLink, linked_pair
from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.ports import local, tcp, tcp_exposed, udp
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.loops import OWN
from tunnel.ports.open import Open, encode, read_message
from tunnel.ports.serve import OPEN_TIMEOUT, Exposed, Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.ports.tcp import LINGER_RST, TcpForward, set_up
from tunnel.shell.stream import StreamCode, StreamResetError

Handler = Callable[[trio.SocketStream], Awaitable[None]]


IS_CORE = {"core": False}  # which of the two carries, set for each test by the fixture


@pytest.fixture(autouse=True, params=["twin", "core"])
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(IS_CORE, "core", request.param == "core")
    return str(request.param)


class Bench:
    """A forwarded server: `connect()` reaches it through both sides of the forward."""

    def __init__(self, listeners: Listeners, exposed: Exposed, near: Any, notices: list[str]) -> None:
        self.listeners = listeners
        self.exposed = exposed
        self.near = near
        self.notices = notices
        self.port = int(listeners.ready[0].bind.rpartition(":")[2])

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def forwarded(handler: Handler | None, *, granted: bool = True, target: int | str = 80) -> AsyncIterator[Bench]:
    """`handler` None: nothing listens at the granted port."""
    near: Any
    far: Any
    notices: list[str] = []
    async with trio.open_nursery() as nursery:
        if IS_CORE["core"]:
            links = CoreLinks()
            near, far = links.near, links.far
            nursery.start_soon(links.run)
        else:
            near, far = linked_pair()
        if handler is None:
            with socket.create_server(("127.0.0.1", 0)) as placeholder:
                port = placeholder.getsockname()[1]
        else:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, handler, [listener])
        exposed = Exposed(far, lambda _protocol, _target: ("127.0.0.1", port) if granted else None)
        nursery.start_soon(far.serve_streams, exposed.handle)
        with Listeners(parse_forwards([f"127.0.0.1:0:{target}"])) as listeners:
            bench = Bench(listeners, exposed, near, notices)

            async def serve() -> None:
                await listeners.serve(near, notice=notices.append)

            nursery.start_soon(serve)
            with trio.fail_after(20):
                yield bench
            nursery.cancel_scope.cancel()


async def read_all(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


async def read_until_reset(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    try:
        async for chunk in stream:
            data += chunk
    except trio.BrokenResourceError:
        return bytes(data)
    raise AssertionError("this was an end of file")


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
    stream.socket.close()


async def test_what_is_said_comes_back() -> None:
    async with forwarded(echo) as bench, await bench.connect() as client:
        await client.send_all(b"hello")
        assert await client.receive_some() == b"hello"


async def test_four_megabytes_each_way_at_once_arrive_whole() -> None:
    data = os.urandom(4 << 20)
    async with forwarded(echo) as bench, await bench.connect() as client, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(data)
            await client.send_eof()

        nursery.start_soon(send)
        assert hashlib.sha256(await read_all(client)).digest() == hashlib.sha256(data).digest()
    assert bench.listeners.counters.tcp_resets == 0


async def test_a_client_that_half_closes_still_gets_its_answer() -> None:
    async def answer_at_the_end(stream: trio.SocketStream) -> None:
        async with stream:
            question = await read_all(stream)
            await stream.send_all(question.upper() * 50_000)

    async with forwarded(answer_at_the_end) as bench, await bench.connect() as client:
        await client.send_all(b"question ")
        await client.send_eof()
        assert await read_all(client) == b"QUESTION " * 50_000


async def test_a_server_that_half_closes_still_hears_the_client() -> None:
    heard = []
    done = trio.Event()

    async def greet_and_listen(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"that is all from me")
            await stream.send_eof()
            heard.append(await read_all(stream))
            done.set()

    async with forwarded(greet_and_listen) as bench, await bench.connect() as client:
        assert await read_all(client) == b"that is all from me"
        await client.send_all(b"one more thing")
        await client.send_eof()
        await done.wait()
    assert heard == [b"one more thing"]


async def test_a_server_that_resets_resets_the_client() -> None:
    async def reset_on_first_byte(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        reset(stream)

    async with forwarded(reset_on_first_byte) as bench, await bench.connect() as client:
        await client.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_a_client_that_resets_resets_the_server() -> None:
    seen = []
    done = trio.Event()

    async def wait_for_the_end(stream: trio.SocketStream) -> None:
        await stream.send_all(b"ready")
        try:
            seen.append(await stream.receive_some())
        except trio.BrokenResourceError as error:
            seen.append(type(error.__cause__))
        done.set()

    async with forwarded(wait_for_the_end) as bench:
        client = await bench.connect()
        assert await client.receive_some() == b"ready"
        reset(client)
        await done.wait()
    assert seen == [ConnectionResetError]


async def test_a_client_that_leaves_resets_a_server_that_goes_on_talking() -> None:
    done = trio.Event()

    async def talk_for_ever(stream: trio.SocketStream) -> None:
        try:
            while True:
                await stream.send_all(b"and another thing " * 1000)
        except trio.BrokenResourceError:
            done.set()

    async with forwarded(talk_for_ever) as bench:
        async with await bench.connect() as client:
            await client.receive_some()
        await done.wait()


async def test_a_server_that_answers_and_hangs_up_without_reading_is_still_heard() -> None:
    answer = b"413 that is too large " * 2_000

    async def complain(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(answer)
        await stream.aclose()  # with unread data: the kernel sends RST behind the answer

    async with forwarded(complain) as bench, await bench.connect() as client:
        with suppress(trio.BrokenResourceError):
            await client.send_all(bytes(1 << 20))
        got = b""
        with suppress(trio.BrokenResourceError):
            async for chunk in client:
                got += chunk
        assert got == answer


@pytest.mark.parametrize("is_in", ["the kernel", "the stream"])
async def test_an_answer_before_a_reset_is_whole_for_a_client_that_reads_it_late(
    is_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = os.urandom(70_000)  # as much as the narrow way holds, and no byte waits at the server

    def set_up_narrow(sock: socket.socket) -> None:
        set_up(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)

    if is_in == "the stream":
        monkeypatch.setattr("tunnel.ports.tcp.set_up", set_up_narrow)

    async def complain(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(answer)
        await stream.aclose()  # with unread data

    client = trio.socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    async with forwarded(complain) as bench, trio.SocketStream(client) as stream:
        await client.connect(("127.0.0.1", bench.port))
        await stream.send_all(bytes(1_000))
        await until(lambda: bench.listeners.counters.tcp_resets == 1)
        assert await read_until_reset(stream) == answer


async def test_a_client_that_never_reads_is_reset_nonetheless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.ports.tcp.LAST_WORDS", 0.05)

    async def pour(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(bytes(16 << 20))

    async with forwarded(pour) as bench, await bench.connect() as client:
        await trio.testing.wait_all_tasks_blocked(0.05)
        bench.near.close()
        await until(lambda: bench.listeners.counters.tcp_active == 0)
        assert 0 < len(await read_until_reset(client)) < 16 << 20


async def test_a_refused_connection_is_reset_and_explained() -> None:
    async with forwarded(None) as bench:
        async with await bench.connect() as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        assert bench.notices == ["home refused tcp/80: nothing listens there."]
        assert bench.listeners.counters.tcp_refused == 1


async def test_what_is_not_granted_is_reset_and_explained_on_both_sides() -> None:
    async with forwarded(echo, granted=False) as bench:
        async with await bench.connect() as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        assert bench.notices == ["home refused tcp/80: that is not shared with you."]
        assert bench.exposed.counters.tcp_denied == 1


async def test_two_hundred_connections_at_once_leave_nothing_behind() -> None:
    done = 0

    async with forwarded(echo) as bench:
        descriptors = len(os.listdir("/proc/self/fd"))

        async def converse(number: int) -> None:
            nonlocal done
            async with await bench.connect() as client:
                data = number.to_bytes(4, "big") * 1000
                await client.send_all(data)
                await client.send_eof()
                assert await read_all(client) == data
            done += 1

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(converse, number)
        assert done == 200
        await until(lambda: bench.listeners.counters.tcp_active == bench.exposed.counters.tcp_active == 0)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
        assert bench.listeners.counters.tcp_opened == 200


async def test_a_slow_reader_holds_up_only_itself() -> None:
    async def pour(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await stream.send_all(bytes(64 << 20))
            except trio.BrokenResourceError:
                return

    async with forwarded(pour) as bench, await bench.connect() as slow:
        assert await slow.receive_some(10)
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with await bench.connect() as quick:
            got = 0
            while got < 8 << 20:
                got += len(await quick.receive_some())
        if isinstance(bench.near, FakeLink):
            assert bench.near.streams[0].into.held <= 2 * WINDOW


async def test_a_link_that_closes_resets_its_connections() -> None:
    async with forwarded(echo) as bench, await bench.connect() as client:
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        bench.near.close()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_running_out_of_descriptors_makes_connections_wait_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures = socket.socket.accept, 3

    def failing_accept(self: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        if failures and self.getsockname()[1] == bench.port:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    async with forwarded(echo) as bench:
        monkeypatch.setattr(socket.socket, "accept", failing_accept)
        async with await bench.connect() as client:
            await client.send_all(b"patience")
            assert await client.receive_some() == b"patience"
        assert bench.listeners.counters.tcp_shed == 3
        assert len(bench.notices) == 1
        assert "ulimit -n" in bench.notices[0]


@pytest.mark.parametrize("said", [b"", b"\x00"])
async def test_a_stream_whose_opening_does_not_come_is_turned_away_after_its_time(
    said: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = linked_pair()
    exposed: Any = Exposed(far, lambda _protocol, _target: None)
    stream = await near.open_stream(said)
    codes: list[int] = []
    stream.on_abort = codes.append
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        await trio.sleep(OPEN_TIMEOUT - 0.1)
        assert not codes
        await trio.sleep(0.2)
        assert codes == [StreamCode.TIMED_OUT]
        nursery.cancel_scope.cancel()


async def test_of_all_connections_of_one_command_so_many_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tcp.MAX_CONNECTIONS > 3
    monkeypatch.setattr(tcp, "MAX_CONNECTIONS", 3)
    async with forwarded(echo) as bench:
        clients = [await bench.connect() for _ in range(3)]
        for client in clients:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"hello"
        with suppress(OSError, trio.BrokenResourceError):  # it may be cut before we know that it is connected
            async with await bench.connect() as one_too_many:
                assert await one_too_many.receive_some() == b""
        await until(lambda: bench.listeners.counters.tcp_capped == 1)
        assert bench.listeners.counters.tcp_active == 3
        assert "3 connections are open: a further one was turned away." in bench.notices
        await clients.pop().aclose()
        while bench.listeners.counters.tcp_active == 3:
            await trio.lowlevel.checkpoint()
        async with await bench.connect() as again:
            await again.send_all(b"hello")
            assert await again.receive_some() == b"hello"
        for client in clients:
            await client.aclose()


async def test_rubbish_instead_of_an_opening_is_counted_and_reset() -> None:
    async with forwarded(echo) as bench:
        stream = await bench.near.open_stream(b"\x00\x05rubbi")
        aborted = trio.Event()
        stream.on_abort = lambda _code: aborted.set()
        await aborted.wait()
        assert bench.exposed.counters.malformed_opens == 1


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("{port}:80", "Another program already uses"),
        ("192.0.2.77:8080", "is no address of this computer"),
    ],
)
def test_a_listener_that_cannot_be_gets_one_sentence(spec: str, sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match=sentence):
        Listeners(parse_forwards([spec.format(port=taken.getsockname()[1])]))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.EACCES, "Only root may listen on tcp port 80: choose a port from 1024 up, as in 8080:80."),
        (errno.EMFILE, "Too many files are open"),
        (errno.EAFNOSUPPORT, "This computer has no IPv6"),
    ],
)
def test_each_reason_not_to_listen_has_its_sentence(monkeypatch: pytest.MonkeyPatch, code: int, sentence: str) -> None:
    def failing_bind(self: socket.socket, address: object) -> None:
        raise OSError(code, "nothing doing")

    monkeypatch.setattr(socket.socket, "bind", failing_bind)
    with pytest.raises(ConfigurationError, match=sentence):
        Listeners(parse_forwards(["80"]))


def test_without_a_bind_both_loopback_addresses_listen() -> None:
    with Listeners(parse_forwards(["0:80"])) as listeners:
        host, _, port = listeners.ready[0].bind.rpartition(":")
        assert host == "127.0.0.1"
        with socket.create_connection(("127.0.0.1", int(port))), socket.create_connection(("::1", int(port))):
            pass


def test_a_star_listens_on_all_addresses_of_both_families() -> None:
    with Listeners(parse_forwards(["*:0:80"])) as listeners:
        [ready] = listeners.ready
        port = int(ready.bind.rpartition(":")[2])
        assert ready.binds == (f"0.0.0.0:{port}", f"[::]:{port}")
        assert not listeners.warnings()
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("::1", port)):
            pass


def test_a_star_whose_ipv6_half_is_taken_says_so() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as taken:  # IPv6 alone, as Python makes them
        port = taken.getsockname()[1]
        with Listeners(parse_forwards([f"*:{port}:80"])) as listeners:
            [warning] = listeners.warnings()
            assert warning == f"Another program has tcp port {port} over IPv6: this forward is reached over IPv4 alone."
            assert listeners.ready[0].binds == (f"0.0.0.0:{port}",)


@pytest.mark.parametrize(("granted", "reached"), [(22, True), (80, False)])
async def test_a_service_that_no_name_here_stands_for_is_its_port(granted: int, reached: bool) -> None:
    async with forwarded(echo, target="ssh") as bench:
        allow = bench.exposed._allow
        bench.exposed._allow = lambda protocol, target: allow(protocol, target) if target == granted else None
        async with await bench.connect() as client:
            await client.send_all(b"hello")
            if reached:
                assert await client.receive_some() == b"hello"
            else:
                assert await read_until_reset(client) == b""
                assert bench.exposed.counters.tcp_denied == 1


async def test_a_program_that_listens_on_the_other_loopback_is_found() -> None:
    """Some development servers take `localhost` for ::1 alone."""
    async with forwarded(None) as bench:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            bench.exposed._allow = lambda _protocol, _target: ("127.0.0.1", server.getsockname()[1])
            async with await bench.connect() as client:
                await client.send_all(b"hello")
                accepted, _ = await trio.to_thread.run_sync(server.accept)
                with accepted:
                    assert await trio.to_thread.run_sync(accepted.recv, 5) == b"hello"


async def test_where_nothing_listens_the_person_who_exposes_is_told_too() -> None:
    async with forwarded(None) as bench:
        told: list[str] = []
        bench.exposed._notices = Notices(told.append)
        async with await bench.connect() as client:
            with suppress(trio.BrokenResourceError):
                assert await client.receive_some(1) == b""
        assert len(told) == 1
        assert "asked for tcp/80: nothing listens on port" in told[0]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_machine_without_a_free_port_says_so_where_somebody_can_help(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the program does not listen on the other loopback address, which is tried as well."""
    real = socket.socket

    class Full(socket.socket):
        def connect(self, address: Any) -> None:
            if address[0] == "127.0.0.1" and address[1] == 9:
                if self.type == socket.SOCK_DGRAM:
                    raise BlockingIOError(errno.EAGAIN, "no port")
                raise OSError(errno.EADDRNOTAVAIL, "no port")
            real.connect(self, address)

    monkeypatch.setattr(local.socket, "socket", Full)
    told: list[str] = []
    near, far = linked_pair()
    exposed = Exposed(far, lambda _protocol, _target: ("127.0.0.1", 9), notice=told.append)
    if protocol == "udp":
        monkeypatch.setattr(local, "is_ipv6_here", lambda: True)
        monkeypatch.setattr(udp, "udp_places", only_ipv4)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.serve_streams, exposed.handle)
            stream = await near.open_stream(encode(Open(protocol, 22, 3 if protocol == "udp" else 0)))
            with pytest.raises(StreamResetError) as refused:
                await read_message(stream)
            assert refused.value.code == StreamCode.UNREACHABLE
            nursery.cancel_scope.cancel()
    what = f"{far.peer_name} asked for {protocol}/22"
    assert told == [f"{what}: this machine has no free port left for one more connection. Wait, or close some."]


async def only_ipv4(_host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    return [(socket.AF_INET, ("127.0.0.1", port))]


async def test_where_ipv6_is_off_nothing_is_said_of_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(socket.socket):
        def connect(self, address: Any) -> None:
            code = errno.EADDRNOTAVAIL if self.family == socket.AF_INET6 else errno.ECONNREFUSED
            raise OSError(code, "off")

    monkeypatch.setattr(local.socket, "socket", Off)
    monkeypatch.setattr(local, "is_ipv6_here", lambda: False)
    with pytest.raises(OSError, match="off") as refused:
        await local.connect_tcp("localhost", 9)
    assert refused.value.errno == errno.ECONNREFUSED
    with pytest.raises(OSError, match=r".") as lone:
        await local.connect_tcp("::1", 9)
    assert lone.value.errno == errno.EAFNOSUPPORT


async def test_a_connection_that_is_given_up_as_it_succeeds_is_closed_and_leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """The opener goes in the very turn in which the program here answers."""
    made: list[socket.socket] = []

    async def connected_too_late(family: int, address: tuple[str, int]) -> socket.socket:
        made.append(socket.socket(family))
        OWN.note(made[-1], address)
        given_up.cancel()
        return made[-1]

    monkeypatch.setattr(local, "_connect", connected_too_late)
    with trio.CancelScope() as given_up:
        await local.connect_tcp("localhost", 9)
    assert given_up.cancelled_caught
    assert made
    assert all(sock.fileno() < 0 for sock in made)
    assert not OWN._marks


async def test_a_forward_that_leads_to_itself_is_refused_with_a_sentence_and_makes_no_chain() -> None:
    async with forwarded(None) as bench:
        told: list[str] = []
        bench.exposed._notices = Notices(told.append)
        bench.exposed._allow = lambda _protocol, _target: ("127.0.0.1", bench.port)
        async with await bench.connect() as client:
            with suppress(trio.BrokenResourceError):
                assert await client.receive_some(1) == b""
        while bench.exposed.counters.tcp_active or bench.listeners.counters.tcp_active:
            await trio.lowlevel.checkpoint()
        assert bench.exposed.counters.loops == 1
        assert bench.listeners.counters.tcp_opened == 2
        assert "leads to a forward of its own" in told[0]
        assert any("leads to itself" in sentence for sentence in bench.notices)
    assert not OWN._marks


async def test_a_program_that_resets_at_once_is_told_as_that_and_leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that was reset does not tell any more where it led."""
    real = tcp_exposed.connect_tcp

    async def connect_and_wait(host: str, port: int) -> socket.socket:
        sock = await real(host, port)
        await trio.lowlevel.wait_readable(sock)
        return sock

    async def refuse_all(stream: trio.SocketStream) -> None:
        reset(stream)

    monkeypatch.setattr(tcp_exposed, "connect_tcp", connect_and_wait)
    async with forwarded(refuse_all) as bench:
        async with await bench.connect() as client:
            assert await read_until_reset(client) == b""
        await until(lambda: not bench.exposed.counters.tcp_active)
        assert not any("could not serve it" in sentence for sentence in bench.notices)
    assert not OWN._marks


class FullLink:
    """A peer that lets no further stream be opened."""

    peer_name = "home"
    faults = Faults()

    async def open_stream(self, message: bytes) -> Any:
        await trio.sleep_forever()


@pytest.mark.parametrize("ends_by", ["leaving", "patience"])
async def test_a_connection_that_has_to_wait_is_spoken_of_and_does_not_wait_for_ever(
    ends_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "OPEN_SILENCE", 0.01)
    monkeypatch.setattr(tcp, "OPEN_PATIENCE", 0.5 if ends_by == "patience" else 60.0)
    told: list[str] = []
    counters = ForwardCounters()
    link: Any = FullLink()
    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(20):
        listener.setblocking(False)
        forward = TcpForward(listener, 80, link=link, counters=counters, notices=Notices(told.append))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward.run)
            async with await trio.open_tcp_stream(*listener.getsockname()) as client:
                if ends_by == "patience":
                    await client.send_all(b"early words")
                while not told:
                    await trio.lowlevel.checkpoint()
                assert told == ["home allows no more connections at a time, or is away: further ones wait."]
                assert counters.tcp_waiting == counters.tcp_active == 1
                if ends_by == "patience":
                    with pytest.raises(trio.BrokenResourceError):
                        await client.receive_some(1)
            while counters.tcp_active:
                await trio.lowlevel.checkpoint()
            assert counters.tcp_waiting == 0
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("dead", ["silent", "refused"])
async def test_an_address_that_does_not_answer_costs_a_moment_where_the_name_has_others(
    dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = local._connect

    async def connect(family: int, address: tuple[str, int]) -> socket.socket:
        if address[0] != "192.0.2.1":
            return await real(family, address)
        if dead == "silent":
            await trio.sleep_forever()
        raise OSError(errno.EHOSTUNREACH, "no way there")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def resolve(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
            return [(socket.AF_INET, ("192.0.2.1", port)), (socket.AF_INET, ("127.0.0.1", port))]

        monkeypatch.setattr(local, "_connect", connect)
        monkeypatch.setattr(local, "resolve", resolve)
        monkeypatch.setattr(local, "ATTEMPT_DELAY", 0.01)
        with trio.fail_after(20):
            sock = await local.connect_tcp("nas.example", port)
        assert sock.getpeername() == ("127.0.0.1", port)
        local._give_up(sock)


def test_a_port_that_another_program_has_on_the_other_loopback_is_spoken_of() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as stranger:
        port = stranger.getsockname()[1]
        with Listeners(parse_forwards([f"{port}:80"])) as listeners:
            assert listeners.ready[0].binds == (f"127.0.0.1:{port}",)
            assert listeners.warnings() == [
                f"Another program has tcp port {port} on ::1, so localhost:{port} may lead to that one: "
                f"use 127.0.0.1:{port}, or choose another port."
            ]
    with Listeners(parse_forwards(["0:80", "127.0.0.1:0:81", "*:0:82"])) as listeners:
        assert listeners.warnings() == []
