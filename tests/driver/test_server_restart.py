"""A relayed link lives through a restart of the server that relays it."""

from __future__ import annotations

from pathlib import Path

import trio

import tunnel
from tests.driver.meeting import Heard, echo, homes, shout
from tunnel.shell.serve import RunningServer, serve


async def start(nursery: trio.Nursery, port: int) -> tuple[RunningServer, trio.Event]:
    """The event: its sockets are closed."""
    is_over = trio.Event()

    async def run(*, task_status: trio.TaskStatus[RunningServer]) -> None:
        await serve([("127.0.0.1", port)], task_status=task_status)
        is_over.set()

    running = await nursery.start(run)
    assert isinstance(running, RunningServer)
    return running, is_over


async def test_a_relayed_link_goes_on_after_a_restart_of_its_server(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            running, is_over = await start(nursery, 0)
            server = running.addresses[0]
            async with (
                tunnel.expose(["22"], server=str(server), home=exposer, name="home", on_event=heard, handler=echo, path="relay"),
                tunnel.connect(await heard.code(), server=str(server), home=connector, path="relay") as link,
            ):
                assert await shout(link, b"before" * 10_000) == b"before" * 10_000
                running.stop()
                await is_over.wait()
                running, _ = await start(nursery, server.port)
                assert await shout(link, b"after" * 10_000) == b"after" * 10_000
                assert running.counters()["relayed_bytes"] > 100_000
            running.stop()
