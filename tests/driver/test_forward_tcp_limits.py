"""TCP forwards that cannot go on: no descriptors, no ports, nothing that listens, too many connections."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.driver.fake_link import linked_pair
from tests.driver.forwarding import (
    carrier,  # noqa: F401  a fixture for every test here
    echo,
    forwarded,
    read_until_reset,
    reset,
    until,
)
from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.notation import Protocol
from tunnel.ports import local, tcp, tcp_exposed, udp
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.loops import OWN
from tunnel.ports.open import Open, encode, read_message
from tunnel.ports.serve import OPEN_TIMEOUT, Exposed, Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.ports.tcp import TcpForward
from tunnel.shell.stream import StreamCode, StreamResetError


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
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
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

    monkeypatch.setattr(socket, "socket", Full)
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

    monkeypatch.setattr(socket, "socket", Off)
    monkeypatch.setattr(local, "is_ipv6_here", lambda: False)
    with pytest.raises(OSError, match="off") as refused:
        await local.connect_tcp("localhost", 9)
    assert refused.value.errno == errno.ECONNREFUSED
    with pytest.raises(OSError, match=r".") as lone:
        await local.connect_tcp("::1", 9)
    assert lone.value.errno == errno.EAFNOSUPPORT


async def test_a_program_that_resets_at_once_is_told_as_that_and_leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that was reset does not tell any more where it led."""
    real = local.connect_tcp

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
    close_reason = None
    can_open = False

    def hurry(self) -> None:
        pass

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
    real = local._begin

    def begin(family: int, address: tuple[str, int]) -> tuple[socket.socket, bool]:
        if address[0] != "192.0.2.1":
            return real(family, address)
        if dead == "refused":
            raise OSError(errno.EHOSTUNREACH, "no way there")
        return near, False

    async def finish(sock: socket.socket) -> socket.socket:
        assert sock is near
        await trio.sleep_forever()
        raise AssertionError

    with socket.socket() as near, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def resolve(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
            return [(socket.AF_INET, ("192.0.2.1", port)), (socket.AF_INET, ("127.0.0.1", port))]

        monkeypatch.setattr(local, "_begin", begin)
        monkeypatch.setattr(local, "_finish", finish)
        monkeypatch.setattr(local, "resolve", resolve)
        monkeypatch.setattr(local, "ATTEMPT_DELAY", 0.01)
        with trio.fail_after(20):
            sock = await local.connect_tcp("nas.example", port)
        assert sock.getpeername() == ("127.0.0.1", port)
        local._give_up(sock)


@pytest.mark.skipif(not local.TELLS_AGAIN, reason="the kernel does not tell")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_program_of_this_machine_is_reached_without_a_turn_of_the_loop(family: int) -> None:
    """Wherever it listens, also where another loopback address refuses first."""
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as server:
        with trio.testing.assert_no_checkpoints():
            sock = await local.connect_tcp("localhost", server.getsockname()[1])
        with sock:
            assert sock.getpeername() == server.getsockname()
        OWN.forget(sock)


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
