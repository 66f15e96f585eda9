"""What a service manager hears of us (sd_notify(3)), and how its watchdog is fed."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.twins.notify import Manager
from tunnel.host.notify import MAX_STATUS, PATIENCE, SHORTEST_SIGN, SIGNS_PER_PATIENCE, ServiceManager

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="systemd's protocol is by Unix sockets")


def test_the_manager_hears_ready_reloading_and_stopping() -> None:
    with Manager() as manager:
        ours = ServiceManager.take(dict(manager.variables))
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        ours.ready("Serving on udp 0.0.0.0:24531")
        ours.reloading()
        ours.ready()
        ours.tell("3 peers")
        ours.stopping()
        heard = manager.waiting()
        assert ours
        assert not ours.drops
    assert heard[0] == {"READY": "1", "STATUS": "Serving on udp 0.0.0.0:24531"}
    assert heard[1].pop("RELOADING") == "1"
    assert before <= int(heard[1].pop("MONOTONIC_USEC")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert heard[1:] == [{}, {"READY": "1"}, {"STATUS": "3 peers"}, {"STOPPING": "1"}]


def test_a_manager_in_the_abstract_names_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(f"\0ptunnel-test-{time.monotonic_ns()}")
        door.settimeout(5)
        ServiceManager.take({"NOTIFY_SOCKET": "@" + door.getsockname()[1:].decode()}).stopping()
        assert door.recv(100) == b"STOPPING=1"


def test_a_status_is_one_line_that_begins_no_other_field() -> None:
    with Manager() as manager:
        ours = ServiceManager.take(dict(manager.variables))
        ours.tell("ben\nREADY=1 " + "x" * MAX_STATUS)
        assert manager.next() == {"STATUS": ("ben READY=1 " + "x" * MAX_STATUS)[:MAX_STATUS]}


@pytest.mark.parametrize("path", [None, "", "/", "@", "relative", "vsock:2:1234"])
def test_without_a_manager_nothing_is_said_and_nothing_fails(path: str | None) -> None:
    ours = ServiceManager(path)
    ours.ready()
    ours.stopping()
    assert not ours
    assert not ours.drops


def test_a_manager_that_has_gone_is_counted_and_ends_nothing(tmp_path: Path) -> None:
    ours = ServiceManager(str(tmp_path / "gone"))
    ours.ready()
    assert ours.drops == {"FileNotFoundError": 1}


def test_a_manager_whose_queue_is_full_is_waited_for_a_moment_and_a_sign_of_life_not_at_all() -> None:
    with Manager() as manager:
        ours = ServiceManager(manager.variables["NOTIFY_SOCKET"])
        while not ours.drops:
            ours.tell("busy")  # does not wait
        assert ours.drops == {"BlockingIOError": 1}
        started = time.monotonic()
        ours.ready()
        assert time.monotonic() - started >= PATIENCE * 0.9
        assert ours.drops == {"BlockingIOError": 1, "TimeoutError": 1}
        manager.waiting()
        ours.ready()
        assert manager.next() == {"READY": "1"}


def test_the_variables_are_taken_out_so_that_no_program_that_we_start_speaks_for_us() -> None:
    environment = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "7", "PATH": "/bin"}
    ours = ServiceManager.take(environment, pid=7)
    assert environment == {"PATH": "/bin"}
    assert ours.sign_every == 1 / SIGNS_PER_PATIENCE


@pytest.mark.parametrize(
    ("variables", "every"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({"WATCHDOG_USEC": "1"}, SHORTEST_SIGN),
        ({}, None),
    ],
)
def test_the_watchdog_gets_a_sign_twice_in_the_time_that_it_allows(variables: dict[str, str], every: float | None) -> None:
    assert ServiceManager.take({"NOTIFY_SOCKET": "/run/n", **variables}, pid=7).sign_every == every
    assert ServiceManager.take(dict(variables), pid=7).sign_every is None, "nobody to give it to"


async def test_signs_of_life_stop_when_all_is_not_well(autojump_clock: trio.testing.MockClock) -> None:
    with Manager(watchdog_s=10) as manager:
        ours = ServiceManager.take(dict(manager.variables))
        is_well = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.keep_alive, lambda: is_well)
            await trio.sleep(21)
            assert manager.waiting() == [{"WATCHDOG": "1"}] * 5, "at 0, 5, 10, 15 and 20 seconds"
            is_well = False
            await trio.sleep(60)
            assert manager.waiting() == []
            nursery.cancel_scope.cancel()


async def test_where_nobody_waits_for_signs_of_life_none_are_given() -> None:
    with trio.fail_after(5):
        await ServiceManager.take({}).keep_alive()
