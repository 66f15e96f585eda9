"""The keeper of port mappings towards a router on loopback, in time that the test owns."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.unit.nat.test_portmap import Router
from tunnel.host.gateway import Gateway
from tunnel.nat.mapping_states import Protocol
from tunnel.nat.pcp import PORT as MAPPING_PORT
from tunnel.shell import portmap
from tunnel.shell.portmap import REMOVAL, PortMapKeeper
from tunnel.units import Instant

ROUTER, OWN, PORT = "127.0.0.78", "127.0.0.1", 40_000


def clock() -> Instant:
    return Instant(trio.current_time())


async def soon(condition: Callable[[], object]) -> None:
    """Without a clock that goes on."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("is_silent", [False, True])
async def test_taking_a_port_back_holds_up_the_end_for_so_long_at_most(
    is_silent: bool, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portmap, "is_translated", lambda _host: True)
    router = Router(Protocol.NAT_PMP)
    keeper = PortMapKeeper(
        on_change=lambda *_: None, clock=clock, gateway=lambda: Gateway(ROUTER, OWN), protocols=[Protocol.NAT_PMP]
    )
    ended = trio.Event()
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((ROUTER, MAPPING_PORT))

        async def serve() -> None:
            while True:
                data, remote = await sock.recvfrom(2048)
                answer = router.answer(clock(), data)
                if answer is not None:
                    await sock.sendto(answer, remote)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            scope = trio.CancelScope()

            async def keep() -> None:
                with scope:
                    await keeper.run([PORT])
                ended.set()

            nursery.start_soon(keep)
            await soon(lambda: keeper.mappings.get(PORT))
            router.is_silent = is_silent
            scope.cancel()
            if is_silent:
                await trio.testing.wait_all_tasks_blocked(0.01)
                mock_clock.jump(REMOVAL - 0.01)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not ended.is_set()
                mock_clock.jump(0.02)
            await soon(ended.is_set)
            assert not keeper.mappings
            assert bool(router.table) == is_silent
            nursery.cancel_scope.cancel()
