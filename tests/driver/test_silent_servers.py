"""Who waits for a server that does not answer hears after three seconds what is waited for, whichever command it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import tunnel
from tests.driver.lan import Player
from tests.driver.meeting import Heard, on
from tests.driver.test_moving import NAME, NO_TLS, World
from tunnel.setup.common import SERVER_PATIENCE
from tunnel.setup.servers import SERVER_WORD
from tunnel.shell.events import Trouble

VERBS: dict[str, Callable[[Path, Heard], AbstractAsyncContextManager[Any]]] = {
    "expose": lambda home, heard: tunnel.expose(["22"], home=home, server=NAME, tls=NO_TLS, on_event=heard),
    "connect": lambda home, heard: tunnel.connect("731-garden-violin", home=home, server=NAME, tls=NO_TLS, on_event=heard),
    "lan": lambda home, heard: tunnel.lan.create("lan", tls=NO_TLS, **{**Player(home, NAME, "anna").options, "on_event": heard}),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("knows_names", [True, False])
async def test_a_silent_server_is_spoken_of_in_time_and_with_what_a_person_can_look_at(
    verb: str, knows_names: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    world, heard = World(), Heard()
    if not knows_names:

        async def never(*_question: Any, **_options: Any) -> list[Any]:
            await trio.sleep_forever()
            raise AssertionError

        world.names.getaddrinfo = never  # type: ignore[method-assign]
    with trio.move_on_after(SERVER_WORD + 0.5) as early:
        async with on(world.machine(), VERBS[verb](tmp_path, heard)):
            pass
    assert early.cancelled_caught
    [word] = [event for event in heard if isinstance(event, Trouble)]
    assert word.code == "server_slow"
    if knows_names:
        assert "'ptunnel serve' run there, at UDP port 24531?" in word.message
    else:
        assert "leads: is the network slow, or its DNS?" in word.message
    assert NAME in word.message


async def test_a_server_that_answers_in_time_is_not_spoken_of_and_one_that_never_does_ends_the_command_later(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    world, heard = World(), Heard()
    async with trio.open_nursery() as world.nursery:
        await world.start(world.names.leads_to or "")
        async with on(world.machine(), VERBS["expose"](tmp_path, heard)):
            await trio.sleep(2 * SERVER_WORD)
            assert not [event for event in heard if isinstance(event, Trouble)]
        world.nursery.cancel_scope.cancel()
    started = trio.current_time()
    world.names.leads_to = "198.18.0.9"
    with pytest.raises(tunnel.ServerUnreachableError, match=r"UDP port 24531: is 'ptunnel serve' running there"):
        async with on(world.machine(), VERBS["expose"](tmp_path, heard)):
            pass
    assert trio.current_time() - started == pytest.approx(SERVER_PATIENCE, abs=0.5)
