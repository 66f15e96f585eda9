"""What is promised in seconds, held by the test's own clock over a network in memory: no busy machine makes it any longer.

The tests with real processes show the same as a whole, and wait longer than is promised.  What is promised of a line that falls
silent is held in tests/sim/test_staying_up.py and tests/sim/test_tls.py.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tunnel
from tests.driver.meeting import Heard, echo, homes, on, shout
from tests.driver.test_granting import echoed, echoes, forwards, talk
from tests.driver.test_moving import NAME, NO_TLS, a_world
from tunnel.pairing.grants import GrantSet
from tunnel.shell.events import Closed, Paired
from tunnel.shell.link import Link
from tunnel.state.home import Home

CUT = 1.0  # seconds until what was taken back or forgotten is cut, as docs/security.md says
GOODBYE = 1.0  # ... until who ends has ended
HEARD = 0.5  # ... until the other side hears of it
REFUSED = 2.0  # ... until a program hears that nobody listens
ROUND = 0.02  # a round trip over the network of these tests


class Clock:
    """Seconds of the test's clock since it was made."""

    def __init__(self) -> None:
        self._began = trio.current_time()

    def __call__(self) -> float:
        return trio.current_time() - self._began


async def is_cut(stream: trio.SocketStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


async def carries_no_more(client: trio.socket.SocketType) -> None:
    """Asks again and again; a question without an answer is the end."""
    while True:
        await client.send(b"2")
        with trio.move_on_after(2 * ROUND + 0.01) as silence:
            assert await client.recv(10) == b"2"
        if silence.cancelled_caught:
            return


@asynccontextmanager
async def a_flow(port: int) -> AsyncIterator[trio.socket.SocketType]:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        await client.connect(("127.0.0.1", port))
        await client.send(b"1")
        assert await client.recv(10) == b"1"
        yield client


@pytest.mark.parametrize("command", ["revoke", "expose --only", "forget"])
@pytest.mark.parametrize("after", [0.01, 0.29, 7.83])
async def test_what_any_process_takes_back_is_cut_within_a_second(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, command: str, after: float
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    async with (
        a_world() as world,
        echoes() as (one, two, three),
        on(
            world.machine(),
            tunnel.expose([f"{one}", f"{two}", f"{three}/udp"], server=NAME, home=exposer, on_event=heard, tls=NO_TLS),
        ),
        on(world.machine(), tunnel.connect(await heard.code(), server=NAME, home=connector, name="ben", tls=NO_TLS)) as link,
        forwards(link, f"0:{one}", f"0:{two}", f"0:{three}/udp") as ports,
        a_flow(ports[2]) as client,
        await talk(ports[0]) as cut,
        await talk(ports[1]) as kept,
    ):
        await trio.sleep(after)
        await echoed(cut)
        clock = Clock()
        match command:
            case "revoke":
                tunnel.revoke("ben", str(one), f"{three}/udp", home=exposer)
            case "expose --only":
                Home(exposer).change_grants(("ben",), lambda _record: GrantSet.parse(str(two)).to_dicts())
            case _:
                Home(exposer).forget("ben")
        await is_cut(cut)
        assert clock() < CUT
        if command != "forget":
            await carries_no_more(client)
            assert clock() < CUT + 2 * ROUND + 0.01
            await echoed(kept)
        else:
            await is_cut(kept)
            assert "forgotten" in (await link.closed()).text
            assert clock() < CUT


@pytest.mark.parametrize("path", ["auto", "relay"])
@pytest.mark.parametrize("who", ["connector", "exposer"])
async def test_who_ends_has_ended_within_a_second_and_the_other_side_knows_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, who: str, path: Any
) -> None:
    exposer, connector = homes(tmp_path)
    exposing, connecting = Heard(), Heard()
    scopes = {"exposer": trio.CancelScope(), "connector": trio.CancelScope()}
    ended = {"exposer": trio.Event(), "connector": trio.Event()}
    linked = trio.Event()
    async with a_world() as world, trio.open_nursery() as nursery:

        async def expose() -> None:
            with scopes["exposer"]:
                async with on(
                    world.machine(),
                    tunnel.expose(["22"], server=NAME, home=exposer, path=path, on_event=exposing, handler=echo, tls=NO_TLS),
                ):
                    await trio.sleep_forever()
            ended["exposer"].set()

        async def connect() -> None:
            code = await exposing.code()
            with scopes["connector"]:
                async with on(
                    world.machine(), tunnel.connect(code, server=NAME, home=connector, on_event=connecting, tls=NO_TLS)
                ) as link:
                    assert await shout(link, b"x") == b"x"
                    linked.set()
                    await trio.sleep_forever()
            ended["connector"].set()

        nursery.start_soon(expose)
        nursery.start_soon(connect)
        await linked.wait()
        await exposing.wait(lambda event: isinstance(event, Paired))
        began = trio.current_time()
        scopes[who].cancel()
        other = connecting if who == "exposer" else exposing
        await other.wait(lambda event: isinstance(event, Closed))
        assert trio.current_time() - began < HEARD
        await ended[who].wait()
        assert trio.current_time() - began < GOODBYE
        for scope in scopes.values():
            scope.cancel()


async def test_a_program_hears_within_two_seconds_that_nobody_listens_and_the_link_goes_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        async with (
            a_world() as world,
            echoes() as (one, _, _),
            on(world.machine(), tunnel.expose([f"{one}", f"{port}"], server=NAME, home=exposer, on_event=heard, tls=NO_TLS)),
            on(world.machine(), tunnel.connect(await heard.code(), server=NAME, home=connector, tls=NO_TLS)) as link,
            forwards(link, f"0:{one}", f"0:{port}") as ports,
        ):
            clock = Clock()
            async with await trio.open_tcp_stream("127.0.0.1", ports[1]) as stream:
                await is_cut(stream)
            assert clock() < REFUSED
            async with await talk(ports[0]):
                pass


async def test_a_direct_link_answers_at_once_after_its_server_has_gone(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    async with (
        a_world() as world,
        on(world.machine(), tunnel.expose(["22"], server=NAME, home=exposer, on_event=heard, handler=echo, tls=NO_TLS)),
        on(world.machine(), tunnel.connect(await heard.code(), server=NAME, home=connector, tls=NO_TLS)) as link,
    ):
        await link.wait_direct()
        await world.stop()
        for after in (0.0, 0.3, 5.0, 600.0):
            await trio.sleep(after)
            await answers_at_once(link)


async def answers_at_once(link: Link) -> None:
    clock = Clock()
    assert await shout(link, b"still here" * 100) == b"still here" * 100
    assert 0 < await link.ping() < 1
    assert clock() < 1
