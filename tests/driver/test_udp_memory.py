"""What sockets take in memory: to get through a hard NAT hundreds are opened, for some seconds."""

from __future__ import annotations

import os
from pathlib import Path

from tests.driver.udp import on_linux
from tunnel.doors.udp.socket import UdpSocket, open_socket
from tunnel.nat.budget import POOL_SOCKETS

MOST = 8 << 10  # bytes of each: a 64 KB receive buffer would be seen


def resident() -> int:
    """Bytes of this process's own that are in memory."""
    _size, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@on_linux
async def test_sockets_that_nothing_has_come_into_take_little_memory() -> None:
    before = resident()
    opened: list[UdpSocket] = []
    try:
        for _ in range(POOL_SOCKETS):
            opened.append(open_socket("127.0.0.1", 0))
        assert resident() - before < POOL_SOCKETS * MOST
    finally:
        for socket in opened:
            socket.close()
