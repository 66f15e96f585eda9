"""What somebody does who meets the library for the first time, and what it answers: one sentence, or what was meant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, a_server
from tunnel.events import Serving, Trouble

LONG = 50.0  # seconds, for a machine that is busy


@asynccontextmanager
async def a_port() -> AsyncIterator[int]:
    """That greets, and keeps the connection."""
    async with trio.open_nursery() as nursery:

        async def greet(stream: trio.SocketStream) -> None:
            await stream.send_all(b"hi")
            await trio.sleep_forever()

        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, greet, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_number", [True, False])
async def test_a_port_may_be_a_number_and_a_string_is_one_port_and_not_its_digits(tmp_path: Path, is_number: bool) -> None:
    """`expose("22")` shared port 2, twice."""
    heard = Heard()
    with trio.fail_after(LONG):
        async with a_server() as server, a_port() as port:
            grant: Any = port if is_number else str(port)
            async with (
                tunnel.expose(grant, server=server, home=tmp_path / "home", name="home", on_event=heard) as exposure,
                tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend", name="friend") as link,
            ):
                with pytest.raises(tunnel.ConfigurationError, match=f"already uses tcp port {port} "):
                    async with link.forward(grant):
                        pass
                async with await link.open_tcp(port) as stream:
                    assert await stream.receive_some() == b"hi"
                [granted] = await exposure.grant("friend", 8080)
                assert granted.grants == (f"tcp/{port}", "tcp/8080")
                await heard.wait(lambda event: isinstance(event, Serving) and len(event.grants) == 2)
                revoked = tunnel.revoke("friend", 8080, home=tmp_path / "home")
                assert revoked.grants == (f"tcp/{port}",)


@pytest.mark.parametrize("target", [None, b"22", 2.5, ["22"]])
async def test_what_is_neither_a_port_nor_a_name_is_no_target(tmp_path: Path, target: object) -> None:
    heard = Heard()
    with trio.fail_after(LONG):
        async with (
            a_server() as server,
            tunnel.expose("22", server=server, home=tmp_path / "home", on_event=heard),
            tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend") as link,
        ):
            for verb in (link.open_tcp, link.open_udp):
                with pytest.raises(tunnel.ConfigurationError, match="is neither a port nor a name"):
                    await cast(Any, verb)(target)


async def test_a_handler_that_is_no_async_function_is_told(tmp_path: Path) -> None:
    heard = Heard()
    with trio.fail_after(LONG):
        async with (
            a_server() as server,
            tunnel.expose(
                handler=cast(Any, lambda _link: None), pair=True, server=server, home=tmp_path / "home", on_event=heard
            ),
            tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend"),
        ):
            told = await heard.wait(lambda event: isinstance(event, Trouble))
            assert isinstance(told, Trouble)
            assert told.message == "A handler is an async function: write async def handler(link)."


async def test_a_stream_that_this_program_has_closed_says_so_and_blames_no_peer(tmp_path: Path) -> None:
    heard = Heard()
    with trio.fail_after(LONG):
        async with (
            a_server() as server,
            a_port() as port,
            tunnel.expose(port, server=server, home=tmp_path / "home", on_event=heard),
            tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend") as link,
        ):
            stream, reads = await link.open_tcp(port), trio.Event()
            async with trio.open_nursery() as nursery:

                async def read_on() -> None:
                    assert await stream.receive_some() == b"hi"
                    reads.set()
                    with pytest.raises(trio.ClosedResourceError, match="closed by this program"):
                        await stream.receive_some()

                nursery.start_soon(read_on)
                await reads.wait()
                await stream.aclose()
            for use in (lambda: stream.send_all(b"x"), stream.receive_some):
                with pytest.raises(trio.ClosedResourceError, match="closed by this program"):
                    await use()
            other = await link.open_tcp(port)
            await other.send_eof()
            with pytest.raises(trio.ClosedResourceError, match="send_eof"):
                await other.send_all(b"x")
            await other.aclose()


async def test_a_link_that_has_ended_says_why_wherever_it_is_used(tmp_path: Path) -> None:
    heard = Heard()
    with trio.fail_after(LONG):
        async with (
            a_server() as server,
            a_port() as port,
            tunnel.expose(port, server=server, home=tmp_path / "home", name="home", on_event=heard) as exposure,
            tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend") as link,
        ):
            exposure.links[0].close("that was all")
            await link.closed()
            assert link.status().why == "the link has ended: that was all"
            why = "the link to home is closed: that was all"
            with pytest.raises(tunnel.UnreachableError, match=why):
                await link.open_tcp(port)
            with pytest.raises(tunnel.UnreachableError, match=why):
                async with link.forward(f"0:{port}"):
                    pass
            with pytest.raises(tunnel.UnreachableError, match=why):
                await link.wait_direct()
