"""A calendar that jumps under a link that stands, by the driver's own clock."""

from __future__ import annotations

import time
from pathlib import Path

import trio

import tunnel
from tests.driver.meeting import Heard, a_server, echo, homes, on, shout
from tunnel.setup.machine import Machine
from tunnel.shell.events import Trouble
from tunnel.shell.link import Link


def keys_of(link: Link) -> tuple[int, ...]:
    connection = link._peering.connection
    assert connection is not None
    return connection.indices()


async def test_a_calendar_that_jumps_costs_a_rekey_and_a_person_is_told(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard, told = Heard(), Heard()
    ahead = 0.0
    with trio.fail_after(20):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard, handler=echo),
            on(Machine(wall=lambda: time.time() + ahead), tunnel.connect(
                await heard.code(), server=server, home=connector, name="friend", on_event=told,

            )) as link,
        ):  # fmt: skip
            assert await shout(link, b"before") == b"before"
            before = set(keys_of(link))
            ahead = -3_600.0
            assert await shout(link, b"after" * 10_000) == b"after" * 10_000
            trouble = await told.wait(lambda event: isinstance(event, Trouble))
            assert isinstance(trouble, Trouble)
            assert trouble.code == "keys_given_up"
            assert "60 minutes back" in trouble.message
            assert set(keys_of(link)) - before
            assert not [event for event in heard if isinstance(event, Trouble)]
            assert link.close_reason is None
