"""Signs that this process goes on in a copy of its machine."""

from __future__ import annotations

import errno
import socket
import sys

import pytest
import trio

from tunnel.host import copies
from tunnel.host.copies import PAUSE, STEP, is_new_generation, watch_generation, watched
from tunnel.units import Instant, Seconds

UEVENT = b"change@/devices/platform/VMGENCTR:00\0ACTION=change\0DEVPATH=/devices/platform/VMGENCTR:00\0NEW_VMGENID=1\0SEQNUM=2\0"


class Machine:
    """A clock, a calendar, and what came of looking at them."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.calendar = 1_700_000_000.0
        self.waits: list[float] = []  # what passes between the next looks at the clock and at the calendar
        self.told: list[tuple[Instant, Seconds]] = []
        self.clock = watched(lambda: Instant(self.now), lambda now, by: self.told.append((now, by)), self.look)

    def look(self) -> float:
        if self.waits:
            self.go_on(self.waits.pop(0))
        return self.calendar

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        self.calendar += seconds


def test_a_machine_that_just_runs_is_no_copy() -> None:
    machine = Machine()
    for _ in range(1_000):
        machine.go_on(1.1)
        assert machine.clock() == machine.now
    assert not machine.told


@pytest.mark.parametrize("by", [-86_400.0, -2 * STEP, 2 * STEP, 3.0, 1e6])
def test_a_calendar_that_is_set_is_told_once(by: float) -> None:
    machine = Machine()
    machine.calendar += by
    for _ in range(5):
        machine.go_on(0.5)
        machine.clock()
    assert [now for now, _ in machine.told] == [1_000.5]
    assert machine.told[0][1] == pytest.approx(by)


def test_a_calendar_that_is_slewed_as_fast_as_may_be_is_not_told() -> None:
    machine = Machine()
    for _ in range(1_000):
        machine.go_on(0.9)
        machine.calendar += 0.09
        machine.clock()
    assert not machine.told


def test_a_checkpoint_that_is_restored_on_the_same_machine_is_a_pause() -> None:
    """Both clocks ran on; what was sealed meanwhile by the process that it was taken of is not known."""
    machine = Machine()
    machine.go_on(PAUSE + 0.1)
    machine.clock()
    machine.go_on(1.0)
    machine.clock()
    assert [by for _, by in machine.told] == [0.0]


def test_to_wait_between_the_two_looks_is_no_sign() -> None:
    machine = Machine()
    for wait in (0.2, 2.0, 0.3):
        machine.waits = [wait]
        machine.go_on(0.1)
        machine.clock()
        assert not machine.waits
    assert not machine.told


def test_only_a_new_generation_is_one() -> None:
    assert is_new_generation(UEVENT)
    assert not is_new_generation(UEVENT.replace(b"NEW_VMGENID=1", b"NEW_VMGENID=10"))
    assert not is_new_generation(b"")


class Netlink(socket.socket):
    """A socket whose messages come from the port that they begin with."""

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, tuple[int, int]]:
        data = self.recv(size, flags)
        return data[1:], (data[0], 1)


def test_the_kernel_alone_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(copies, "_open_uevents", lambda: Netlink(fileno=ours.detach()))
    told: list[float] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_generation, lambda: told.append(trio.current_time()))
            for message in (b"\x07" + UEVENT, b"\0add@/devices/x\0ACTION=add\0", b"\0" + UEVENT):
                theirs.send(message)
                await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()

    with theirs:
        trio.run(main)
    assert len(told) == 1


@pytest.mark.parametrize("lasting", [errno.ENODEV, errno.ENOTCONN])
def test_a_watch_that_meets_an_error_that_lasts_ends_and_does_not_spin(monkeypatch: pytest.MonkeyPatch, lasting: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    errors = [errno.ENOBUFS, lasting]

    class Broken(Netlink):
        def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, tuple[int, int]]:
            if errors:
                raise OSError(errors.pop(0), "")
            pytest.fail("it went on after an error that lasts")

    monkeypatch.setattr(copies, "_open_uevents", lambda: Broken(fileno=ours.detach()))
    with theirs:
        theirs.send(b"\0" + UEVENT)
        trio.run(watch_generation, lambda: None)
    assert not errors


def test_where_nobody_tells_of_generations_the_watch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    trio.run(watch_generation, lambda: None)
