"""Unix sockets at either end of a forward, over a link without a network."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.driver.fake_link import linked_pair
from tunnel.errors import ConfigurationError
from tunnel.pairing.grants import GrantSet
from tunnel.ports.open import Open, encode, read_message
from tunnel.ports.serve import Exposed, Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.shell.stream import StreamCode, StreamResetError

SIZE = 300_000  # bytes: more than any buffer on the way


async def shout(stream: trio.SocketStream) -> None:
    """Answers when it has heard the end."""
    data = bytearray()
    async for chunk in stream:
        data += chunk
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data.upper())
    await stream.aclose()


class Bench:
    def __init__(self, exposed: Exposed, listeners: Listeners, said: list[str]) -> None:
        self.exposed = exposed
        self.listeners = listeners
        self.said = said
        self.clients: list[trio.SocketStream] = []

    async def connect(self) -> trio.SocketStream:
        kind, _, place = self.listeners.ready[0].bind.rpartition(":")
        if kind == "unix":
            stream = await trio.open_unix_socket(place)
        else:
            stream = await trio.open_tcp_stream(kind, int(place))
        assert isinstance(stream, trio.SocketStream)
        self.clients.append(stream)
        return stream


@asynccontextmanager
async def forwarded(grants: GrantSet | Callable[[], GrantSet], *forwards: str) -> AsyncIterator[Bench]:
    near, far = linked_pair()
    said: list[str] = []

    def allow(kind: str, target: int | str) -> tuple[str, int] | None:
        return (grants if isinstance(grants, GrantSet) else grants()).allows(kind, target)

    exposed = Exposed(far, allow, notice=said.append)
    with Listeners(parse_forwards(forwards)) as listeners:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.serve_streams, exposed.handle)
            nursery.start_soon(partial(listeners.serve, near, notice=said.append))
            with trio.fail_after(30):
                bench = Bench(exposed, listeners, said)
                yield bench
            for client in bench.clients:
                await client.aclose()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def program(path: Path) -> AsyncIterator[None]:
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, [trio.SocketListener(sock)])
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def heard(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


@pytest.mark.parametrize("share", ["unix:{}", "app=unix:{}"])
@pytest.mark.parametrize("local", ["127.0.0.1:0", "unix:{}"])
async def test_bytes_and_half_closes_go_both_ways_whichever_ends_are_unix_sockets(tmp_path: Path, share: str, local: str) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    grants = GrantSet.parse(share.format(far))
    target = "app" if share.startswith("app") else f"unix:{far}"
    async with program(far), forwarded(grants, f"{local.format(near)}:{target}") as bench:
        assert bench.listeners.warnings() == []
        assert bench.listeners.ready[0].bind.startswith(local.format(near).removesuffix("0"))
        stream = await bench.connect()
        async with trio.open_nursery() as nursery:

            async def say() -> None:
                await stream.send_all(b"a" * SIZE)
                await stream.send_eof()

            nursery.start_soon(say)
            assert await heard(stream) == b"A" * SIZE
        assert bench.said == []


async def test_what_is_made_is_its_owners_alone_and_is_gone_at_the_end(tmp_path: Path) -> None:
    near = tmp_path / "near"
    before = os.umask(0)
    try:
        async with forwarded(GrantSet(), f"unix:{near}:22"):
            assert stat.S_IMODE(near.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not near.exists()


async def test_a_socket_of_a_program_that_was_killed_is_replaced(tmp_path: Path) -> None:
    near = tmp_path / "near"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(near))
    with Listeners(parse_forwards([f"unix:{near}:22"])), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(near))


@pytest.mark.parametrize("kind", ["live", "datagrams", "file", "folder", "link"])
async def test_what_somebody_else_has_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    near = tmp_path / "near"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM) as other:
        if kind in ("live", "datagrams"):
            other.bind(str(near))
            if kind == "live":
                other.listen()
        elif kind == "file":
            near.write_text("precious")
        elif kind == "folder":
            near.mkdir()
        else:
            near.symlink_to(tmp_path / "elsewhere")
        sentence = "Another program listens at" if kind in ("live", "datagrams") else "is no socket but a file, and is left alone"
        with pytest.raises(ConfigurationError, match=f"{sentence}.*: choose another path"):
            Listeners(parse_forwards([f"unix:{near}:22"]))
        assert near.is_symlink() or near.exists()


async def test_a_path_that_leads_nowhere_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"There is no folder {tmp_path / 'none'} for the socket"):
        Listeners(parse_forwards([f"unix:{tmp_path / 'none' / 'near'}:22"]))


async def test_what_another_program_has_put_there_since_stays(tmp_path: Path) -> None:
    near = tmp_path / "near"
    listeners = Listeners(parse_forwards([f"unix:{near}:22"]))
    near.unlink()
    near.write_text("precious")
    listeners.close()
    assert near.read_text() == "precious"


async def test_a_path_is_reached_by_whom_it_was_granted_to_and_by_nobody_else(tmp_path: Path) -> None:
    """Neither another path, nor the port that stands for it, nor its path where it has a name."""
    one, other = tmp_path / "one", tmp_path / "other"
    grants = GrantSet.parse(f"unix:{one}", f"pg=unix:{other}")
    _near, far = linked_pair()
    exposed = Exposed(far, grants.allows)
    async with program(one), program(other), trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        with trio.fail_after(30):
            for target in (f"unix:{other}", f"unix:{one}/", f"unix:{tmp_path}/./one", 1, "unix", "unix:1"):
                stream = await far.peer.open_stream(encode(Open("tcp", target)))
                with pytest.raises(StreamResetError) as caught:
                    await read_message(stream)
                assert caught.value.code == StreamCode.DENIED, target
            for target in (f"unix:{one}", "pg"):
                stream = await far.peer.open_stream(encode(Open("tcp", target)))
                await read_message(stream)
                stream.reset(StreamCode.CANCELLED)
                stream.stop(StreamCode.CANCELLED)
        nursery.cancel_scope.cancel()
    assert exposed.counters.tcp_denied == 6


@pytest.mark.parametrize("state", ["missing", "stale", "file", "datagrams"])
async def test_a_socket_where_nothing_listens_is_told_to_both(tmp_path: Path, state: str) -> None:
    far = tmp_path / "far"
    if state == "stale":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(far))
    elif state == "file":
        far.write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        if state == "datagrams":
            other.bind(str(far))
        async with forwarded(GrantSet.parse(f"unix:{far}"), f"127.0.0.1:0:unix:{far}") as bench:
            stream = await bench.connect()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            assert f"home refused tcp/unix:{far}: nothing listens there." in bench.said
            where = f"{far} is no stream socket" if state == "datagrams" else f"nothing listens at {far}"
            assert f"friend asked for tcp/unix:{far}: {where}." in bench.said


async def test_a_program_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    """connect(2) says EAGAIN then, of Unix sockets alone."""
    far = tmp_path / "far"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(far))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(far))
            async with forwarded(GrantSet.parse(f"unix:{far}"), f"127.0.0.1:0:unix:{far}") as bench:
                await bench.connect()
                await until(lambda: bench.exposed.counters.tcp_active == 1)
                listener.accept()[0].close()
                await until(lambda: bench.exposed.counters.tcp_opened == 1)


async def test_a_forward_that_leads_to_itself_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "both"
    async with forwarded(GrantSet.parse(f"unix:{path}"), f"unix:{path}:unix:{path}") as bench:
        stream = await bench.connect()
        assert await heard(stream) == b""
        assert bench.exposed.counters.loops == 1
        assert any("leads to a forward of its own" in text for text in bench.said)


async def test_a_grant_that_is_taken_back_cuts_what_is_open(tmp_path: Path) -> None:
    far = tmp_path / "far"
    grants = GrantSet.parse(f"unix:{far}", "22")
    async with program(far), forwarded(lambda: grants, f"127.0.0.1:0:unix:{far}") as bench:
        stream = await bench.connect()
        await stream.send_all(b"x")
        await until(lambda: bench.exposed.counters.tcp_opened == 1)
        grants, taken = grants.without(f"tcp/unix:{far}")
        assert len(taken) == 1
        bench.exposed.look_again()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert bench.exposed.counters.revoked == 1
