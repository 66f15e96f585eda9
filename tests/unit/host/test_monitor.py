"""Changes of the network are told once each, by whoever tells them first."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from trio.testing import MockClock

from tunnel.host import monitor


def changes(looks: list[str], seconds: float) -> list[float]:
    """When on_change was called, while `look` sees one after the other."""
    told: list[float] = []
    left = list(looks)

    def look() -> str:
        return left.pop(0) if len(left) > 1 else left[0]

    async def main() -> None:
        with trio.move_on_after(seconds):
            await monitor.watch(lambda: told.append(trio.current_time()), lambda: None, look=look)

    trio.run(main, clock=MockClock(autojump_threshold=0.01))
    return told


@pytest.mark.parametrize("is_silent", [True, False])
def test_where_nobody_tells_we_look_ourselves(monkeypatch: pytest.MonkeyPatch, is_silent: bool) -> None:
    if is_silent:
        monkeypatch.setattr(monitor, "_open_routing_socket", lambda: None)
        monkeypatch.setattr(monitor, "_open_timer", lambda: None)
    assert len(changes(["home", "home", "cafe", "cafe", "home", "home"], 60)) == 2


def test_a_routing_socket_that_meets_an_error_that_lasts_is_left_alone_and_we_look_ourselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    errors = [errno.ENOBUFS, errno.ENODEV]

    class Broken(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            if errors:
                raise OSError(errors.pop(0), "")
            pytest.fail("it went on after an error that lasts")

    with theirs:
        theirs.send(b"it stays readable")
        monkeypatch.setattr(monitor, "_open_routing_socket", lambda: monitor._RoutingSocket(Broken(fileno=ours.detach())))
        told = changes(["home", "home", "cafe", "cafe"], 60)
    assert len(told) == 1
    assert not errors


def test_a_look_sees_this_machine() -> None:
    view = monitor.look()
    assert isinstance(view.hosts, tuple)
    assert monitor.look() == view


def test_nothing_is_left_open_by_a_watch_that_was_cancelled() -> None:
    import os

    if not os.path.isdir("/proc/self/fd"):
        return
    changes(["home"], 1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        changes(["home"], 1)
    assert len(os.listdir("/proc/self/fd")) <= before
