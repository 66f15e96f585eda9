"""TCP forwards between real loopback sockets, over a link without a network: the twin, and the core's own connection."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.driver.fake_link import WINDOW, FakeLink
from tests.driver.forwarding import (
    carrier,  # noqa: F401  a fixture for every test here
    echo,
    forwarded,
    read_until_reset,
    reset,
    until,
)
from tunnel.ports import local
from tunnel.ports.counters import Notices
from tunnel.ports.loops import OWN
from tunnel.ports.tcp import set_up


async def read_all(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


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
    seen: list[object] = []
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


async def test_a_connection_that_is_given_up_as_it_succeeds_is_closed_and_leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """The opener goes in the very turn in which the program here answers."""
    made: list[socket.socket] = []

    def begin(family: int, address: tuple[str, int]) -> tuple[socket.socket, bool]:
        made.append(socket.socket(family))
        OWN.note(made[-1], address)
        return made[-1], False

    async def connected_too_late(sock: socket.socket) -> socket.socket:
        given_up.cancel()
        return sock

    monkeypatch.setattr(local, "_begin", begin)
    monkeypatch.setattr(local, "_finish", connected_too_late)
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
