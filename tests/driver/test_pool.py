"""The pool with real sockets: nothing leaks, however often it is opened, and however few descriptors there are."""

from __future__ import annotations

import os
import resource

import trio
import trio.testing

from tunnel.doors.udp.socket import UdpSocket, open_socket
from tunnel.node.pool import CloseSockets, OpenSockets
from tunnel.shell.sockets import PoolSockets
from tunnel.units import SocketId


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def limit_that_leaves(count: int) -> int:
    """The RLIMIT_NOFILE under which `count` more descriptors can be had: a number may be taken by a call that blocks, unseen."""
    taken = [os.dup(0) for _ in range(count)]
    try:
        return max(taken) + 1
    finally:
        for each in taken:
            os.close(each)


async def test_a_hundred_pools_of_real_sockets_leak_no_descriptor() -> None:
    sockets: dict[SocketId, UdpSocket] = {}
    pool = PoolSockets(sockets, open_socket, "127.0.0.1")
    ended = 0

    async def serve(socket_id: SocketId) -> None:
        nonlocal ended
        try:
            await sockets[socket_id].wait_readable()
        except trio.ClosedResourceError:
            ended += 1

    async with trio.open_nursery() as nursery:
        pool.nursery = nursery
        before = descriptors()
        for _ in range(100):
            opened = pool.fulfil(OpenSockets(64), serve)
            assert opened is not None
            assert len({socket.port for socket in opened}) == 64
            await trio.testing.wait_all_tasks_blocked()
            assert descriptors() >= before + 64
            assert pool.fulfil(CloseSockets(tuple(socket.socket_id for socket in opened)), serve) is None
            await trio.testing.wait_all_tasks_blocked()
            assert descriptors() == before
        assert ended == pool.opened == 6400
        assert not sockets


async def test_too_few_descriptors_give_a_smaller_pool() -> None:
    sockets: dict[SocketId, UdpSocket] = {}
    pool = PoolSockets(sockets, open_socket, "127.0.0.1")

    async def serve(socket_id: SocketId) -> None: ...

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with trio.open_nursery() as nursery:
        pool.nursery = nursery
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_that_leaves(40), hard))
        try:
            opened = pool.fulfil(OpenSockets(256), serve)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert opened is not None
        assert 8 <= len(opened) < 60
        pool.fulfil(CloseSockets(tuple(socket.socket_id for socket in opened)), serve)
    assert not sockets


async def test_without_ipv4_there_is_no_pool() -> None:
    pool = PoolSockets({}, open_socket, None)
    assert pool.fulfil(OpenSockets(256), trio.sleep) == []
