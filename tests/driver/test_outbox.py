"""A burst leaves in calls that the kernel takes, in order, and what would block leaves later."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.twins.udp import MemoryNetwork
from tunnel.doors.udp.socket import MAX_BATCH, MAX_SEGMENTS
from tunnel.shell.outbox import ROOM, Outbox
from tunnel.units import Address, SocketId, Transmit

SOCKET = SocketId(0)


def _datagrams(count: int, size: int, last: int) -> list[bytes]:
    return [index.to_bytes(4, "big") * (size // 4) for index in range(count - 1)] + [b"\xff" * last]


def _burst(to: Address, datagrams: list[bytes]) -> Transmit:
    return Transmit(SOCKET, to, len(datagrams[0]), memoryview(b"".join(datagrams)))


@pytest.mark.parametrize(
    ("count", "size", "last"), [(88, 1_472, 1_472), (88, 1_472, 4), (3, 1_200, 800), (150, 500, 12), (1, 60, 60)]
)
@pytest.mark.parametrize("blocks", [False, True])
async def test_what_is_put_arrives_whole_and_in_order(count: int, size: int, last: int, blocks: bool) -> None:
    network = MemoryNetwork(seed=1)
    here, there = network.open_socket("192.0.2.1", 1), network.open_socket("192.0.2.2", 2)
    outbox = Outbox({SOCKET: here})
    datagrams = _datagrams(count, size, last)
    flushes: list[None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run, lambda: flushes.append(None))
        if blocks:
            here.set_writable(False)
        outbox.put(_burst(there.local_address, datagrams))
        assert outbox.is_blocked is blocks
        if blocks:
            await trio.testing.wait_all_tasks_blocked()
            here.set_writable(True)
        await trio.testing.wait_all_tasks_blocked()
        assert not outbox.is_blocked
        assert len(flushes) == (1 if blocks else 0)
        got: list[bytes] = []
        while (batch := there.receive()) is not None:
            got += [bytes(batch.buffer[at : at + batch.stride]) for at in range(0, len(batch.buffer), batch.stride)]
        assert got == datagrams
        nursery.cancel_scope.cancel()


async def test_a_call_that_blocks_midway_leaves_the_rest_for_later() -> None:
    class Narrow:
        """Takes one call, then blocks once."""

        def __init__(self) -> None:
            self.calls: list[int] = []
            self.blocked = False

        def send(self, remote: Address, buffer: memoryview, size: int, ttl: int | None = None, ecn: int = 0) -> bool:
            assert len(buffer) <= MAX_BATCH
            assert -(-len(buffer) // size) <= MAX_SEGMENTS
            if len(self.calls) == 1 and not self.blocked:
                self.blocked = True
                return False
            self.calls.append(len(buffer))
            return True

        async def wait_writable(self) -> None:
            await trio.lowlevel.checkpoint()

    narrow = Narrow()
    outbox = Outbox({SOCKET: narrow})  # type: ignore[dict-item]
    assert len(outbox.room) == ROOM
    async with trio.open_nursery() as nursery:
        outbox.put(_burst(Address("192.0.2.2", 2), _datagrams(88, 1_472, 100)))
        assert outbox.is_blocked
        assert narrow.calls == [44 * 1_472]
        nursery.start_soon(outbox.run, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        assert narrow.calls == [44 * 1_472, 43 * 1_472 + 100]
        nursery.cancel_scope.cancel()


async def test_for_a_socket_that_is_gone_nothing_is_kept() -> None:
    outbox = Outbox({})
    outbox.put(_burst(Address("192.0.2.2", 2), [bytes(100)]))
    assert not outbox.is_blocked


async def test_what_waits_can_be_forgotten() -> None:
    network = MemoryNetwork(seed=1)
    here, there = network.open_socket("192.0.2.1", 1), network.open_socket("192.0.2.2", 2)
    here.set_writable(False)
    outbox = Outbox({SOCKET: here})
    outbox.put(_burst(there.local_address, [bytes(100)]))
    outbox.forget()
    assert not outbox.is_blocked
