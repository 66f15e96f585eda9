"""A peer allows so many open streams: whoever wants one more waits until it hears that it may, and asks nobody meanwhile."""

from __future__ import annotations

from unittest.mock import patch

import trio
import trio.testing

from tests.driver.core_link import CoreLinks
from tunnel.shell.stream import TunnelStream
from tunnel.transport.connection.connection import Connection
from tunnel.transport.stream.flow import MAX_STREAMS


async def test_a_stream_beyond_the_limit_is_opened_when_one_has_ended_and_not_asked_for_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    links = CoreLinks()
    opened: list[TunnelStream] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.run)
        streams = [await links.near.open_stream() for _ in range(MAX_STREAMS)]
        await streams[-1].send_all(b"known")  # and so are those below
        far = await links.far.accept_stream()

        async def one_more() -> None:
            opened.append(await links.near.open_stream(b"one more"))

        with patch.object(Connection, "open_stream", autospec=True, side_effect=Connection.open_stream) as asked:
            nursery.start_soon(one_more)
            await trio.sleep(100.0)
            assert asked.call_count < 10  # what changes on the link may wake it, as a path that was found
            assert not opened
            began = trio.current_time()
            for stream in (streams[-1], far):
                stream.reset(0)
                stream.stop(0)
            while not opened:
                await trio.sleep(0.01)
                assert trio.current_time() - began < 5.0
        nursery.cancel_scope.cancel()
