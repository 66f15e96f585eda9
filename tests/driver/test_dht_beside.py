"""A server with the DHT beside it: the server first, the DHT where it is gone for either side, and back when it returns."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, a_server, homes
from tests.driver.test_dht import PATIENCE, a_dht
from tunnel.dht.stretch import FIRST_NUMBER
from tunnel.errors import ServerUnreachableError
from tunnel.events import Trouble
from tunnel.pairing.code import parse_code
from tunnel.shell.serve import RunningServer, serve


@contextmanager
def silence() -> Iterator[str]:
    """A place where nobody answers, as the word of a server with the DHT beside it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield beside(f"127.0.0.1:{sock.getsockname()[1]}")


def beside(server: str) -> str:
    return f"{server},tls=off,dht"


@asynccontextmanager
async def entered(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async with a_dht() as addresses:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]}")
        with trio.fail_after(PATIENCE):
            yield


def warned(heard: Heard) -> bool:
    """Whether a person was told that strangers see the address: the DHT was entered."""
    return any(isinstance(each, Trouble) and each.code == "strangers" for each in heard)


async def test_with_the_server_there_a_code_is_the_servers_and_whoever_comes_asks_no_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, friend = homes(tmp_path)
    heard, told = Heard(), Heard()
    async with (
        entered(monkeypatch),
        a_server() as server,
        tunnel.expose("22", server=beside(server), home=home, name="home", on_event=heard),
    ):
        for code in (await heard.code(), None):
            assert code is None or parse_code(code).nameplate < FIRST_NUMBER
            async with tunnel.connect(code, server=beside(server), home=friend, name="friend", on_event=told) as link:
                await link.ping()
    assert warned(heard)  # who waits does so at both
    assert not warned(told)


async def test_with_the_server_gone_a_code_and_later_a_name_lead_by_the_dht(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, friend = homes(tmp_path)
    heard, told = Heard(), Heard()
    async with entered(monkeypatch):
        with silence() as server:
            async with tunnel.expose("22", server=server, home=home, name="home", on_event=heard):
                for code in (await heard.code(), None):
                    assert code is None or parse_code(code).nameplate >= FIRST_NUMBER
                    async with tunnel.connect(code, server=server, home=friend, name="friend", on_event=told) as link:
                        await link.ping()
    assert warned(told)


@pytest.mark.parametrize("gone_for", ["home", "friend"])
async def test_one_side_reaches_its_server_and_the_other_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone_for: str
) -> None:
    home, friend = homes(tmp_path)
    heard = Heard()
    async with entered(monkeypatch), a_server() as answering:
        with silence() as silent:
            ours, theirs = (silent, beside(answering)) if gone_for == "home" else (beside(answering), silent)
            async with tunnel.expose("22", server=ours, home=home, name="home", on_event=heard):
                async with tunnel.connect(await heard.code(), server=ours, home=friend, name="friend") as link:
                    await link.ping()
                async with tunnel.connect(server=theirs, home=friend) as link:
                    await link.ping()


async def test_a_server_that_returns_is_waited_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, friend = homes(tmp_path)
    heard, told = Heard(), Heard()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = f"127.0.0.1:{port}"
    async with entered(monkeypatch), tunnel.expose("22", server=beside(server), home=home, name="home", on_event=heard):
        async with tunnel.connect(await heard.code(), server=beside(server), home=friend, name="friend") as link:
            await link.ping()
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[RunningServer]) -> None:
                await serve([("127.0.0.1", port)], task_status=task_status)

            running: RunningServer = await nursery.start(run)
            async with tunnel.connect(server=f"{server},tls=off", home=friend, on_event=told) as link:  # the server only
                await link.ping()
            running.stop()
    assert not warned(told)


async def test_where_neither_answers_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silence() as server, silence() as nodes:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", nodes.partition(",")[0])
        with trio.fail_after(PATIENCE), pytest.raises(ServerUnreachableError) as raised:
            async with tunnel.expose("22", server=server, home=tmp_path):
                pass
    assert f"No ptunnel server answers at 127.0.0.1, UDP port {server.partition(',')[0].partition(':')[2]}" in str(raised.value)
    assert "No node of the DHT answers" in str(raised.value)
