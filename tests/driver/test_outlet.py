"""Datagrams to a local program, over loopback: what goes in comes out, in runs or one by one, and what does not is counted."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tunnel.ports.counters import ForwardCounters
from tunnel.ports.outlet import MAX_SEGMENTS, Outlet, Overruns

EQUAL = [bytes([number]) * 1200 for number in range(20)]
MIXED = [b"", b"a", bytes(1200), bytes(1200), bytes(700), b"", bytes(9000), bytes(9000), bytes(60_000), b"end"]
MANY = [bytes(10)] * (3 * MAX_SEGMENTS + 1)


class Watched:
    """A socket that counts calls, and can refuse runs as some kernels and interfaces do."""

    def __init__(self, sock: socket.socket, refusal: OSError | None = None) -> None:
        self._sock, self._refusal = sock, refusal
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        self.calls += 1
        return self._sock.send(data)

    def sendmsg(self, *arguments: Any) -> int:
        self.calls += 1
        if self._refusal is not None:
            raise self._refusal
        return self._sock.sendmsg(*arguments)


@contextmanager
def ends(*, connected: bool = True) -> Iterator[tuple[socket.socket, socket.socket, Any]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        far.bind(("127.0.0.1", 0))
        far.settimeout(5)
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 << 20)
        address = far.getsockname()
        if connected:
            near.connect(address)
        yield near, far, None if connected else address


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("batch", [EQUAL, MIXED, MANY], ids=["equal", "mixed", "many"])
def test_all_arrive_as_they_were(batch: list[bytes], connected: bool) -> None:
    counters = ForwardCounters()
    with ends(connected=connected) as (near, far, address):
        Outlet(near, address, counters).send(batch)
        assert [far.recv(65_535) for _ in batch] == batch
    assert counters.udp_datagrams_out == len(batch)
    assert counters.udp_local_dropped == 0


@pytest.mark.skipif(sys.platform != "linux", reason="UDP_SEGMENT is Linux's")
def test_equal_ones_cost_one_call() -> None:
    with ends() as (near, far, address):
        watched = Watched(near)
        Outlet(watched, address, ForwardCounters()).send(EQUAL)  # type: ignore[arg-type]
        assert [far.recv(65_535) for _ in EQUAL] == EQUAL
    assert watched.calls == 1


@pytest.mark.parametrize("number", [5, 22, 90, 111], ids=["EIO", "EINVAL", "EMSGSIZE", "ECONNREFUSED"])
def test_a_refused_run_goes_one_by_one(number: int) -> None:
    counters = ForwardCounters()
    with ends() as (near, far, address):
        outlet = Outlet(Watched(near, OSError(number, "no")), address, counters)  # type: ignore[arg-type]
        for _ in range(2):
            outlet.send(EQUAL)
            assert [far.recv(65_535) for _ in EQUAL] == EQUAL
    assert counters.udp_datagrams_out == 2 * len(EQUAL)


def test_a_full_socket_drops_and_counts() -> None:
    counters = ForwardCounters()
    with ends() as (near, _far, address):
        Outlet(Watched(near, BlockingIOError()), address, counters).send(EQUAL)  # type: ignore[arg-type]
    assert counters.udp_local_dropped == len(EQUAL)
    assert counters.udp_datagrams_out == 0


def test_nobody_listens() -> None:
    counters = ForwardCounters()
    with ends() as (near, far, address):
        outlet = Outlet(near, address, counters)
        far.close()
        for _ in range(3):
            outlet.send([b"anyone?"])
    assert counters.udp_local_dropped > 0
    assert counters.udp_datagrams_out + counters.udp_local_dropped == 3


@pytest.mark.skipif(sys.platform != "linux", reason="SO_MEMINFO is Linux's")
def test_what_a_full_socket_threw_away_is_told_once() -> None:
    with ends() as (near, far, _address):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        overruns = Overruns(far)
        assert overruns.fresh() == 0
        for _ in range(100):
            near.send(bytes(1000))
        far.setblocking(False)
        kept = 0
        with contextlib.suppress(BlockingIOError):
            while far.recv(2000):
                kept += 1
        assert 0 < kept < 100
        assert overruns.fresh() == 100 - kept
        assert overruns.fresh() == 0
