"""What a command says of who comes and goes and of what is opened: with its time, and bounded."""

from __future__ import annotations

import json
import re

import pytest
import trio
from trio.testing import MockClock

from tunnel.cli import render
from tunnel.cli.log import MAX_CHANGES, MAX_COMINGS, Log
from tunnel.cli.render import Output
from tunnel.ports.access import MAX_ACCESSES, WINDOW
from tunnel.shell.events import MemberReport, PathReport, Trouble

UNTIL = "a direct path is still looked for"
RELAYED = PathReport(kind="relay", remote="[2001:db8::5]:24531", rtt_s=0.031, mtu=1200, peer="friend", why=UNTIL)
DIRECT = PathReport(kind="direct", remote="203.0.113.34:4199", rtt_s=0.0221, mtu=1472, why="", peer="friend")
WHEN = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Without the time that each has."""
    found = capsys.readouterr().err.splitlines()
    assert [line for line in found if not WHEN.match(line)] == []
    return [WHEN.sub("", line) for line in found]


async def test_without_a_terminal_who_came_by_which_way_and_why_it_left_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(Output(), is_exposer=True)
    for report in (RELAYED, RELAYED, DIRECT):
        log.tell_path(report)
    log.tell_closed("friend", "the connecting side has ended.")
    log.tell_path(DIRECT)
    assert lines(capsys) == [
        "friend is connected (relay over IPv6, [2001:db8::5]:24531, 31 ms, a direct path is still looked for).",
        "The path to 'friend' is now direct over IPv4, 203.0.113.34:4199, 22 ms.",
        "friend has left.",
        "friend is connected (direct over IPv4, 203.0.113.34:4199, 22 ms).",
    ]


@pytest.mark.parametrize("is_exposer", [True, False])
async def test_what_is_opened_is_said_with_its_bytes_and_how_long_it_was_open(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, is_exposer: bool
) -> None:
    log = Log(Output(), is_exposer=is_exposer)
    access = log.accesses.access("friend", "tcp/22")
    access.opened()
    access.sent, access.received = 1_234_567, 3_000
    await trio.sleep(185)
    access.closed()
    quick = log.accesses.access("friend", "udp/53")
    quick.opened()
    await trio.sleep(0.25)
    quick.closed()
    if is_exposer:
        assert lines(capsys) == [
            "friend opened tcp/22.",
            "tcp/22 for friend closed after 3 min: 1.2 MB sent, 3.0 kB received.",
            "friend opened udp/53.",
            "udp/53 for friend closed after 0.2 s: 0 B sent, 0 B received.",
        ]
    else:
        assert lines(capsys)[:2] == [
            "tcp/22 of friend opened.",
            "tcp/22 of friend closed after 3 min: 1.2 MB sent, 3.0 kB received.",
        ]


async def test_a_peer_that_comes_and_goes_all_the_time_fills_no_log(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    output = Output()
    log = Log(output, is_exposer=True)
    async with output.live(list), trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(1_000):
            log.tell_path(RELAYED)
            log.tell_path(DIRECT)
            log.tell_closed("friend", "the connecting side has ended")
        for _ in range(1_000):
            for code in ("peer_silent", "peer_back"):
                output._last = ""  # as if something else were said in between
                log.tell_trouble(Trouble(code=code, message=f"{code}."))
        assert len(lines(capsys)) == 3 * MAX_COMINGS
        await trio.sleep(WINDOW + 1)
        assert lines(capsys) == [
            "friend connected 993 more times, ended 994 more times, changed its path 993 more times within a minute.",
            "peer_silent. That came 980 more times within a minute.",
            "peer_back. That came 980 more times within a minute.",
        ]
        nursery.cancel_scope.cancel()


async def test_a_flood_of_connections_is_a_sum_in_the_log_and_in_json(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    for is_json in (False, True):
        log = Log(Output(is_json=is_json), is_exposer=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(500):
                access = log.accesses.access("friend", "tcp/80")
                access.opened()
                access.sent = 1_000
                access.closed()
            await trio.sleep(WINDOW + 1)
            nursery.cancel_scope.cancel()
        if is_json:
            shown = capsys.readouterr()
            events = [json.loads(line) for line in shown.out.splitlines()]  # the fixture compares each with docs/json.md
            assert shown.err == ""
            assert len(events) == MAX_ACCESSES + 1
            assert events[-1].items() >= {"event": "connections", "opened": 440, "closed": 440, "sent_bytes": 440_000}.items()
        else:
            said = lines(capsys)
            assert len(said) == MAX_ACCESSES + 1
            assert said[-1] == "Of friend, 440 more connections opened within a minute and 440 closed: 440 kB sent, 0 B received."


async def test_below_a_live_status_only_who_comes_and_goes_is_said_and_in_the_background_everything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output()
    output.is_live = True
    log = Log(output)
    is_in_front = True
    monkeypatch.setattr(render, "is_in_front", lambda: is_in_front)

    def happen() -> list[str]:
        log.tell_path(RELAYED, is_awaited=True)
        log.tell_path(DIRECT)
        access = log.accesses.access("friend", "tcp/22")
        access.opened()
        log.tell_closed("friend", "done")
        return lines(capsys)

    assert happen() == ["The link to 'friend' has ended: done."]
    is_in_front = False
    assert [line.partition(" (")[0] for line in happen()] == [
        "friend is connected",
        "The path to 'friend' is now direct over IPv4, 203.0.113.34:4199, 22 ms.",
        "tcp/22 of friend opened.",
        "The link to 'friend' has ended: done.",
    ]


async def test_members_of_a_room_come_and_leave_by_name_below_the_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    def report(state: str, kind: str | None = None) -> MemberReport:
        return MemberReport(peer="ben", address="10.1.2.2", ipv6="fd00::2", state=state, kind=kind)

    output = Output()
    output.is_live = True
    log = Log(output)
    for each in (report("offline"), report("online"), report("online", "relay"), report("online", "direct"), report("offline")):
        log.tell_member(each)
    assert lines(capsys) == ["ben came (10.1.2.2).", "ben left."]


async def test_a_creator_that_puts_new_names_into_its_room_all_the_time_fills_no_log(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    output = Output()
    log = Log(output)
    async with output.live(list), trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1_000):
            for state in ("offline", "removed"):
                log.tell_member(MemberReport(peer=f"ben-{number}", address="10.1.2.2", ipv6="fd00::2", state=state, kind=None))
        said = lines(capsys)
        assert said[0] == "ben-0 is no longer in the room."
        assert len(said) == MAX_CHANGES
        await trio.sleep(WINDOW + 1)
        assert lines(capsys) == [f"The members of the room changed {1_000 - MAX_CHANGES} more times within a minute."]
        nursery.cancel_scope.cancel()


async def test_peers_that_cause_warnings_in_turns_fill_no_log(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    """None of them is what was said last, so each would be said again."""
    output = Output()
    log = Log(output, is_exposer=True)
    async with output.live(list), trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(1_000):
            for name in ("ada", "ben"):
                text = f"{name} and this side ask for opposite paths (direct and relay): change --path on one of them."
                log.tell_trouble(Trouble(code="path_policy", message=text))
        assert len(lines(capsys)) == 2 * MAX_COMINGS
        await trio.sleep(WINDOW + 1)
        assert [line.partition("them. ")[2] for line in lines(capsys)] == ["That came 980 more times within a minute."] * 2
        nursery.cancel_scope.cancel()
