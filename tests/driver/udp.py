"""What the tests of UDP sockets share."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tunnel.doors.udp.socket import ReceivedBatch, UdpSocket

Opener = Callable[..., UdpSocket]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="UDP_SEGMENT is Linux only")
PAYLOAD = bytes(range(256)) * 200


def view(data: bytes) -> memoryview:
    return memoryview(bytearray(data))


def cut(batch: ReceivedBatch) -> list[bytes]:
    return [bytes(batch.buffer[at : at + batch.stride]) for at in range(0, len(batch.buffer), batch.stride)]


async def receive(udp: UdpSocket, datagrams: int) -> tuple[list[bytes], list[ReceivedBatch]]:
    """Wait for so many datagrams.  Of each batch only the buffer's length is still good afterwards."""
    got: list[bytes] = []
    batches: list[ReceivedBatch] = []
    with trio.fail_after(5):
        while len(got) < datagrams:
            await udp.wait_readable()
            while (batch := udp.receive()) is not None:
                got += cut(batch)
                batches.append(batch)
    return got, batches
