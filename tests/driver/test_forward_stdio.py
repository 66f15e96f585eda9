"""--stdio between real pipes and a real loopback server, over a link without a network."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from tests.driver.fake_link import FakeLink, linked_pair
from tunnel.errors import ConfigurationError, PermissionDeniedError, UnreachableError
from tunnel.ports.serve import Exposed
from tunnel.ports.stdio import run_stdio


@contextmanager
def pipes() -> Iterator[tuple[int, int, io.FileIO, io.FileIO]]:
    """Standard input and output of the command, and the far ends of both."""
    stdin, feed = os.pipe()
    drain, stdout = os.pipe()
    try:
        with open(feed, "wb", buffering=0) as feeder, open(drain, "rb", buffering=0) as drainer:
            yield stdin, stdout, feeder, drainer
    finally:
        os.close(stdin)
        os.close(stdout)


@asynccontextmanager
async def linked(
    handler: Callable[[trio.SocketStream], Awaitable[None]] | None, *, granted: bool = True
) -> AsyncIterator[FakeLink]:
    near, far = linked_pair()
    async with trio.open_nursery() as nursery:
        with socket.create_server(("127.0.0.1", 0)) as placeholder:
            address = placeholder.getsockname()
        if handler is not None:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            address = listener.socket.getsockname()
            nursery.start_soon(trio.serve_listeners, handler, [listener])
        exposed = Exposed(far, lambda _protocol, _target: address if granted else None)
        nursery.start_soon(far.serve_streams, exposed.handle)
        with trio.fail_after(20):
            yield near
        nursery.cancel_scope.cancel()


async def answer_at_the_end(stream: trio.SocketStream) -> None:
    async with stream:
        question = b"".join([chunk async for chunk in stream])
        await stream.send_all(question.upper())


async def drained(drain: io.FileIO) -> bytes:
    return await trio.to_thread.run_sync(drain.readall, abandon_on_cancel=True)


async def test_pipes_carry_both_ways_with_half_close() -> None:
    question = b"what is this? " * 100_000
    answers = []
    with pipes() as (stdin, stdout, feed, drain):
        async with linked(answer_at_the_end) as link, trio.open_nursery() as nursery:

            async def ask() -> None:
                with feed:
                    rest = memoryview(question)
                    while rest:
                        rest = rest[await trio.to_thread.run_sync(feed.write, rest, abandon_on_cancel=True) :]

            async def listen() -> None:
                answers.append(await drained(drain))

            nursery.start_soon(ask)
            nursery.start_soon(listen)
            await run_stdio(link, 22, stdin=stdin, stdout=stdout)
        assert answers == [question.upper()]
        assert os.get_blocking(stdin)


async def test_a_regular_file_can_be_standard_input(tmp_path: Path) -> None:
    question = tmp_path / "question"
    question.write_bytes(b"from a file " * 20_000)
    answers = []
    with pipes() as (_stdin, stdout, _feed, drain), question.open("rb") as file:
        async with linked(answer_at_the_end) as link, trio.open_nursery() as nursery:

            async def listen() -> None:
                answers.append(await drained(drain))

            nursery.start_soon(listen)
            await run_stdio(link, 22, stdin=file.fileno(), stdout=stdout)
    assert answers == [b"FROM A FILE " * 20_000]


async def test_one_socket_can_be_both_as_ssh_hands_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with linked(answer_at_the_end) as link, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_stdio(link, 22, stdin=ours.fileno(), stdout=ours.fileno()))
            async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as program:
                await program.send_all(b"one socket")
                await program.send_eof()
                assert b"".join([chunk async for chunk in program]) == b"ONE SOCKET"


async def test_a_refusal_is_unreachable() -> None:
    with pipes() as (stdin, stdout, _feed, _drain):
        async with linked(None) as link:
            with pytest.raises(UnreachableError, match="home refused tcp/22: nothing listens there"):
                await run_stdio(link, 22, stdin=stdin, stdout=stdout)


async def test_what_is_not_shared_is_denied() -> None:
    with pipes() as (stdin, stdout, _feed, _drain):
        async with linked(answer_at_the_end, granted=False) as link:
            with pytest.raises(PermissionDeniedError, match="not shared with you"):
                await run_stdio(link, "nas", stdin=stdin, stdout=stdout)


async def test_a_link_that_closes_is_told() -> None:
    async def say_little(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")
        await trio.sleep_forever()

    with pipes() as (stdin, stdout, _feed, drain):
        async with linked(say_little) as link:

            async def close_when_heard() -> None:
                assert await trio.to_thread.run_sync(drain.read, 100) == b"hello"
                link.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(close_when_heard)
                with pytest.raises(UnreachableError, match="was cut"):
                    await run_stdio(link, 22, stdin=stdin, stdout=stdout)


async def test_what_came_before_the_cut_is_written_first() -> None:
    answer = os.urandom(100_000)  # more than a pipe holds

    async def complain(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(answer)
        await stream.aclose()  # with unread data: a reset

    got = bytearray()
    with pipes() as (stdin, stdout, feed, drain):
        feed.write(bytes(1_000))
        async with linked(complain) as link, trio.open_nursery() as nursery:

            async def listen() -> None:
                while not link.streams or link.streams[0].into.reset is None:
                    await trio.lowlevel.checkpoint()
                while len(got) < len(answer):
                    got.extend(await trio.to_thread.run_sync(drain.read, 10_000, abandon_on_cancel=True))

            nursery.start_soon(listen)
            with pytest.raises(UnreachableError, match="was cut"):
                await run_stdio(link, 22, stdin=stdin, stdout=stdout)
    assert got == answer


async def test_nobody_reading_our_output_ends_it_quietly() -> None:
    async def talk(stream: trio.SocketStream) -> None:
        try:
            while True:
                await stream.send_all(bytes(10_000))
        except trio.BrokenResourceError:
            return

    with pipes() as (stdin, stdout, _feed, drain):
        drain.close()
        async with linked(talk) as link:
            await run_stdio(link, 22, stdin=stdin, stdout=stdout)


async def talk_without_end(stream: trio.SocketStream) -> None:
    try:
        while True:
            await stream.send_all(bytes(10_000))
    except trio.BrokenResourceError:
        return


async def test_an_output_that_takes_no_more_is_said_and_no_success() -> None:
    """A full disk: half of the bytes must not look like all of them."""
    with pipes() as (stdin, _stdout, _feed, _drain), open("/dev/full", "wb", buffering=0) as full:  # noqa: ASYNC230
        async with linked(talk_without_end) as link:
            with pytest.raises(ConfigurationError, match=r"^Standard output takes no more: No space left on device\.$"):
                await run_stdio(link, 22, stdin=stdin, stdout=full.fileno())
            assert link.streams[0].out.reset is not None


async def test_an_input_that_cannot_be_read_is_said_and_no_end_of_file(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def listen(stream: trio.SocketStream) -> None:
        try:
            heard.extend([bytes(chunk) async for chunk in stream])
        except trio.BrokenResourceError:
            heard.append(b"reset")

    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pipes() as (_stdin, stdout, _feed, _drain):
            async with linked(listen) as link:
                with pytest.raises(ConfigurationError, match=r"^Standard input cannot be read: Is a directory\.$"):
                    await run_stdio(link, 22, stdin=directory, stdout=stdout)
                while link.streams[0].out.reset is None:
                    await trio.lowlevel.checkpoint()
        assert heard in ([], [b"reset"])
    finally:
        os.close(directory)


@pytest.mark.parametrize("source", ["a pipe whose writer is gone", "an empty file"])
async def test_an_input_that_is_at_its_end_still_hears_the_answer(source: str, tmp_path: Path) -> None:
    answers: list[bytes] = []
    (tmp_path / "empty").touch()
    with pipes() as (stdin, stdout, feed, drain), (tmp_path / "empty").open("rb") as empty:
        feed.close()
        async with linked(greet) as link, trio.open_nursery() as nursery:

            async def listen() -> None:
                answers.append(await drained(drain))

            nursery.start_soon(listen)
            await run_stdio(link, 22, stdin=empty.fileno() if source == "an empty file" else stdin, stdout=stdout)
    assert answers == [b"hello, and goodbye"]


async def greet(stream: trio.SocketStream) -> None:
    async with stream:
        assert await stream.receive_some(1) == b""
        await stream.send_all(b"hello, and goodbye")
