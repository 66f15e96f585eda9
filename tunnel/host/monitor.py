"""Tells at once when the network around the machine changes and when it wakes from sleep, where the system says so.

Linux says both: routing sockets tell of links, addresses and routes, and a timer of the calendar is cancelled at resume.
Elsewhere, and where either is refused, we look every LOOK_INTERVAL.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from tunnel.host.gateway import default_gateway
from tunnel.host.interfaces import ANYWHERE, local_addresses, source_address

LOOK_INTERVAL: Final = 5.0  # seconds between looks where nobody tells us, and at the latest where somebody does
SETTLING: Final = 0.02  # seconds; a change comes as several messages
ASLEEP: Final = 1.0  # seconds by which CLOCK_BOOTTIME gained on CLOCK_MONOTONIC: the machine slept

# Addresses that a default route leads to; nothing is sent there (RFC 5737, RFC 3849).

# linux/rtnetlink.h: links, addresses and routes of both families
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
# bits/timerfd.h, linux/timerfd.h
_TFD_FLAGS: Final = 0o2000000 | 0o4000  # TFD_CLOEXEC, TFD_NONBLOCK
_TFD_ABSOLUTE_CANCEL_ON_SET: Final = 1 | 2
_FAR_FUTURE: Final = 1 << 40


class NetworkView(NamedTuple):
    """The part of the machine's network that matters to peers: when it changes, every path has to prove itself."""

    hosts: tuple[str, ...]  # our own addresses
    source4: str | None  # the one that datagrams to the internet leave from
    source6: str | None
    gateway: str | None


def look() -> NetworkView:
    """Ask the system; some milliseconds."""
    gateway = default_gateway()
    return NetworkView(
        tuple(local.address for local in local_addresses()),
        source_address(ANYWHERE[False]),
        source_address(ANYWHERE[True]),
        None if gateway is None else gateway.address,
    )


async def watch(on_change: Callable[[], None], on_resume: Callable[[], None], *, look: Callable[[], object] = look) -> None:
    """Until cancelled.  `on_change` after the first look that differs from the one before, `on_resume` after sleep."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_network, on_change, look)
        nursery.start_soon(_watch_sleep, on_resume)


async def _watch_network(on_change: Callable[[], None], look: Callable[[], object]) -> None:
    before = look()
    with _open_routing_socket() or _Silent() as events:
        while True:
            with trio.move_on_after(LOOK_INTERVAL):
                await events.wait()
                await trio.sleep(SETTLING)
            events.drain()
            now = look()
            if now != before:
                before = now
                on_change()


class _Silent:
    """Stands in for the routing socket where there is none."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *reason: object) -> None:
        return None

    async def wait(self) -> None:
        await trio.sleep_forever()

    def drain(self) -> None:
        return None


class _RoutingSocket(_Silent):
    """Readable whenever links, addresses or routes change; what exactly is left to `look`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._is_dead = False  # tells nothing more

    def __exit__(self, *reason: object) -> None:
        self._socket.close()

    async def wait(self) -> None:
        if self._is_dead:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._socket)

    def drain(self) -> None:
        while not self._is_dead:
            try:
                self._socket.recv(65_536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._is_dead = True  # it would be there again at once
                    return
                continue  # there was more than the kernel keeps, which is a change too


def _open_routing_socket() -> _RoutingSocket | None:
    if sys.platform != "linux":
        return None
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError:
        return None
    try:
        sock.setblocking(False)
        sock.bind((0, _GROUPS))
    except OSError:
        sock.close()
        return None
    return _RoutingSocket(sock)


async def _watch_sleep(on_resume: Callable[[], None]) -> None:
    if sys.platform != "linux":
        return
    import os
    import time

    def slept() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    before = slept()
    while (timer := _open_timer()) is not None:
        try:
            await trio.lowlevel.wait_readable(timer)
        finally:
            os.close(timer)
        now = slept()
        if now - before > ASLEEP:
            on_resume()
        before = now
        await trio.sleep(SETTLING)  # a calendar that somebody sets all the time keeps nobody busy


def _open_timer() -> int | None:
    """Becomes readable when the calendar is set, as it is at resume (timerfd_create(2)); None: cannot be had."""
    import ctypes
    import os
    import time

    try:
        libc = ctypes.CDLL(None)
        timer = int(libc.timerfd_create(time.CLOCK_REALTIME, _TFD_FLAGS))
        if timer < 0:
            return None
        when = (ctypes.c_long * 4)(0, 0, _FAR_FUTURE, 0)  # struct itimerspec: interval, value
        if libc.timerfd_settime(timer, _TFD_ABSOLUTE_CANCEL_ON_SET, when, None) < 0:
            os.close(timer)
            return None
    except (OSError, AttributeError):
        return None
    return timer
